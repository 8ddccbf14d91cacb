"""Frames: the part of a traceback that is the user's."""

from __future__ import annotations

from types import TracebackType

from ..protocol import outcome

# Whose frames are not shown above those of a function.
OUR_MODULES = ("redis_bus.worker.runner", "redis_bus.worker.loop", "redis_bus.calls.middleware")


def user_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the user's function on; all of it where it never came that far."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in OUR_MODULES:
        trace = trace.tb_next
    return trace or error.__traceback__


def user_trace(error: BaseException) -> str:
    """Return that traceback as text."""
    return outcome.format_trace(error.with_traceback(user_frames(error)))
