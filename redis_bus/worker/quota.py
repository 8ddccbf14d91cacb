"""Quota: how many jobs a worker may begin before it ends."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .slot import Slot


class Quota:
    """The jobs that a worker may still begin, shared among its slots.

    A slot must have one of them before it asks for a job: what is taken can then always be run,
    and of two who ask for the last one, one does not. ``jobs`` None: as many as there are.
    """

    def __init__(self, jobs: int | None) -> None:
        self._left = jobs
        self._begun = 0
        self._jobs = jobs
        self._ready: set[Slot] = set()
        self._lock = threading.Lock()

    @property
    def is_spent(self) -> bool:
        """Whether so many jobs were begun."""
        return self._begun == self._jobs

    def admits(self, slot: Slot) -> bool:
        """Whether a slot may ask for a job, now or as before; if not, it never may again."""
        if self._jobs is None:
            return True
        with self._lock:
            if slot not in self._ready and self._left:
                self._left -= 1
                self._ready.add(slot)
            return slot in self._ready

    def begin(self, slot: Slot) -> None:
        """Count the job that a slot is about to run."""
        if self._jobs is None:
            return
        with self._lock:
            self._ready.discard(slot)
            self._begun += 1


def check_max_jobs(jobs: int | None) -> None:
    """Raise TypeError or ValueError for what cannot be the number of jobs until a worker ends."""
    if jobs is None:
        return
    if isinstance(jobs, bool) or not isinstance(jobs, int):
        kind = type(jobs).__name__
        raise TypeError(f"max_jobs={jobs!r}: a whole number of jobs or None, not {kind}")
    if jobs < 1:
        raise ValueError(f"max_jobs={jobs!r}: a worker that ends runs one job at least")
