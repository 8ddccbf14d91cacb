"""The service of the soak (see tests/soak.py), and one of its callers.

A run notes that it begins in a file, not in Redis, whose data is a thing that the soak takes away;
a caller notes when a call begins and what came of it. One write for a line: it survives a SIGKILL.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis_bus import Bus, BusError
from redis_bus.errors import Cancelled

BUS = "soak"
FOLDER = "SOAK_FOLDER"
# Methods of which a job runs at most once; its first argument is the only one of its kind.
AT_MOST_ONCE = ("once", "narrow", "fails")
RESULT_EXPIRE = 5.0
PATIENCE_SECONDS = 20.0
SLOWEST_MS = 300
NUMBERS = 12
PAUSE_SECONDS = 0.02
READY = b"this caller calls\n"
# After a failure, so that a Redis that is down is not asked some hundred times a second.
FAILURE_PAUSE_SECONDS = 0.2

bus = Bus(BUS, result_expire=RESULT_EXPIRE, cache_expire=2.0, timeout=PATIENCE_SECONDS)


class Log:
    """A file of lines that holds what this process wrote, however it ends."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *fields: object) -> None:
        os.write(self._file, " ".join(map(str, fields)).encode() + b"\n")


# -- the service --------------------------------------------------------------------------------

_runs: list[Log] = []


def began(method: str, call: str) -> None:
    if not _runs:
        _runs.append(Log(Path(os.environ[FOLDER]) / f"runs-{os.getpid()}"))
    _runs[0].write(method, call)


def answer(call: str) -> str:
    return call[::-1]


def power(number: int) -> bytes:
    """What the cached methods return: some bytes, so that memory that is kept would be seen."""
    return b"%d " % number**number * 100


@bus.register()
def once(call: str, ms: int) -> str:
    began("once", call)
    time.sleep(ms / 1000)
    return answer(call)


@bus.register(max_queue=2)
def narrow(call: str, ms: int) -> str:
    began("narrow", call)
    time.sleep(ms / 1000)
    return answer(call)


@bus.register()
def fails(call: str) -> None:
    began("fails", call)
    raise ValueError(call)


@bus.register(idempotent=True)
def again(call: str, ms: int) -> str:
    began("again", call)
    time.sleep(ms / 1000)
    return answer(call)


@bus.register(cache_key="{number}")
def cached(number: int) -> bytes:
    time.sleep(random.random() * 0.05)
    return power(number)


@bus.register(cache_key="{number}", cache_expire=0.5, stale=1.0)
def refreshed(number: int) -> bytes:
    time.sleep(random.random() * 0.02)
    return power(number)


# -- a caller -----------------------------------------------------------------------------------


