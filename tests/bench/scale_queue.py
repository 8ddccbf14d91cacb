"""A queue of a million jobs: what a job takes, and whether a step takes longer for the others.

    python tests/bench/scale.py queue [--jobs N]

Each step is told in us of CPU, many in one write. The jobs are of plain calls, and then of `run`,
whose outcome is kept and which can be cancelled. At the end `cleanup` deletes the long queue, and
as many cached values as ``--values`` says. The slowest command of it is the one that SLOWLOG tells,
and may hold a while in which another process had the core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import redis
from scale_meter import BUS, load_scripts, publish, read, send, spent

from redis_bus import Bus
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import Command, Post, Route
from redis_bus.protocol.entries import Mode

SIZES = (1_000, 10_000, 100_000, 1_000_000)
STEPS = 500
CANCELS = 20
BUDGET_MS = 3_600_000
BODY = b"x" * 100
OUTCOME = b"m\x03"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=SIZES[-1])
    parser.add_argument("--values", type=int, default=200_000, help="cached, before the cleanup")


def run(options: argparse.Namespace) -> None:
    with EmbeddedRedis() as server, Bus(BUS, url=server.url, timeout=None) as bus:
        client = redis.Redis.from_url(server.url, socket_timeout=None)
        load_scripts(client)
        bus.register_method(_later)
        (route,) = publish(bus)
        sizes = sorted({size for size in SIZES if size < options.jobs} | {options.jobs})
        for mode in (Mode.WAIT, Mode.RUN):
            _grow(client, route, mode, sizes)
            if mode is Mode.WAIT:
                client.delete(route.queue, route.wake, route.pending)
        _clean(client, bus, route, options.values)


def _later(value: bytes) -> bytes:
    return value


def _grow(client: redis.Redis, route: Route, mode: Mode, sizes: list[int]) -> None:
    """Enqueue jobs up to each size, and measure there what each step takes."""
    start, made = read(client).memory, 0
    print(f"\nmode {mode.value!r}, {len(BODY)} bytes of arguments in each job")
    for size in sizes:
        used = spent(client, lambda: send(client, _calls(route, mode, made, size)))  # noqa: B023
        call_us, made = used.cpu_us / (size - made), size
        over = (read(client).memory - start) / size - len(BODY)
        line = f"{size:>9,} jobs: call {call_us:5.1f} us, "
        line += f"{over:4.0f} bytes a job over its arguments"
        if mode is Mode.RUN:
            line += f"; cancel {_cancel(client, route, size)}"
        # What is claimed and given back is at the head again: the queue stays as it was.
        post = Post(route.service, "w", [route])
        used = spent(client, lambda: send(client, [post.take([route])] * STEPS))  # noqa: B023
        line += f"; take {used.cpu_us / STEPS:5.1f} us"
        held = [job.decode() for job in client.hkeys(post.running) if isinstance(job, bytes)]
        send(client, (post.release(route, job) for job in held))
        print(line, flush=True)


def _calls(route: Route, mode: Mode, first: int, end: int) -> Iterator[Command]:
    for number in range(first, end):
        yield route.call(_job(number), BODY, mode=mode, budget_ms=BUDGET_MS)


def _job(number: int) -> str:
    return f"job{number:013}"


def _cancel(client: redis.Redis, route: Route, size: int) -> str:
    """Return what it takes to cancel a job at some places of the queue, in us."""
    told = []
    places = {"a tenth": size // 10, "half": size // 2, "the end": size - CANCELS}
    for place, number in places.items():
        jobs = [_job(number + step) for step in range(CANCELS)]
        commands = [route.cancel(job, None, OUTCOME, 1000) for job in jobs]
        used = spent(client, lambda: send(client, commands))  # noqa: B023
        told.append(f"{used.cpu_us / CANCELS:,.0f} us at {place}")
    return ", ".join(told)


def _clean(client: redis.Redis, bus: Bus, route: Route, values: int) -> None:
    before = read(client).memory
    cached: Iterator[Command] = (
        ("SET", route.cache(b"%d/%d" % (n, n)), b"1700000000000000 0\nm\x03", "PX", 86_400_000)
        for n in range(values)
    )
    send(client, cached)
    memory = read(client).memory - before
    print(f"\n{values:,} cached values of a few bytes: {memory / max(1, values):.0f} bytes each")
    client.config_set("slowlog-log-slower-than", 0)
    client.config_set("slowlog-max-len", 100_000)
    client.slowlog_reset()
    deleted: list[int] = []
    used = spent(client, lambda: deleted.append(bus.cleanup()))
    print(f"cleanup of {deleted[0]:,} keys, one of them the queue: {used.cpu_us / 1000:.0f} ms")
    slow = client.slowlog_get(100_000)
    for name in ("SCAN", "UNLINK"):
        took = [one["duration"] for one in slow if one["command"].startswith(name.encode())]
        print(f"  {len(took):,} {name}, the slowest {max(took) / 1000:.2f} ms")
