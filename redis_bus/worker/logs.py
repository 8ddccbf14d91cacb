"""Logging as middleware: what ran, what failed, and what was called."""

from __future__ import annotations

import logging

from ..calls.middleware import Call, Middleware, Run
from ..errors import ProtocolError, SerializationError
from ..printable import in_one_line, printable
from ..protocol import outcome
from .frames import user_trace

logger = logging.getLogger("redis_bus.logs")


class LogRuns(Middleware):
    """Logs runs: one that raised as a warning, with its traceback from the function on; for
    debugging, all others, too.

    Every bus has it; ``bus.middleware.clear()`` takes it away. ``arguments``: whether those of the
    call are logged. They are not unless that is asked for, as they may be secret, or many.
    """

    def __init__(self, *, arguments: bool = False) -> None:
        self.arguments = arguments

    def _shown(self, run: Run) -> str:
        return str(run) if self.arguments else run.method

    def after_run(self, run: Run, value: object) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            took, waited = 1000 * run.seconds, 1000 * run.waited
            shown = self._shown(run)
            logger.debug("%s ran for %.1f ms, after %.0f ms in its queue", shown, took, waited)

    def run_failed(self, run: Run, error: BaseException) -> None:
        if run.was_stopped:
            return  # as whoever stopped the worker wanted it
        if isinstance(error, (SerializationError, ProtocolError)):
            # Of a value that cannot be sent: which, and why.
            logger.error("%s: %s", self._shown(run), printable(str(error)))
        elif logger.isEnabledFor(logging.WARNING):
            kind, text = type(error).__name__, in_one_line(outcome.text_of(error))
            trace = printable(user_trace(error).rstrip())
            said = f"{kind}: {text}" if text else kind
            # With `trace` by itself, a formatter can tell it apart.
            logger.warning(
                "%s raised %s\n%s", self._shown(run), said, trace, extra={"trace": trace}
            )


class LogCalls(Middleware):
    """Logs each call that a bus makes, how long it took and how it was answered, for debugging."""

    def __init__(self, level: int = logging.DEBUG) -> None:
        self._level = level

    def after_call(self, call: Call, value: object) -> None:
        if logger.isEnabledFor(self._level):
            took = 1000 * call.seconds
            logger.log(self._level, "%s took %.1f ms (%s)", call, took, call.status)

    def call_failed(self, call: Call, error: BaseException) -> None:
        if logger.isEnabledFor(self._level):
            took, kind = 1000 * call.seconds, type(error).__name__
            logger.log(self._level, "%s raised %s after %.1f ms", call, kind, took)
