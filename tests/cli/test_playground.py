"""The console, driven through a terminal: IPython, and Python's own where that is not installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from redis_bus import Bus
from redis_bus.embedded import EmbeddedRedis
from tests.support import SAMPLE, Processes, eventually, workers

BUS = "sample_playground"
NO_IPYTHON = "raise ModuleNotFoundError(\"No module named 'IPython'\", name='IPython')\n"
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>])")


class Terminal:
    """A console in a pseudo-terminal: what is typed into it, and what it then shows."""

    def __init__(self, processes: Processes, prompt: str, command: list[str]) -> None:
        environment = processes.environment(
            HOME=str(processes.folder),
            IPYTHONDIR=str(processes.folder / "ipython"),
            TERM="xterm",
            # Else prompt_toolkit asks the terminal where its cursor is, and nobody answers here.
            PROMPT_TOOLKIT_NO_CPR="1",
            NO_COLOR="1",
        )
        self.child: Any = pexpect.spawn(
            command[0],
            command[1:],
            cwd=str(processes.folder),
            env=environment,
            encoding="utf-8",
            timeout=30,
            dimensions=(40, 120),
        )
        self.completes_calls = prompt.startswith(">")
        self.read(prompt)

    def read(self, until: str) -> str:
        """Return what is shown up to a text, without what moves the cursor or gives colour."""
        self.child.expect(until)
        return _ESCAPES.sub("", self.child.before + self.child.after)

    def type(self, text: str) -> None:
        self.child.send(text)

    def open_call(self) -> None:
        """Have a parenthesis behind a completed name; Python's own completion adds it itself."""
        if self.completes_calls:
            self.read(r"\(")
        else:
            self.type("(")

    def run(self, line: str, answer: str) -> str:
        """Type a line, and return what is shown up to the answer."""
        self.type(f"{line}\r")
        return self.read(answer)

    def leave(self) -> None:
        self.type("exit()\r")
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert self.child.exitstatus == 0


@pytest.fixture(scope="module")
def server(one_server: EmbeddedRedis) -> EmbeddedRedis:
    """Any: a console is not its doing."""
    return one_server


@pytest.fixture
def sample_bus(url: str) -> Iterator[Bus]:
    with Bus(BUS, url=url) as bus:
        yield bus


@pytest.fixture(params=["ipython", "standard"])
def open_playground(request: pytest.FixtureRequest, processes: Processes) -> Any:
    """Opens the playground in a folder where the samples' code is not."""
    shutil.copy(SAMPLE / "playground.py", processes.folder)
    prompt = r"In .*\[.*\d.*\]: "
    if request.param == "standard":
        # This folder comes first on the path of a script in it.
        processes.write("IPython.py", NO_IPYTHON)
        prompt = ">>> "
    return lambda: Terminal(processes, prompt, ["python", "playground.py"])


def serve_samples(processes: Processes, bus: Bus, *names: str) -> None:
    for name in names:
        processes.start("redis-bus", f"{name}.bus", cwd=SAMPLE)
    wanted = {"rng": "random_error", "simple_math": "math_sum"}
    eventually(lambda: all(workers(bus, wanted[name]) for name in names))


def test_the_playground_completes_names_of_code_that_is_not_there(
    open_playground: Any, processes: Processes, sample_bus: Bus
) -> None:
    serve_samples(processes, sample_bus, "rng", "simple_math")
    assert not (processes.folder / "rng.py").exists()
    terminal = open_playground()
    terminal.type("bus.random_p\t")
    terminal.read("assword")
    terminal.open_call()
    terminal.type("20)\r")
    terminal.read("'[A-Za-z]{20}'")
    terminal.type("bus.random_\t\t")
    for name in ("error", "password", "uuid"):
        terminal.read(f"random_{name}")


def test_the_playground_says_which_bus_it_has_and_what_is_on_it(
    open_playground: Any, processes: Processes, sample_bus: Bus
) -> None:
    serve_samples(processes, sample_bus, "rng", "simple_math")
    terminal = open_playground()
    shown = terminal.run("print(bus.math_sum(1, 2) * 37)", "111")
    assert "Traceback" not in shown
    terminal.run("print(bus)", "<Bus 'sample_playground' at ")
    terminal.leave()


def test_a_worker_that_starts_later_is_discovered_by_an_open_console(
    open_playground: Any, processes: Processes, sample_bus: Bus
) -> None:
    terminal = open_playground()
    terminal.run("print(bus.all_methods())", r"\[\]")
    serve_samples(processes, sample_bus, "simple_math")
    terminal.type("bus.math_s\t")
    terminal.read("um")
    terminal.open_call()
    terminal.type("4000, b=2)\r")
    terminal.read("4002")
    terminal.leave()


def test_help_in_ipython_is_the_callees_signature_and_docstring(
    processes: Processes, sample_bus: Bus
) -> None:
    serve_samples(processes, sample_bus, "rng")
    command = ["redis-bus", "shell", BUS]
    terminal = Terminal(processes, r"In .*\[.*\d.*\]: ", command)
    shown = terminal.run("bus.random_password?", "of random letters")
    assert "Signature:" in shown and "(length: int = 12) -> str" in shown
    assert "Docstring:" in shown


def test_the_console_of_python_itself_has_help(processes: Processes, sample_bus: Bus) -> None:
    serve_samples(processes, sample_bus, "rng")
    processes.write("IPython.py", NO_IPYTHON)
    terminal = Terminal(processes, ">>> ", ["python", "-m", "redis_bus", "shell", BUS])
    shown = terminal.run("print(help(bus.random_password))", "of random letters")
    assert "(length: int = 12) -> str" in shown


def test_an_exception_in_the_console_of_python_itself_is_told_alone(processes: Processes) -> None:
    processes.write("IPython.py", NO_IPYTHON)
    terminal = Terminal(processes, ">>> ", ["python", "-m", "redis_bus", "shell", BUS])
    shown = terminal.run("1 / 0", "ZeroDivisionError: division by zero")
    assert "IPython" not in shown and "During handling" not in shown
    assert shown.count("Traceback") == 1
    terminal.leave()


def test_the_playground_without_a_redis_is_one_line(tmp_path: Path) -> None:
    processes = Processes("redis://localhost:1/0", tmp_path)
    shown = processes.run("python", str(SAMPLE / "playground.py"))
    assert (shown.returncode, shown.stdout) == (5, "")
    assert shown.stderr.count("\n") == 1 and "Three ways out" in shown.stderr
