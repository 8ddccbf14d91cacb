"""Waiting for a job's outcome: slice by slice, and what a call is told that waits in vain."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NoReturn

from ..errors import BusError, CallTimeout, ConnectionLost, JobLost, NoWorkers, ProtocolError
from ..protocol.commands import MOVED_TAG, SLICE_SECONDS, Route
from ..protocol.deadline import Deadline
from ..protocol.target import ShownCall
from . import nested
from .failures import WAYS_OUT, NotNow, SentBefore, is_out_of_memory, is_unreachable
from .patience import GRACE_SECONDS
from .steps import READ_SECONDS, Request, Steps, Wait, Withdrawal, ask
from .sweep import sweep

logger = logging.getLogger("redis_bus.waiting")

# The first wait is short: after it, a caller whom nobody serves is told so in the log.
FIRST_SLICE_SECONDS = 1.0
# How often an outcome may be another job's, before that counts as bytes that are not ours.
MAX_MOVES = 10
# How long a waiting call bears that Redis is away, and how it tries to reach it meanwhile (s).
AWAY_SECONDS = 30.0
BACKOFF_SECONDS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
# After that long, and then after twice as long each time, a waiting call looks for its job (s).
FIRST_SEARCH_SECONDS = 5.0
# A wait that is to end with another's lease ends a little later (s).
AFTER_LEASE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a waiter waits for: a job, since when it is queued, and whose it is."""

    route: Route
    job: str
    enqueued_ms: int
    shown: ShownCall | str
    flight: bytes | None = None  # the key in Redis that names the job, where it has a cache key
    may_run_twice: bool = False
    withdraw: Withdrawal | None = None  # see `Request`


class FlightLostError(Exception):
    """Nothing is left in Redis of what a call waits for; it can be made again."""


def wait(ticket: Ticket, deadline: Deadline, *, has_waited: bool = False) -> Steps[bytes]:
    """Wait for a job's outcome as one of many readers, and return it.

    The first slice is short; ``has_waited``: it is over. After it the log tells of a method nobody
    serves; after each, the call looks after workers that died, and whether its job is still known.
    """
    __tracebackhide__ = True
    watch, longest = _Watch(ticket, deadline), FIRST_SLICE_SECONDS
    service, moves, away = ticket.route.service, 0, Away()
    full: BusError | None = None
    while True:
        is_late = deadline.left() == 0.0
        try:
            if has_waited and not is_late and full is None:
                longest = yield from watch.look_around()
                has_waited = False
            seconds, timeout = slice_of(deadline, longest)
            if is_late or full is not None:
                reply = (yield Request((service.look(watch.job),), timeout))[0]
            else:
                slice_ = Wait(service, watch.job, seconds)
                request = Request((), timeout, wait=slice_, withdraw=ticket.withdraw)
                reply = (yield request)[0]
        except ConnectionLost as error:
            # The outcome is read without taking it, so it survives that.
            takes_time = isinstance(error, NotNow) and not is_unreachable(error)
            if takes_time:  # it is there
                away = Away()
            pause = away.pause(deadline)
            if takes_time and is_late:
                # The look was not done; the call may well be.
                raise ConnectionLost(str(error)) from error
            if is_late or pause is None:
                if is_unreachable(error):
                    raise SentBefore(_sent_before(error, ticket)) from error
                raise
            logger.debug("%s: %s; trying again", ticket.shown, error)
            yield Request((), pause=pause)
            continue
        except BusError as error:
            if full is not None or not is_out_of_memory(error):
                raise
            # It refuses to wait then. From 7.2 on it also refuses who waited and is woken: the
            # outcome is there, and is read without waiting.
            full = error
            continue
        if reply is None and full is not None and not is_late:
            pause = away.pause(deadline)
            if pause is None:
                raise full
            yield Request((), pause=pause)
            full, has_waited = None, True
            continue
        away = Away()
        if reply is None and is_late:
            raise (yield from _too_late(ticket, watch.job, deadline))
        if reply is None:
            has_waited = True
        elif reply.startswith(MOVED_TAG):
            watch.job, moves = _moved_to(reply, ticket, moves)
        else:
            return bytes(reply)


def outcome_of(ticket: Ticket, deadline: Deadline, *, has_waited: bool = False) -> Steps[bytes]:
    """Wait for a job's outcome, as `wait` does, with the call in each error of the connection."""
    __tracebackhide__ = True
    try:
        return (yield from wait(ticket, deadline, has_waited=has_waited))
    except ConnectionLost as error:
        raise ConnectionLost(f"{ticket.shown}: {error}") from error


def _sent_before(error: ConnectionLost, ticket: Ticket) -> str:
    """Say of a Redis that is not there now what a call needs to know that was there before."""
    text = f"{str(error).removesuffix(f'; {WAYS_OUT}')}; it was sent before that"
    return text if ticket.may_run_twice else f"{text}, and it is unknown whether it ran"


class Away:
    """How long Redis has been away, and how long to wait before it is tried again."""

    def __init__(self) -> None:
        self._tries = 0
        self._passed = Deadline(AWAY_SECONDS)

    def pause(self, deadline: Deadline) -> float | None:
        if self._passed.left() == 0.0:
            return None
        seconds = BACKOFF_SECONDS[min(self._tries, len(BACKOFF_SECONDS) - 1)]
        self._tries += 1
        left = deadline.left()
        return seconds if left is None else min(seconds, left)


