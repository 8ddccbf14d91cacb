"""Measure `map` against the same calls one by one, and against what redis-py does in one pipeline.

    python tests/bench/fan_out.py [--rounds N] [--calls N]

It runs its own Redis, one worker process, and one bare worker that answers each LPUSH. The
pipeline holds all pairs at once: N times LPUSH, then N times BLPOP. Each round measures every
contender, in turn, so that a noisy machine is noisy for all; the ratios are medians over the
rounds.
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
def echo(a):
    return a
@bus.register(cache_key="{a}")
def cached(a):
    return a
bus.serve()
"""
BARE_WORKER = """
import os, redis
client = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])
while True:
    client.lpush("bench:reply", client.blpop("bench:request")[1])
"""
PIPELINE = "redis-py, LPUSH and BLPOP in one pipeline"
MAP, ONE_BY_ONE = "map, uncached", "calls one by one, uncached"
HITS, HITS_ONE_BY_ONE = "map, cached hits", "calls one by one, cached hits"


@contextlib.contextmanager
def process(code: str, url: str) -> Iterator[None]:
    env = {**os.environ, "REDIS_BUS_URL": url}
    child = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def timed(function: Callable[[], object], calls: int) -> float:
    """Return how long it took for each call, in us."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e6 / calls


def measure(url: str, rounds: int, calls: int) -> None:
    client = redis.Redis.from_url(url)
    bus = Bus("bench", url=url)
    numbers = range(calls)

    def pipeline() -> None:
        pipe = client.pipeline(transaction=False)
        for number in numbers:
            pipe.lpush("bench:request", number)
        for _ in numbers:
            pipe.blpop(["bench:reply"])
        assert len(pipe.execute()) == 2 * calls

    contenders: dict[str, Callable[[], object]] = {
        PIPELINE: pipeline,
        MAP: lambda: list(bus.echo.map(numbers)),
        ONE_BY_ONE: lambda: [bus.echo(number) for number in numbers],
        HITS: lambda: list(bus.cached.map(numbers)),
        HITS_ONE_BY_ONE: lambda: [bus.cached(number) for number in numbers],
    }
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    with process(WORKER, url), process(BARE_WORKER, url):
        while not {"echo", "cached"} <= set(bus.all_methods()):
            time.sleep(0.01)
        for function in contenders.values():
            function()
        for _ in range(rounds):
            for name, function in contenders.items():
                spent[name].append(timed(function, calls))
    report(spent)


def report(spent: dict[str, list[float]]) -> None:
    for name, values in spent.items():
        print(f"{name:44} {statistics.median(values):8.1f} us a call")
    for ours, theirs in ((MAP, ONE_BY_ONE), (MAP, PIPELINE), (HITS, HITS_ONE_BY_ONE)):
        ratios = [a / b for a, b in zip(spent[ours], spent[theirs], strict=True)]
        print(
            f"{ours} / {theirs}: {statistics.median(ratios):.2f} "
            f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=1000, help="calls a round")
    options = parser.parse_args()
    with EmbeddedRedis() as server:
        measure(server.url, options.rounds, options.calls)


if __name__ == "__main__":
    main()
