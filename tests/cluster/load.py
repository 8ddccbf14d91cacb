"""Callers, clearers and workers on several servers, to which something happens meanwhile.

::

    with Load(processes, steady) as load:
        load.goes_on()                     # each caller was answered, and each clearer
        with load.losing():                # writes that were acknowledged may get lost here
            cluster.kill(...)
        load.goes_on()
    assert load.hung() == load.wrong() == load.stale() == load.twice() == []

Callers are threads on one `Bus`, and others whose calls are tasks of one `AsyncBus`. Workers are
processes: ``redis-bus -c 1`` and ``-c 4``. What they did is noted in a Redis beside those that
fail, with its time (us): see tests/programs/load.py and race.py.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import redis

from redis_bus import Bus, BusError
from redis_bus.transport.transport import READ_SECONDS
from tests.calls.test_clear_race import end as end_process
from tests.calls.test_clear_race import find_violations
from tests.faults.faces import AsyncFace
from tests.programs import race
from tests.programs.load import BUS, PARTITIONS, RUNS, STEADY, answer
from tests.programs.race import KEYS, METHODS, Call, Clear
from tests.support import ROOT, Processes, eventually, workers

CONCURRENCY = (1, 4)
KINDS = ("bus", "async")
CALLERS, CLEARERS = 3, 1  # of each kind of bus
MAINLAND = "mainland"  # where they are; others may be elsewhere, see split_load.py
TIMEOUT_SECONDS = 3.0
# How late the end of a call may be: where no server answers, it asks some times for a second each.
LATE_SECONDS = 6.0
SLOWEST_MS = 200
FAILURE_PAUSE_SECONDS = 0.05
# Else all callers together take a whole core, most of it while a master is being replaced.
PAUSE_SECONDS = 0.025
# A clear has no timeout of its own; it is sent twice where the connection is lost.
CLEAR_SECONDS = 2 * READ_SECONDS
RIGHT_CALLS = 3
NEVER = sys.maxsize
Window = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Once:
    """A call of the method that must not run twice, or what failed; and what came of it."""

    call: str
    start: int
    end: int
    outcome: str  # 'right', or the words of an error
    seconds: float = TIMEOUT_SECONDS


class Load:
    """See the module. ``steady``: the Redis for what must not be lost."""

    def __init__(
        self, processes: Processes, steady: redis.Redis, steady_url: str, partitions: int = 1
    ) -> None:
        self._processes = processes
        self._steady = steady
        self._environment = processes.environment(
            **{STEADY: steady_url, PARTITIONS: str(partitions)}
        )
        settings: Any = {"url": processes.url, "timeout": TIMEOUT_SECONDS}
        self._buses: list[Any] = [Bus(BUS, **settings), AsyncFace(BUS, **settings)]
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._right, self._wrong = Counter[str](), Counter[str]()
        self._threads: list[threading.Thread] = []
        self._serving: list[subprocess.Popen[str]] = []
        self._broken: list[BaseException] = []
        self.once: list[Once] = []
        self.events: list[Call | Clear] = []
        self.failures: list[Once] = []  # calls and clears of all kinds that raised
        self.windows: list[Window] = []  # in which acknowledged writes may get lost
        self.outages: list[Window] = []  # in which calls may fail

    # -- while it runs --------------------------------------------------------------------------

    def __enter__(self) -> Load:
        for number in CONCURRENCY:
            self._serve(number)
        eventually(self._all_serve)
        for bus, kind in zip(self._buses, KINDS, strict=False):
            self._put(f"{MAINLAND}-{kind}", bus, CALLERS, CLEARERS)
        self.goes_on()
        return self

    def _put(self, name: str, bus: Any, callers: int, clearers: int) -> None:
        for number in range(callers):
            self._start(f"{name}-caller-{number}", bus, self._call_some)
        for number in range(clearers):
            self._start(f"{name}-clearer-{number}", bus, self._clear_some)

    def _serve(self, concurrency: int, **environment: str) -> None:
        command = ("redis-bus", "-c", str(concurrency), "tests.programs.load:bus")
        environment = {**self._environment, **environment}
        self._serving.append(self._processes.start(*command, cwd=ROOT, env=environment))

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * (TIMEOUT_SECONDS + LATE_SECONDS))
        hung = [thread.name for thread in self._threads if thread.is_alive()]
        for process in self._serving:
            end_process(process)
        for bus in self._buses:
            bus.close()
        assert not hung, hung
        assert not self._broken, self._broken

    def _all_serve(self) -> bool:
        ended = [process for process in self._serving if process.poll() is not None]
        assert not ended, [process.communicate()[1] for process in ended]
        return workers(self._buses[0], "once") == len(self._serving)

    def goes_on(self, part: float = 1.0, where: str = "") -> None:
        """Wait until each caller and each clearer has had some answers, from now on.

        ``part``: or that many of them. The others may be at a server that does not answer.
        ``where``: of those who are there.
        """
        before = self._right.copy()
        names = [thread.name for thread in self._threads if thread.name.startswith(where)]

        def is_right() -> bool:
            right = [name for name in names if self._right[name] >= before[name] + RIGHT_CALLS]
            return bool(self._broken) or len(right) >= part * len(names)

        eventually(is_right)
        assert not self._broken, self._broken

    def right(self, where: str) -> int:
        """Return how many right answers there were so far for those who are there."""
        return sum(count for name, count in self._right.items() if name.startswith(where))

    def fail(self, where: str) -> None:
        """Wait until a call of each caller who is there has failed, from now on."""
        before = self._wrong.copy()
        names = [thread.name for thread in self._threads if thread.name.startswith(where)]
        callers = [name for name in names if "caller" in name]
        eventually(lambda: self._broken or all(self._wrong[n] > before[n] for n in callers))
        assert not self._broken, self._broken

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
        """Say that writes which are acknowledged from here to there may get lost."""
        start = self.now()
        with self.failing():
            yield
            self.windows.append((start, self.now()))

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Say that calls from here to there may fail."""
        start = self.now()
        yield
        self.outages.append((start, self.now()))

    def now(self) -> int:
        return race.now(self._steady)

    # -- callers and clearers -------------------------------------------------------------------

    def _start(self, name: str, bus: Any, act: Callable[[Any], bool]) -> None:
        def go_on() -> None:
            try:
                while not self._stopping.is_set():
                    if act(bus):
                        self._right[name] += 1
                        time.sleep(PAUSE_SECONDS)
                    else:
                        self._wrong[name] += 1
                        time.sleep(FAILURE_PAUSE_SECONDS)
            except BaseException as error:  # noqa: BLE001 - the test raises it
                self._broken.append(error)

        self._threads.append(threading.Thread(target=go_on, name=name, daemon=True))
        self._threads[-1].start()

    def _call_some(self, bus: Any) -> bool:
        return self._call_once(bus) if random.random() < 0.6 else self._call_cached(bus)

    def _call_once(self, bus: Any) -> bool:
        call, start = f"call-{next(self._numbers)}", self.now()
        ms, is_run = random.choice([0, 0, 0, random.randrange(SLOWEST_MS)]), random.random() < 0.2
        try:
            if is_run:
                found = bus["once"].run(call, ms).get(TIMEOUT_SECONDS)
            else:
                found = bus["once"](call, ms)
        except BusError as error:
            outcome = f"{type(error).__name__}: {error}"
        else:
            outcome = "right" if found == answer(call) else f"wrong: {found!r}"
        # Enqueueing has a time of its own.
        seconds = TIMEOUT_SECONDS + READ_SECONDS if is_run else TIMEOUT_SECONDS
        self.once.append(Once(call, start, self.now(), outcome, seconds))
        return self._is_right(self.once[-1])

    def _call_cached(self, bus: Any) -> bool:
        name, number, start = random.choice(list(METHODS)), random.choice(KEYS), self.now()
        try:
            self.events.append(race.call(bus, self._steady, name, number))
        except BusError as error:
            return self._failed(f"{name}({number})", start, error, TIMEOUT_SECONDS)
        return True

    def _clear_some(self, bus: Any) -> bool:
        """Advance and clear one key or all of a method, and call at once."""
        name = random.choice(list(METHODS))
        whole = random.random() < race.CLEAR_ALL
        numbers = list(KEYS) if whole else [random.choice(KEYS)]
        values, start = race.advance(self._steady, name, numbers)
        end, failure = NEVER, None
        try:
            if whole:
                bus[name].clear_all_cache()
            else:
                bus[name].clear_cache(numbers[0])
            end = self.now()
        except BusError as error:
            failure = error
        for number, value in zip(numbers, values, strict=True):
            self.events.append(Clear(f"{name}:{number}", start, end, value, whole))
        if failure is not None:
            return self._failed(f"{name} is cleared", start, failure, CLEAR_SECONDS)
        return self._call_cached(bus)

    def _failed(self, what: str, start: int, error: BusError, seconds: float) -> bool:
        words = f"{type(error).__name__}: {error}"
        return self._is_right(Once(what, start, self.now(), words, seconds))

    def _is_right(self, done: Once) -> bool:
        if done.outcome != "right":
            self.failures.append(done)
        return done.outcome == "right"

    # -- what came of it ------------------------------------------------------------------------

    def hung(self) -> list[object]:
        """Return the calls and clears that took longer than their time and a little more."""
        return [one for one in self._ended() if late_seconds(one) > LATE_SECONDS]

    def _ended(self) -> list[Once | Call | Clear]:
        # A clear that failed is among the failures.
        events = [event for event in self.events if event.end != NEVER]
        return [*self.once, *self.failures, *events]

    def wrong(self) -> list[Once]:
        """Return the calls that had another value than theirs, or one of no run."""
        ran = self._ran()
        right = [one for one in self.once if one.outcome == "right"]
        wrong = [one for one in self.once if one.outcome.startswith("wrong")]
        return wrong + [one for one in right if not ran[one.call]]

    def twice(self) -> list[Once]:
        """Return the calls that ran more than once."""
        ran = self._ran()
        return [one for one in self.once if ran[one.call] > 1]

    def unexcused(self) -> list[Once]:
        """Return the calls that ran twice, or failed, with nothing that may have led to that."""
        twice = [one for one in self.twice() if not _overlaps(one, self.windows)]
        return twice + [one for one in self.failures if not _overlaps(one, self.outages)]

    def stale(self, *, excused: bool = True) -> list[str]:
        """Return the values that cannot be. A clear may be lost where that is ``excused``."""
        return find_violations(
            replace(event, end=NEVER)
            if excused and isinstance(event, Clear) and self._may_be_lost(event.end)
            else event
            for event in self.events
        )

    def figures(self) -> dict[str, object]:
        kinds = Counter(one.outcome.partition(":")[0] for one in self.failures)
        clears = [event for event in self.events if isinstance(event, Clear)]
        lost = [event for event in clears if self._may_be_lost(event.end)]
        return {
            "calls": len(self.once) + len(self.events) - len(clears),
            "clears": len(clears),
            "clears that might be lost": len(lost),
            "stale values after those": len(self.stale(excused=False)) - len(self.stale()),
            "calls that ran twice": len(self.twice()),
            "s past its timeout": f"{max(0.0, *map(late_seconds, self._ended())):.1f}",
            **{f"{kind}s": count for kind, count in sorted(kinds.items())},
        }

    def _may_be_lost(self, when: int) -> bool:
        return any(start <= when <= end for start, end in self.windows)

    def _ran(self) -> Counter[str]:
        return Counter(run.decode().partition(" ")[0] for run in self._steady.lrange(RUNS, 0, -1))


MakeLoad = Callable[[Processes, redis.Redis, str], Load]
Loaded = Callable[..., AbstractContextManager[Load]]


def _overlaps(one: Once, windows: list[Window]) -> bool:
    return any(one.start <= end and one.end >= start for start, end in windows)


def late_seconds(one: Once | Call | Clear) -> float:
    """Return how long after its time a call or a clear came to its end."""
    if isinstance(one, Once):
        seconds = one.seconds
    else:
        seconds = TIMEOUT_SECONDS if isinstance(one, Call) else CLEAR_SECONDS
    return (one.end - one.start) / 1e6 - seconds
