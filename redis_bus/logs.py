"""Logging as middleware: what ran, what failed, and what was called."""

from .worker.logs import LogCalls, LogRuns

__all__ = ["LogCalls", "LogRuns"]
