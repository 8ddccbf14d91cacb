"""The steps of a call, with no I/O in them: each yields what to send and is sent the replies.

`Bus` drives these generators over blocking connections; any other transport can do the same.
A lost connection is thrown into them as ConnectionLost, where they decide what may be repeated.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from . import outcome
from .deadline import Deadline
from .errors import (
    BusError,
    CallTimeout,
    Cancelled,
    ConnectionLost,
    NoWorkers,
    ProtocolError,
    QueueFull,
    SerializationError,
)
from .protocol import MOVED_TAG, SLICE_SECONDS, Command, Mode, Route, parse_entry
from .target import Args, Kwargs, Options, ShownCall, Target
from .transport import READ_SECONDS, is_unreachable

logger = logging.getLogger(__name__)
T = TypeVar("T")

# The first wait is short: after it, a caller whom nobody serves is told so in the log.
FIRST_SLICE_SECONDS = 1.0
# How often a call is begun anew: registrations that change, connections that are lost.
MAX_TRIES = 5
# How often an outcome may be another job's, before that counts as bytes that are not ours.
MAX_MOVES = 10


class Request(NamedTuple):
    """Commands to send in one write, and how long to wait for each reply (s)."""

    commands: tuple[Command, ...]
    timeout: float = READ_SECONDS
    may_repeat: bool = False  # whether it does no harm to send them twice


def ask(*commands: Command) -> Request:
    """Return a request that is sent again, once, where its connection turns out to be dead."""
    return Request(commands, may_repeat=True)


class _Hit(NamedTuple):
    """An entry of the cache, where somebody else may have written it."""

    entry: bytes


Steps = Generator[Request, list[Any], T]


class Source(Protocol):
    """Where a call learns what is published of its method."""

    @property
    def target(self) -> Target: ...

    def refreshed(self) -> Steps[Target]:
        """Ask Redis what is published now. Raises BusError where the method is gone."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a waiter waits for: a job, since when it is queued, and whose it is."""

    route: Route
    job: str
    enqueued_ms: int
    shown: ShownCall | str
    flight: bytes | None = None  # the key in Redis, where the call can be made again if it is lost


def new_job_id() -> str:
    """Return 16 characters that no other job has."""
    return base64.urlsafe_b64encode(os.urandom(12)).decode("ascii")


def call(source: Source, args: Args, kwargs: Kwargs, options: Options) -> Steps[object]:
    """Call a method and wait for its value, or raise what it raised."""
    target = source.target
    deadline = Deadline(options.timeout if options.has_timeout else target.timeout)
    key: bytes | None
    found: bytes | _Hit | None
    lost: ConnectionLost | None = None
    for attempt in range(MAX_TRIES):
        target, key, body = yield from _prepare(source, args, kwargs)
        shown = ShownCall(target.name, args, kwargs)
        if deadline.left() == 0.0 and lost is not None:
            raise ConnectionLost(_lost_message(shown, target, lost)) from lost
        if deadline.left() == 0.0 and key is None:
            raise CallTimeout(f"{shown}: not sent, no time is left ({deadline.describe()})")
        try:
            if key is None:
                found = yield from _call_alone(source, target, body, shown, deadline, options)
            else:
                found = yield from _call_keyed(source, target, key, body, shown, deadline, options)
        except ConnectionLost as error:
            if attempt == MAX_TRIES - 1 or not target.may_run_twice or is_unreachable(error):
                raise ConnectionLost(_lost_message(shown, target, error)) from error
            lost = error
            continue
        if found is None:
            continue
        if isinstance(found, bytes):
            return outcome.decode(found, target.serializer, options.allow)
        cached = parse_entry(found.entry)
        if not outcome.is_error(cached):  # which is never cached
            with contextlib.suppress(ProtocolError, SerializationError):
                return outcome.decode(cached, target.serializer)
        yield from _discard(target, key or b"", found.entry, shown)
    shown = ShownCall(target.name, args, kwargs)
    raise BusError(f"{shown}: given up, its registration or its value changes all the time")


def run(source: Source, args: Args, kwargs: Kwargs, options: Options) -> Steps[str]:
    """Enqueue a call, or join its flight, and return the id of the job to wait for.

    It waits for a worker as long as that takes, unless the options give it a timeout.
    """
    for _ in range(MAX_TRIES):
        target, key, body = yield from _prepare(source, args, kwargs)
        shown = ShownCall(target.name, args, kwargs)
        job = new_job_id()
        command = target.route.call(
            job,
            body,
            mode=Mode.RUN,
            budget_ms=Deadline(options.timeout).left_ms(),
            key=key,
            fail_fast=options.fail_fast,
        )
        try:
            replies = yield Request((command,))
        except ConnectionLost as error:
            raise ConnectionLost(f"{shown}: {error}; it may be enqueued, or not") from error
        match replies:
            case [[b"joined" | b"queued", bytes(leader), *_]]:
                return leader.decode()
            case [[b"hit", *_]]:
                return job
            case [status]:
                _raise_refusal(status, target, shown)
        yield from _renew(source, target)
    raise BusError(f"{source.target.name}: it is registered anew again and again")


