"""Steps: what is done on Redis, as generators without I/O in them.

Steps yield what to send, a `Request`, and are sent the replies. `Bus` drives them over blocking
connections; any other transport can do the same. A lost connection is thrown into them as
ConnectionLost, where they decide what may be repeated.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from .protocol import Command
from .transport import READ_SECONDS

T = TypeVar("T")


class Request(NamedTuple):
    """Commands to send in one write, and how long to wait for each reply (s)."""

    commands: tuple[Command, ...]
    timeout: float = READ_SECONDS
    may_repeat: bool = False  # whether it does no harm to send them twice
    pause: float = 0.0  # s to wait before; where there is nothing to send, the reply is empty


def ask(*commands: Command, timeout: float = READ_SECONDS) -> Request:
    """Return a request that is sent again, once, where its connection turns out to be dead."""
    return Request(commands, timeout, may_repeat=True)


Steps = Generator[Request, list[Any], T]
