"""What the client processes share: the loops that measure, and the lines they are told and say.

A client says ``{"ready": true}`` once a first call came back. Then it reads ``seq SECONDS`` or
``many SECONDS`` from its stdin, measures for so long, and answers each with a line of JSON. It ends
with its stdin. The functions take 1 and 2, and every answer is looked at.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager

CALLERS = 32
# How long the first call is tried: its worker may just be starting.
READY_SECONDS = 20.0
# How long one call may take; each client gives it to its tool, where that takes one.
CALL_SECONDS = 5
# How often a result is looked for by tools that poll for it, with one caller and with many: what
# was best of 0.5 to 10 ms. Many that look each millisecond mostly take time from their worker.
POLL_SECONDS = {"seq": 0.001, "many": 0.01}
# What share of the time is spent on calls before those that count.
WARM_UP = 0.15
FEWEST = 3

Call = Callable[[], object]
AsyncCall = Callable[[], Awaitable[object]]


_measured = "seq"


def poll_seconds() -> float:
    return POLL_SECONDS[_measured]


def check(answer: object) -> None:
    """Raise ValueError unless this is what ``add(1, 2)`` returns."""
    if answer != 3:
        raise ValueError(f"add(1, 2) returned {answer!r}")


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def commands() -> Iterator[tuple[str, float]]:
    """Yield what is asked for, until stdin ends."""
    global _measured
    while line := sys.stdin.readline():
        _measured, seconds = line.split()
        yield _measured, float(seconds)


def microseconds(took: list[float]) -> dict[str, float]:
    return {"figure": statistics.median(took) * 1e6, "calls": len(took)}


def per_second(done: int, seconds: float) -> dict[str, float]:
    return {"figure": done / seconds, "calls": done}


# -- clients that block -----------------------------------------------------------------------


def serve(make: Callable[[], Call]) -> None:
    """Measure what ``make`` returns; it is called once in each thread that calls."""
    mine = threading.local()
    start = threading.Barrier(CALLERS)

    def call_of_this_thread() -> Call:
        if not hasattr(mine, "call"):
            mine.call = make()
        call: Call = mine.call
        return call

    def sequential(seconds: float) -> list[float]:
        call = call_of_this_thread()
        took: list[float] = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end or len(took) < FEWEST:
            check(call())
            took.append(time.perf_counter() - began)
        return took

    def caller(seconds: float) -> int:
        call, done = call_of_this_thread(), 0
        start.wait(CALL_SECONDS)  # so that each of these runs in a thread of its own
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            check(call())
            done += 1
        return done

    def many(seconds: float) -> dict[str, float]:
        began = time.perf_counter()
        done = sum(threads.map(caller, [seconds] * CALLERS))
        return per_second(done, time.perf_counter() - began)

    _until_ready(lambda: check(call_of_this_thread()()))
    say(ready=True)
    with ThreadPoolExecutor(CALLERS) as threads:
        for kind, seconds in commands():
            if kind == "seq":
                sequential(seconds * WARM_UP)
                say(**microseconds(sequential(seconds)))
            else:
                many(seconds * WARM_UP)
                say(**many(seconds))


def _until_ready(attempt: Callable[[], None]) -> None:
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            return attempt()
        except Exception:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


# -- clients on asyncio -----------------------------------------------------------------------


def serve_async(connected: Callable[[], AbstractAsyncContextManager[AsyncCall]]) -> None:
    """Measure what this gives once entered, in tasks of one event loop."""
    asyncio.run(_serve_async(connected))


async def _serve_async(connected: Callable[[], AbstractAsyncContextManager[AsyncCall]]) -> None:
    async with connected() as call:

        async def checked() -> None:
            check(await asyncio.wait_for(call(), CALL_SECONDS / 2))

        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                await checked()
                break
            except Exception:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.1)
        say(ready=True)
        asked = commands()
        while command := await asyncio.to_thread(next, asked, None):
            kind, seconds = command
            if kind == "seq":
                await _sequential(call, seconds * WARM_UP)
                say(**microseconds(await _sequential(call, seconds)))
            else:
                await _many(call, seconds * WARM_UP)
                say(**await _many(call, seconds))


async def _sequential(call: AsyncCall, seconds: float) -> list[float]:
    took: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end or len(took) < FEWEST:
        check(await call())
        took.append(time.perf_counter() - began)
    return took


async def _many(call: AsyncCall, seconds: float) -> dict[str, float]:
    began = time.perf_counter()
    end, done = began + seconds, 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            check(await call())
            done += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return per_second(done, time.perf_counter() - began)
