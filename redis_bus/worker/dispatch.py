"""Dispatch: which slot of a worker gets the next job, and of which partition."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..protocol.commands import Claim
    from ..protocol.entries import Job
    from .fetcher import Fetcher, SharedSlot
    from .stop_flag import StopFlag


class Dispatch:
    """Brings the slots of a worker and the fetchers of its partitions together.

    While a slot is idle every fetcher asks for a job. While none is, those that come back with one
    give it back and are parked. So are those that handed over a job to the last idle slot. Of the
    partitions of parked fetchers the slots take jobs themselves, in turn, and a slot is idle only
    once it found nothing there; then the fetchers ask again.
    """

    def __init__(self, stopping: StopFlag) -> None:
        self._stopping = stopping
        self._changed = threading.Condition()
        self._idle: deque[SharedSlot] = deque()
        # The parked ones: those whose partition had a job at the last look, and the others.
        self._busy: deque[Fetcher] = deque()
        self._quiet: deque[Fetcher] = deque()

    # -- for slots ----------------------------------------------------------------------------

    def turns(self) -> list[Fetcher]:
        """Return the parked fetchers in the order in which their partitions are to be looked at.

        One that had nothing comes first: each has its turn, though others never run dry. Those that
        had a job come next, and then the rest.
        """
        with self._changed:
            self._quiet.rotate(-1)
            quiet = list(self._quiet)
            return [*quiet[:1], *self._busy, *quiet[1:]]

    def looked(self, fetcher: Fetcher, *, found: bool) -> None:
        """Note whether a partition had a job; it is the last of its kind now."""
        with self._changed:
            if self._unpark(fetcher):
                (self._busy if found else self._quiet).append(fetcher)

    def unpark(self, fetcher: Fetcher) -> None:
        """Have a fetcher ask again: its partition could not be looked at."""
        with self._changed:
            if self._unpark(fetcher):
                self._changed.notify_all()

    def rest(self, slot: SharedSlot) -> None:
        """Let an idle slot be given the next job, of whichever partition."""
        with self._changed:
            self._idle.append(slot)
            self._busy.clear()
            self._quiet.clear()
            self._changed.notify_all()

    def leave(self, slot: SharedSlot) -> None:
        """Give a slot no job any more; it may have been given one already."""
        with self._changed:
            if slot in self._idle:
                self._idle.remove(slot)

    # -- for fetchers -------------------------------------------------------------------------

    def hand_over(self, fetcher: Fetcher, claim: Claim, job: Job) -> bool:
        """Give a job that was claimed to an idle slot. Returns whether there was one."""
        with self._changed:
            if not self._idle or self._stopping.is_set():
                return False
            self._idle.popleft().give(fetcher, claim, job)
            return True

    def park(self, fetcher: Fetcher, *, found: bool) -> None:
        """Wait until it is of use to ask for a job: at once, where a slot is idle.

        ``found``: whether there was one.
        """
        with self._changed:
            if not self._idle:
                (self._busy if found else self._quiet).append(fetcher)
            while self._is_parked(fetcher) and not self._stopping.is_set():
                self._changed.wait()
            self._unpark(fetcher)

    def wake(self) -> None:
        """Let all that wait here see that the worker is to stop."""
        with self._changed:
            self._changed.notify_all()
            for slot in self._idle:
                slot.wake()

    def _is_parked(self, fetcher: Fetcher) -> bool:
        return fetcher in self._busy or fetcher in self._quiet

    def _unpark(self, fetcher: Fetcher) -> bool:
        for parked in (self._busy, self._quiet):
            if fetcher in parked:
                parked.remove(fetcher)
                return True
        return False
