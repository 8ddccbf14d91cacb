"""Report: the figures of a bench, each beside what it is compared with."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from .meter import ratios

PAIR = "redis-py LPUSH/BLPOP pair"
GET = "redis-py GET"
NOT_ALLOWED = "not allowed"
HEADS = ("", "redis_bus", "beside", "", "ratio", "rounds")
TEXTS = (0, 2)  # which columns are

# What is told, its unit, what was seen of it; what it is beside, and what was seen of that.
ROWS = (
    ("call, Bus", "us", "call", PAIR, "pair"),
    ("call, Bus", "us", "call", "the same over bare sockets", "floor"),
    ("cached hit, Bus", "us", "hit", GET, "get"),
    (
        "cached hits, AsyncBus, 32 in flight",
        "calls/s",
        "async hits",
        "redis.asyncio GET, 32 in flight",
        "async gets",
    ),
    ("calls, AsyncBus, 32 in flight", "calls/s", "async calls", f"{PAIR}, alone", "pair rate"),
    ("calls, Bus, 32 threads", "calls/s", "threads", f"{PAIR}, alone", "pair rate"),
    ("Redis: time of a call", "us", "call cpu", PAIR, "pair cpu"),
    ("Redis: time of a cached hit", "us", "hit cpu", GET, "get cpu"),
    ("Redis: commands of a call", "", "call commands", PAIR, "pair commands"),
    ("Redis: memory of a queued job", "bytes", "job", "an element of a list", "element"),
    ("worker start to its first job", "ms", "first job", "python -c 'import redis'", "python"),
    ("import redis_bus", "ms", "import redis_bus", "import redis", "import redis"),
    (
        "from redis_bus import Bus",
        "ms",
        "from redis_bus import Bus",
        "import redis",
        "import redis",
    ),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, beside something else: medians, and the ratios of the rounds.

    None: Redis does not let this user see it. ``name`` is for programs, and stays.
    """

    name: str
    what: str
    unit: str
    value: float | None
    beside: str
    other: float | None
    ratio: float | None = None
    least: float | None = None
    most: float | None = None


def figures(seen: Mapping[str, Sequence[float]], refused: Collection[str]) -> list[Figure]:
    """Return all figures, of what was seen in the rounds."""
    found = []
    for what, unit, ours, beside, theirs in ROWS:
        name = f"{ours}/{theirs}".replace(" ", "_")
        if ours in refused or theirs in refused:
            found.append(Figure(name, what, unit, None, beside, None))
            continue
        values = statistics.median(seen[ours]), statistics.median(seen[theirs])
        compared = ratios(seen[ours], seen[theirs])
        found.append(Figure(name, what, unit, values[0], beside, values[1], *compared))
    return found


def rows(found: Sequence[Figure]) -> list[list[str]]:
    """Return figures as the rows of a table, its heads first."""
    return [list(HEADS), *map(_row, found)]


def _row(figure: Figure) -> list[str]:
    if figure.ratio is None:
        return [figure.what, NOT_ALLOWED, figure.beside, "", "", ""]
    return [
        figure.what,
        _show(figure.value, figure.unit),
        figure.beside,
        _show(figure.other, figure.unit),
        f"{figure.ratio:.2f}",
        f"{figure.least:.2f} to {figure.most:.2f}",
    ]


def _show(value: float | None, unit: str) -> str:
    assert value is not None
    digits = 0 if value >= 100 else 1
    return f"{value:,.{digits}f} {unit}".rstrip()
