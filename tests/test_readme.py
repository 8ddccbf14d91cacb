"""The README tells the truth: its files are the samples, its commands and sessions are run."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docutils.core
import pytest

from redis_bus.embedded import _free_port
from tests.support import PATIENCE_SECONDS, ROOT, SAMPLE, Processes, eventually
from tests.web_support import answers, get

README = ROOT / "README.rst"
BLOCK = re.compile(
    r"^\.\. code-block:: (?P<kind>\w+)\n(?:    :name: (?P<name>\S+)\n)?\n"
    r"(?P<text>(?:    .*\n|\n)+)",
    re.MULTILINE,
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True)
class Block:
    kind: str
    name: str | None
    text: str
    line: int


def blocks() -> list[Block]:
    source = README.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(source):
        text = re.sub(r"^    ", "", match["text"], flags=re.MULTILINE).strip("\n") + "\n"
        line = source.count("\n", 0, match.start("text")) + 1
        found.append(Block(match["kind"], match["name"], text, line))
    return found


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown for it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


INSTALL = [block for block in blocks() if "-m venv" in block.text]


def test_every_block_is_of_a_kind_that_is_run() -> None:
    kinds = {block.kind for block in blocks()}
    assert kinds == {"console", "python", "pycon"}
    assert len(blocks()) == README.read_text(encoding="utf-8").count(".. code-block::")


def test_the_two_lines_that_lead_are_run_by_ci_word_for_word() -> None:
    script = r"sed -n 's/^ *\$ \(python3 -m venv .*\)$/\1/p' README.rst"
    assert script in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lines = subprocess.check_output(["bash", "-c", script], cwd=ROOT, text=True).splitlines()
    assert lines == [command for block in INSTALL for command, _ in commands(block)]
    assert len(lines) == 2
    assert lines[0].endswith("redis-bus demo")
    assert lines[1].endswith("pytest -n 4")


@pytest.mark.parametrize("name", ["README.rst", "CHANGELOG.rst", "CONTRIBUTING.rst"])
def test_the_documents_are_valid(name: str) -> None:
    problems = io.StringIO()
    settings = {"warning_stream": problems, "report_level": 1, "halt_level": 5}
    source = (ROOT / name).read_text(encoding="utf-8")
    docutils.core.publish_string(source, writer="html5", settings_overrides=settings)
    assert problems.getvalue() == ""


def test_the_files_shown_are_the_samples() -> None:
    shown = [block for block in blocks() if block.name and block.name.startswith("sample/")]
    assert [block.name for block in shown] == ["sample/rng.py", "sample/simple_math.py"]
    for block in shown:
        code = (ROOT / str(block.name)).read_text(encoding="utf-8")
        assert block.text in code, f"{block.name} is not what line {block.line} shows"


def test_every_test_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"``(test_\w+)``", README.read_text(encoding="utf-8")))
    source = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in source} == set()


class Tour:
    """Runs the blocks in their order: commands that serve go on, as in terminals of their own."""

    def __init__(self, processes: Processes, folder: Path, env: dict[str, str]) -> None:
        self.processes = processes
        self.folder = folder
        self.env = env
        self.names: dict[str, object] = {}
        self.checked = 0
        self.web_port = int(env["UVICORN_PORT"])

    def run(self, block: Block) -> None:
        if block.name:
            path = self.folder / Path(block.name).name
            if not path.exists():
                path.write_text(block.text, encoding="utf-8")
        elif block.kind == "pycon":
            self.run_session(block)
        elif block.kind == "console":
            for command, output in commands(block):
                self.run_command(command, output, block)

    def run_session(self, block: Block) -> None:
        parser = doctest.DocTestParser()
        test = parser.get_doctest(block.text, self.names, "README.rst", str(README), block.line)
        runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
        report = io.StringIO()
        runner.run(test, out=report.write, clear_globs=False)
        self.names = test.globs
        assert runner.failures == 0, report.getvalue()
        self.checked += len(test.examples)

    def run_command(self, command: str, output: str, block: Block) -> None:
        words = shlex.split(command)
        if words[0] == "cd":
            return
        if words[0] == "curl":
            _, text = get(self.web_port, words[1].removeprefix("localhost:8000"))
            self.check(block, command, output, text)
            return
        serves = words[-1].endswith(".bus") or words == ["python", "service.py"]
        process = self.processes.start(*words, cwd=self.folder, env=self.env)
        if words[0] == "uvicorn":
            eventually(lambda: answers(self.web_port))
            return
        if serves or words[1] == "shell":
            # A shell without a terminal sees the end of its input at once.
            assert words[1] == "shell" or process.poll() is None
            self.checked += 1
            if serves:
                self.wait_until_served(words)
            return
        out, err = process.communicate(timeout=PATIENCE_SECONDS * 4)
        self.check(block, command, output, out, err)

    def check(self, block: Block, command: str, shown: str, out: str, err: str = "") -> None:
        self.checked += 1
        checker = doctest.OutputChecker()
        assert checker.check_output(shown, out, FLAGS), f"{command}\n{out}{err}(line {block.line})"

    def wait_until_served(self, words: list[str]) -> None:
        import redis_bus

        name, method = {
            "rng.bus": ("sample_playground", "random_uuid"),
            "simple_math.bus": ("sample_playground", "math_sum"),
            "service.py": ("shop", "vat"),
        }[words[-1]]

        def served() -> bool:
            with contextlib.suppress(redis_bus.ConnectionLost):
                return bool(bus.stats().get(method, {}).get("workers"))
            return False

        with redis_bus.Bus(name, url=self.env["REDIS_BUS_URL"]) as bus:
            eventually(served)


@pytest.fixture
def tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tour]:
    """Free ports stand for the default ones; the README's first worker brings a Redis to one."""
    folder = tmp_path / "sample"
    shutil.copytree(SAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    port = _free_port()
    url = f"redis://localhost:{port}/0"
    monkeypatch.setenv("REDIS_BUS_URL", url)
    monkeypatch.setenv("COLUMNS", "80")
    processes = Processes(url, folder)
    ports = {"REDIS_BUS_SERVE_EMBEDDED_PORT": str(port), "UVICORN_PORT": str(_free_port())}
    yield Tour(processes, folder, processes.environment(**ports))
    processes.end()


def test_every_block_of_the_readme_runs_as_shown(tour: Tour) -> None:
    for block in blocks():
        if block not in INSTALL:
            tour.run(block)
    assert tour.checked > 25
