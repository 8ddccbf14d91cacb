"""The steps of calls, runs, clears and cancels, with no I/O in them (see `waiting`)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
from functools import partial
from typing import Any, NamedTuple, Protocol

from ..errors import (
    BusError,
    CallTimeout,
    Cancelled,
    ConnectionLost,
    Deadlock,
    NoWorkers,
    ProtocolError,
    QueueFull,
    SerializationError,
    WorkerLost,
)
from ..protocol import outcome
from ..protocol.commands import Command, Route, Service
from ..protocol.deadline import Deadline
from ..protocol.entries import Mode, parse_entry
from ..protocol.target import Args, Kwargs, Options, ShownCall, Target
from . import context, durable, nested
from .failures import NotNow, SentBefore, is_undone
from .middleware import Call
from .partitions import announce
from .steps import Request, Steps, Wait, Withdrawal, ask
from .waiting import BACKOFF_SECONDS, FIRST_SLICE_SECONDS, FlightLostError, Ticket, slice_of, wait

logger = logging.getLogger("redis_bus.calls")

# The outcome of a job whose caller went away, which so nobody reads.
CANCELLED = outcome.encode_error(Cancelled("its caller went away"), trace="")
_WAIT, _CALL, _ASYNC, _TOLD = Mode.WAIT, Mode.CALL, Mode.ASYNC, Mode.TOLD
# How often a call is begun anew: registrations that change, connections that are lost.
MAX_TRIES = 5


class _Hit(NamedTuple):
    """An entry of the cache, where somebody else may have written it."""

    entry: bytes


# In place of a value: there is none, or none that can be read.
ODD = object()


class Begun:
    """A call that was made already: as what, until when, and what was answered, or raised."""

    __slots__ = (
        "_answer",
        "body",
        "deadline",
        "job",
        "key",
        "route",
        "target",
        "value",
        "withdraw",
    )

    def __init__(
        self,
        target: Target,
        route: Route,
        key: bytes | None,
        body: bytes,
        job: str,
        deadline: Deadline,
    ) -> None:
        self.value: object = ODD
        self.withdraw: Withdrawal | None = None
        self.target = target
        self.route = route
        self.key = key
        self.body = body
        self.job = job
        self.deadline = deadline
        self._answer: list[Any] | BusError = []

    def got(self, answer: list[Any] | BusError) -> None:
        """Note what was answered, or raised."""
        self._answer = answer

    def answer(self) -> list[Any]:
        """Return what was answered. Raises what was raised."""
        if isinstance(self._answer, BusError):
            raise self._answer
        return self._answer


class Source(Protocol):
    """Where a call learns what is published of its method."""

    @property
    def target(self) -> Target: ...

    @property
    def listens(self) -> bool:
        """Whether outcomes are told on an inbox, and a caller may go away: see `Wait`."""
        ...

    def told_job(self, service: Service, deadline: Deadline) -> Steps[str | None]:
        """Return the id of a job that will be told on an inbox; None where there is no inbox."""
        ...

    def refreshed(self) -> Steps[Target]:
        """Ask Redis what is published now. Raises BusError where the method is gone."""


# By which process ids were drawn, many at a time, and those that were not used yet.
_drawn: tuple[int, list[str]] = (0, [])


def new_job_id() -> str:
    """Return 16 characters that no other job has."""
    global _drawn
    process, ids = _drawn
    # By its number: Python does not hear of a fork in C code, as of a web server's workers.
    if process == os.getpid():
        with contextlib.suppress(IndexError):  # another thread may have had the last one
            return ids.pop()
    text = base64.urlsafe_b64encode(os.urandom(12 * 64)).decode("ascii")
    job, *others = (text[i : i + 16] for i in range(0, len(text), 16))
    _drawn = os.getpid(), others
    return job


def call(
    source: Source,
    args: Args,
    kwargs: Kwargs,
    options: Options,
    seen: Call | None = None,
    begun: Begun | None = None,
) -> Steps[object]:
    """Call a method and wait for its value, or raise what it raised.

    ``seen``: the call as middleware sees it, where there is any. ``begun``: what was done already.
    """
    __tracebackhide__ = True
    target = source.target
    if begun is None:
        deadline = Deadline(options.timeout if options.has_timeout else target.timeout)
    else:
        deadline = begun.deadline
    key: bytes | None
    found: bytes | _Hit | None
    lost: ConnectionLost | None = None
    attempt = 0
    while attempt < MAX_TRIES:
        if begun is None:
            target, key, body = yield from prepare(source, args, kwargs, seen)
        else:
            target, key, body = begun.target, begun.key, begun.body
        shown = ShownCall(target.name, args, kwargs)
        if (attempt > 0 or lost or deadline.budget == 0.0) and deadline.left() == 0.0:
            _check_late(deadline, attempt, key, lost, target, shown)
        try:
            if key is None:
                alone = _call_alone(source, target, body, shown, deadline, options, seen, begun)
                found = yield from alone
            else:
                made = _call_keyed(source, target, key, body, shown, deadline, options, seen, begun)
                found = yield from made
        except ConnectionLost as error:
            is_waiting = isinstance(error, NotNow) and deadline.left() is not None
            again = isinstance(error, NotNow) or _may_repeat(target, error)
            if not again or (attempt == MAX_TRIES - 1 and not is_waiting):
                raise ConnectionLost(lost_message(shown, target, error)) from error
            lost, begun = error, None
            if is_waiting:  # as long as it has time, for nothing was done
                yield Request((), pause=BACKOFF_SECONDS[0])
            else:
                attempt += 1
            continue
        begun = None
        attempt += 1
        if found is None:
            continue
        if isinstance(found, bytes):
            return decode_outcome(found, target, shown, options)
        cached = parse_entry(found.entry)
        if not outcome.is_error(cached):  # which is never cached
            with contextlib.suppress(ProtocolError, SerializationError):
                return outcome.decode(cached, target.serializer)
        yield from _discard(target, key or b"", found.entry, shown)
    shown = ShownCall(target.name, args, kwargs)
    raise BusError(f"{shown}: given up, its registration or its value changes all the time")


def _check_late(
    deadline: Deadline,
    attempt: int,
    key: bytes | None,
    lost: ConnectionLost | None,
    target: Target,
    shown: ShownCall,
) -> None:
    """Raise the error of a call that has no time left; with a key, it may be cached yet."""
    __tracebackhide__ = True
    if lost is not None:
        raise ConnectionLost(lost_message(shown, target, lost)) from lost
    if attempt > 0:
        text = f"{shown}: no reply in {deadline.budget:.3g} s; its job was lost, or refused as"
        raise CallTimeout(f"{text} of another registration, and no time is left to try again")
    if key is None:
        raise CallTimeout(f"{shown}: not sent, no time is left ({deadline.describe()})")


def run(
    source: Source, args: Args, kwargs: Kwargs, options: Options, seen: Call | None = None
) -> Steps[tuple[Route, str]]:
    """Enqueue a call, or join its flight; return where, and the id of the job to wait for.

    It waits for a worker as long as that takes, unless the options give it a timeout.
    """
    __tracebackhide__ = True
    for _ in range(MAX_TRIES):
        target, key, body = yield from prepare(source, args, kwargs, seen)
        shown = ShownCall(target.name, args, kwargs)
        job, deadline, route = new_job_id(), Deadline(options.timeout), target.route_for(key)
        command = route.call(
            job,
            body,
            mode=Mode.RUN,
            budget_ms=deadline.left_ms(),
            key=key,
            fail_fast=options.fail_fast,
        )
        try:
            flight = None if key is None else route.flight(key)
            status = yield from _send(
                route,
                command,
                _withdraw(source, route, job, flight) if route.durable else None,
                shown,
                deadline,
                durable.KEPT,
            )
        except ConnectionLost as error:
            doubt = "" if is_undone(error) else "; it may be enqueued, or not"
            raise ConnectionLost(f"{shown}: {error}{doubt}") from error
        note_status(seen, status)
        match status:
            case [b"joined" | b"queued", bytes(leader), *_]:
                return route, leader.decode()
            case [b"hit", *_]:
                return route, job
            case _:
                raise_refusal(status, target, shown)
        yield from renew(source, target)
    raise BusError(f"{source.target.name}: it is registered anew again and again")


def clear(source: Source, args: Args, kwargs: Kwargs) -> Steps[bool]:
    """Forget one cached value. Returns whether there was one."""
    __tracebackhide__ = True
    for _ in range(MAX_TRIES):
        target = source.target
        try:
            values = target.bind(*args, **kwargs)
        except TypeError as error:
            target, values = yield from _bind_anew(source, args, kwargs, error)
        if target.key is not None:
            key = target.key(values)
            route = target.route_for(key)
            status = yield from durable.clear(route, route.clear(key))
            if status != b"stale":
                return bool(status == b"cleared")
        yield from renew(source, target)
        if source.target.key is None:
            raise TypeError(f"{target.name}() has no cache_key: nothing of it is cached")
    raise BusError(f"{source.target.name}: it is registered anew again and again")


def clear_all(source: Source) -> Steps[None]:
    """Forget all cached values of a method."""
    for _ in range(MAX_TRIES):
        target = yield from source.refreshed()
        if target.key is None:
            raise TypeError(f"{target.name}() has no cache_key: nothing of it is cached")
        # Where another is published meanwhile, what it caches may be in other partitions.
        if b"stale" not in (yield from durable.clear_all(target.routes)):
            return
        yield from renew(source, target)
    raise BusError(f"{source.target.name}: it is registered anew again and again")


def cancel(ticket: Ticket) -> Steps[bool]:
    """Withdraw a job that nobody has taken. Returns whether that came in time."""
    route = ticket.route
    listed = (yield ask(("HGET", route.pending, ticket.job)))[0]
    if listed is None:
        return False
    key = listed.lstrip(b"0123456789")  # behind when it was enqueued
    flight = route.flight(key[1:]) if key.startswith(b"k") else None
    cancelled = outcome.encode_error(
        Cancelled(f"{ticket.shown}: cancelled before a worker took it"), trace=""
    )
    command = route.cancel(ticket.job, flight, cancelled)
    try:
        return bool((yield Request((command,)))[0] == b"cancelled")
    except ConnectionLost as error:
        raise ConnectionLost(f"{ticket.shown}: {error}; it may be cancelled, or not") from error


def prepare(
    source: Source, args: Args, kwargs: Kwargs, seen: Call | None
) -> Steps[tuple[Target, bytes | None, bytes]]:
    """Return what is called, under which cache key, and the arguments as bytes."""
    __tracebackhide__ = True
    target = source.target
    try:
        values = target.bind(*args, **kwargs)
    except TypeError as error:
        target, values = yield from _bind_anew(source, args, kwargs, error)
    key = None if target.key is None else target.key(values)
    headers = context.current() if seen is None else context.checked(seen.headers)
    return target, key, target.encode(args, kwargs, headers)


def _bind_anew(
    source: Source, args: Args, kwargs: Kwargs, error: TypeError
) -> Steps[tuple[Target, tuple[object, ...]]]:
    """Bind arguments that do not fit what is known by a newer registration, if there is one."""
    __tracebackhide__ = True
    known = source.target.etag
    newer = yield from source.refreshed()
    if newer.etag == known:
        raise error
    return newer, newer.bind(*args, **kwargs)


def note_status(seen: Call | None, status: list[Any]) -> None:
    if seen is not None:
        seen.status = status[0].decode()


def _call_alone(
    source: Source,
    target: Target,
    body: bytes,
    shown: ShownCall | str,
    deadline: Deadline,
    options: Options,
    seen: Call | None,
    begun: Begun | None,
) -> Steps[bytes | None]:
    """A call without a cache key: one write, one wait. None: it is to be made again."""
    __tracebackhide__ = True
    if begun is not None:
        job, route, withdraw = begun.job, begun.route, begun.withdraw
        status, reply = begun.answer()
        after = _after_alone(
            source, target, route, job, status, reply, withdraw, shown, deadline, seen
        )
        return (yield from after)
    route = target.route_for(None)
    job, mode, withdraw = yield from _new_job(source, route, deadline)
    command = route.call(
        job,
        body,
        mode=mode,
        budget_ms=deadline.left_ms(),
        fail_fast=options.fail_fast,
        but=nested.busy_worker(route),
    )
    if route.durable:
        status, reply = (yield from _send(route, command, withdraw, shown, deadline)), None
    else:
        seconds, timeout = slice_of(deadline, FIRST_SLICE_SECONDS)
        queued = withdraw.queued if isinstance(withdraw, Told) else None
        slice_ = Wait(route.service, job, seconds, True, b"queued", queued)
        request = Request((command,), timeout, False, 0.0, slice_, None, withdraw)
        status, reply = yield request
    after = _after_alone(source, target, route, job, status, reply, withdraw, shown, deadline, seen)
    return (yield from after)


def _after_alone(
    source: Source,
    target: Target,
    route: Route,
    job: str,
    status: Any,
    reply: bytes | None,
    withdraw: Withdrawal | None,
    shown: ShownCall | str,
    deadline: Deadline,
    seen: Call | None,
) -> Steps[bytes | None]:
    """What comes after the first write of such a call, and what that was answered."""
    __tracebackhide__ = True
    if isinstance(status, int):  # modes 'wait' and 'told': when it was queued
        status = [b"queued", b"", status]
    note_status(seen, status)
    if status[0] != b"queued":
        raise_refusal(status, target, shown)
        yield from renew(source, target)
        return None
    if reply is not None:
        return bytes(reply)
    again = target.may_run_twice
    ticket = Ticket(route, job, status[2], shown, None, again, withdraw)
    try:
        return (yield from wait(ticket, deadline, has_waited=not route.durable))
    except FlightLostError:
        return None


def _new_job(
    source: Source, route: Route, deadline: Deadline
) -> Steps[tuple[str, Mode, Withdrawal | None]]:
    """Return id, mode and `withdrawal` of the job of a call without a cache key."""
    if source.listens and not route.durable:
        told = yield from source.told_job(route.service, deadline)
        if told is not None:
            return told, _TOLD, Told(route, told)
    job = new_job_id()
    mode = _ASYNC if source.listens or route.durable else _WAIT
    return job, mode, _withdraw(source, route, job, None)


def _call_keyed(
    source: Source,
    target: Target,
    key: bytes,
    body: bytes,
    shown: ShownCall | str,
    deadline: Deadline,
    options: Options,
    seen: Call | None,
    begun: Begun | None,
) -> Steps[bytes | _Hit | None]:
    """A call with a cache key: only a miss waits. None: it is to be made again."""
    __tracebackhide__ = True
    route, again = target.route_for(key), target.may_run_twice
    if begun is not None:
        status, flight, withdraw = begun.answer()[0], route.flight(key), begun.withdraw
    else:
        job, flight = new_job_id(), route.flight(key)
        command = route.call(
            job,
            body,
            mode=_ASYNC if source.listens or route.durable else _CALL,
            budget_ms=deadline.left_ms(),
            key=key,
            fail_fast=options.fail_fast,
            but=nested.busy_worker(route),
        )
        withdraw = _withdraw(source, route, job, flight)
        status = yield from _send(route, command, withdraw, shown, deadline)
    note_status(seen, status)
    match status:
        case [b"hit", bytes(entry)]:
            return _Hit(entry)
        case [b"joined", bytes(leader)]:
            check_leader(leader.decode(), shown)
            ticket = Ticket(route, leader.decode(), 0, shown, flight, again)
        case [b"queued", bytes(own), int(now), *foreign]:
            ticket = Ticket(route, own.decode(), now, shown, flight, again, withdraw)
            if foreign:
                logger.warning("%s: its cached value is not ours, and is overwritten", shown)
        case _:
            raise_refusal(status, target, shown)
            yield from renew(source, target)
            return None
    try:
        return (yield from wait(ticket, deadline))
    except FlightLostError:
        return None


def _send(
    route: Route,
    command: Command,
    withdraw: Withdrawal | None,
    shown: ShownCall | str,
    deadline: Deadline,
    only_if: tuple[bytes, ...] = durable.ENQUEUED,
) -> Steps[list[Any]]:
    """Send the script `call`, and return its status; see `durable.enqueue`."""
    if route.durable:
        assert withdraw is not None
        made = durable.enqueue(route, command, withdraw, shown, deadline, only_if)
        return (yield from made)
    _, timeout = slice_of(deadline, FIRST_SLICE_SECONDS)
    return list((yield Request((command,), timeout, withdraw=withdraw))[0])


def _withdraw(source: Source, route: Route, job: str, flight: bytes | None) -> Withdrawal | None:
    """The `withdrawal` of a job whose caller may go away, or may not have it accepted."""
    if source.listens or route.durable:
        return partial(withdrawal, route, job, flight)
    return None


class Told:
    """The `withdrawal` of a job in mode 'told': it is found by when it was enqueued."""

    __slots__ = ("_enqueued_ms", "_job", "_route")

    def __init__(self, route: Route, job: str) -> None:
        self._route = route
        self._job = job
        self._enqueued_ms = 0

    def queued(self, enqueued_ms: int) -> None:
        """Hear when that was."""
        self._enqueued_ms = enqueued_ms

    def __call__(self) -> Command:
        return self._route.cancel(self._job, None, CANCELLED, 1, self._enqueued_ms)


def withdrawal(route: Route, job: str, flight: bytes | None, keep_ms: int = 1) -> Command:
    """What withdraws a job that nobody has taken or joined; as a rule nobody reads its outcome."""
    return route.cancel(job, flight, CANCELLED, keep_ms)


def decode_outcome(found: bytes, target: Target, shown: ShownCall, options: Options) -> object:
    """Return the value of a call's outcome, or raise its exception."""
    __tracebackhide__ = True
    try:
        return outcome.decode(found, target.serializer, options.allow)
    except WorkerLost as error:
        # Who noticed that knows the method only.
        text = str(error).removeprefix(f"{target.name}:")
        raise WorkerLost(f"{shown}:{text}") from error.__cause__


