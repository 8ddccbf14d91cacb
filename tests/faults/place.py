"""A place of a fault test's own: a Redis that can be killed, workers, callers, measured facts.

::

    @pytest.mark.together                       # runs beside the others, on each kind of server
    def test_a_killed_worker_...(place: Place) -> None:
        worker = place.serve(CODE)              # a real `redis-bus` process, alive when it returns
        bus = place.bus(timeout=60)             # a caller's Bus("test") in this thread
        os.kill(worker.pid, signal.SIGKILL)     # or place.pause(worker), place.resume(worker)
        place.server.kill(); place.server.start()          # also restart, stop_signal, cont
        place.eventually(lambda: place.workers("m") == 0)  # fails after 30 s, or `seconds`
        place.client.rpush("go", 1)             # a redis.Redis on the place's server
        place.note(f"took {s:.1f} s")           # is printed with the test's captured stdout

``@pytest.mark.together(appendonly="yes", maxmemory_policy="allkeys-lru")`` gives the server those
options, ``seconds=300`` the test more time, ``over=FACES`` (or SLOTS, BOTH) more places to run in:
those whose ``bus()`` is an `AsyncBus`, waited for, and whose ``serve()`` starts workers that run
``place.slots`` jobs at a time. Such a test has the argument ``place`` and those of
``pytest.mark.parametrize``, no fixtures: it runs in a thread. ``place.log(process)`` is what a
process wrote so far, ``place.logged()`` what this thread logs; ``place.python(code)`` starts a
script, ``place.apart(f, *args)`` runs a call in a thread and returns a future, ``place.now()`` is
the server's clock in seconds, ``place.new_server()`` another server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import redis

from redis_bus import Bus
from redis_bus.embedded import die_with_parent
from tests import support
from tests.faults.faces import ASYNCIO, BLOCKING, AsyncFace

T = TypeVar("T")
READY_SECONDS = 30.0
# Below the range of ports that Linux gives to outgoing connections: one of those could take the
# port of a server that is down for a while.
PORTS = range(20000, 32000)
LOG_LINES_SHOWN = 40
# What may differ with a row: how its caller waits, how its workers claim, or both.
FACES = "faces"
SLOTS = "slots"
BOTH = "both"
MANY = 4


@dataclass(frozen=True)
class Kind:
    """On which server, with which face for the caller, and how many jobs at a time in a worker."""

    server: str
    face: str = BLOCKING
    slots: int = 1
    on_loop: bool = False  # whether its functions are made ``async def``, and all run on one loop

    def __str__(self) -> str:
        more = [self.face] if self.face != BLOCKING else []
        more += [f"{self.slots}-slots"] if self.slots > 1 else []
        more += ["on-loop"] if self.on_loop else []
        return "-".join([self.server, *more])


def kinds(over: str | None) -> list[Kind]:
    """Return the kinds of places in which a test runs.

    Every server sees the plain one. What is new with a face or with slots is not the servers'
    doing, and is seen on one of them.
    """
    servers = list(support.find_servers())
    first, last = servers[0], servers[-1]
    more = {
        None: [],
        FACES: [Kind(last, ASYNCIO)],
        SLOTS: [Kind(first, slots=MANY), Kind(last, slots=MANY, on_loop=True)],
        BOTH: [Kind(first, ASYNCIO, MANY), Kind(last, slots=MANY, on_loop=True)],
    }
    return [*map(Kind, servers), *more[over]]


# Has the functions of a service run in threads, each awaited by an ``async def`` one: so all its
# jobs run on one loop, which none of them blocks.
ON_LOOP = """
    def _on_loop():
        import asyncio, functools, inspect, threading

        def made(function):
            @functools.wraps(function)
            async def awaited(*args, **kwargs):
                loop = asyncio.get_running_loop()
                done = loop.create_future()

                def tell(value, error):
                    if not done.done():
                        done.set_result(value) if error is None else done.set_exception(error)

                def run():
                    value = error = None
                    try:
                        value = function(*args, **kwargs)
                    except Exception as failure:
                        error = failure
                    loop.call_soon_threadsafe(tell, value, error)

                threading.Thread(target=run, daemon=True).start()
                return await done

            return awaited

        for registration in bus._core.registrations.values():
            if not inspect.iscoroutinefunction(registration.function):
                registration.__dict__["function"] = made(registration.function)

    _on_loop()
"""
_ports_taken: set[int] = set()
_ports_lock = threading.Lock()
# A child with `die_with_parent` ends with the thread that started it: so one thread, which lives
# as long as the test run, starts them all.
_starter = ThreadPoolExecutor(1, thread_name_prefix="starter of processes")


class PlaceClosed(Exception):
    """The test run ends, and with it this test's place."""


def _free_port() -> int:
    with _ports_lock:
        while True:
            port = random.choice(PORTS)
            if port in _ports_taken:
                continue
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                _ports_taken.add(port)
                return port


