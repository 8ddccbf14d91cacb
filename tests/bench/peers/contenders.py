"""Who is measured: how each is started, what it needs, and with whom it is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# In the folder of the environment: why those peers that did not install did not.
INSTALLED = "peers.json"
BOTH = ("seq", "many")


def project(need: str) -> str:
    """Return the name of what pip installs, without its extras."""
    return need.partition("[")[0]


@dataclass(frozen=True)
class Contender:
    """``worker`` and ``client``: what Python is started with, in this folder.

    ``needs``: what pip installs, itself first, whose version is shown. ``polls``: its worker burns
    CPU while it waits, and so only runs while it is measured. ``apart``: its newest version does
    not fit in one environment with the others, and so it has one of its own.
    """

    name: str
    group: str
    client: tuple[str, ...]
    worker: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = BOTH
    nats: bool = False
    polls: bool = False
    apart: bool = False

    def environment(self, shared: Path) -> Path:
        """Return the folder of the virtual environment that it runs in."""
        return shared / "apart" / project(self.needs[0]) if self.apart else shared


def peer(
    name: str,
    *needs: str,
    worker: tuple[str, ...] = (),
    nats: bool = False,
    polls: bool = False,
    apart: bool = False,
) -> Contender:
    """A peer, whose two files have its name, and take what stands after a comma as an argument.

    ``worker``: where it brings a command of its own that starts a worker.
    """
    program, *arguments = name.lower().replace("-py", "").split(", ")
    client = (f"{program}_client.py", *arguments)
    worker = worker or (f"{program}_worker.py", *arguments)
    return Contender(name, "peer", client, worker, needs=needs, nats=nats, polls=polls, apart=apart)


REDIS_PY = ("redis", "hiredis")
RAW, PAIR, ASYNC_PAIR = "raw socket pair", "redis-py pair", "redis.asyncio pair"
BUS, ASYNC_BUS = "redis_bus, Bus", "redis_bus, AsyncBus"
GET, ASYNC_GET = "redis-py GET", "redis.asyncio GET"
CACHED, ASYNC_CACHED = "redis_bus, Bus, cached", "redis_bus, AsyncBus, cached"
NATS, PYRO5 = "nats-py", "Pyro5"

BUS_WORKER, ASYNC_BUS_WORKER = ("bus_worker.py",), ("async_bus_worker.py",)
RAW_WORKER, PAIR_WORKER = (("-m", "redis_bus.bench.bare", kind) for kind in ("floor", "pair"))
OURS = ("redis_bus",)
CELERY = ("-m", "celery", "-A", "celery_worker", "worker", "--pool", "solo", "--loglevel", "ERROR")
QUIET_CELERY = ("--without-gossip", "--without-mingle", "--without-heartbeat")
DRAMATIQ = ("-m", "dramatiq", "dramatiq_worker", "--processes", "1", "--threads", "8")
TASKIQ = ("-m", "taskiq", "worker", "taskiq_worker:broker", "--workers", "1")
QUIET_TASKIQ = ("--log-level", "ERROR")
ARQ = ("-m", "arq", "arq_worker.WorkerSettings", "--custom-log-dict", "arq_worker.QUIET")
SAQ = ("-m", "saq", "saq_worker.settings")
HUEY = ("-m", "huey.bin.huey_consumer", "huey_worker.huey", "--workers", "1", "--quiet")

CONTENDERS = (
    Contender(RAW, "floor", ("raw_client.py",), RAW_WORKER),
    Contender(PAIR, "floor", ("pair_client.py",), PAIR_WORKER, REDIS_PY),
    Contender(ASYNC_PAIR, "floor", ("async_pair_client.py",), PAIR_WORKER, REDIS_PY),
    Contender(BUS, "ours", ("bus_client.py", "add"), BUS_WORKER, OURS),
    Contender(ASYNC_BUS, "ours", ("async_bus_client.py", "add"), ASYNC_BUS_WORKER, OURS),
    peer("Celery", "celery[redis]", worker=CELERY + QUIET_CELERY),
    peer("RQ", "rq"),
    peer("dramatiq", "dramatiq[redis]", worker=DRAMATIQ),
    peer("taskiq", "taskiq", "taskiq-redis", worker=TASKIQ + QUIET_TASKIQ),
    peer("FastStream, Redis", "faststream[redis]"),
    # It imports typing_extensions, which it does not ask for.
    peer("SAQ", "saq[redis,hiredis]", "typing-extensions", worker=SAQ, apart=True),
    peer("huey", "huey", worker=HUEY),
    peer("arq", "arq", worker=ARQ, polls=True, apart=True),
    peer(NATS, "nats-py", nats=True),
    peer("FastStream, NATS", "faststream[nats]", nats=True),
    peer(PYRO5, "Pyro5"),
    peer("zerorpc", "zerorpc"),
    Contender(GET, "cached", ("get_client.py",), (), REDIS_PY),
    Contender(CACHED, "cached", ("bus_client.py", "cached"), BUS_WORKER, OURS),
    Contender(ASYNC_GET, "cached", ("async_get_client.py",), (), REDIS_PY),
    Contender(ASYNC_CACHED, "cached", ("async_bus_client.py", "cached"), ASYNC_BUS_WORKER, OURS),
)

# What is not measured at all, and why.
LEFT_OUT = {
    "Nameko": "needs RabbitMQ, and a kombu older than Celery's; zerorpc is in its place",
    "uvloop": "whatever is on asyncio, ours too, runs on asyncio's own loop",
}

# Of one measurement, the ratio of the first to the second.
COMPARED = (
    ("seq", BUS, PAIR),
    ("seq", BUS, RAW),
    ("seq", CACHED, GET),
    ("many", ASYNC_CACHED, ASYNC_GET),
    ("many", ASYNC_BUS, NATS),
    ("many", BUS, PYRO5),
)
