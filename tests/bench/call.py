"""Measure a call against what it is made of, side by side in one run.

    python tests/bench/call.py [--url URL] [--rounds N] [--seconds S]

One caller, one worker process each. Every round measures each contender for a short while, in
turn, so that a noisy machine is noisy for all; the figures are medians over all calls, and the
ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import redis
from side_by_side import (
    BARE_WORKER,
    BUS,
    REPLY,
    REQUEST,
    processes,
    ratio,
    wait_for_workers,
    worker,
)

from redis_bus import Bus
from redis_bus.bench.bare import pair
from redis_bus.bench.meter import timed
from redis_bus.embedded import EmbeddedRedis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a Redis to use; by default a private one")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each contender in a round")
    options = parser.parse_args()
    if options.url:
        measure(options.url, options.rounds, options.seconds)
        return
    with EmbeddedRedis() as server:
        measure(server.url, options.rounds, options.seconds)


def measure(url: str, rounds: int, seconds: float) -> None:
    client = redis.Redis.from_url(url)
    bus = Bus(BUS, url=url)
    with processes(worker(), BARE_WORKER, url=url) as children:
        wait_for_workers(url, children, "echo", "cached")
        bus.echo(1, 2)
        bus.cached(1, 2)
        cached_bytes = b"1700000000000000 0\nm\x03"
        client.set("bench:value", cached_bytes)
        contenders: dict[str, Callable[[], object]] = {
            "redis-py LPUSH/BLPOP pair": pair(client, REQUEST, REPLY),
            "uncached call": lambda: bus.echo(1, 2),
            "Redis.get": lambda: client.get("bench:value"),
            "cached hit": lambda: bus.cached(1, 2),
        }
        medians: dict[str, list[float]] = {name: [] for name in contenders}
        for function in contenders.values():
            timed(function, seconds / 4)
        for _ in range(rounds):
            for name, function in contenders.items():
                medians[name].append(statistics.median(timed(function, seconds)))
    report(medians)
    bus.cleanup()
    client.delete("bench:value")


def report(medians: dict[str, list[float]]) -> None:
    for name, values in medians.items():
        print(f"{name:28} {statistics.median(values):8.1f} us")
    for ours, theirs in (
        ("uncached call", "redis-py LPUSH/BLPOP pair"),
        ("cached hit", "Redis.get"),
    ):
        median, spread = ratio(medians[ours], medians[theirs])
        print(f"{ours} / {theirs}: {median:.2f} ({spread})")


if __name__ == "__main__":
    main()
