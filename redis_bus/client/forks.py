"""Forks and copies: what of a bus and of its jobs may be in another process, and how."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger("redis_bus.forks")


def arguments_of(core: Core, shown: str) -> dict[str, Any]:
    """Return what a bus was made of, for its copy in another process.

    Raises TypeError where it was given its connection.
    """
    if core.arguments is None:
        raise TypeError(
            f"{shown} cannot be pickled: it was given a connection, conn=; "
            f"give it url= instead, or make a bus in the other process"
        )
    return core.arguments


def end_if_forked(worker: int, method: str, error: BaseException | None) -> None:
    """End this process where a job forked it and it has come out of the function.

    ``worker``: the id of the process that runs the job, whose connections these are. ``error``:
    what the function raised here. As at the end of a program, SystemExit says the exit code.
    """
    if os.getpid() == worker:
        return
    code = 1
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            code = error.code or 0
        else:
            sys.stderr.write(f"{error.code}\n")
    elif error is not None:
        traceback.print_exception(error)
    else:
        logger.error(
            "%s returned in a process that it had forked: that is no worker and ends here; "
            "it should end with os._exit()",
            method,
        )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
