"""Steps: what is done on Redis, as generators without I/O in them.

Steps yield what to send, a `Request`, and are sent the replies. `Bus` drives them over blocking
connections; any other transport can do the same. A lost connection is thrown into them as
ConnectionLost, where they decide what may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from ..protocol.commands import SLICE_SECONDS, Command, Service
from ..protocol.confirm import Confirm

# A reply that is later than this means that the peer is gone.
READ_SECONDS = SLICE_SECONDS + 5.0

T = TypeVar("T")


class Wait(NamedTuple):
    """What to wait for after the commands, in the same write where that can be."""

    service: Service
    job: str
    seconds: float
    alone: bool = False  # nobody else reads the outcome: it can be taken away
    only_if: bytes | None = None  # what the reply to the first command is to begin with
    queued: Callable[[int], None] | None = None  # is told when it was enqueued, if that is a number


# Makes the command that withdraws a job: as a rule it is not needed.
Withdrawal = Callable[[], Command]


class Request(NamedTuple):
    """Commands to send in one write, and how long to wait for each reply (s).

    With ``wait`` the outcome that was waited for is the last reply, None where it did not come.
    """

    commands: tuple[Command, ...]
    timeout: float = READ_SECONDS
    may_repeat: bool = False  # whether it does no harm to send them twice
    pause: float = 0.0  # s to wait before; where there is nothing to send, the reply is empty
    wait: Wait | None = None
    at: Any = None  # the server to send them to: a transport; None: that of their keys
    # What withdraws the job, where its caller goes away meanwhile without waiting to the end.
    withdraw: Withdrawal | None = None
    confirm: Confirm | None = None  # see `Transport.exchange`; not with ``wait``
    inbox: Service | None = None  # of which the inbox is to be there; nothing is sent


def ask(
    *commands: Command,
    timeout: float = READ_SECONDS,
    at: Any = None,
    confirm: Confirm | None = None,
) -> Request:
    """Return a request that is sent again, once, where its connection turns out to be dead."""
    return Request(commands, timeout, may_repeat=True, at=at, confirm=confirm)


Steps = Generator[Request, list[Any], T]