class _Watch:
    """What a call looks after between the slices of its wait."""

    def __init__(self, ticket: Ticket, deadline: Deadline) -> None:
        self.job = ticket.job
        self._ticket = ticket
        self._deadline = deadline
        self._warned = False
        self._next_search = FIRST_SEARCH_SECONDS
        self._missed = 0

    def look_around(self) -> Steps[float]:
        """Look after dead workers and the job. Returns how long the next slice may be (s).

        Raises FlightLostError or JobLost where nothing is left of the job.
        """
        ticket, deadline = self._ticket, self._deadline
        if not self._warned:
            yield from warn_if_nobody(ticket, deadline)
            self._warned = True
        lease_ends = yield from self._sweep()
        if ticket.flight is not None:
            if not (yield from self._is_flown(ticket.flight)):
                yield from self._search()
        elif deadline.passed() >= self._next_search:
            self._next_search = 2 * deadline.passed()
            yield from self._search()
        if self._missed:
            return FIRST_SLICE_SECONDS
        if lease_ends is None:
            return SLICE_SECONDS
        return min(SLICE_SECONDS, lease_ends + AFTER_LEASE_SECONDS)

    def _sweep(self) -> Steps[float | None]:
        service, (_, timeout) = self._ticket.route.service, self._slice()
        try:
            return (yield from sweep(service.bus, service, timeout))
        except ConnectionLost:
            raise
        except BusError as error:
            # An access rule may forbid it to callers; then it is left to the workers.
            logger.debug("%s: it cannot look after lost workers: %s", self._ticket.shown, error)
            return None

    def _is_flown(self, flight: bytes) -> Steps[bool]:
        """Whether the flight is the job's still, or its outcome is there.

        A clear detaches the flight, and a job may wait for longer than it lasts.
        """
        commands = (("GET", flight), self._ticket.route.service.look(self.job))
        found, reply = yield ask(*commands, timeout=self._slice()[1])
        return reply is not None or (
            found is not None and found.startswith(self.job.encode() + b" ")
        )

    def _search(self) -> Steps[None]:
        """Give up where the job is neither queued nor claimed, and has no outcome, twice in a row.

        Once may be by chance: it was just given away.
        """
        try:
            _, place = yield from _look_for(self._ticket, self.job, self._deadline)
        except ConnectionLost:
            raise
        except BusError as error:
            logger.debug("%s: it cannot look for its job: %s", self._ticket.shown, error)
            return
        if place != b"unknown":
            self._missed = 0
            return
        look, (_, timeout) = self._ticket.route.service.look(self.job), self._slice()
        if (yield ask(look, timeout=timeout))[0] is not None:
            return
        self._missed += 1
        if self._missed > 1:
            self._give_up()
        self._next_search = 0.0

    def _slice(self) -> tuple[float, float]:
        return slice_of(self._deadline, SLICE_SECONDS)

    def _give_up(self) -> NoReturn:
        if self._ticket.may_run_twice:
            raise FlightLostError
        raise JobLost(
            f"{self._ticket.shown}: Redis knows nothing of its job any more (it lost its data, or "
            f"the key expired, was evicted or deleted); it is unknown whether it ran"
        )


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
    if left is None or left + GRACE_SECONDS >= READ_SECONDS:
        return longest, READ_SECONDS
    # To Redis, 0 means for ever.
    return min(longest, max(0.001, round(left, 3))), left + GRACE_SECONDS


def _look_for(ticket: Ticket, job: str, deadline: Deadline) -> Steps[tuple[int, bytes]]:
    """Return how many workers are alive, and whether the job is queued, claimed or unknown.

    Every worker that is listed may have claimed it.
    """
    route, (_, timeout) = ticket.route, slice_of(deadline, SLICE_SECONDS)
    listed = (yield ask(("ZRANGE", route.service.workers, 0, -1), timeout=timeout))[0]
    workers = [worker.decode("ascii", "replace") for worker in listed]
    state = route.state(job, ticket.enqueued_ms, workers)
    alive, _, place = (yield ask(state, timeout=timeout))[0]
    return alive, place


def warn_if_nobody(ticket: Ticket, deadline: Deadline) -> Steps[None]:
    """Say in the log that a call waits for a method that no worker alive serves."""
    left = deadline.left()
    if left is not None and left <= 0:
        return
    alive, place = yield from _look_for(ticket, ticket.job, deadline)
    if alive == 0 and place != b"claimed":
        logger.warning("%s: it waits, but no worker alive serves it", ticket.shown)


def _too_late(ticket: Ticket, job: str, deadline: Deadline) -> Steps[CallTimeout]:
    """Return the error of a call whose time is up, with what the bus knows of it."""
    budget = deadline.budget or 0.0
    text = f"{ticket.shown}: no reply in {_shown_seconds(budget)} s"
    status = b""
    try:
        if ticket.withdraw is not None:
            # To Redis, the deadline is later by the time that the call was on its way.
            withdraw = ticket.withdraw()
            status = (yield ask(withdraw, timeout=slice_of(deadline, SLICE_SECONDS)[1]))[0]
        alive, place = yield from _look_for(ticket, job, deadline)
    except BusError as error:
        return CallTimeout(f"{text} ({error})")
    if place == b"queued" or (status == b"cancelled" and job == ticket.job):
        # Redis ends a wait up to 0.1 s late; that is not what the caller asked for.
        since = f"queued {_shown_seconds(min(budget, deadline.passed()))} s"
    elif place == b"claimed" and not alive:
        since = "taken by a worker that takes no other, not finished"
    elif place == b"claimed":
        since = "taken by a worker, not finished"
    else:
        since = "not finished"
    workers = f"{alive} worker{'' if alive == 1 else 's'} alive"
    if alive == 1 and nested.busy_worker(ticket.route):
        workers += ", busy with the job that makes this call: a deadlock"
    # Who is told that nobody serves may call again: not while it runs.
    kind = CallTimeout if alive or place == b"claimed" else NoWorkers
    return kind(f"{text} ({since}; {workers})")


def _shown_seconds(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"
