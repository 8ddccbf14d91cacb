"""How long somebody still waits: carried from a call to the calls made on its behalf."""

from __future__ import annotations

import time
from contextvars import ContextVar

# The monotonic time at which the caller of the job that runs here gives up.
_inherited: ContextVar[float | None] = ContextVar("redis_bus_deadline", default=None)


MOST_SECONDS = 1e10  # three hundred years: what is more, or no number, is a mistake


def check_seconds(name: str, value: float | None) -> float | None:
    """Return a setting in seconds, or None. Raises TypeError, ValueError, naming the setting."""
    __tracebackhide__ = True
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: a number of seconds, not {type(value).__name__}")
    if not 0 <= value < MOST_SECONDS:
        raise ValueError(f"{name}={value!r}: a number of seconds from 0 to {MOST_SECONDS:g}")
    return value


class Deadline:
    """The end of a call's time budget, on this process's monotonic clock.

    A call made while a job runs inherits what is left of the job's own budget, if that is less.
    """

    __slots__ = ("_given", "budget", "end", "start")

    def __init__(self, budget: float | None) -> None:
        self.start = time.monotonic()
        self.budget = self._given = budget
        inherited = _inherited.get()
        if inherited is not None:
            left = max(0.0, inherited - self.start)
            self.budget = left if budget is None else min(budget, left)
        self.end = None if self.budget is None else self.start + self.budget

    def left(self) -> float | None:
        """Seconds until the end, at least 0; None for no end."""
        if self.end is None:
            return None
        return max(0.0, self.end - time.monotonic())

    def left_ms(self) -> int:
        """Milliseconds until the end, at least 1, as `call` takes them; 0 for no end."""
        left = self.left()
        return 0 if left is None else max(1, round(left * 1000))

    def describe(self) -> str:
        """Say in words how long it is, and whose time that is."""
        given = "no timeout" if self._given is None else f"timeout {self._given:g} s"
        if self.budget == self._given:
            return given
        return f"{given}, but the job that calls has {self.budget:.3g} s left"

    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start


def inherit(seconds: float | None) -> None:
    """Let the calls made from here on end that many seconds from now; None: their own time."""
    _inherited.set(None if seconds is None else time.monotonic() + seconds)
