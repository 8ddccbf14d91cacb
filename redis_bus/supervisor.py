"""Supervisor: starts worker processes, starts them again when they die, and ends them.

It imports nothing of the user's: what a worker process has to say of itself comes over a pipe.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .cli_common import Exit
from .cli_signals import ENDING, SignalPipe
from .embedded import die_with_parent
from .protocol import LEASE_MS

logger = logging.getLogger("redis_bus")

# What a worker process finds in its environment: the pipe, and whose jobs it is to see after.
PIPE = "REDIS_BUS_SUPERVISOR_PIPE"
SUCCEEDS = "REDIS_BUS_SUCCEEDS"
# Options that are the supervisor's own, and not for its children.
OWN_OPTIONS = ("REDIS_BUS_SERVE_WORKERS", "REDIS_BUS_SERVE_EMBEDDED")
# Who lived that long did not die of its start.
STEADY_SECONDS = 10.0
BACKOFF_SECONDS = 0.1
BACKOFF_LIMIT_SECONDS = 30.0
# How long a process may take to end after it was told to stop at once.
KILL_SECONDS = 5.0
# Exit codes that another try would not change, where no worker has ever served.
HOPELESS = (Exit.REMOTE_ERROR, Exit.USAGE, Exit.NO_REDIS)
# After that nobody has a lease that the next worker could end.
REMEMBER_SECONDS = 2 * LEASE_MS / 1000


class Supervised:
    """What a worker process knows of the supervisor that started it, and tells it."""

    def __init__(self, pipe: int, succeeds: tuple[str, ...]) -> None:
        self.succeeds = succeeds
        self.notes: list[str] = []
        self._pipe = pipe

    @classmethod
    def from_environment(cls) -> Supervised | None:
        """Return None where no supervisor started this process."""
        number = os.environ.pop(PIPE, None)
        if number is None:
            return None
        os.set_inheritable(int(number), False)
        # Who serves handles it; what comes after that would only be an interrupt of the clean-up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return cls(int(number), tuple(os.environ.get(SUCCEEDS, "").split()))

    def serves(self, worker: str, banner: str) -> None:
        """Tell the id of the worker that serves now, and what else it would have said."""
        os.environ.pop(SUCCEEDS, None)
        self._tell(worker=worker, banner=banner, notes=self.notes)

    def has_run(self, jobs: int) -> None:
        """Tell how many jobs a burst had."""
        self._tell(ran=jobs)

    def _tell(self, **facts: object) -> None:
        data = json.dumps(facts).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # killed: this process is to end, too
            while data:
                data = data[os.write(self._pipe, data) :]


class Backoff:
    """How long to wait until one that died is started again."""

    def __init__(self) -> None:
        self._short_lives = 0

    def seconds(self, lived: float, *, by_signal: bool) -> float:
        """Return the wait after a death: none at first, longer and longer for a short life."""
        if lived >= STEADY_SECONDS:
            self._short_lives = 0
            return 0.0
        self._short_lives += 1
        if by_signal and self._short_lives == 1:
            return 0.0
        doublings = min(self._short_lives - 1, 16)
        wait = min(BACKOFF_SECONDS * (1 << doublings), BACKOFF_LIMIT_SECONDS)
        return wait * random.uniform(0.5, 1.0)  # so that many do not come at once


class Child:
    """A worker process, and what it told so far. Raises OSError where it cannot be started."""

    def __init__(self, arguments: Sequence[str], succeeds: Sequence[str]) -> None:
        self.worker: str | None = None
        self.ran = 0
        self.has_closed = False
        self.started = time.monotonic()
        self._heard = b""
        self.pipe, writer = os.pipe()
        try:
            os.set_blocking(self.pipe, False)
            self.process = self._start(arguments, succeeds, writer)
        except BaseException:
            os.close(self.pipe)
            raise
        finally:
            os.close(writer)

    def hear(self) -> list[dict[str, Any]]:
        """Return what it told since the last time."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.pipe, 65536):
                self._heard += data
            self.has_closed = True
        *lines, self._heard = self._heard.split(b"\n")
        return [json.loads(line) for line in lines]

    def how_it_ended(self) -> str:
        code = self.process.returncode
        if code >= 0:
            return f"ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    def _start(
        self, arguments: Sequence[str], succeeds: Sequence[str], pipe: int
    ) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k not in OWN_OPTIONS}
        environment[PIPE] = str(pipe)
        environment.pop(SUCCEEDS, None)
        if succeeds:
            environment[SUCCEEDS] = " ".join(succeeds)
        # Files of the current folder must not hide modules that are imported before the target.
        sees_folder = sys.path[:1] == [os.getcwd()]  # as `python -m redis_bus` does
        safe = ["-P"] if sys.version_info >= (3, 11) and not sees_folder else []
        # A signal between fork and exec would be noted in the pipe that both have then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        die = die_with_parent()

        def arrange() -> None:
            for number in ENDING:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if die is not None:
                die()

        try:
            return subprocess.Popen(
                [sys.executable, *safe, "-m", "redis_bus", "serve", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                # ctrl-C in the terminal is for the supervisor, which passes it on.
                start_new_session=True,
                pass_fds=[pipe],
                preexec_fn=arrange,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Place:
    """One of the N: the process that fills it, or when the next one will."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.due: float | None = None
        self.backoff = Backoff()
        self._dead: list[tuple[float, str]] = []

    def bury(self, worker: str) -> None:
        """Note who died here."""
        now = time.monotonic()
        self._dead = [(at, other) for at, other in self._dead if now - at < REMEMBER_SECONDS]
        self._dead.append((now, worker))

    def succeeds(self) -> list[str]:
        """Return who died here; more than one where the next died before it could see to it."""
        return [worker for _, worker in self._dead]


class Supervisor:
    """Keeps ``count`` processes that serve, until a signal ends them and itself.

    ``arguments`` are those of ``redis-bus serve`` for each. What is to be said once goes to
    ``say``; ``first`` before all else, when the first process serves.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        count: int,
        *,
        say: Callable[[str], None],
        first: Iterable[str] = (),
        burst: bool,
        shutdown_timeout: float,
    ) -> None:
        self._arguments = arguments
        self._places = [Place() for _ in range(count)]
        self._say = say
        self._first = first
        self._burst = burst
        self._shutdown_timeout = shutdown_timeout
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._kill_at: float | None = None
        self._served = False
        self._ran = 0
        self._code = 0

    def run(self) -> int:
        """Return the exit code, once all processes have ended.

        Raises KeyboardInterrupt where ctrl-C came before any process served.
        """
        # The first alone: what is wrong with all of them is said once.
        self._places[0].due = time.monotonic()
        with SignalPipe(*ENDING, signal.SIGCHLD) as signals, self._selector:
            self._selector.register(signals, selectors.EVENT_READ)
            try:
                self._start_due()
                while self._children() or self._dues():
                    self._wait()
                    for number in signals.read():
                        if number != signal.SIGCHLD:
                            self._stop(number)
                    self._look_after_children()
                    self._start_due()
                    self._kill_late()
            finally:
                self._send(signal.SIGTERM)  # to none, unless something is wrong here
        if self._burst and self._served:
            self._say(f"ran {self._ran} job{'' if self._ran == 1 else 's'}")
        if self._signals and not self._served:
            if self._signals[0] == signal.SIGINT:
                raise KeyboardInterrupt
            return Exit.TERMINATED
        return self._code

    def _children(self) -> list[Child]:
        return [place.child for place in self._places if place.child is not None]

    def _dues(self) -> list[float]:
        return [place.due for place in self._places if place.due is not None]

    def _wait(self) -> None:
        """Wait for a signal, for the end or the words of a child, or for what is due."""
        times = self._dues() + ([] if self._kill_at is None else [self._kill_at])
        now = time.monotonic()
        self._selector.select(max(0.0, min(times) - now) if times else None)

    # -- starting -----------------------------------------------------------------------------

    def _start_due(self) -> None:
        for place in self._places:
            if place.due is None or place.due > time.monotonic():
                continue
            try:
                place.child = Child(self._arguments, place.succeeds())
            except OSError as error:
                # No memory, or this Python is being replaced.
                wait = place.backoff.seconds(0.0, by_signal=False)
                place.due = time.monotonic() + wait
                text = "no worker process can be started: %s; the next try is in %.2g s"
                logger.warning(text, error, wait)
                continue
            place.due = None
            self._selector.register(place.child.pipe, selectors.EVENT_READ)
            logger.info("worker process %d is started", place.child.process.pid)

    def _hear(self, child: Child) -> None:
        for facts in child.hear():
            child.ran = facts.get("ran", child.ran)
            child.worker = facts.get("worker", child.worker)
            if "worker" in facts:
                logger.info("worker process %d is worker %s", child.process.pid, child.worker)
            if "worker" in facts and not self._served:
                self._served = True
                if not self._signals:
                    self._start_rest(**facts)
        if child.has_closed:
            self._ignore(child)

    def _ignore(self, child: Child) -> None:
        if child.pipe in self._selector.get_map():
            self._selector.unregister(child.pipe)

    def _start_rest(self, worker: str, banner: str, notes: list[str]) -> None:
        """The first process serves: start the others, and say so for all of them."""
        for place in self._places:
            if place.child is None:
                place.due = time.monotonic()
        self._start_due()
        pids = [str(child.process.pid) for child in self._children()]
        many = "s" if len(pids) > 1 else ""
        workers = f"{len(pids)} worker{many} (pid{many} {', '.join(pids)})"
        stop = "" if self._burst else "; ctrl-C stops"
        for text in self._first:
            self._say(text)
        self._say(f"{banner} with {workers}{stop}")
        for text in notes:
            self._say(text)

    # -- ending -------------------------------------------------------------------------------

    def _look_after_children(self) -> None:
        for place in self._places:
            child = place.child
            if child is None:
                continue
            has_ended = child.process.poll() is not None
            self._hear(child)
            if has_ended:
                place.child = None
                self._ignore(child)
                os.close(child.pipe)
                self._ran += child.ran
                self._follow(place, child)

    def _follow(self, place: Place, child: Child) -> None:
        """Decide what comes after a process that ended."""
        code = child.process.returncode
        pid, how = child.process.pid, child.how_it_ended()
        if self._signals or (self._burst and code == 0):
            logger.info("worker process %d %s", pid, how)
            return
        if not self._served and code in HOPELESS:
            self._code = code  # it said why
            return
        if self._burst:
            self._code = self._code or (code if code > 0 else 128 - code)
            logger.warning("worker process %d %s", pid, how)
            return
        if child.worker is not None:
            place.bury(child.worker)
        wait = place.backoff.seconds(time.monotonic() - child.started, by_signal=code < 0)
        place.due = time.monotonic() + wait
        when = f"in {wait:.2g} s" if wait else "now"
        logger.warning("worker process %d %s; another is started %s", pid, how, when)

    def _stop(self, number: int) -> None:
        """The first signal lets jobs finish, those that follow end them."""
        self._signals.append(number)
        is_first = len(self._signals) == 1
        for place in self._places:
            place.due = None
        bound = time.monotonic() + KILL_SECONDS + (self._shutdown_timeout if is_first else 0.0)
        self._kill_at = bound if self._kill_at is None else min(self._kill_at, bound)
        # Two numbers: of two equal signals, a process that is slow to see them sees one.
        self._send(signal.SIGTERM if is_first else signal.SIGINT)

    def _send(self, number: int) -> None:
        for child in self._children():
            child.process.send_signal(number)

    def _kill_late(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._kill_at = None
        for child in self._children():
            logger.warning("worker process %d does not end: it is killed", child.process.pid)
        self._send(signal.SIGKILL)
