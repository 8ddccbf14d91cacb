"""Logging as middleware: what ran, what failed, and what was called."""

from __future__ import annotations

import logging

from .errors import ProtocolError, SerializationError
from .frames import user_trace
from .middleware import Call, Middleware, Run

logger = logging.getLogger(__name__)


class LogRuns(Middleware):
    """Logs runs: one that raised as a warning; for debugging, its traceback and all others, too.

    Every bus has it; ``bus.middleware.clear()`` takes it away.
    """

    def after_run(self, run: Run, value: object) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            took, waited = 1000 * run.seconds, 1000 * run.waited
            logger.debug("%s ran for %.1f ms, after %.0f ms in its queue", run, took, waited)

    def run_failed(self, run: Run, error: BaseException) -> None:
        if run.was_stopped:
            return  # as whoever stopped the worker wanted it
        if isinstance(error, (SerializationError, ProtocolError)):
            logger.error("%s: %s", run, error)  # of a value that cannot be sent: which, and why
        else:
            logger.warning("%s raised %s", run, type(error).__name__)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", user_trace(error))


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
