"""Supervised: what a worker process knows of the supervisor that started it, and tells it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from typing import Any

# What a worker process finds in its environment: the pipe, and whose jobs it is to see after.
PIPE = "REDIS_BUS_SUPERVISOR_PIPE"
SUCCEEDS = "REDIS_BUS_SUCCEEDS"
# Set by the supervisor for its children where it keeps more than one.
OTHERS = "REDIS_BUS_OTHERS"


class Supervised:
    """What a worker process knows of the supervisor that started it, and tells it."""

    def __init__(self, pipe: int, succeeds: tuple[str, ...], *, has_others: bool) -> None:
        self.succeeds = succeeds
        self.has_others = has_others
        self.notes: list[str] = []
        self._pipe = pipe
        self._telling = threading.Lock()  # what runs is told in a thread

    @classmethod
    def from_environment(cls) -> Supervised | None:
        """Return None where no supervisor started this process."""
        number = os.environ.pop(PIPE, None)
        if number is None:
            return None
        os.set_inheritable(int(number), False)
        # Who serves handles it; what comes after that would only be an interrupt of the clean-up.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        has_others = os.environ.pop(OTHERS, None) is not None
        succeeds = tuple(os.environ.get(SUCCEEDS, "").split())
        return cls(int(number), succeeds, has_others=has_others)

    def serves(self, worker: str, lease: dict[str, Any] | None, banner: str) -> None:
        """Tell the id of the worker that serves now, and what else it would have said.

        ``lease``: what it takes to end its lease, where that can be told.
        """
        os.environ.pop(SUCCEEDS, None)
        self._tell(worker=worker, lease=lease, banner=banner, notes=self.notes)

    def has_left(self) -> None:
        """Tell that the worker has ended its lease, or as much of it as it could."""
        self._tell(left=True)

    def has_run(self, jobs: int) -> None:
        """Tell how many jobs a burst had."""
        self._tell(ran=jobs)

    def finishes(self, methods: list[str]) -> None:
        """Tell, once it was told to end, which methods run here still."""
        self._tell(finishes=methods)

    def is_spent(self) -> None:
        """Tell that it ends because it has run as many jobs as it may."""
        self._tell(spent=True)

    def _tell(self, **facts: object) -> None:
        data = json.dumps(facts).encode() + b"\n"
        # A broken pipe: it was killed, and this process is to end, too.
        with self._telling, contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._pipe, data) :]
