"""Entry: what ``redis-bus`` begins with; it imports the rest, which takes a while."""

from __future__ import annotations

import gc
import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line. Ctrl-C amid its imports ends it without their traceback."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, _leave)
    # What is imported stays: to look through it for garbage, again and again, takes as long as a
    # tenth of it all.
    gc.disable()
    from .group import main as command

    gc.freeze()
    gc.enable()
    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command(prog_name="redis-bus")


def _leave(number: int, frame: FrameType | None) -> None:
    # There is nothing to clean up yet.
    os.write(2, b"\n")
    os._exit(130)
