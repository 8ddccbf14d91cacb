"""Real workers, callers and clearers hammer a few keys; no call sees what was cleared before it.

What the processes noted (see tests/programs/race.py) is merged by the server's time, and checked.
REDIS_BUS_RACE_SECONDS says how long they run on each server; else it is 5 s, 12 s in CI, 30 s under
HYPOTHESIS_PROFILE=nightly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, cycle
from pathlib import Path

import pytest

from redis_bus import Bus
from tests.conftest import Tell
from tests.programs import race
from tests.programs.race import BUS, METHODS, Call, Clear, read_log
from tests.support import PATIENCE_SECONDS, ROOT, Processes, eventually, workers


def _seconds() -> float:
    if os.environ.get("REDIS_BUS_RACE_SECONDS"):
        return float(os.environ["REDIS_BUS_RACE_SECONDS"])
    if os.environ.get("HYPOTHESIS_PROFILE") == "nightly":
        return 30.0
    return 12.0 if os.environ.get("CI") else 5.0


SECONDS = _seconds()
WORKERS, CALLERS, CLEARERS = 3, 4, 2
RESTART_SECONDS = 1.5
# Redis expires keys by whole milliseconds, by a clock that it reads once for each command.
CLOCK_US = 20_000


# -- the checker --------------------------------------------------------------------------------


def find_violations(events: Iterable[Call | Clear]) -> list[str]:
    """Return what cannot be, in words: values cleared, values of the future, values kept too long.

    A call must not see a value older than what the counter had been advanced to before a clear
    that returned before the call started. It is of no matter how the value came: cached, by
    joining, stale, or in an exception.
    """
    calls, clears = defaultdict(list), defaultdict(list)
    for event in events:
        (calls if isinstance(event, Call) else clears)[event.key].append(event)
    found: list[str] = []
    for key, called in calls.items():
        found += _cleared(called, clears[key])
        found += _of_the_future(called, clears[key])
        found += _kept_too_long(called, METHODS[key.partition(":")[0]])
    return found


def _cleared(calls: Sequence[Call], clears: Sequence[Clear]) -> list[str]:
    ordered = sorted(clears, key=lambda clear: clear.end)
    ends = [clear.end for clear in ordered]
    newest = [0, *accumulate((clear.value for clear in ordered), max)]
    found = []
    for call in calls:
        least = newest[bisect_left(ends, call.start)]
        if call.value < least:
            found.append(f"{call} saw a value from before a clear to {least}")
    return found


def _of_the_future(calls: Sequence[Call], clears: Sequence[Clear]) -> list[str]:
    advanced = {clear.value: clear.start for clear in clears}
    return [
        f"{call} saw a value that there was not yet"
        for call in calls
        if call.value and call.end < advanced.get(call.value, sys.maxsize)
    ]


def _kept_too_long(calls: Sequence[Call], setting: race.Setting) -> list[str]:
    if setting.cache_expire is None:
        return []
    window = round((setting.cache_expire + setting.stale) * 1_000_000)
    stored = stored_by(calls)
    return [
        f"{call} saw a value that was stored at {stored[call.run]} or before"
        for call in calls
        if call.start > stored[call.run] + window + CLOCK_US
    ]


def stored_by(calls: Sequence[Call]) -> dict[str, int]:
    """Until when the value of each run was stored at the latest: when the first call had it."""
    ends: dict[str, int] = {}
    for call in calls:
        ends[call.run] = min(call.end, ends.get(call.run, call.end))
    return ends


# -- the race -----------------------------------------------------------------------------------


def run_race(
    processes: Processes,
    seconds: float,
    *,
    forgets: float = 0.0,
    partitions: Sequence[int] = (1,),
) -> list[Call | Clear]:
    """Let the processes race, with workers that come and go, and return what they noted.

    Each worker publishes another number of ``partitions``, in turn.
    """
    numbers = cycle(partitions)

    def start(role: str, *args: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", race.__name__, role, *args]
        return processes.start(*program, cwd=ROOT)

    def start_worker() -> subprocess.Popen[str]:
        return start("worker", "--partitions", str(next(numbers)))

    serving = [start_worker() for _ in range(WORKERS)]
    with Bus(BUS, url=processes.url) as bus:
        eventually(lambda: all(workers(bus, name) == WORKERS for name in METHODS))
    logs: list[Path] = []
    racing = []
    for role in ["caller"] * CALLERS + ["clearer"] * CLEARERS:
        logs.append(processes.folder / f"{role}-{len(logs)}")
        options = ["--seconds", str(seconds), "--log", str(logs[-1])]
        racing.append(start(role, *options, "--forgets", str(forgets)))
    with Bus(BUS, url=processes.url) as bus:
        while any(process.poll() is None for process in racing):
            serving.append(start_worker())
            with contextlib.suppress(subprocess.TimeoutExpired):
                racing[0].wait(RESTART_SECONDS)
            # It handles signals once it counts as alive.
            eventually(lambda: all(workers(bus, name) == len(serving) for name in METHODS))
            end(serving.pop(0))
    for process in racing:
        end(process, None)
    for process in serving:
        end(process)
    return [event for log in logs for event in read_log(log)]


def end(process: subprocess.Popen[str], how: int | None = signal.SIGTERM) -> None:
    if how is not None:
        process.send_signal(how)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err


def test_no_call_sees_a_value_from_before_a_clear_that_returned_before_it_started(
    processes: Processes, tell: Tell
) -> None:
    events = run_race(processes, SECONDS)
    with Bus(BUS, url=processes.url) as bus:
        stats = [fields for name, fields in bus.stats().items() if name in METHODS]
    calls = [event for event in events if isinstance(event, Call)]
    clears = [event for event in events if isinstance(event, Clear)]
    counts = {
        "seconds": SECONDS,
        "calls": len(calls),
        "hits": round(sum(fields["hits"] for fields in stats)),
        "joins": round(sum(fields["joins"] for fields in stats)),
        "stale hits": count_stale_hits(calls),
        "exceptions": sum(call.failed for call in calls),
        "clears of one key": sum(not clear.whole for clear in clears),
        "clears of all": sum(clear.whole for clear in clears) // len(race.KEYS),
        "calls that a clear overlapped": count_overlaps(calls, clears),
        "violations": len(find_violations(events)),
    }
    tell("clear race", counts)
    assert find_violations(events) == []
    assert all(counts[name] for name in counts if name != "violations"), counts


def count_stale_hits(calls: Sequence[Call]) -> int:
    """How many calls were surely served a value past its expiry."""
    stored = stored_by(calls)
    expire = round((METHODS["stale"].cache_expire or 0) * 1_000_000)
    called = [call for call in calls if call.key.startswith("stale:")]
    return sum(call.start > stored[call.run] + expire for call in called)


def count_overlaps(calls: Sequence[Call], clears: Sequence[Clear]) -> int:
    """How many calls began before a clear of their key returned, and came back after it began."""
    starts: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, list[int]] = defaultdict(list)
    for clear in sorted(clears, key=lambda clear: clear.start):
        starts[clear.key].append(clear.start)
    for clear in sorted(clears, key=lambda clear: clear.end):
        ends[clear.key].append(clear.end)
    return sum(
        bisect_left(starts[call.key], call.end) > bisect_left(ends[call.key], call.start)
        for call in calls
    )


# -- the checker can fail -----------------------------------------------------------------------

CLEARED = [
    Clear("plain:0", start=100, end=120, value=1, whole=False),
    Clear("plain:0", start=200, end=240, value=2, whole=False),
    Clear("plain:0", start=205, end=220, value=3, whole=True),
    Clear("plain:1", start=10, end=20, value=1, whole=True),
]


def a_call(start: int, end: int, value: int, *, key: str = "plain:0", failed: bool = False) -> Call:
    return Call(key, start, end, value, f"run of {start}", failed)


@pytest.mark.parametrize(
    "call",
    [
        a_call(121, 130, 0),
        a_call(121, 400, 0, failed=True),
        a_call(221, 400, 2),  # another clear, to less, returned later
        a_call(241, 400, 2),
        a_call(241, 242, 0),
        a_call(21, 30, 0, key="plain:1"),
    ],
    ids=str,
)
def test_the_checker_finds_a_value_from_before_a_clear(call: Call) -> None:
    assert len(find_violations([*CLEARED, a_call(250, 251, 3), call])) == 1


@pytest.mark.parametrize(
    "call",
    [
        a_call(10, 20, 0),
        a_call(119, 400, 0),  # it started before the clear returned
        a_call(120, 121, 0),  # in the same microsecond
        a_call(90, 101, 1),  # advanced, not cleared yet
        a_call(121, 130, 1),
        a_call(219, 900, 1),
        a_call(221, 230, 3),
        a_call(900, 901, 3, failed=True),
        a_call(1, 9, 0, key="plain:1"),
    ],
    ids=str,
)
def test_the_checker_finds_nothing_in_what_may_be(call: Call) -> None:
    assert find_violations([*CLEARED, a_call(250, 251, 3), call]) == []


def test_the_checker_finds_a_value_of_the_future() -> None:
    assert len(find_violations([*CLEARED, a_call(121, 199, 2)])) == 1
    assert len(find_violations([*CLEARED, a_call(250, 251, 4)])) == 1


def test_the_checker_finds_a_value_that_was_kept_too_long() -> None:
    def call(key: str, start: int) -> Call:
        return Call(key, start, start + 10, 0, "the run", failed=False)

    windows = {"brief:0": 30_000, "stale:0": 220_000, "unstored:0": 0, "plain:0": 10**12}
    for key, window in windows.items():
        first = call(key, 1000)
        assert find_violations([first, call(key, 1000 + window)]) == []
        too_long = [first, call(key, 1010 + window + CLOCK_US + 1)]
        assert len(find_violations(too_long)) == (0 if key == "plain:0" else 1)


def test_a_clear_that_is_left_out_now_and_then_is_found(processes: Processes) -> None:
    eventually(lambda: find_violations(run_race(processes, 1.5, forgets=0.1)), 60)
