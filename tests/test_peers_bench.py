"""The benches of peers, as far as that goes without what they install."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docutils.core import publish_doctree
from docutils.nodes import row

BENCH = Path(__file__).resolve().parent / "bench"
PEERS = BENCH / "peers"
ABOUT = {"rounds": "2"}
MODULES = ("contenders", "crew", "figures", "plot", "table", "side_by_side")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give what imports a module of the bench, from its folder, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(PEERS))
    yield __import__
    for name in MODULES:
        sys.modules.pop(name, None)


def canned(bench: Any) -> Any:
    figures, names = bench("figures"), bench("contenders")
    ours = figures.Entry(names.BUS, "ours", "1", {"seq": [400, 100], "many": [2000, 3000]})
    pair = figures.Entry(
        names.PAIR, "floor", "2", {"seq": [200, 100], "many": [10, 30]}, "", {"hi": "3"}
    )
    slow = figures.Entry("slow", "peer", "3", {"seq": [9000, 9000]})
    quick = figures.Entry("quick", "peer", "3", {"seq": [80, 120]})
    dead = figures.Entry("dead", "peer", "4", {"seq": [1]}, "it said no")
    return figures.Results(ABOUT, [pair, ours, dead, slow, quick])


def test_a_ratio_is_the_median_of_those_within_each_round(bench: Any) -> None:
    results, names = canned(bench), bench("contenders")

    assert results.ratio("seq", names.BUS, names.PAIR) == (1.5, "rounds 1.00 to 2.00")
    assert results.ratio("many", names.BUS, "slow") is None
    assert results.ratio("seq", "dead", names.BUS) is None
    assert results.ratio("seq", "nobody", names.BUS) is None


@pytest.mark.parametrize("form", ["rst", "markdown"])
def test_a_table_has_all_contenders_and_why_one_failed(bench: Any, form: str) -> None:
    text = bench("table").render(canned(bench), form)

    assert "dead failed: it said no" in text
    assert "libraries: hi 3" in text
    places = [text.index(f"{name} ") for name in ("redis-py pair", "redis_bus, Bus", "quick")]
    assert places == sorted(places)
    assert text.index("quick ") < text.index("slow ") < text.index("dead ")
    cells = next(line for line in text.splitlines() if "redis_bus, Bus " in line)
    assert cells.replace("|", " ").split() == ["redis_bus,", "Bus", "1", "250", "1.00", "2,500"]


def test_the_table_is_restructured_text(bench: Any) -> None:
    text = bench("table").render(canned(bench), "rst")

    tree = publish_doctree(text, settings_overrides={"report_level": 1, "halt_level": 1})

    # A head, three groups and five contenders; a head and one ratio.
    assert len(list(tree.findall(row))) == 9 + 2


def test_figures_are_read_as_they_were_written(bench: Any, tmp_path: Path) -> None:
    results = canned(bench)
    results.write(tmp_path / "results.json")

    assert bench("figures").read(tmp_path / "results.json") == results


def test_a_plot_without_matplotlib_names_the_extra(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(SystemExit, match=r"pip install 'redis_bus\[bench\]'"):
        bench("plot").draw(canned(bench), tmp_path / "results.png")


def test_the_floor_is_measured_and_ends_with_the_run(bench: Any) -> None:
    contenders, crew = bench("contenders"), bench("crew")
    pair = next(one for one in contenders.CONTENDERS if one.name == contenders.PAIR)

    with crew.Crew() as running:
        running.start(pair)
        figures = [running.ask(pair, kind, 0.01) for kind in pair.kinds]
        started = list(running._processes)

    assert all(figure > 0 for figure in figures)
    assert len(started) == 2 and all(process.has_ended() for process in started)


def test_one_that_does_not_start_is_told_with_its_last_words(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders, crew = bench("contenders"), bench("crew")
    monkeypatch.setattr(crew, "READY_SECONDS", 0.5)
    dies = contenders.Contender("dies", "peer", ("-c", "raise SystemExit('no such thing')"))
    waits = ("-c", "import time; time.sleep(60)")
    orphan = contenders.Contender("orphan", "peer", waits, ("-c", "exit('no broker')"))

    with crew.Crew() as running:
        with pytest.raises(crew.FailedError, match=r"^no such thing$"):
            running.start(dies)
        with pytest.raises(crew.FailedError, match=r"^its worker ended: no broker$"):
            running.start(orphan)


def test_help_says_what_it_does_before_anything_is_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(PEERS), "--help"], capture_output=True, text=True, timeout=30
    )

    assert done.returncode == 0, done.stderr
    assert "--venv" in done.stdout and "--json" in done.stdout
