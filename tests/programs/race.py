"""One process of the race in tests/calls/test_clear_race.py: a worker, a caller or a clearer.

The value of a key is a counter in Redis. A clearer advances it, and then clears. Whoever calls
or clears notes it with the server's time, in microseconds: taken before a call or a clear starts,
and again after it returned.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import redis

from redis_bus import Bus

BUS = "race"


@dataclass(frozen=True, slots=True)
class Setting:
    """How a method of the race is cached, in seconds; None: for ever."""

    cache_expire: float | None = None
    stale: float = 0


METHODS = {
    "plain": Setting(),
    "brief": Setting(cache_expire=0.03),
    "stale": Setting(cache_expire=0.02, stale=0.2),
    "unstored": Setting(cache_expire=0),
}
KEYS = range(2)
FAILURES = 0.03  # of all runs
MOST_PINGS = 30  # the work of a run, in round trips
CLEAR_ALL = 0.15  # of all clears


@dataclass(frozen=True, slots=True)
class Call:
    """A call that came back: with a value, or with an exception that carries it."""

    key: str
    start: int
    end: int
    value: int
    run: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Clear:
    """A clear that came back; at its start the counter was advanced to ``value``."""

    key: str
    start: int
    end: int
    value: int
    whole: bool


def counter(key: str) -> str:
    return f"counter:{key}"


def as_us(seconds: int, micros: int) -> int:
    return seconds * 1_000_000 + micros


def now(client: redis.Redis) -> int:
    return as_us(*client.time())


def register(bus: Bus, client: redis.Redis) -> None:
    """Register the methods; a run reads its counter first, and is slow to return it."""
    numbers = iter(range(10**9))

    def make(name: str) -> Callable[[int], list[object]]:
        def compute(number: int) -> list[object]:
            value = int(client.get(counter(f"{name}:{number}")) or 0)
            run = f"{os.getpid()}-{next(numbers)}"
            for _ in range(random.randrange(MOST_PINGS)):
                client.ping()
            if random.random() < FAILURES:
                raise ValueError(value, run)
            return [value, run]

        return compute

    for name, how in METHODS.items():
        bus.register(name, "{number}", cache_expire=how.cache_expire, stale=how.stale)(make(name))


def call(bus: Bus, client: redis.Redis, name: str, number: int) -> Call:
    start, failed = now(client), False
    try:
        value, run = bus[name](number)
    except ValueError as error:
        (value, run), failed = error.args, True
    return Call(f"{name}:{number}", start, now(client), value, run, failed)


def call_some(bus: Bus, client: redis.Redis) -> list[Call | Clear]:
    name, number = random.choice(list(METHODS)), random.choice(KEYS)
    return [call(bus, client, name, number)]


def advance(client: redis.Redis, name: str, numbers: Sequence[int]) -> tuple[list[int], int]:
    """Advance the counters of some keys. Returns what they are now, and when that was."""
    with client.pipeline(transaction=True) as pipe:
        for number in numbers:
            pipe.incr(counter(f"{name}:{number}"))
        *values, (seconds, micros) = pipe.time().execute()
    return values, as_us(seconds, micros)


def clear_some(bus: Bus, client: redis.Redis, *, forgets: float) -> list[Call | Clear]:
    """Advance and clear one key or all of a method, and call at once; then call some more.

    ``forgets``: how often the clear itself is left out, so that the checker has what to find.
    """
    name = random.choice(list(METHODS))
    whole = random.random() < CLEAR_ALL
    numbers = list(KEYS) if whole else [random.choice(KEYS)]
    values, start = advance(client, name, numbers)
    if random.random() < forgets:
        pass
    elif whole:
        bus[name].clear_all_cache()
    else:
        bus[name].clear_cache(numbers[0])
    end = now(client)
    events: list[Call | Clear] = [
        Clear(f"{name}:{number}", start, end, value, whole)
        for number, value in zip(numbers, values, strict=True)
    ]
    events += [call(bus, client, name, number) for number in numbers]
    for _ in range(random.randrange(10)):
        events += call_some(bus, client)
    return events


def read_log(path: Path) -> list[Call | Clear]:
    lines = path.read_text(encoding="utf-8").splitlines()
    kinds: dict[str, type[Call] | type[Clear]] = {"Call": Call, "Clear": Clear}
    return [kinds[kind](**fields) for kind, fields in map(json.loads, lines)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["worker", "caller", "clearer"])
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--forgets", type=float, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--partitions", type=int, default=1)
    args = parser.parse_args()
    client = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])
    bus = Bus(BUS, timeout=60, partitions=args.partitions)
    if args.role == "worker":
        register(bus, client)
        bus.serve()
        return
    events: list[Call | Clear] = []
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        if args.role == "caller":
            events += call_some(bus, client)
        else:
            events += clear_some(bus, client, forgets=args.forgets)
    with args.log.open("w", encoding="utf-8") as file:
        for event in events:
            file.write(json.dumps([type(event).__name__, asdict(event)]) + "\n")


if __name__ == "__main__":
    main()