def pause(pid: int) -> None:
    """SIGSTOP a process, and return once it stands."""
    os.kill(pid, signal.SIGSTOP)
    support.eventually(lambda: _state(pid) in "TZ")


def _state(pid: int) -> str:
    # The name of the program before it is in brackets, and may hold spaces.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class RedisServer:
    """A Redis server process on a TCP port that stays the same, whatever is done to it.

    ``options`` are those of redis.conf, with ``_`` for ``-``: ``appendonly="yes"``. By default it
    keeps nothing on disk. Its folder stays over restarts, and so does what it was told to keep.
    It ends with this process.
    """

    def __init__(self, executable: str, **options: object) -> None:
        self.executable = executable
        self.options = {"save": "", "appendonly": "no", **options}
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = Path(tempfile.mkdtemp(prefix="redis_bus_faults-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    @property
    def pid(self) -> int:
        """The process id of the server, which must run."""
        assert self.process is not None, "the server is not started"
        return self.process.pid

    def start(self) -> RedisServer:
        """Start the server, wait until it has loaded its data and answers."""
        assert self.process is None, "the server runs already"
        command = [self.executable, "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self.folder), "--daemonize", "no"]
        for name, value in self.options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        with open(self.folder / "log", "ab") as log:
            self.process = _starter.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            ).result()
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            support.eventually(lambda: self._answers(client), READY_SECONDS)
        return self

    def _answers(self, client: redis.Redis) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended:\n{self.log()}"
        try:
            about = client.info()
        except (redis.RedisError, OSError):
            return False
        return bool(about["process_id"] == self.pid and not about["loading"])

    def kill(self) -> None:
        """End the server with SIGKILL: what it did not write to disk is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server with SIGTERM, as an administrator does."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop the server, and start it again on the same port and folder."""
        self.stop()
        self.start()

    def stop_signal(self) -> None:
        """SIGSTOP the server: connections stay open, nothing is answered, until `cont`."""
        pause(self.pid)

    def cont(self) -> None:
        """Let a server go on after `stop_signal`."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **kwargs: Any) -> redis.Redis:
        """Return a new client on this server, which is closed with it."""
        client = redis.Redis.from_url(self.url, **kwargs)
        self._clients.append(client)
        return client

    def log(self) -> str:
        """Return what the server wrote so far."""
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """End the server for good and remove its folder; closing twice is fine."""
        if self.process is not None:
            self.kill()
        for client in self._clients:
            client.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            process.wait(READY_SECONDS)


class Place:
    """All that one fault test needs: its Redis, its processes, its notes. See the module."""

    def __init__(
        self,
        executable: str,
        face: str = BLOCKING,
        slots: int = 1,
        on_loop: bool = False,
        **options: object,
    ) -> None:
        self.executable = executable
        self.face = face
        self.slots = slots
        self.on_loop = on_loop
        self.folder = Path(tempfile.mkdtemp(prefix="redis_bus_place-"))
        self.notes: list[str] = []
        self.closed = False
        self._processes: list[subprocess.Popen[str]] = []
        self._files: dict[int, Path] = {}
        self._buses: list[Bus | AsyncFace] = []
        self._more_servers: list[RedisServer] = []
        self.server = RedisServer(executable, **options)
        try:
            self.server.start()
            self.client = self.server.client()
            self.processes = support.Processes(self.server.url, self.folder)
        except BaseException:
            self.close()
            raise

    # -- what a test starts -------------------------------------------------------------------

    def serve(
        self,
        code: str,
        *,
        pattern: str | None = None,
        env: dict[str, str] | None = None,
        args: tuple[str, ...] = (),
        alive: bool = True,
    ) -> subprocess.Popen[str]:
        """Start ``redis-bus MODULE.bus`` on a module with that code; return once it serves.

        The code defines ``bus = redis_bus.Bus("test", ...)``; the bus finds the place's server in
        the environment. ``env`` is added to that, ``args`` to the command. With ``alive=False``
        it does not wait for the worker. Each call is a process of its own.
        """
        self._check()
        name = f"service{len(self._processes)}"
        if self.on_loop:
            code = textwrap.dedent(code) + textwrap.dedent(ON_LOOP)
        self.processes.write(f"{name}.py", code)
        more = ("--pattern", pattern) if pattern is not None else ()
        if self.slots > 1:
            more += ("--concurrency", str(self.slots))
        process = self._start("redis-bus", f"{name}.bus", *more, *args, env=env)
        if alive:
            self.eventually(lambda: self.is_listed(process) or self._must_run(process))
        return process

    def python(
        self, code: str, *args: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a Python script, such as a caller; the place's server is in its environment."""
        self._check()
        return self._start(sys.executable, "-c", textwrap.dedent(code), *args, env=env)

    def bus(self, **kwargs: Any) -> Bus:
        """Return a new bus named "test" on the place's server, for callers of this process."""
        self._check()
        settings: dict[str, Any] = {"url": self.server.url, **kwargs}
        bus = AsyncFace(**settings) if self.face == ASYNCIO else Bus("test", **settings)
        self._buses.append(bus)
        return cast(Bus, bus)  # the other one has the same calls

    def new_server(self, **options: object) -> RedisServer:
        """Start another server of the same kind, which ends with the place."""
        self._check()
        server = RedisServer(self.executable, **options)
        self._more_servers.append(server)
        return server.start()

    def pause(self, process: subprocess.Popen[str]) -> None:
        """SIGSTOP a process, and return once it stands."""
        pause(process.pid)

    def resume(self, process: subprocess.Popen[str]) -> None:
        """SIGCONT a process."""
        process.send_signal(signal.SIGCONT)

    def apart(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function, such as a call that waits, in a thread beside; return its future."""
        self._check()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is the future's to raise
                future.set_exception(error)

        # A daemon: what hangs there does not keep pytest from its end.
        threading.Thread(target=run, name="beside a fault test", daemon=True).start()
        return future

    # -- what a test looks at -----------------------------------------------------------------

    def workers(self, method: str) -> int:
        """Return how many workers alive serve a method."""
        with Bus("test", url=self.server.url) as bus:
            return support.workers(bus, method)

    def is_listed(self, process: subprocess.Popen[str]) -> bool:
        """Whether a worker's process is in the list of workers, its lease not at its end."""
        return self.lease(process) > self.now()

    def lease(self, process: subprocess.Popen[str]) -> float:
        """Return when the lease of a worker ends, on the server's clock (s); 0.0: not listed."""
        ends = [0.0]
        for key in self.client.scan_iter("rb:{test:*}:workers"):
            for member, end in self.client.zscan_iter(key):
                if member.split(b":")[-2] == b"%d" % process.pid:
                    ends.append(end / 1000)
        return max(ends)

    def now(self) -> float:
        """Return the server's clock, in seconds."""
        seconds, microseconds = self.client.time()
        return float(seconds + microseconds / 1e6)

    def log(self, process: subprocess.Popen[str]) -> str:
        """Return what a process of the place wrote so far, on stdout and stderr."""
        return self._files[process.pid].read_text(errors="replace")

    @contextlib.contextmanager
    def logged(self) -> Iterator[list[str]]:
        """Collect what the code of the block logs in this thread, at WARNING and above.

        And what is logged in the loops of the place, whoever calls there.
        """
        messages: list[str] = []
        mine = {threading.get_ident()}
        mine |= {bus.thread_id or 0 for bus in self._buses if isinstance(bus, AsyncFace)}

        class Collector(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.thread in mine:
                    messages.append(record.getMessage())

        handler = Collector(logging.WARNING)
        logger = logging.getLogger("redis_bus")
        logger.addHandler(handler)
        try:
            yield messages
        finally:
            logger.removeHandler(handler)

    def eventually(
        self, condition: Callable[[], T], seconds: float = support.PATIENCE_SECONDS
    ) -> T:
        """Return what the condition returns once that is true; fail where it never becomes so."""
        start = time.monotonic()
        while True:
            self._check()
            value = condition()
            if value:
                return value
            waited = time.monotonic() - start
            assert waited < seconds, f"not true within {seconds:g} s: {condition}"
            time.sleep(support.pause_seconds(waited))

    def note(self, text: str) -> None:
        """Keep a measured fact; all are printed with the test."""
        self.notes.append(text)

    # -- the end ------------------------------------------------------------------------------

    def tell_of_processes(self) -> str:
        """Return the last lines that each process wrote, for the report of a failure."""
        told = []
        for process in self._processes:
            lines = self.log(process).splitlines()[-LOG_LINES_SHOWN:]
            state = "runs" if process.poll() is None else f"ended with {process.returncode}"
            told += [f"process {process.pid} {state}; it wrote:", *(f"    {x}" for x in lines)]
        return "\n".join(told)

    def close(self) -> None:
        """End all that the place started; closing twice, from any thread, is fine."""
        self.closed = True
        if hasattr(self, "processes"):
            self.processes.end()
        try:
            for bus in self._buses:
                bus.close()
        finally:
            for server in [*self._more_servers, self.server]:
                server.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *command: str, env: dict[str, str] | None) -> subprocess.Popen[str]:
        file = self.folder / f"output{len(self._processes)}"
        file.touch()
        # To a file, so that it can be read at any time, and no full pipe stops the process.
        process = _starter.submit(
            self.processes.start,
            *("sh", "-c", f'exec "$@" > {file} 2>&1', "sh", *command),
            env=self.processes.environment(**(env or {})),
            preexec_fn=die_with_parent(),
        ).result()
        self._files[process.pid] = file
        self._processes.append(process)
        return process

    def _must_run(self, process: subprocess.Popen[str]) -> bool:
        assert process.poll() is None, f"it ended:\n{self.log(process)}"
        return False

    def _check(self) -> None:
        if self.closed:
            raise PlaceClosed
