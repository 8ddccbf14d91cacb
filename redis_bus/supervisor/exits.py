"""Exits: the exit codes of the command line and of the processes that it starts."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes; scripts rely on them."""

    OK = 0
    REMOTE_ERROR = 1
    USAGE = 2
    NO_WORKERS = 3
    TIMEOUT = 4
    NO_REDIS = 5
    INTERRUPTED = 130
    TERMINATED = 143