def wait(ticket: Ticket, deadline: Deadline, *, warned: bool = False) -> Steps[bytes]:
    """Wait for a job's outcome as one of many readers, and return it.

    Unless ``warned``, the first wait is short, and the log tells of a method nobody serves.
    """
    job, service, moves, losses = ticket.job, ticket.route.service, 0, 0
    while True:
        seconds, timeout = _slice(deadline, SLICE_SECONDS if warned else FIRST_SLICE_SECONDS)
        is_late = deadline.left() == 0.0
        command = service.look(job) if is_late else service.wait_shared(job, seconds)
        try:
            reply = (yield Request((command,), timeout))[0]
        except ConnectionLost as error:
            # The outcome is read without taking it, so it survives that.
            losses += 1
            if is_late or losses == MAX_TRIES or is_unreachable(error):
                raise
            continue
        if reply is None and is_late:
            raise (yield from _too_late(ticket, deadline))
        if reply is None:
            if not warned:
                yield from _warn_if_nobody(ticket, deadline)
            warned = True
            if ticket.flight is not None:
                yield from _check_flight(ticket, job)
        elif reply.startswith(MOVED_TAG):
            job, moves = _moved_to(reply, ticket, moves)
        else:
            return bytes(reply)


class _FlightLostError(Exception):
    """Nothing is left in Redis of what a call waits for."""


def _check_flight(ticket: Ticket, job: str) -> Steps[None]:
    """Raise _FlightLostError where neither a flight nor an outcome of the job is there.

    Keys may have been evicted, or the outcome kept too shortly: the call is made again then.
    """
    commands = (("GET", ticket.flight or b""), ticket.route.service.look(job))
    flight, found = yield Request(commands, may_repeat=True)
    if found is None and (flight is None or not flight.startswith(job.encode() + b" ")):
        raise _FlightLostError


def _moved_to(reply: bytes, ticket: Ticket, moves: int) -> tuple[str, int]:
    """Return the job to wait for instead, and how often that was said."""
    if moves == MAX_MOVES:
        raise ProtocolError(f"{ticket.shown}: its outcome is said to be another's, again and again")
    return reply[len(MOVED_TAG) :].decode("ascii", "replace"), moves + 1


def clear(source: Source, args: Args, kwargs: Kwargs) -> Steps[bool]:
    """Forget one cached value. Returns whether there was one."""
    for _ in range(MAX_TRIES):
        target, key, _ = yield from _prepare(source, args, kwargs)
        if key is not None:
            status = (yield ask(target.route.clear(key)))[0]
            if status != b"stale":
                return bool(status == b"cleared")
        yield from _renew(source, target)
        if source.target.key is None:
            raise TypeError(f"{target.name}() has no cache_key: nothing of it is cached")
    raise BusError(f"{source.target.name}: it is registered anew again and again")


def clear_all(source: Source) -> Steps[None]:
    """Forget all cached values of a method."""
    target = yield from source.refreshed()
    if target.key is None:
        raise TypeError(f"{target.name}() has no cache_key: nothing of it is cached")
    yield ask(target.route.clear_all())


def is_done(ticket: Ticket) -> Steps[bool]:
    """Whether the outcome of a job is there."""
    job, moves = ticket.job, 0
    while True:
        head = (yield ask(ticket.route.service.look(job)))[0]
        if head is None or not head.startswith(MOVED_TAG):
            return head is not None
        job, moves = _moved_to(head, ticket, moves)


def cancel(ticket: Ticket) -> Steps[bool]:
    """Withdraw a job that nobody has taken. Returns whether that came in time."""
    route, service = ticket.route, ticket.route.service
    listed = (yield ask(("HGET", service.pending, ticket.job)))[0]
    if listed is None:
        return False
    flight = route.flight(listed[1:]) if listed.startswith(b"k") else None
    cancelled = outcome.encode_error(
        Cancelled(f"{ticket.shown}: cancelled before a worker took it"), trace=""
    )
    command = service.cancel(ticket.job, flight, cancelled, route.keep_ms)
    return bool((yield Request((command,)))[0] == b"cancelled")


def _prepare(
    source: Source, args: Args, kwargs: Kwargs
) -> Steps[tuple[Target, bytes | None, bytes]]:
    """Bind against what is published: arguments that do not fit may fit a newer registration."""
    target = source.target
    try:
        values = target.bind(*args, **kwargs)
    except TypeError:
        newer = yield from source.refreshed()
        if newer.etag == target.etag:
            raise
        target = newer
        values = target.bind(*args, **kwargs)
    body = target.encode(args, kwargs)
    return target, None if target.key is None else target.key(values), body


