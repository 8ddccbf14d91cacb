"""The plot of a run."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from figures import Results

COLOURS = {"floor": "#9a9a9a", "ours": "#c0392b", "peer": "#4c78a8"}
TITLES = {
    "seq": "One caller: us a call (less is better), log scale",
    "many": "32 in flight: calls a second (more is better), log scale",
}


def draw(results: Results, path: Path) -> None:
    """Write two charts of bars, the best on top; exit where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("the plot needs matplotlib: pip install 'redis_bus[bench]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained")
    for chart, (kind, title) in zip(axes, TITLES.items(), strict=True):
        shown = [
            (value, entry.name, COLOURS[entry.group])
            for entry in results.entries
            if entry.group in COLOURS and (value := entry.median(kind)) is not None
        ]
        # barh draws upwards: the best comes last
        shown.sort(reverse=kind == "seq")
        if not shown:
            continue
        values, names, colours = zip(*shown, strict=True)
        bars = chart.barh(names, values, color=colours)
        chart.bar_label(bars, [f" {value:,.0f}" for value in values], fontsize=9)
        chart.set_xscale("log")
        chart.set_xlim(10 ** math.floor(math.log10(min(values) / 2)), max(values) * 2.5)
        chart.xaxis.set_major_formatter("{x:,.0f}")
        chart.xaxis.set_minor_formatter("")
        chart.set_title(title, fontsize=11)
        chart.spines[["top", "right"]].set_visible(False)
    figure.suptitle("add(1, 2) in one worker process; grey: floors, red: redis_bus, blue: peers")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
