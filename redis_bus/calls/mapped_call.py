"""One call of a fan-out: how it is made ready and sent, and what is known of it since."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ..errors import BusError, ConnectionLost
from ..protocol import outcome
from ..protocol.commands import LEASE_MS, Command, Route
from ..protocol.deadline import Deadline
from ..protocol.entries import Mode
from ..protocol.target import Options, ShownCall, Target
from . import durable, nested
from .calls import (
    Source,
    check_leader,
    lost_message,
    new_job_id,
    note_status,
    prepare,
    raise_refusal,
    withdrawal,
)
from .context import headers
from .failures import is_undone
from .middleware import Call, Hooks
from .steps import Steps
from .waiting import Ticket

logger = logging.getLogger("redis_bus.mapped_call")


@dataclass(slots=True, eq=False)
class MappedCall:
    """A call in the window of a fan-out. Sent or not, its turn decides what becomes of it.

    An uncached job is of the mode of a run: its outcome is kept for a consumer that is slow. With
    a key or without, it can be withdrawn until a worker takes it.
    """

    shown: ShownCall
    target: Target | None = None
    key: bytes | None = None
    body: bytes = b""
    route: Route | None = None  # that it is sent by
    job: str = ""  # its own; it may wait for another's
    deadline: Deadline | None = None
    ticket: Ticket | None = None  # what it waits for, once it was sent
    entry: bytes | None = None  # what was in the cache
    found: bytes | None = None  # its outcome
    error: Exception | None = None
    seen: Call | None = None  # as middleware sees it, from the hooks before it to those after it

    @property
    def is_unsent(self) -> bool:
        return self.ticket is None and self.entry is None and self.error is None

    @property
    def is_unread(self) -> bool:
        """Whether its outcome is still to be read from Redis."""
        return self.ticket is not None and self.found is None and self.error is None

    @property
    def has_failed(self) -> bool:
        return self.error is not None or (self.found is not None and outcome.is_error(self.found))

    def begin(self, bus: str, hooks: Hooks) -> None:
        """Call the hooks before it, if they were not called yet."""
        if self.seen is None:
            name, args, kwargs = self.shown
            seen = Call(bus, name, args, kwargs, headers(), "call")
            hooks.before(seen)
            self.seen = seen

    def prepare(self, source: Source, options: Options) -> Steps[bool]:
        """Bind and encode it. Returns whether it has time left, in which it can be sent."""
        __tracebackhide__ = True
        _, args, kwargs = self.shown
        self.target, self.key, self.body = yield from prepare(source, args, kwargs, self.seen)
        timeout = options.timeout if options.has_timeout else self.target.timeout
        self.deadline = Deadline(timeout)
        return self.deadline.left() != 0.0

    def send(self, options: Options) -> Command:
        """Return what sends it, under a job id of its own."""
        assert self.target is not None
        assert self.deadline is not None
        self.job, body, self.body = new_job_id(), self.body, b""
        self.route = self.target.route_for(self.key)
        return self.route.call(
            self.job,
            body,
            mode=Mode.RUN if self.key is None else Mode.ASYNC,
            budget_ms=self.deadline.left_ms(),
            key=self.key,
            fail_fast=options.fail_fast,
            but=nested.busy_worker(self.route),
        )

    def cancel(self) -> Command:
        """Return what withdraws its own job, where nobody has taken or joined it."""
        assert self.route is not None
        return withdrawal(self.route, self.job, self._flight(), LEASE_MS)

    def send_durably(self, options: Options) -> Steps[Any]:
        """Send it by itself, and return what the script `call` says once replicas have it."""
        command = self.send(options)
        assert self.route is not None
        assert self.deadline is not None
        kept = durable.ENQUEUED if self.key is not None else durable.KEPT
        made = durable.enqueue(self.route, command, self.cancel, self.shown, self.deadline, kept)
        return (yield from made)

    def answered(self, status: Any) -> None:
        """Take what the script `call` says. A refusal that may pass leaves it unsent."""
        target, route = self.target, self.route
        assert target is not None
        assert route is not None
        again = target.may_run_twice
        note_status(self.seen, status)
        try:
            match status:
                case [b"hit", bytes(entry)]:
                    self.entry = entry
                case [b"joined", bytes(leader)]:
                    check_leader(leader.decode(), self.shown)
                    job = leader.decode()
                    self.ticket = Ticket(route, job, 0, self.shown, self._flight(), again)
                case [b"queued", bytes(own), int(now), *foreign]:
                    job = own.decode()
                    self.ticket = Ticket(route, job, now, self.shown, self._flight(), again)
                    if foreign:
                        text = "its cached value is not ours, and is overwritten"
                        logger.warning("%s: %s", self.shown, text)
                case [b"full"]:
                    pass  # there is room once those before it were taken
                case _:
                    raise_refusal(status, target, self.shown)
        except BusError as error:
            self.error = error

    def refused(self, error: BusError) -> bool:
        """Take an error of Redis or of the connection. Returns whether it may be enqueued."""
        target = self.target
        assert target is not None
        if not isinstance(error, ConnectionLost):
            self.error = error
            return False
        if is_undone(error):
            return False
        if not target.may_run_twice:
            self.error = ConnectionLost(lost_message(self.shown, target, error))
            self.error.__cause__ = error
        return True

    def _flight(self) -> bytes | None:
        assert self.route is not None
        return None if self.key is None else self.route.flight(self.key)
