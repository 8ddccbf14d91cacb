"""Child: a worker process of a supervisor, the place that it fills, and when the next one does."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from ..embedded import die_with_parent
from ..protocol.commands import LEASE_MS
from .signals import ENDING
from .supervised import PIPE, SUCCEEDS

# Options that are the supervisor's own, and not for its children.
OWN_OPTIONS = (
    "REDIS_BUS_SERVE_WORKERS",
    "REDIS_BUS_SERVE_EMBEDDED",
    "REDIS_BUS_SERVE_RELOAD",
)
# Who lived that long did not die of its start.
STEADY_SECONDS = 10.0
BACKOFF_SECONDS = 0.1
BACKOFF_LIMIT_SECONDS = 30.0
# After that nobody has a lease that the next worker could end.
REMEMBER_SECONDS = 2 * LEASE_MS / 1000


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
        self.lease: dict[str, Any] | None = None
        self.has_left = False  # its worker ended by itself, and with it the lease
        self.ran = 0
        self.is_spent = False
        self.finishes: list[str] | None = None  # which methods run still, once it was told to end
        self.was_told = False  # to end
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

    def tell_to_end(self) -> None:
        """Let it finish what runs; once, for it takes a second signal as: at once."""
        if not self.was_told:
            self.was_told = True
            self.process.send_signal(signal.SIGTERM)

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
