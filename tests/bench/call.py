"""Measure a call against what it is made of, side by side in one run.

    python tests/bench/call.py [--url URL] [--rounds N] [--calls N]

One caller, one worker process each. Every round measures each contender for a short while, in
turn, so that a noisy machine is noisy for all; the figures are medians over all calls, and the
ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import redis

from redis_bus import Bus
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


@contextlib.contextmanager
def process(code: str, url: str) -> Iterator[None]:
    env = {**os.environ, "REDIS_BUS_URL": url}
    child = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def timed(function: Callable[[], object], calls: int) -> list[float]:
    """Return how long each call took, in us."""
    spent = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        spent.append((time.perf_counter() - start) * 1e6)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a Redis to use; by default a private one")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=400, help="calls a round")
    options = parser.parse_args()
    if options.url:
        measure(options.url, options.rounds, options.calls)
        return
    with EmbeddedRedis() as server:
        measure(server.url, options.rounds, options.calls)


def measure(url: str, rounds: int, calls: int) -> None:
    client = redis.Redis.from_url(url)
    bus = Bus("bench", url=url)
    with process(WORKER, url), process(BARE_WORKER, url):
        while "echo" not in bus.all_methods() or "cached" not in bus.all_methods():
            time.sleep(0.01)
        bus.echo(1, 2)
        bus.cached(1, 2)
        cached_bytes = b"1700000000000000 0\nm\x03"
        client.set("bench:value", cached_bytes)

        def bare() -> object:
            client.lpush("bench:request", b"1,2")
            return client.blpop(["bench:reply"])

        contenders: dict[str, Callable[[], object]] = {
            "redis-py LPUSH/BLPOP pair": bare,
            "uncached call": lambda: bus.echo(1, 2),
            "Redis.get": lambda: client.get("bench:value"),
            "cached hit": lambda: bus.cached(1, 2),
        }
        medians: dict[str, list[float]] = {name: [] for name in contenders}
        for function in contenders.values():
            timed(function, calls // 4)
        for _ in range(rounds):
            for name, function in contenders.items():
                medians[name].append(statistics.median(timed(function, calls)))
    report(medians)
    bus.cleanup()
    client.delete("bench:value", "bench:request", "bench:reply")


def report(medians: dict[str, list[float]]) -> None:
    for name, values in medians.items():
        print(f"{name:28} {statistics.median(values):8.1f} us")
    for ours, theirs in (
        ("uncached call", "redis-py LPUSH/BLPOP pair"),
        ("cached hit", "Redis.get"),
    ):
        ratios = [a / b for a, b in zip(medians[ours], medians[theirs], strict=True)]
        print(
            f"{ours} / {theirs}: {statistics.median(ratios):.2f} "
            f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
