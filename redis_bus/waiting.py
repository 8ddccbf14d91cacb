"""Waiting for a job's outcome: the steps, with no I/O in them, and what a late call is told.

Steps are generators: each yields what to send, a `Request`, and is sent the replies. `Bus` drives
them over blocking connections; any other transport can do the same. A lost connection is thrown
into them as ConnectionLost, where they decide what may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from .deadline import Deadline
from .errors import BusError, CallTimeout, ConnectionLost, NoWorkers, ProtocolError
from .protocol import MOVED_TAG, SLICE_SECONDS, Command, Route
from .target import ShownCall
from .transport import READ_SECONDS, is_unreachable

logger = logging.getLogger(__name__)
T = TypeVar("T")

# The first wait is short: after it, a caller whom nobody serves is told so in the log.
FIRST_SLICE_SECONDS = 1.0
# How often an outcome may be another job's, before that counts as bytes that are not ours.
MAX_MOVES = 10
# How often a connection may be lost in one wait.
MAX_LOSSES = 5


class Request(NamedTuple):
    """Commands to send in one write, and how long to wait for each reply (s)."""

    commands: tuple[Command, ...]
    timeout: float = READ_SECONDS
    may_repeat: bool = False  # whether it does no harm to send them twice


def ask(*commands: Command) -> Request:
    """Return a request that is sent again, once, where its connection turns out to be dead."""
    return Request(commands, may_repeat=True)


Steps = Generator[Request, list[Any], T]


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a waiter waits for: a job, since when it is queued, and whose it is."""

    route: Route
    job: str
    enqueued_ms: int
    shown: ShownCall | str
    flight: bytes | None = None  # the key in Redis, where the call can be made again if it is lost


def wait(ticket: Ticket, deadline: Deadline, *, warned: bool = False) -> Steps[bytes]:
    """Wait for a job's outcome as one of many readers, and return it.

    Unless ``warned``, the first wait is short, and the log tells of a method nobody serves.
    """
    job, service, moves, losses = ticket.job, ticket.route.service, 0, 0
    while True:
        seconds, timeout = slice_of(deadline, SLICE_SECONDS if warned else FIRST_SLICE_SECONDS)
        is_late = deadline.left() == 0.0
        command = service.look(job) if is_late else service.wait_shared(job, seconds)
        try:
            reply = (yield Request((command,), timeout))[0]
        except ConnectionLost as error:
            # The outcome is read without taking it, so it survives that.
            losses += 1
            if is_late or losses == MAX_LOSSES or is_unreachable(error):
                raise
            continue
        if reply is None and is_late:
            raise (yield from _too_late(ticket, deadline))
        if reply is None:
            if not warned:
                yield from warn_if_nobody(ticket, deadline)
            warned = True
            if ticket.flight is not None:
                yield from _check_flight(ticket, job)
        elif reply.startswith(MOVED_TAG):
            job, moves = _moved_to(reply, ticket, moves)
        else:
            return bytes(reply)


class FlightLostError(Exception):
    """Nothing is left in Redis of what a call waits for."""


def _check_flight(ticket: Ticket, job: str) -> Steps[None]:
    """Raise FlightLostError where neither a flight nor an outcome of the job is there.

    Keys may have been evicted, or the outcome kept too shortly: the call is made again then.
    """
    commands = (("GET", ticket.flight or b""), ticket.route.service.look(job))
    flight, found = yield Request(commands, may_repeat=True)
    if found is None and (flight is None or not flight.startswith(job.encode() + b" ")):
        raise FlightLostError


def _moved_to(reply: bytes, ticket: Ticket, moves: int) -> tuple[str, int]:
    """Return the job to wait for instead, and how often that was said."""
    if moves == MAX_MOVES:
        raise ProtocolError(f"{ticket.shown}: its outcome is said to be another's, again and again")
    return reply[len(MOVED_TAG) :].decode("ascii", "replace"), moves + 1


def is_done(ticket: Ticket) -> Steps[bool]:
    """Whether the outcome of a job is there."""
    job, moves = ticket.job, 0
    while True:
        head = (yield ask(ticket.route.service.look(job)))[0]
        if head is None or not head.startswith(MOVED_TAG):
            return head is not None
        job, moves = _moved_to(head, ticket, moves)


def slice_of(deadline: Deadline, longest: float) -> tuple[float, float]:
    """Return how long to block, and how long after that the reply counts as lost (s)."""
    left = deadline.left()
    if left is None or left + 1.0 >= READ_SECONDS:
        return longest, READ_SECONDS
    # To Redis, 0 means for ever.
    return min(longest, max(0.001, round(left, 3))), left + 1.0


def _ask_state(ticket: Ticket, deadline: Deadline) -> Request:
    """Ask what the bus knows, and wait for that no longer than for the outcome."""
    _, timeout = slice_of(deadline, SLICE_SECONDS)
    return Request((ticket.route.state(ticket.job, ticket.enqueued_ms),), timeout)


def warn_if_nobody(ticket: Ticket, deadline: Deadline) -> Steps[None]:
    """Say in the log that a call waits for a method that no worker alive serves."""
    left = deadline.left()
    if left is not None and left <= 0:
        return
    replies = yield _ask_state(ticket, deadline)
    if replies[0][0] == 0:
        logger.warning("%s: it waits, but no worker alive serves it", ticket.shown)


def _too_late(ticket: Ticket, deadline: Deadline) -> Steps[CallTimeout]:
    """Return the error of a call whose time is up, with what the bus knows of it."""
    budget = deadline.budget or 0.0
    text = f"{ticket.shown}: no reply in {_shown_seconds(budget)} s"
    try:
        replies = yield _ask_state(ticket, deadline)
    except BusError as error:
        return CallTimeout(f"{text} ({error})")
    alive, _, queued = replies[0]
    if queued:
        # Redis ends a wait up to 0.1 s late; that is not what the caller asked for.
        since = f"queued {_shown_seconds(min(budget, deadline.passed()))} s"
    elif ticket.enqueued_ms:
        since = "taken by a worker, not finished"
    else:
        since = "not finished"
    workers = f"{alive} worker{'' if alive == 1 else 's'} alive"
    kind = CallTimeout if alive else NoWorkers
    return kind(f"{text} ({since}; {workers})")


def _shown_seconds(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"
