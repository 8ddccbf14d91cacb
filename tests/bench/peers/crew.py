"""The processes of a run: each in a session of its own, all ended with the run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from contenders import Contender
from side_by_side import BUS

from redis_bus.bench.names import NAME_VARIABLE
from redis_bus.embedded import EmbeddedRedis, die_with_parent

HERE = Path(__file__).resolve().parent
# A client's first call waits for its worker: longer than common.READY_SECONDS, for its imports.
READY_SECONDS = 40.0
ANSWER_SECONDS = 30.0
STOP_SECONDS = 3.0


class FailedError(Exception):
    """A contender did not start or did not answer; the message is the reason."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_nats_server() -> str | None:
    """Return the NATS server of this environment, else the one on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which("nats-server", path=path)


def python(contender: Contender) -> str:
    """Return the Python that runs its programs."""
    if not contender.apart:
        return sys.executable
    return str(contender.environment(Path(sys.prefix)) / "bin" / "python")


class Process:
    """A process and those that it starts itself; what they print goes to a file."""

    def __init__(
        self, command: list[str], environment: dict[str, str], log: Path, stdout: int | None = None
    ) -> None:
        self._log = log
        with open(log, "wb") as printed:
            self._process = subprocess.Popen(
                command,
                cwd=HERE,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=printed if stdout is None else stdout,
                stderr=printed,
                # Its children are of its group; ctrl-C is for the run, which then ends them all.
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def last_words(self) -> str:
        """Return the last line that it printed, which is why it ended where it did."""
        text = self._log.read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else "it said nothing"

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to those that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def cpu_seconds(self) -> float:
        """Return how much CPU it and those that it started have used."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # After the name: state, parent, group, ..., user and system time
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self._process.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


class Client(Process):
    """A client process: it is told a line, and answers with one of JSON. See common.py."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        super().__init__(command, environment, log, subprocess.PIPE)

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise FailedError(self.last_words()) from None

    def hear(self, seconds: float) -> dict[str, float]:
        """Return what the next line says; raise FailedError where none comes in time."""
        assert self._process.stdout is not None
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise FailedError(f"no answer within {seconds:g} s: {self.last_words()}")
            came = os.read(self._process.stdout.fileno(), 4096)
            if not came:
                raise FailedError(self.last_words())
            line += came
        heard: dict[str, float] = json.loads(line)
        return heard


P = TypeVar("P", bound=Process)


def end(processes: Sequence[Process]) -> None:
    """End these and all that they started; those that do not end soon are killed."""
    for process in processes:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.send(signal.SIGKILL)  # to its group: what it started may have stayed
        process.wait(STOP_SECONDS)


class Crew:
    """Redis, NATS where it is needed, and the workers and clients of a run."""

    def __init__(self) -> None:
        self._redis = EmbeddedRedis(port=0)
        self._numbers = itertools.count()
        self._processes: list[Process] = []
        self._workers: dict[tuple[str, ...], Process] = {}
        self._clients: dict[str, Client] = {}
        self._environment: dict[str, str] = {}

    def __enter__(self) -> Crew:
        # TCP for all: not every peer speaks to Redis over a unix socket.
        url = self._redis.start().url.replace("localhost", "127.0.0.1")
        self._folder = Path(tempfile.mkdtemp(prefix="peers-"))
        ours = {"REDIS_BUS_URL": url, "PYTHONPATH": str(HERE.parent), NAME_VARIABLE: BUS}
        ports = {name: str(free_port()) for name in ("PYRO5_PORT", "ZERORPC_PORT")}
        self._environment = {**os.environ, **ours, **ports}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(self._processes)
        self._redis.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, contender: Contender) -> None:
        """Start its worker, unless it is there, and its client; return after a first call."""
        if contender.nats:
            self._start_nats()
        client = self._launch(Client, python(contender), *contender.client)
        self._clients[contender.name] = client
        with self._at_work(contender):
            client.hear(READY_SECONDS)

    def ask(self, contender: Contender, kind: str, seconds: float) -> float:
        """Return what its client measures: us a call of ``seq``, calls a second of ``many``."""
        client = self._clients[contender.name]
        with self._at_work(contender):
            client.tell(f"{kind} {seconds}")
            return client.hear(seconds + ANSWER_SECONDS)["figure"]

    def worker(self, contender: Contender) -> Process:
        return self._workers[contender.worker]

    @contextlib.contextmanager
    def _at_work(self, contender: Contender) -> Iterator[None]:
        """See to it that its worker runs within the block; a client that fails there is ended."""
        command = contender.worker
        if command and command not in self._workers:
            self._workers[command] = self._launch(Process, python(contender), *command)
        worker = self._workers.get(command)
        try:
            yield
        except FailedError:
            self._clients[contender.name].send(signal.SIGKILL)
            if worker is not None and worker.has_ended():
                raise FailedError(f"its worker ended: {worker.last_words()}") from None
            raise
        finally:
            if contender.polls and worker is not None:
                end([worker])
                self._processes.remove(worker)
                del self._workers[command]

    def _start_nats(self) -> None:
        if "NATS_URL" in self._environment:
            return
        server = find_nats_server()
        if server is None:
            raise FailedError("no nats-server found: apt install nats-server")
        port = str(free_port())
        self._launch(Process, server, "--addr", "127.0.0.1", "--port", port)
        self._environment["NATS_URL"] = f"nats://127.0.0.1:{port}"

    def _launch(self, kind: type[P], *command: str) -> P:
        log = self._folder / f"{next(self._numbers)}.log"
        process = kind([*command], self._environment, log)
        self._processes.append(process)
        return process