class Caller:
    """Makes calls of all kinds; each returns whether the value was right, or raises."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        # Not the module's: what is registered there would be published by its callers, too.
        self._bus = Bus(BUS, timeout=PATIENCE_SECONDS)
        self._methods: dict[str, Any] = {}

    def learn(self, stops: list[int]) -> None:
        """Look the methods up, once they are published and Redis is there."""
        while set(self._methods) != set(bus._core.registrations) and not stops:
            with contextlib.suppress(BusError, KeyError):
                self._methods = {name: self._bus[name] for name in bus._core.registrations}
                return
            time.sleep(FAILURE_PAUSE_SECONDS)

    def method(self, name: str, **options: Any) -> Any:
        return self._methods[name].options(**options)

    def ms(self) -> int:
        """How long a run sleeps: enough of them that a worker that is killed often runs one."""
        return self._rng.choice([0, 0, self._rng.randrange(SLOWEST_MS)])

    def number(self) -> int:
        return min(self._rng.randrange(NUMBERS), self._rng.randrange(NUMBERS))

    def once(self, call: str, timeout: float) -> bool:
        return bool(self.method("once", timeout=timeout)(call, self.ms()) == answer(call))

    def fail_fast(self, call: str, timeout: float) -> bool:
        method = self.method("once", timeout=timeout, fail_fast=True)
        return bool(method(call, self.ms()) == answer(call))

    def narrow(self, call: str, timeout: float) -> bool:
        return bool(self.method("narrow", timeout=timeout)(call, self.ms()) == answer(call))

    def again(self, call: str, timeout: float) -> bool:
        return bool(self.method("again", timeout=timeout)(call, self.ms()) == answer(call))

    def fails(self, call: str, timeout: float) -> bool:
        try:
            self.method("fails", timeout=timeout)(call)
        except ValueError as error:
            return error.args == (call,)
        return False

    def cached(self, call: str, timeout: float) -> bool:
        number = self.number()
        return bool(self.method("cached", timeout=timeout)(number) == power(number))

    def refreshed(self, call: str, timeout: float) -> bool:
        number = self.number()
        return bool(self.method("refreshed", timeout=timeout)(number) == power(number))

    def run(self, call: str, timeout: float) -> bool:
        end = time.monotonic() + timeout
        result = self.method("once").run(call, self.ms())
        return bool(result.get(left(end)) == answer(call))

    def run_cached(self, call: str, timeout: float) -> bool:
        end = time.monotonic() + timeout
        number = self.number()
        return bool(self.method("cached").run(number).get(left(end)) == power(number))

    def run_and_leave(self, call: str, timeout: float) -> bool:
        options = self._rng.choice([{}, {"timeout": self._rng.uniform(0.1, 5.0)}])
        self.method("once", **options).run(call, self.ms())
        return True

    def run_and_cancel(self, call: str, timeout: float) -> bool:
        end = time.monotonic() + timeout
        result = self.method("once").run(call, self.ms())
        if result.cancel():
            raise Cancelled("by its caller")
        return bool(result.get(left(end)) == answer(call))

    def clear(self, call: str, timeout: float) -> bool:
        method = self.method(self._rng.choice(["cached", "refreshed"]))
        if self._rng.random() < 0.2:
            method.clear_all_cache()
        else:
            method.clear_cache(self.number())
        return True


def left(end: float) -> float:
    return max(0.0, end - time.monotonic())


@dataclass(frozen=True, slots=True)
class Kind:
    """How often a call is of that kind, and the bounds of its timeout."""

    call: Callable[[Caller, str, float], bool]
    weight: int
    shortest: float = PATIENCE_SECONDS
    longest: float = PATIENCE_SECONDS


KINDS = {
    "once": Kind(Caller.once, 30),
    "brief": Kind(Caller.once, 10, 0.01, 1.0),
    "fail_fast": Kind(Caller.fail_fast, 5, 2.0, 20.0),
    "narrow": Kind(Caller.narrow, 8),
    "fails": Kind(Caller.fails, 4),
    "again": Kind(Caller.again, 12),
    "again_brief": Kind(Caller.again, 3, 0.01, 1.0),
    "cached": Kind(Caller.cached, 25),
    "cached_brief": Kind(Caller.cached, 8, 0.01, 1.0),
    "refreshed": Kind(Caller.refreshed, 15),
    "run": Kind(Caller.run, 10),
    "run_cached": Kind(Caller.run_cached, 6),
    "run_and_leave": Kind(Caller.run_and_leave, 3),
    "run_and_cancel": Kind(Caller.run_and_cancel, 4),
    "clear": Kind(Caller.clear, 6),
}


def keep_calling(name: str, seed: int) -> None:
    """Make calls until SIGTERM comes; a call that is under way then is waited for."""
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    faulthandler.register(signal.SIGUSR1)  # for the soak to see where one hangs
    rng, log = random.Random(seed), Log(Path(os.environ[FOLDER]) / f"calls-{name}")
    caller = Caller(rng)
    caller.learn(stops)
    os.write(sys.stdout.fileno(), READY)
    kinds, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    number = 0
    while not stops:
        [choice] = rng.choices(kinds, weights)
        kind, call = KINDS[choice], f"{name}-{number}"
        timeout = rng.uniform(kind.shortest, kind.longest)
        log.write("begin", call, choice, f"{timeout:.3f}", f"{time.monotonic():.3f}")
        message = ""
        try:
            outcome = "right" if kind.call(caller, call, timeout) else "wrong"
        except Exception as error:  # noqa: BLE001 - the soak judges it
            own = isinstance(error, BusError)
            outcome = type(error).__name__ if own else f"not-ours:{type(error).__name__}"
            message = str(error)
        log.write("end", call, outcome, f"{time.monotonic():.3f}", json.dumps(message))
        with contextlib.suppress(InterruptedError):
            time.sleep(rng.random() * (FAILURE_PAUSE_SECONDS if message else PAUSE_SECONDS))
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    keep_calling(args.name, args.seed)


if __name__ == "__main__":
    main()
