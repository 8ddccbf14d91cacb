"""The table of a run, as reStructuredText or Markdown."""

from __future__ import annotations

from collections.abc import Callable

from contenders import ASYNC_BUS, BUS, COMPARED, LEFT_OUT
from figures import UNITS, Entry, Results

Rows = list[list[str]]
HEAD = ["", "version", "us a call", "by Bus", "calls/s", "by AsyncBus"]
INTRO = """\
One caller: us a call, and that by what it takes with Bus. 32 in flight: calls a second, and that by
those of AsyncBus. One worker process and one calling process each; medians of all rounds."""
GROUPS = {"floor": "*floors*", "ours": "*ours*", "peer": "*peers*", "cached": "*a cached hit*"}


def rows(results: Results) -> Rows:
    """Return the rows of the table; peers by what a call takes, those that failed last."""
    made = []
    for group, title in GROUPS.items():
        entries = [entry for entry in results.entries if entry.group == group]
        if group == "peer":
            entries.sort(key=lambda entry: entry.median("seq") or float("inf"))
        if entries:
            made.append([title, *[""] * (len(HEAD) - 1)])
        made += [_row(results, entry) for entry in entries]
    return made


def _row(results: Results, entry: Entry) -> list[str]:
    if entry.failure:
        return [entry.name, entry.version, "failed", "", "", ""]
    seq, many = entry.median("seq"), entry.median("many")
    return [
        entry.name,
        entry.version,
        "" if seq is None else f"{seq:,.0f}",
        _times(results.ratio("seq", entry.name, BUS)),
        "" if many is None else f"{many:,.0f}",
        _times(results.ratio("many", entry.name, ASYNC_BUS)),
    ]


def _times(found: tuple[float, str] | None) -> str:
    return "" if found is None else f"{found[0]:.2f}"


def compared(results: Results) -> Rows:
    """Return the ratios that matter to us, each with its spread."""
    made = []
    for kind, name, other in COMPARED:
        found = results.ratio(kind, name, other)
        if found is not None:
            how = "one caller" if kind == "seq" else "32 in flight"
            made.append([f"{name} / {other}", f"{how}, {UNITS[kind]}", f"{found[0]:.2f}", found[1]])
    return made


def notes(results: Results) -> list[str]:
    failed = {entry.name: entry.failure for entry in results.entries if entry.failure}
    made = [f"{name} failed: {reason}" for name, reason in failed.items()]
    made += [f"{name} left out: {reason}" for name, reason in LEFT_OUT.items()]
    made += [f"{name}: {value}" for name, value in results.about.items()]
    libraries: dict[str, str] = {}
    for entry in results.entries:
        libraries |= entry.libraries
    if libraries:
        made.append("libraries: " + ", ".join(map(" ".join, libraries.items())))
    return made


def render(results: Results, form: str) -> str:
    """Return the document: ``form`` is "rst" or "markdown"."""
    table = TABLES[form]
    ratios = ["", "what", "ratio", "spread"]
    lines = [INTRO, "", *table(HEAD, rows(results)), ""]
    if below := compared(results):
        lines += [*table(ratios, below), ""]
    lines += [f"- {note}" for note in notes(results)]
    return "\n".join(lines) + "\n"


def _rst(head: list[str], body: Rows) -> list[str]:
    # An empty first cell would make its row a part of the one above.
    cells = [[row[0] or "..", *row[1:]] for row in [head, *body]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return [rule, lines[0], rule, *lines[1:], rule]


def _markdown(head: list[str], body: Rows) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body]]


TABLES: dict[str, Callable[[list[str], Rows], list[str]]] = {"rst": _rst, "markdown": _markdown}
