"""Measure calls of `AsyncBus`, 1, 32 and 1,000 in flight, against a bare LPUSH/BLPOP pair.

    python tests/bench/async_call.py [--rounds N] [--seconds S] [--uvloop]

It runs its own Redis, two worker processes, and one bare worker that answers the pair, which
redis.asyncio makes one at a time. Each round measures every contender for a short while, in turn,
so that a noisy machine is noisy for all; figures and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import redis.asyncio as aioredis

from redis_bus import AsyncBus, Bus
from redis_bus.embedded import EmbeddedRedis

WORKER = """
import redis_bus
bus = redis_bus.Bus("bench")
@bus.register()
def echo(a, b):
    return a + b
@bus.register(cache_key="{a}/{b}")
def cached(a, b):
    return a + b
bus.serve()
"""
# The least that a request and a reply over Redis take with redis-py, on both sides.
BARE_WORKER = """
import os, redis
client = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])
while True:
    client.lpush("bench:reply", client.blpop("bench:request")[1])
"""
WORKERS = 2
IN_FLIGHT = (1, 32, 1000)
NAME = "bench-caller"
PAIR = "redis.asyncio LPUSH/BLPOP, 1 in flight"


@contextlib.contextmanager
def processes(*codes: str, url: str) -> Iterator[None]:
    env = {**os.environ, "REDIS_BUS_URL": url}
    children = [subprocess.Popen([sys.executable, "-c", code], env=env) for code in codes]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()


async def rate(call: Callable[[], Awaitable[object]], in_flight: int, seconds: float) -> float:
    """Return how many calls a second come back, with so many on their way all the time."""
    end, done = time.perf_counter() + seconds, 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return done / (time.perf_counter() - started)


def resident_mb() -> float:
    """Return how much memory this process has resident now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def connections(client: aioredis.Redis) -> int:
    return sum(one["name"] == NAME for one in await client.client_list())


async def measure(url: str, rounds: int, seconds: float) -> None:
    client = aioredis.Redis.from_url(url)
    rates: dict[str, list[float]] = {}
    about: dict[str, str] = {}
    async with client, AsyncBus("bench", url=url, client_name=NAME) as bus:

        async def bare() -> None:
            await client.lpush("bench:request", b"1,2")
            await client.blpop(["bench:reply"])

        def echo() -> Awaitable[object]:
            return bus.echo(1, 2)

        def cached() -> Awaitable[object]:
            return bus.cached(1, 2)

        contenders: list[tuple[str, Callable[[], Awaitable[object]], int]] = [(PAIR, bare, 1)]
        for count in IN_FLIGHT:
            contenders.append((f"call, {count:,} in flight", echo, count))
        contenders.append(("cached hit, 32 in flight", cached, 32))
        for _, call, count in contenders:
            await rate(call, count, seconds / 4)
        for _ in range(rounds):
            for name, call, count in contenders:
                rates.setdefault(name, []).append(await rate(call, count, seconds))
                used = f"{await connections(client)} connections, {resident_mb():.0f} MiB"
                about[name] = "" if name == PAIR else used
    report(rates, about)


def report(rates: dict[str, list[float]], about: dict[str, str]) -> None:
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[PAIR], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} x the pair"
        spread = f"rounds {min(ratios):.2f} to {max(ratios):.2f}"
        rate = f"{statistics.median(values):,.0f}"
        print(f"{name:38} {rate:>6} calls/s, {ratio:>16} ({spread})  {about[name]}")


def wait_for_workers(url: str) -> None:
    with Bus("bench", url=url) as bus:
        while bus.stats().get("echo", {}).get("workers", 0) < WORKERS:
            time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contender in a round")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    with (
        EmbeddedRedis() as server,
        processes(*[WORKER] * WORKERS, BARE_WORKER, url=server.url),
    ):
        wait_for_workers(server.url)
        work = measure(server.url, options.rounds, options.seconds)
        if options.uvloop:
            import uvloop

            uvloop.run(work)
        else:
            asyncio.run(work)


if __name__ == "__main__":
    main()
