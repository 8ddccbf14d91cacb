"""Stopping: an event that a signal handler can set, and what the second signal raises."""

from __future__ import annotations

import queue


class StopNow(BaseException):
    """Raised in the running function, or in pdb, by the second SIGTERM or SIGINT."""


class StopFlag:
    """Is set once, from any thread and any signal handler.

    `threading.Event` is not enough: a handler that interrupts its ``set`` or ``wait`` in the same
    thread waits for a lock that this thread holds, for ever. `queue.SimpleQueue.put` may be
    entered again at any point.
    """

    def __init__(self) -> None:
        self._set = False
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Set the flag, and end all waits for it."""
        self._set = True
        self._news.put(None)

    def is_set(self) -> bool:
        """Whether the flag is set."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait that long at the most; return whether the flag is set."""
        if not self._set:
            try:
                self._news.get(timeout=seconds)
            except queue.Empty:
                return self._set
            self._news.put(None)  # for the next who waits
        return self._set
