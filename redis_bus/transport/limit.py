"""Limit: how many connections to one server there may be at a time, and whose turn it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..protocol.commands import SLICE_SECONDS

# As those of `transport`.
READ_SECONDS = SLICE_SECONDS + 5.0
LEAST_SECONDS = 0.05
LATE_SECONDS = 1.0


def check_limit(count: Any) -> int | None:
    """Return how many connections there may be at a time; None: as many as one likes.

    Raises TypeError for what is no number, ValueError for one that allows of none.
    """
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int):
        kind = type(count).__name__
        raise TypeError(f"max_connections={count!r}: a whole number, or None, not {kind}")
    if count < 1:
        raise ValueError(f"max_connections={count!r}: one connection is the least")
    return count


class Seat:
    """One connection, as it counts until it is closed."""

    __slots__ = ("_limit", "_pid")

    def __init__(self, limit: Limit) -> None:
        self._limit: Limit | None = limit
        self._pid = os.getpid()

    def free(self) -> None:
        """Have those who wait know that the connection is free, and open."""
        if self._limit is not None:
            self._limit.call_next()

    def leave(self) -> None:
        """Count the connection no more; those of a parent process do not count in its child."""
        limit, self._limit = self._limit, None
        if limit is not None and self._pid == os.getpid():
            limit.leave()


class Limit:
    """Counts connections that are open; those who wait for one have it in the order they came."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._begin()

    def _begin(self) -> None:
        self._open = 0
        self.changes = 0  # how often a connection came free
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._pid = os.getpid()

    def patience(self, timeout: float) -> float:
        """Return how long a call may wait for its turn (s), of what it has for a reply.

        A second of that is for a Redis that answers late, if the call has less than the longest.
        """
        return timeout if timeout >= READ_SECONDS else max(LEAST_SECONDS, timeout - LATE_SECONDS)

    def reached(self, address: str) -> str:
        """Say that all connections were in use for as long as a call waited for one."""
        are = "the one connection" if self.count == 1 else f"all {self.count} connections"
        return (
            f"{are} to Redis at {address} stayed in use, and there may be no more "
            f"(max_connections={self.count}); it was not sent"
        )

    def enter(self) -> Seat | None:
        """Count one more connection, where there may be one."""
        if self._pid != os.getpid():  # of the parent's threads, one may have held the lock
            self._begin()
        with self._lock:
            if self._open >= self.count:
                return None
            self._open += 1
        return Seat(self)

    def leave(self) -> None:
        """Count a connection no more; the first who waits may make one."""
        with self._lock:
            self._open -= 1
        self.call_next()

    def call_next(self) -> None:
        """Have the first who waits look: a connection is free, or may be made."""
        with self._lock:
            self.changes += 1
            if self._waiting:
                self._waiting.popleft()()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits, who comes first."""
        return bool(self._waiting) and self._pid == os.getpid()

    def queue(self, wake: Callable[[], object], seen: int, *, again: bool) -> bool:
        """Have who waits be woken in turn; return whether that is needed.

        ``seen``: the ``changes`` before a connection was looked for: of more, one may be free.
        ``again``: who was woken in vain is the first to be woken next.
        """
        with self._lock:
            if self.changes != seen:
                return False
            if again:
                self._waiting.appendleft(wake)
            else:
                self._waiting.append(wake)
        return True

    def give_up(self, wake: Callable[[], object]) -> bool:
        """Wait no longer; return whether the turn had not come."""
        with self._lock:
            if wake not in self._waiting:
                return False
            self._waiting.remove(wake)
        return True

    def wait(self, end: float, seen: int, *, again: bool) -> bool:
        """Wait for a turn until a time of `time.monotonic`; return whether it came. See `queue`."""
        event = threading.Event()
        wake = event.set
        if not self.queue(wake, seen, again=again):
            return True
        try:
            came = event.wait(max(0.0, end - time.monotonic()))
        except BaseException:  # a signal's: the turn is for another
            if not self.give_up(wake):
                self.call_next()
            raise
        return came or not self.give_up(wake)

    async def wait_async(self, end: float, seen: int, *, again: bool) -> bool:
        """Do the same without holding up a loop."""
        loop = asyncio.get_running_loop()
        event = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(event.set)

        if not self.queue(wake, seen, again=again):
            return True
        try:
            await asyncio.wait_for(event.wait(), max(0.0, end - time.monotonic()))
        except asyncio.TimeoutError:
            return not self.give_up(wake)
        except BaseException:
            if not self.give_up(wake):
                self.call_next()
            raise
        return True
