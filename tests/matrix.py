"""What passed where: a table of servers and suites, below the outcomes of all tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

TITLE = "servers and suites: passed"
ANY = "any server"
# A suite is the files whose names begin so; the first that fits counts.
SUITES = {
    "scripts": ("tests/lua/",),
    "faults": ("tests/faults/",),
    "clusters": ("tests/cluster/",),
    "calls": ("tests/calls/test_calls.py",),
    "cache": ("tests/test_cache.py",),
    "access": ("tests/transport/test_access.py",),
    "other": ("tests/",),
}


def matrix(reports: Iterable[Any], servers: Mapping[str, bool]) -> list[str]:
    """Return the lines of the table. ``servers``: each with whether it runs only what is brief."""
    counts: Counter[tuple[str, str]] = Counter()
    for report in reports:
        if report.when == "call" and report.passed:
            counts[_server(report.nodeid, servers), _suite(report.nodeid)] += 1
    depth = {name: "brief" if brief else "everything" for name, brief in servers.items()}
    rows = [["server", "runs", *SUITES, "all"]]
    for name in (*servers, ANY):
        row = [counts[name, suite] for suite in SUITES]
        rows.append([name, depth.get(name, ""), *map(str, row), str(sum(row))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_line(row, widths) for row in rows]


def _line(row: list[str], widths: list[int]) -> str:
    words = [text.ljust(width) for text, width in zip(row[:2], widths, strict=False)]
    figures = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join([*words, *figures])


def _server(nodeid: str, servers: Mapping[str, bool]) -> str:
    _, _, parameters = nodeid.partition("[")
    return next((name for name in servers if name in parameters), ANY)


def _suite(nodeid: str) -> str:
    return next(name for name, starts in SUITES.items() if nodeid.startswith(starts))