def _call_alone(
    source: Source,
    target: Target,
    body: bytes,
    shown: ShownCall | str,
    deadline: Deadline,
    options: Options,
) -> Steps[bytes | None]:
    """A call without a cache key: one write, one wait. None: it is to be made again."""
    job, service = new_job_id(), target.route.service
    command = target.route.call(
        job, body, mode=Mode.WAIT, budget_ms=deadline.left_ms(), fail_fast=options.fail_fast
    )
    seconds, timeout = _slice(deadline, FIRST_SLICE_SECONDS)
    status, reply = yield Request((command, service.wait_alone(job, seconds)), timeout)
    if status[0] != b"queued":
        _raise_refusal(status, target, shown)
        yield from _renew(source, target)
        return None
    if reply is not None:
        return bytes(reply[1])
    ticket = Ticket(target.route, job, status[2], shown)
    yield from _warn_if_nobody(ticket, deadline)
    return (yield from wait(ticket, deadline, warned=True))


def _call_keyed(
    source: Source,
    target: Target,
    key: bytes,
    body: bytes,
    shown: ShownCall | str,
    deadline: Deadline,
    options: Options,
) -> Steps[bytes | _Hit | None]:
    """A call with a cache key: only a miss waits. None: it is to be made again."""
    flight = target.route.flight(key) if target.may_run_twice else None
    command = target.route.call(
        new_job_id(),
        body,
        mode=Mode.CALL,
        budget_ms=deadline.left_ms(),
        key=key,
        fail_fast=options.fail_fast,
    )
    _, timeout = _slice(deadline, FIRST_SLICE_SECONDS)
    status = (yield Request((command,), timeout))[0]
    match status:
        case [b"hit", bytes(entry)]:
            return _Hit(entry)
        case [b"joined", bytes(leader)]:
            ticket = Ticket(target.route, leader.decode(), 0, shown, flight)
        case [b"queued", bytes(own), int(now), *foreign]:
            ticket = Ticket(target.route, own.decode(), now, shown, flight)
            if foreign:
                logger.warning("%s: its cached value is not ours, and is overwritten", shown)
        case _:
            _raise_refusal(status, target, shown)
            yield from _renew(source, target)
            return None
    try:
        return (yield from wait(ticket, deadline))
    except _FlightLostError:
        return None


def _discard(target: Target, key: bytes, entry: bytes, shown: ShownCall | str) -> Steps[None]:
    """Forget a value that cannot be read; of all who find it, one says so."""
    digest = hashlib.sha1(entry, usedforsecurity=False).hexdigest()
    if (yield ask(target.route.discard(key, digest)))[0]:
        logger.warning("%s: its cached value is not ours, and is forgotten", shown)


def _renew(source: Source, target: Target) -> Steps[None]:
    """Learn the newer registration, or make the one that stands in the registry current."""
    newer = yield from source.refreshed()
    if newer.etag == target.etag:
        service = newer.route.service
        yield ask(service.publish(newer.name, newer.etag, newer.shape))


def _raise_refusal(status: list[Any], target: Target, shown: ShownCall | str) -> None:
    match status:
        case [b"full"]:
            limit = target.descriptor.max_queue
            jobs = "1 job waits" if limit == 1 else f"{limit} jobs wait"
            raise QueueFull(f"{shown}: {jobs} for {target.name} already (max_queue)")
        case [b"no_workers"]:
            raise NoWorkers(f"{shown}: no worker alive serves {target.name}")
        case [b"stale"]:
            return
    raise ProtocolError(f"{shown}: the script 'call' answered {status!r}")


def _slice(deadline: Deadline, longest: float) -> tuple[float, float]:
    """Return how long to block, and how long after that the reply counts as lost (s)."""
    left = deadline.left()
    if left is None or left + 1.0 >= READ_SECONDS:
        return longest, READ_SECONDS
    # To Redis, 0 means for ever.
    return min(longest, max(0.001, round(left, 3))), left + 1.0


def _ask_state(ticket: Ticket, deadline: Deadline) -> Request:
    """Ask what the bus knows, and wait for that no longer than for the outcome."""
    _, timeout = _slice(deadline, SLICE_SECONDS)
    return Request((ticket.route.state(ticket.job, ticket.enqueued_ms),), timeout)


def _warn_if_nobody(ticket: Ticket, deadline: Deadline) -> Steps[None]:
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


def _lost_message(shown: ShownCall | str, target: Target, error: ConnectionLost) -> str:
    if target.may_run_twice or is_unreachable(error):
        return f"{shown}: {error}"
    return f"{shown}: {error}; it is unknown whether it ran, so it is not sent again"