def check_leader(leader: str, shown: ShownCall | str) -> None:
    """Raise Deadlock where a call would wait for the job that makes it."""
    if leader == nested.current_job():
        raise Deadlock(f"{shown}: deadlock: it waits for the very job that makes this call")


def _discard(target: Target, key: bytes, entry: bytes, shown: ShownCall | str) -> Steps[None]:
    """Forget a value that cannot be read; of all who find it, one says so."""
    digest = hashlib.sha1(entry, usedforsecurity=False).hexdigest()
    if (yield ask(target.route_for(key).discard(key, digest)))[0]:
        logger.warning("%s: its cached value is not ours, and is forgotten", shown)


def renew(source: Source, target: Target) -> Steps[None]:
    """Learn the newer registration, or make the one that stands in the registry current."""
    newer = yield from source.refreshed()
    if newer.etag == target.etag:
        yield from announce(newer)


def raise_refusal(status: list[Any], target: Target, shown: ShownCall | str) -> None:
    __tracebackhide__ = True
    match status:
        case [b"full"]:
            limit, partitions = target.max_queue, len(target.routes)
            jobs = "1 job waits" if limit == 1 else f"{limit} jobs wait"
            whole, part = target.descriptor.max_queue, "in its partition already"
            why = "already (max_queue)" if partitions == 1 else f"{part} (max_queue={whole})"
            raise QueueFull(f"{shown}: {jobs} for {target.name} {why}")
        case [b"no_workers"] if nested.busy_worker(target.route):
            raise Deadlock(
                f"{shown}: deadlock: the only worker alive that serves {target.name} is busy with "
                f"the job that makes this call; start another worker, or call the function itself"
            )
        case [b"no_workers"]:
            raise NoWorkers(f"{shown}: no worker alive serves {target.name}")
        case [b"stale"]:
            return
    raise ProtocolError(f"{shown}: the script 'call' answered {status!r}")


def _may_repeat(target: Target, error: ConnectionLost) -> bool:
    return target.may_run_twice and not (is_undone(error) or isinstance(error, SentBefore))


def lost_message(shown: ShownCall | str, target: Target, error: ConnectionLost) -> str:
    if target.may_run_twice or is_undone(error) or isinstance(error, SentBefore):
        return f"{shown}: {error}"
    return f"{shown}: {error}; it is unknown whether it ran, so it is not sent again"
