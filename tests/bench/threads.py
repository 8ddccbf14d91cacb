"""Measure calls of many threads on one `Bus` against bare LPUSH/BLPOP pairs of as many threads.

    python tests/bench/threads.py [--rounds N] [--seconds S] [--threads N,N,...]

It runs its own Redis, a worker process with ``-c 1``, one with ``-c 8``, and one bare worker that
answers the pairs. The threads of a line share one `Bus`, or one `redis.Redis`. Each line of each
round is a calling process of its own, so that its connections (of CLIENT LIST) and its memory are
those of this line alone; both are looked at in the midst of it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis
from side_by_side import (
    BARE_WORKER,
    BUS,
    REQUEST,
    connections,
    processes,
    ratio,
    resident_mb,
    wait_for_workers,
    worker,
)

from redis_bus import Bus
from redis_bus.bench.bare import pair
from redis_bus.bench.meter import rate_of_threads
from redis_bus.bench.names import PAIR as PAIR_KIND
from redis_bus.bench.names import reply_list
from redis_bus.embedded import EmbeddedRedis

NAME = "bench-caller"
PAIR = "LPUSH/BLPOP pair"
# By the prefix under which each worker process serves.
CONCURRENCY = {"one_": 1, "eight_": 8}
KINDS = {PAIR: "", **{f"call, -c {count}": prefix for prefix, count in CONCURRENCY.items()}}


@dataclass(frozen=True)
class Line:
    """What one calling process saw: calls a second, connections, MiB."""

    rate: float
    connections: int
    resident_mb: float


@contextlib.contextmanager
def contender(kind: str, url: str) -> Iterator[Callable[[int], Callable[[], object]]]:
    """Give what makes, for the number of a thread, what that thread calls."""
    if kind == PAIR:
        with redis.Redis.from_url(url, client_name=NAME) as client:
            yield lambda number: pair(client, REQUEST, reply_list(BUS, PAIR_KIND, number))
        return
    with Bus(BUS, url=url, client_name=NAME) as bus:
        method = bus[f"{KINDS[kind]}echo"]
        yield lambda number: lambda: method(1, 2)


def measure(kind: str, threads: int, seconds: float, url: str) -> Line:
    """Call with so many threads for so long, after as long a warm-up."""
    seen: list[tuple[int, float]] = []
    with contender(kind, url) as call_of, redis.Redis.from_url(url) as client:
        calls = [call_of(number) for number in range(threads)]

        def look() -> None:
            seen.append((connections(client.client_list(), NAME), resident_mb()))

        rate = rate_of_threads(calls, seconds, warm_up=seconds, amid=look)
    return Line(rate, *seen[0])


def rounds(url: str, count: int, seconds: float, threads: list[int]) -> dict[str, list[Line]]:
    """Measure every contender in each round, each in a process of its own."""
    lines: dict[str, list[Line]] = {}
    # Not forked: a fork would begin with the memory of this process.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        for _ in range(count):
            for number in threads:
                for kind in KINDS:
                    line = fresh.apply(measure, (kind, number, seconds, url))
                    lines.setdefault(title(kind, number), []).append(line)
    return lines


def title(kind: str, threads: int) -> str:
    return f"{threads:>3} {'thread, ' if threads == 1 else 'threads,'} {kind}"


def report(lines: dict[str, list[Line]], threads: list[int]) -> None:
    for number in threads:
        pair = [line.rate for line in lines[title(PAIR, number)]]
        for kind in KINDS:
            name = title(kind, number)
            rates = [line.rate for line in lines[name]]
            median, spread = ratio(rates, pair)
            used = statistics.median(line.connections for line in lines[name])
            memory = statistics.median(line.resident_mb for line in lines[name])
            compared = "" if kind == PAIR else f"{median:.2f} x the pair ({spread})"
            print(
                f"{name:29} {statistics.median(rates):>6,.0f} calls/s  "
                f"{used:>3.0f} connections {memory:>4.0f} MiB  {compared}".rstrip()
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each line in a round")
    parser.add_argument("--threads", default="1,8,64", help="how many, in turn")
    options = parser.parse_args()
    threads = [int(number) for number in options.threads.split(",")]
    codes = [worker(prefix, count) for prefix, count in CONCURRENCY.items()]
    with EmbeddedRedis() as server, processes(*codes, BARE_WORKER, url=server.url) as children:
        wait_for_workers(server.url, children, *(f"{prefix}echo" for prefix in CONCURRENCY))
        report(rounds(server.url, options.rounds, options.seconds, threads), threads)


if __name__ == "__main__":
    main()
