"""Limit: how many connections to one server there may be at a time, and whose turn it is."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from .protocol import SLICE_SECONDS

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


class Limit:
    """Counts connections that are open; those who wait for one have it in the order they came."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._open = 0
        self.changes = 0  # how often a connection came free
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

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

    def enter(self) -> bool:
        """Count one more connection, where there may be one."""
        with self._lock:
            if self._open >= self.count:
                return False
            self._open += 1
            return True

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
                self._waiting.popleft().set()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits, who comes first."""
        return bool(self._waiting)

    def wait(self, end: float, seen: int, *, again: bool) -> bool:
        """Wait for a turn until a time of `time.monotonic`; return whether it came.

        ``seen``: the ``changes`` before it was looked for a connection: of more, one may be free.
        ``again``: who was called in vain is the first to be called next.
        """
        event = threading.Event()
        with self._lock:
            if self.changes != seen:
                return True
            if again:
                self._waiting.appendleft(event)
            else:
                self._waiting.append(event)
        if event.wait(max(0.0, end - time.monotonic())):
            return True
        with self._lock:
            if event in self._waiting:
                self._waiting.remove(event)
                return False
        return True  # it came in the last moment, and is not to be lost
