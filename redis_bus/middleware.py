"""Middleware: hooks around the calls that a bus makes, and around the runs of its workers."""

from .calls.middleware import (
    CALL_HOOKS,
    HOOKS,
    RUN_HOOKS,
    Call,
    Chain,
    Event,
    Hooks,
    Middleware,
    Run,
)

__all__ = [
    "CALL_HOOKS",
    "HOOKS",
    "RUN_HOOKS",
    "Call",
    "Chain",
    "Event",
    "Hooks",
    "Middleware",
    "Run",
]
