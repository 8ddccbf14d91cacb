"""``redis-bus demo``: the tour it shows, and that nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.support import PATIENCE_SECONDS, SAMPLE, Processes, eventually, processes_with

DEMO_SECONDS = 10.0
MARK = "REDIS_TEST_DEMO"


class Demo:
    """Runs the demo in a world of its own, where all that it leaves can be found."""

    def __init__(self, folder: Path) -> None:
        self.processes = Processes("redis://localhost:1/0", folder)
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.here = folder / "here"
        self.here.mkdir()
        self.mark = f"{MARK}={folder}"

    def start(self) -> subprocess.Popen[str]:
        environment = self.processes.environment(
            **{MARK: self.mark.partition("=")[2]},
            TMPDIR=str(self.temporary),
            # None of this is meant for the workers of the demo.
            REDIS_BUS_SERVE_BURST="1",
            REDIS_BUS_SERVE_PATTERN="nothing",
        )
        return self.processes.start("redis-bus", "demo", cwd=self.here, env=environment)

    def left_processes(self) -> list[int]:
        """Return the processes that were started by the demo, or are it, and still run."""
        return processes_with(self.mark)

    def left_files(self) -> list[Path]:
        return [*self.temporary.iterdir(), *self.here.iterdir()]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.processes.end()


def sample_files() -> set[Path]:
    """Return the files of the samples; what Python caches of their package is not the demo's."""
    own = {"rng", "simple_math"}
    return {path for path in SAMPLE.rglob("*") if path.suffix == ".py" or path.stem in own}


def blocks(text: str) -> dict[str, list[str]]:
    """Return what came back for each line that ran; a line that ran twice has both in one list."""
    found: dict[str, list[str]] = {}
    for block in re.split(r"^>>> ", text, flags=re.MULTILINE)[1:]:
        line, _, answer = block.partition("\n")
        answer = re.split(r"^(?:# |$)", answer, maxsplit=1, flags=re.MULTILINE)[0]
        found.setdefault(line, []).append(answer.strip())
    return found


def test_demo_shows_the_tour_with_what_it_runs_beside_what_comes_back(demo: Demo) -> None:
    started = time.monotonic()
    process = demo.start()
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (0, "")
    assert time.monotonic() - started < DEMO_SECONDS
    assert "\x1b" not in out  # colour is for terminals
    shown = blocks(out)
    assert shown["bus.all_methods()"] == [
        "['math_now', 'math_sum', 'random_error', 'random_password', 'random_uuid']"
    ]
    assert re.fullmatch("'[0-9a-f]{32}'", shown["bus.random_uuid()"][0])
    assert re.fullmatch("'[A-Za-z]{20}'", shown["bus.random_password(20)"][0])
    assert shown["bus.math_sum(1, b=2)"] == ["3"]
    assert "(length: int = 12) -> str" in shown["inspect.signature(bus.random_password)"][0]
    helped = out.partition(">>> help(bus.math_sum)")[2]
    assert "\nmath_sum(a: float, b: float) -> float\n    Return a + b.\n" in helped
    first, second, third = shown["bus.math_now(1)"]
    assert first == second != third and "datetime" in third
    assert shown["bus.math_now(2)"][0] not in (first, third)
    assert shown["bus.math_now.clear_cache(1)"] == ["True"]
    assert "'calls': 4, 'hits': 1" in shown["bus.stats()['math_now']"][0]
    assert int(shown["bus.cleanup()"][0]) > 5


def test_demo_shows_the_remote_traceback_of_the_very_sample(demo: Demo) -> None:
    out = demo.start().communicate(timeout=PATIENCE_SECONDS)[0]
    error = out.partition(">>> bus.random_error()")[2].partition("\n#")[0]
    assert 'rng.py", line' in error and "KeyError: 'nothing'" in error
    assert error.rstrip().endswith("ValueError: this method always fails")
    assert "demo.py" not in error


def test_demo_is_coloured_on_a_terminal(demo: Demo) -> None:
    environment = demo.processes.environment(TERM="xterm", TMPDIR=str(demo.temporary))
    terminal: Any = pexpect.spawn("redis-bus", ["demo"], env=environment, encoding="utf-8")
    terminal.expect("\x1b.*all_methods", timeout=PATIENCE_SECONDS)
    terminal.expect(pexpect.EOF, timeout=PATIENCE_SECONDS)
    terminal.close()
    assert terminal.exitstatus == 0


def test_demo_leaves_no_process_and_no_file(demo: Demo) -> None:
    before = sample_files()
    process = demo.start()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert demo.left_processes() == []
    assert demo.left_files() == []
    assert sample_files() <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after", ["# A private", "$ redis-bus simple", ">>> bus.math_sum(1"])
def test_an_interrupted_demo_leaves_no_process_and_no_file(
    demo: Demo, number: int, after: str
) -> None:
    process = demo.start()
    assert process.stdout is not None
    while not process.stdout.readline().startswith(after):
        assert process.poll() is None
    process.send_signal(number)
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    # The last steps take so little time that the demo may have come to its end.
    assert process.returncode in (130, 143, 0) and "Traceback" not in err
    assert demo.left_processes() == []
    assert demo.left_files() == []


def test_a_demo_whose_reader_leaves_leaves_nothing_either(demo: Demo) -> None:
    process = demo.start()
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE_SECONDS) in (0, 1)
    assert demo.left_processes() == []
    assert demo.left_files() == []


def test_a_killed_demo_leaves_no_process(demo: Demo) -> None:
    process = demo.start()
    assert process.stdout is not None
    while not process.stdout.readline().startswith("$ redis-bus simple"):
        assert process.poll() is None
    process.kill()
    process.wait()
    eventually(lambda: not demo.left_processes())


def test_the_samples_are_installed_with_the_package(demo: Demo) -> None:
    code = "import importlib.resources as r; print(r.files('redis_bus.sample'))"
    shown = demo.processes.run(sys.executable, "-c", code, cwd=demo.here)
    folder = Path(shown.stdout.strip())
    for name in ("rng.py", "simple_math.py", "playground.py"):
        assert os.path.samefile(folder / name, SAMPLE / name)
