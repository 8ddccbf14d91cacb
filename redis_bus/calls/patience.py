"""Patience: how long, and how often, what was not done is tried again."""

from __future__ import annotations

import time

# The pauses between tries: a slot that moves, or a master that is replaced, takes its time.
PAUSES_SECONDS = (0.0, 0.0, 0.01, 0.02, 0.05, 0.1)
# What is left of a time does not matter below this (s).
LEAST_SECONDS = 0.05
# What a request has beyond the time of its call, for the reply to come (s).
GRACE_SECONDS = 1.0


class Patience:
    """How long and how often something is tried again: within a request's time."""

    def __init__(self, seconds: float) -> None:
        self._start = time.monotonic()
        self._seconds = seconds
        self.tries = 0

    def passed(self) -> float:
        return time.monotonic() - self._start

    def left(self) -> float:
        """Seconds until its end, but some at least: a system call needs them."""
        return max(LEAST_SECONDS, self._seconds - self.passed()) if self.tries else self._seconds

    def pause(self) -> float | None:
        """Return how long to wait before the next try (s); None: there is no time for one."""
        seconds = PAUSES_SECONDS[min(self.tries, len(PAUSES_SECONDS) - 1)]
        self.tries += 1
        return None if self.passed() + seconds >= self._seconds else seconds
