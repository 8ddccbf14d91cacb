"""The soak (see tests/soak.py), on each server; how long it takes is up to the environment.

SOAK_SECONDS and SOAK_SEED say how long and which faults; else it is 20 s, 45 s in CI, 600 s under
HYPOTHESIS_PROFILE=nightly, and another seed each time, which is the first line of its output.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from redis_bus.embedded import die_with_parent
from tests import soak
from tests.faults.place import Place
from tests.soak_report import KILLED, MIB, Call, Report, read_calls
from tests.support import ROOT


def _seconds() -> float:
    if os.environ.get("SOAK_SECONDS"):
        return float(os.environ["SOAK_SECONDS"])
    if os.environ.get("HYPOTHESIS_PROFILE") == "nightly":
        return 600.0
    return 45.0 if os.environ.get("CI") else 20.0


SECONDS = _seconds()
SEED = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(10**6))
# To start, to let the last calls end, to see jobs given away and keys expire.
MORE_SECONDS = 300.0


@pytest.mark.together(seconds=SECONDS + MORE_SECONDS)
def test_nothing_hangs_and_nothing_runs_twice_in_a_soak(place: Place) -> None:
    file = place.folder / "report.json"
    process = place.processes.start(
        *(sys.executable, "-m", soak.__name__, "--server", place.executable),
        *("--seconds", str(SECONDS), "--seed", str(SEED), "--report", str(file), "--verbose"),
        cwd=ROOT,
        # So that it ends, and what it started, where this thread does.
        preexec_fn=die_with_parent(),
    )
    out, err = process.communicate()
    place.note(f"{out}\n{err}")
    assert file.exists(), err
    figures: dict[str, Any] = json.loads(file.read_text())
    assert figures["violations"] == []
    assert process.returncode == 0
    # It was a soak: an idle machine makes 130 calls a second, half of which are run.
    assert figures["calls"] > 10 * SECONDS
    assert figures["right"] > figures["calls"] / 3
    assert figures["runs"] > 2 * SECONDS
    assert sum(figures["faults"].values()) > SECONDS / 6


# -- what the soak looks for, it finds ----------------------------------------------------------

NOW = 1000.0


def a_call(kind: str, timeout: float, begin: float, end: float | None, outcome: str = "") -> Call:
    return Call("0.0-1", kind, timeout, begin, end, outcome, "no worker alive serves m")


def judged(call: Call, *runs: str) -> Report:
    """Judge one call, that was run by these methods."""
    report = Report(seed=1, seconds=1.0, server="none")
    noted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for method in runs:
        noted[method][call.id] += 1
    report.judge_calls([call], noted, NOW)
    return report


@pytest.mark.parametrize(
    ("call", "runs", "found"),
    [
        (a_call("once", 20, 100, 100.1, "right"), ["once", "once"], "run twice"),
        (a_call("run_and_leave", 20, 100, 100.1, "right"), ["once", "once"], "run twice"),
        (a_call("narrow", 20, 100, 120, "ConnectionLost"), ["narrow", "narrow"], "run twice"),
        (a_call("once", 20, 100, 125.2, "CallTimeout"), [], "hung"),
        (a_call("brief", 0.1, 100, 105.3, "right"), ["once"], "hung"),
        (a_call("cached", 20, 100, None), [], "hung"),
        (a_call("once", 20, 100, 101, "wrong"), ["once"], "wrong value"),
        (a_call("once", 20, 100, 101, "not-ours:KeyError"), [], "an exception that is not"),
        (a_call("narrow", 20, 100, 101, "QueueFull"), ["narrow"], "run though it was refused"),
        (a_call("run_and_cancel", 20, 100, 101, "Cancelled"), ["once"], "run though it was"),
        (a_call("fail_fast", 20, 100, 101, "NoWorkers"), ["once"], "run though it was refused"),
        (a_call("once", 20, 100, 101, "right"), [], "answered though it never ran"),
        (a_call("once", 20, 100, 101, "JobLost"), [], "a job lost, though Redis lost nothing"),
    ],
    ids=str,
)
def test_the_soak_finds_what_must_not_be(call: Call, runs: list[str], found: str) -> None:
    violations = judged(call, *runs).violations()
    assert [text[: len(found)] for text in violations] == [found]


@pytest.mark.parametrize(
    ("call", "runs"),
    [
        (a_call("once", 20, 100, 100.1, "right"), ["once"]),
        (a_call("again", 20, 100, 100.1, "right"), ["again", "again"]),
        (a_call("once", 20, 100, 124.9, "CallTimeout"), ["once"]),
        (a_call("once", 20, 100, 101, "WorkerLost"), []),
        (a_call("cached", 20, 100, 101, "right"), []),
        (a_call("narrow", 20, 100, 101, "QueueFull"), []),
        (a_call("once", 20, 100, None, KILLED), ["once"]),
    ],
    ids=str,
)
def test_the_soak_finds_nothing_in_what_may_be(call: Call, runs: list[str]) -> None:
    assert judged(call, *runs).violations() == []


def test_a_lost_job_is_no_violation_where_redis_lost_its_data() -> None:
    report = judged(a_call("once", 20, 100, 101, "JobLost"))
    report.faults["clean up"] = 1
    assert report.violations() == []


def test_memory_that_grows_over_a_long_life_is_found() -> None:
    report = Report(seed=1, seconds=1.0, server="none")
    starting = [1 * MIB, 20 * MIB, 30 * MIB]
    report.judge_memory([("worker", [*starting, *[40 * MIB] * 60]), ("worker", starting)])
    assert report.violations() == []
    report.judge_memory([("caller", [*starting, *(n * MIB for n in range(40, 100))])])
    assert len(report.violations()) == 1
    report = Report(seed=1, seconds=1.0, server="none", redis_before=MIB, redis_after=20 * MIB)
    assert len(report.violations()) == 1


def test_what_a_caller_noted_is_read_also_where_it_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "calls-0.0"
    file.write_text(
        "begin 0.0-0 once 20.000 5.000\n"
        'end 0.0-0 CallTimeout 6.500 "a \\"message\\" of words"\n'
        "begin 0.0-1 brief 0.100 7.000\n"
    )
    first, second = read_calls(file)
    assert first == Call("0.0-0", "once", 20.0, 5.0, 6.5, "CallTimeout", 'a "message" of words')
    assert (second.id, second.end) == ("0.0-1", None)
