"""Debugger: pdb at the prompt of a worker, which can still be told to stop."""

from __future__ import annotations

import contextlib
import os
import pdb
from types import TracebackType

from .stop_flag import StopNow

TOLD = "redis-bus: leave pdb with q or c: the worker then finishes and stops; again: stop now"


class Debugger(pdb.Pdb):
    """Examines one traceback. Signals are the worker's: this one installs no handler of its own."""

    def __init__(self) -> None:
        super().__init__(nosigint=True)
        self._ended = False

    def examine(self, frames: TracebackType | None) -> None:
        """Talk with the user until he leaves. Raises StopNow where `leave` ended it."""
        self.reset()
        self.interaction(None, frames)

    def tell(self) -> None:
        """Say that the worker was told to stop; for signal handlers."""
        # Straight to the terminal: a buffered stream may be amid a write.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{TOLD}\n{self.prompt}".encode())

    def leave(self) -> None:
        """End the conversation at once; for signal handlers. Raises StopNow."""
        self._ended = True
        raise StopNow

    def postcmd(self, stop: bool, line: str) -> bool:
        # Commands of pdb catch whatever is raised while they run.
        if self._ended:
            raise StopNow
        return super().postcmd(stop, line)
