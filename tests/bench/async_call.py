"""Measure calls of `AsyncBus`, 1, 32 and 1,000 in flight, against a bare LPUSH/BLPOP pair.

    python tests/bench/async_call.py [--rounds N] [--seconds S] [--uvloop]

It runs its own Redis, two worker processes, and one bare worker that answers the pair, which
redis.asyncio makes one at a time. Each round measures every contender for a short while, in turn,
so that a noisy machine is noisy for all; figures and ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Awaitable, Callable

import redis.asyncio as aioredis
from side_by_side import (
    BARE_WORKER,
    BUS,
    REPLY,
    REQUEST,
    connections,
    processes,
    ratio,
    resident_mb,
    wait_for_workers,
    worker,
)

from redis_bus import AsyncBus
from redis_bus.bench.meter import rate
from redis_bus.embedded import EmbeddedRedis

WORKERS = 2
IN_FLIGHT = (1, 32, 1000)
NAME = "bench-caller"
PAIR = "redis.asyncio LPUSH/BLPOP, 1 in flight"


async def measure(url: str, rounds: int, seconds: float) -> None:
    client = aioredis.Redis.from_url(url)
    rates: dict[str, list[float]] = {}
    about: dict[str, str] = {}
    async with client, AsyncBus(BUS, url=url, client_name=NAME) as bus:

        async def bare() -> None:
            await client.lpush(REQUEST, REPLY)
            await client.blpop([REPLY])

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
                open_now = connections(await client.client_list(), NAME)
                used = f"{open_now} connections, {resident_mb():.0f} MiB"
                about[name] = "" if name == PAIR else used
    report(rates, about)


def report(rates: dict[str, list[float]], about: dict[str, str]) -> None:
    for name, values in rates.items():
        median, spread = ratio(values, rates[PAIR])
        compared = f"{median:.2f} x the pair"
        rate = f"{statistics.median(values):,.0f}"
        print(f"{name:38} {rate:>6} calls/s, {compared:>16} ({spread})  {about[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contender in a round")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    with (
        EmbeddedRedis() as server,
        processes(*[worker()] * WORKERS, BARE_WORKER, url=server.url) as children,
    ):
        wait_for_workers(server.url, children, "echo", count=WORKERS)
        work = measure(server.url, options.rounds, options.seconds)
        if options.uvloop:
            import uvloop

            uvloop.run(work)
        else:
            asyncio.run(work)


if __name__ == "__main__":
    main()
