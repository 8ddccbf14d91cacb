"""Bench: what a bus costs on a Redis, beside what the same takes with that Redis alone.

It runs on a bus of its own, with workers of its own, and leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from ..async_bus import AsyncBus
from ..bus import Bus, default_url
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Route, Service
from ..supervisor.signals import EndingSignals
from ..transport.refusals import explain
from . import bare
from . import redis_figures as bench_redis
from . import start as bench_start
from .meter import Call, rate, rate_of_threads, timed
from .names import FLOOR, NAME_VARIABLE, PAIR, reply_list, request_list, value_key
from .owned import OwnedProcess
from .service import ASYNC, PLAIN, register_on
from .start import READY_SECONDS, NotReady

IN_FLIGHT = 32
QUEUED = 500
PAYLOAD = b"x" * 100
# A call that takes longer never comes back, and ctrl-C waits for the end of one.
CALL_SECONDS = 10.0
POLL_SECONDS = 0.01
SETTLE_SECONDS = 1.0
LOST = (redis.ConnectionError, redis.TimeoutError)


class Refused(BusError):
    """Redis refused what a bench needs."""


class Bench:
    """The contenders of a bench, and what was seen of them, a number a round."""

    def __init__(self, url: str | None, seconds: float, signals: EndingSignals) -> None:
        self.url = url or default_url()
        self.seconds = seconds
        self.signals = signals
        self.name = f"bench-{secrets.token_hex(6)}"
        self._settings: dict[str, Any] = {"url": self.url, "timeout": CALL_SECONDS}
        self.bus = Bus(self.name, **self._settings)
        self.seen: dict[str, list[float]] = {}
        self.refused: set[str] = set()  # what Redis does not tell this user
        self.left: dict[str, int | None] = {}
        self.others: int | None = None
        self._stack = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Bench:
        """Start the workers. Raises ConnectionLost where there is no Redis, BusError otherwise."""
        with self._words():
            try:
                self._open()
            except BaseException:
                self._stack.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._words():
            self._stack.close()

    @contextlib.contextmanager
    def _words(self) -> Iterator[None]:
        """Have what redis-py raises as an error of the bus."""
        try:
            yield
        except redis.RedisError as error:
            kind = ConnectionLost if isinstance(error, LOST) else Refused
            address = self.bus._core.transport.address
            raise kind(explain(error, address, connecting=False)) from error

    # -- what it is made of -------------------------------------------------------------------

    def _open(self) -> None:
        enter = self._stack.enter_context
        self._stack.callback(self._loop.close)
        enter(self.bus)
        self.bus._core.transport.exchange(("PING",))
        endpoint = bare.endpoint_of(self.url, self.name)
        self.client = bare.client_of(endpoint)
        self._stack.callback(self.client.connection_pool.disconnect)
        self.others = self._count_others(own=2)
        self.bus.cleanup()  # who may not delete keys is told so before there are any
        self._memory = self._weigh()
        self._stack.callback(self._clean)
        self.registered = register_on(enter(Bus(self.name, **self._settings)))
        self.async_bus = AsyncBus(self.name, **self._settings)
        self.async_client = bare.async_client_of(endpoint)
        self._stack.callback(self._close_async)
        wire = bare.Wire(endpoint)
        self._stack.callback(wire.close)
        self._start_workers()
        self._calls = {
            PAIR: bare.pair(self.client, *self._lists(PAIR)),
            FLOOR: bare.floor(wire, *self._lists(FLOOR)),
            "call": lambda: self.bus.plain_echo(1, 2),
            "get": lambda: self.client.get(value_key(self.name)),
            "hit": lambda: self.bus.plain_cached(1, 2),
        }
        self.bus.plain_cached(1, 2)
        entry = self.client.get(Route(Service(self.name, ""), "plain_cached").cache(b"1/2"))
        assert isinstance(entry, bytes)
        self.client.set(value_key(self.name), entry)

    def _lists(self, kind: str) -> tuple[str, str]:
        return request_list(self.name, kind), reply_list(self.name, kind)

    def _close_async(self) -> None:
        self._loop.run_until_complete(self.async_bus.aclose())
        self._loop.run_until_complete(self.async_client.connection_pool.disconnect())

    def _clean(self) -> None:
        try:
            self.bus.cleanup()
            self.left = {"keys": self.bus.cleanup()}
        except BusError as error:
            how = f"redis-bus cleanup {self.name} deletes them"
            raise Refused(f"keys of the bus {self.name!r} are left; {how}: {error}") from error
        now = self._weigh()
        grown = None if now is None or self._memory is None else now - self._memory
        self.left["used_memory"] = grown

    def _weigh(self) -> int | None:
        """Return the memory of Redis without what our connections take there."""
        self.bus.close()
        self.client.connection_pool.disconnect()
        end = time.monotonic() + SETTLE_SECONDS
        while self._count_others(own=1) != self.others and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return bench_redis.used_memory(self.client)

    def _count_others(self, own: int) -> int | None:
        """Return how many others have a connection; None where Redis does not tell this user."""
        clients = bench_redis.connected(self.client)
        return None if clients is None else clients - own

    # -- its processes ------------------------------------------------------------------------

    def _start_workers(self) -> None:
        workers: list[OwnedProcess] = []
        self._stack.callback(_stop, workers)
        workers.append(self.serve(PLAIN))
        workers.append(self.serve(ASYNC, "--concurrency", str(IN_FLIGHT)))
        for kind in (PAIR, FLOOR):
            workers.append(self._start(["redis_bus.bench.bare", kind]))
        for kind in (PAIR, FLOOR):
            self.client.lpush(*self._lists(kind))
        missing = {"plain_echo", "plain_cached", "async_echo", PAIR, FLOOR}
        end = time.monotonic() + READY_SECONDS
        while missing:
            counted = self.bus.stats()
            missing -= {name for name in missing if counted.get(name, {}).get("workers")}
            bares = missing & {PAIR, FLOOR}
            missing -= {kind for kind in bares if self.client.lpop(self._lists(kind)[1])}
            self.signals.check()
            for worker in workers:
                worker.check()
            if time.monotonic() > end:
                raise NotReady(f"the workers did not serve within {READY_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def serve(self, pattern: str, *options: str) -> OwnedProcess:
        """Start a worker of those methods as people do."""
        line = ["redis_bus", "serve", "--pattern", pattern, *options, "redis_bus.bench.worker.bus"]
        return self._start(line)

    def _start(self, module: list[str]) -> OwnedProcess:
        environment = {NAME_VARIABLE: self.name}
        title = f"the process {' '.join(module)}"
        return OwnedProcess(["-m", *module], title, self.url, Path("/"), environment)

    # -- what is measured ---------------------------------------------------------------------

    def warm_up(self) -> None:
        """Have every connection made, every script loaded, and every module imported."""
        with self._words():
            for call in self._calls.values():
                timed(call, self.seconds / 4)
            self._rates(self.seconds / 4)
        self.seen.clear()

    def round(self) -> None:
        """Measure each contender once."""
        with self._words():
            for name, call in self._calls.items():
                self._time(name, call)
            self._rates(self.seconds)
            self._weigh_jobs()
            self._start_others()

    def _note(self, name: str, value: float | None) -> None:
        self.signals.check()
        if value is None:
            self.refused.add(name)
        else:
            self.seen.setdefault(name, []).append(value)

    def _time(self, name: str, call: Call) -> None:
        """Measure what calls take here and inside Redis, one after the other."""
        took: list[float] = []

        def calls() -> int:
            took.extend(timed(call, self.seconds))
            return len(took)

        only = {PAIR: ("lpush", "blpop"), FLOOR: ("lpush", "blpop"), "get": ("get",)}
        spent = bench_redis.spent(self.client, calls, only.get(name, ()))
        self._note(name, statistics.median(took))
        self._note(f"{name} rate", len(took) / sum(took) * 1e6)
        self._note(f"{name} cpu", None if spent is None else spent.us)
        self._note(f"{name} commands", None if spent is None else spent.commands)

    def _rates(self, seconds: float) -> None:
        """Measure calls that are in flight together."""
        key = value_key(self.name)
        contenders: dict[str, Callable[[], Awaitable[object]]] = {
            "async gets": lambda: self.async_client.get(key),
            "async hits": lambda: self.async_bus.plain_cached(1, 2),
            "async calls": lambda: self.async_bus.async_echo(1, 2),
        }
        for name, call in contenders.items():
            work = rate(call, IN_FLIGHT, seconds)
            self._note(name, self._loop.run_until_complete(work))
        calls = [self._calls["call"]] * IN_FLIGHT
        self._note("threads", rate_of_threads(calls, seconds, warm_up=seconds / 4))

    def _weigh_jobs(self) -> None:
        """Measure the memory of jobs that wait, over their payload, beside that of a bare list."""
        route = Route(Service(self.name, ""), "later")
        ours, theirs = [route.queue, route.wake, route.pending], request_list(self.name, "later")
        for _ in range(QUEUED):
            self.registered.later.run(PAYLOAD)
            self.client.rpush(theirs, PAYLOAD)
        for name, keys in (("job", ours), ("element", [theirs])):
            used = bench_redis.bytes_of(self.client, keys)
            self._note(name, None if used is None else used / QUEUED - len(PAYLOAD))
        self.client.unlink(*ours, theirs)

    def _start_others(self) -> None:
        """Measure starts of processes."""
        self._note("first job", bench_start.first_job_ms(self.registered.first_job, self.serve))
        self._note("python", bench_start.python_ms("import redis"))
        for statement in ("import redis_bus", "from redis_bus import Bus", "import redis"):
            self._note(statement, bench_start.import_ms(statement))


def _stop(workers: list[OwnedProcess]) -> None:
    for worker in workers:
        worker.ask_to_stop()
    for worker in workers:
        worker.wait()
