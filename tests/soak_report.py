"""What the soak found: read from what its processes wrote, and said to people and programs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

from tests.programs.soak import AT_MOST_ONCE
from tests.soak_faults import LOSING

# How much later than its timeout a call may return before it counts as hung, and how much later
# than that one that never returned is waited for.
LATE_SECONDS = 5.0
NEVER_SECONDS = 60.0
# Errors that say that nothing was or will be run.
REFUSALS = ("QueueFull", "Cancelled")
NOBODY = "no worker alive serves"
# What became of a call whose caller was killed meanwhile.
KILLED = "killed"
SHOWN = 20
MIB = 1 << 20
# The growth of a process that lived long, and of Redis, that is put down to their allocators.
MOST_GROWTH = 8 * MIB
LONG_LIFE_SAMPLES = 20
STARTING_SAMPLES = 3


@dataclass(slots=True)
class Call:
    """A call as its caller noted it; without an end where it never returned."""

    id: str
    kind: str
    timeout: float
    begin: float
    end: float | None = None
    outcome: str = ""
    message: str = ""

    def is_late(self, now: float) -> bool:
        return (self.end or now) > self.begin + self.timeout + LATE_SECONDS

    def was_refused(self) -> bool:
        if self.outcome == "NoWorkers":
            return NOBODY in self.message
        return self.outcome in REFUSALS

    def __str__(self) -> str:
        if self.end is None:
            return f"{self.kind} {self.id}: timeout {self.timeout:g} s, never returned"
        took = f"returned after {self.end - self.begin:.1f} s: {self.outcome} {self.message}"
        return f"{self.kind} {self.id}: timeout {self.timeout:g} s, {took}"


def read_calls(path: Path) -> Iterator[Call]:
    """Return the calls of one caller, the last of which may have no end."""
    call: Call | None = None
    for line in read_lines(path):
        what, name, *rest = line.split(" ", 4)
        if what == "begin":
            kind, timeout, at = rest
            call = Call(name, kind, float(timeout), float(at))
            continue
        assert call is not None and call.id == name, line
        call.outcome, at, message = rest
        call.end, call.message = float(at), json.loads(message)
        yield call
        call = None
    if call is not None:
        yield call


def read_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line.rstrip("\n") for line in file)


@dataclass(slots=True)
class Growth:
    """The memory of one process at the begin and at the end of its life, in bytes."""

    role: str
    seconds: float
    before: float
    after: float


def growth(role: str, samples: Sequence[int]) -> Growth | None:
    """Compare the first tenth of a long life with the last one; None for a short life."""
    steady = samples[STARTING_SAMPLES:]
    tenth = len(steady) // 10
    if len(steady) < LONG_LIFE_SAMPLES:
        return None
    return Growth(role, len(samples), mean(steady[:tenth]), mean(steady[-tenth:]))


@dataclass
class Report:
    """All figures of a soak. What must be empty or small is in `violations`."""

    seed: int
    seconds: float
    server: str
    faults: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    right: int = 0
    unanswered: int = 0
    failed: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    longest_over_timeout: float = 0.0
    runs: int = 0
    twice: list[str] = field(default_factory=list)
    idempotent_again: int = 0
    ran_though_refused: list[str] = field(default_factory=list)
    right_though_not_run: list[str] = field(default_factory=list)
    ended_badly: list[str] = field(default_factory=list)
    did_not_end: list[str] = field(default_factory=list)
    not_started: int = 0
    drained_seconds: float | None = None
    not_drained: list[str] = field(default_factory=list)
    keys_left: list[str] = field(default_factory=list)
    keys_expiring: int = 0
    keys_kept: list[str] = field(default_factory=list)
    redis_before: int = 0
    redis_after: int = 0
    memory: dict[str, str] = field(default_factory=dict)
    grew: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Return what must not be, in words."""
        lists = {
            "run twice though uncached": self.twice,
            "hung": self.hung,
            "wrong value": self.wrong,
            "an exception that is not the bus's": [
                text for name, text in self.examples.items() if name.startswith("not-ours:")
            ],
            "run though it was refused or cancelled": self.ran_though_refused,
            "answered though it never ran": self.right_though_not_run,
            "a process ended by itself, or with an error": self.ended_badly,
            "a process did not end": self.did_not_end,
            "still there after the callers ended": self.not_drained,
            "a key that is left": self.keys_left,
            "memory that grew": self.grew,
        }
        if not any(self.faults.get(fault) for fault in LOSING):
            lists["a job lost, though Redis lost nothing"] = [
                text for name, text in self.examples.items() if name == "JobLost"
            ]
        found = [f"{name}: {text}" for name, texts in lists.items() for text in texts]
        if self.redis_after > self.redis_before + MOST_GROWTH:
            found.append(f"Redis's memory grew: {self.redis_before} to {self.redis_after} bytes")
        return found

    def judge_calls(
        self, calls: Iterable[Call], runs: Mapping[str, Counter[str]], now: float
    ) -> None:
        """Count the calls, and compare them with what was run; ``runs``: calls, by method."""
        failed: defaultdict[str, Counter[str]] = defaultdict(Counter)
        ran = Counter({call: n for name in AT_MOST_ONCE for call, n in runs[name].items()})
        for call in calls:
            self.calls += 1
            if call.outcome == KILLED:
                self.unanswered += 1
                continue
            if call.is_late(now):
                self.hung.append(str(call))
            if call.end is None:
                continue
            over = call.end - call.begin - call.timeout
            self.longest_over_timeout = max(self.longest_over_timeout, round(over, 3))
            if call.outcome == "right":
                self.right += 1
            elif call.outcome == "wrong":
                self.wrong.append(str(call))
            else:
                failed[call.outcome][call.kind] += 1
                self.examples.setdefault(call.outcome, str(call))
            if call.was_refused() and call.id in ran:
                self.ran_though_refused.append(str(call))
            if call.outcome == "right" and call.kind in MUST_HAVE_RUN and call.id not in ran:
                self.right_though_not_run.append(str(call))
        self.failed = {name: dict(counts) for name, counts in sorted(failed.items())}
        self.runs = sum(counts.total() for counts in runs.values())
        self.twice = [f"{call}: {n} times" for call, n in ran.items() if n > 1]
        self.idempotent_again = sum(n - 1 for n in runs["again"].values())

    def judge_memory(self, lives: Iterable[tuple[str, Sequence[int]]]) -> None:
        """Compare the memory of each process that lived long; ``lives``: role and samples."""
        found: defaultdict[str, list[Growth]] = defaultdict(list)
        for role, samples in lives:
            one = growth(role, samples)
            if one is not None:
                found[role].append(one)
        for role, lived in found.items():
            before, after = (median(getattr(g, when) for g in lived) for when in WHEN)
            most = max(g.after - g.before for g in lived)
            self.memory[role] = (
                f"{before / MIB:.1f} MiB before, {after / MIB:.1f} MiB after (medians of "
                f"{len(lived)} that lived long); the most that one grew is {most / MIB:.1f} MiB"
            )
            self.grew += [str(g) for g in lived if g.after - g.before > MOST_GROWTH]

    def __str__(self) -> str:
        failures = [
            f"    {name}: {sum(kinds.values())} ({_counts(kinds)})"
            for name, kinds in self.failed.items()
        ]
        examples = [f"    {name}: {text[:300]}" for name, text in sorted(self.examples.items())]
        violations = self.violations()
        drained = "never" if self.drained_seconds is None else f"{self.drained_seconds:.1f} s"
        lines = [
            f"soak with seed {self.seed}: {self.seconds:g} s on {self.server}",
            f"faults: {_counts(self.faults)}",
            f"calls made: {self.calls}, answered: {self.right}, unanswered (their callers were "
            f"killed): {self.unanswered}",
            f"failed: {sum(sum(kinds.values()) for kinds in self.failed.values())}",
            *failures,
            "an example of each:",
            *examples,
            f"runs that were noted: {self.runs}; of idempotent calls, run again: "
            f"{self.idempotent_again}",
            f"run twice though uncached: {len(self.twice)}",
            f"hung: {len(self.hung)}; the latest return was {self.longest_over_timeout:.1f} s "
            f"after the timeout",
            f"wrong values: {len(self.wrong)}",
            f"workers that could not start, as Redis was away: {self.not_started}",
            f"queues and claims were empty after: {drained}",
            f"keys left: {len(self.keys_left)}; kept by design: {', '.join(self.keys_kept)}; "
            f"with an expiry: {self.keys_expiring}",
            f"memory of Redis: {self.redis_before / MIB:.2f} MiB before, "
            f"{self.redis_after / MIB:.2f} MiB after",
            *(f"memory of {role}s: {text}" for role, text in self.memory.items()),
            f"violations: {len(violations)}",
            *(f"    {text}" for text in violations[:SHOWN]),
        ]
        return "\n".join(lines)


WHEN = ("before", "after")
# Kinds whose value comes from a run of that very call.
MUST_HAVE_RUN = ("once", "brief", "fail_fast", "narrow", "fails", "run")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items(), key=lambda x: -x[1]))
