"""Meter: how long calls take, how many come back in a second, and ratios of rounds that took turns.

Each round measures every contender for a short while, in turn, so that a noisy machine is noisy for
all. What is compared is compared within a round; figures and ratios are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

Call = Callable[[], object]


def timed(call: Call, seconds: float) -> list[float]:
    """Call again and again for so long; return how long each call took, in us."""
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        if start >= end and spent:
            return spent
        call()
        spent.append((time.perf_counter() - start) * 1e6)


async def rate(call: Callable[[], Awaitable[object]], in_flight: int, seconds: float) -> float:
    """Return how many calls a second come back, with so many on their way all the time."""
    end, done = time.perf_counter() + seconds, 0

    async def caller() -> None:
        nonlocal done
        while True:
            await call()
            done += 1
            if time.perf_counter() >= end:
                return

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return done / (time.perf_counter() - started)


def rate_of_threads(
    calls: Sequence[Call],
    seconds: float,
    *,
    warm_up: float,
    amid: Callable[[], None] | None = None,
) -> float:
    """Return how many calls a second come back to threads, each of which makes one of the calls.

    ``amid`` is called in the middle of it. Raises what the first call raised that failed.
    """
    done = [0] * len(calls)
    begin = time.perf_counter() + warm_up
    end = begin + seconds
    failures: list[BaseException] = []

    def run(number: int, call: Call) -> None:
        try:
            while (now := time.perf_counter()) < end:
                call()
                done[number] += now >= begin
        except BaseException as error:  # noqa: BLE001 - it ends the measurement, below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n, call)) for n, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    if amid is not None:
        time.sleep(max(0, (begin + end) / 2 - time.perf_counter()))
        amid()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    if failures:
        raise failures[0]
    return sum(done) / took


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the ratios of each round, the least and the most of them."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(found), min(found), max(found)
