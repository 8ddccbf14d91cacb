"""What a run found, as it is written to JSON, and the figures that are made of it."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from side_by_side import ratio

UNITS = {"seq": "us a call", "many": "calls/s"}


@dataclass
class Entry:
    """What was measured of a contender, a figure a round; why nothing was, where it failed."""

    name: str
    group: str
    version: str = ""
    rounds: dict[str, list[float]] = field(default_factory=dict)
    failure: str = ""
    libraries: dict[str, str] = field(default_factory=dict)

    def median(self, kind: str) -> float | None:
        values = self.rounds.get(kind)
        return statistics.median(values) if values and not self.failure else None


@dataclass
class Results:
    """A run: what it ran on, and its entries in the order in which they are shown."""

    about: dict[str, str]
    entries: list[Entry]

    def entry(self, name: str) -> Entry | None:
        return next((one for one in self.entries if one.name == name), None)

    def ratio(self, kind: str, name: str, other: str) -> tuple[float, str] | None:
        """Return the median, over the rounds, of what the one has by what the other has."""
        pair = [self.entry(name), self.entry(other)]
        values = [one.rounds.get(kind, []) for one in pair if one is not None and not one.failure]
        if len(values) < 2 or not all(values):
            return None
        return ratio(*values)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Results:
    found = json.loads(path.read_text(encoding="utf-8"))
    return Results(found["about"], [Entry(**entry) for entry in found["entries"]])
