"""Fan-out: a method called for many arguments, a window of calls at a time, its values in order."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from . import outcome
from .calls import MAX_TRIES, call, decode_outcome, renew
from .deadline import Deadline, check_seconds
from .entries import parse_entry
from .errors import (
    BusError,
    CallTimeout,
    ConnectionLost,
    ProtocolError,
    QueueFull,
    SerializationError,
)
from .mapped_call import MappedCall
from .protocol import MOVED_TAG, Command
from .target import Args, Options, ShownCall
from .waiting import FIRST_SLICE_SECONDS, FlightLostError, slice_of, wait

if TYPE_CHECKING:
    from .core import Core
    from .method import Method

logger = logging.getLogger(__name__)

DEFAULT_WINDOW = 64
# How many calls are sent in one write, and of about how many bytes at the most.
CALLS_AT_ONCE = 256
BYTES_AT_ONCE = 1024 * 1024
# How many outcomes are looked for behind the first one, at the least.
LEAST_AHEAD = 4
# After how many outcomes that were read their reply lists are deleted, in one command.
READ_AT_ONCE = 32
# From when on the outcome of a cached call may be gone, where the consumer is slow (s).
OLD_SECONDS = 5.0
# How long it may take to withdraw what is left over (s).
WITHDRAW_SECONDS = 2.0


def check_window(size: int) -> int:
    """Return a buffersize. Raises TypeError, ValueError for what is none."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"buffersize={size!r}: a number of calls, not {type(size).__name__}")
    if size < 1:
        raise ValueError(f"buffersize={size!r}: one call at the least is to be in flight")
    return size


def fan_out(
    core: Core,
    method: Method[..., Any],
    options: Options,
    iterables: tuple[Iterable[object], ...],
    timeout: float | None,
    size: int,
) -> Iterator[Any]:
    """Send the first window of calls, and return the iterator of the values. See `Method.map`."""
    check_seconds("timeout", timeout)
    check_window(size)
    rows: Iterator[Args] = zip(*iterables, strict=False)
    window = Window(core, method, options, rows, timeout, size)
    values = window.values()
    # A generator that was never begun would not end either: nothing would be withdrawn.
    next(values)
    return values


class Window:
    """The calls that are in flight or unread, in the order of the arguments.

    Uncached jobs are of the mode of runs: their outcomes are kept for a consumer that is slow, and
    they can be withdrawn. What cannot be sent now is called at its turn, as a plain call is.
    """

    def __init__(
        self,
        core: Core,
        method: Method[..., Any],
        options: Options,
        rows: Iterator[Args],
        timeout: float | None,
        size: int,
    ) -> None:
        self._core, self._method, self._options = core, method, options
        self._rows, self._size = rows, size
        self._timeout, self._end = timeout, Deadline(timeout)
        self._limit = size  # less where the method's queue has no room for so many
        self._calls: deque[MappedCall] = deque()
        self._holds = False  # whether some are not sent yet
        self._failed = False  # then what comes behind is not wanted any more
        self._ahead = LEAST_AHEAD
        self._read: list[str] = []  # reply lists that nobody else reads
        self._doubtful: list[Command] = []  # what withdraws jobs that may be enqueued, or not
        self._pid = os.getpid()

    def values(self) -> Iterator[Any]:
        """Yield None once the first window was sent, then the values."""
        try:
            self._fill()
            yield None
            while self._calls:
                value = self._value(self._calls[0])
                self._calls.popleft()
                if self._flying() <= self._limit // 2:
                    self._fill()
                yield value
        finally:
            self._withdraw()

    # -- sending ------------------------------------------------------------------------------

    def _flying(self) -> int:
        """How many calls are in flight or unread."""
        return len(self._calls) - (sum(one.is_unsent for one in self._calls) if self._holds else 0)

    def _fill(self) -> None:
        """Send calls until as many are in flight or unread as may be."""
        refused = False
        for _ in range(MAX_TRIES):
            waiting = self._unsent()
            flying = len(self._calls) - len(waiting)
            is_stale = False
            while not (refused or is_stale) and flying < self._limit:
                batch = self._next_batch(waiting, min(CALLS_AT_ONCE, self._limit - flying))
                if not batch:
                    break
                statuses = self._send(batch)
                flying += sum(not one.is_unsent for one in batch)
                refused = any(status in (b"full", None) for status in statuses)
                is_stale = b"stale" in statuses
                if b"full" in statuses:
                    self._limit = max(1, flying)
            if not is_stale:
                break
            assert batch[0].target is not None
            try:
                self._core.drive(renew(self._method, batch[0].target))
            except BusError:
                break  # the plain call, at its turn, says what is wrong
        self._holds = any(one.is_unsent for one in self._calls)
        if not refused:
            self._limit = min(self._size, 2 * self._limit)

    def _unsent(self) -> deque[MappedCall]:
        """Return the calls that are to be sent yet, but for those behind one that failed."""
        found: deque[MappedCall] = deque()
        for one in self._calls:
            if one.has_failed:
                break
            if one.is_unsent:
                found.append(one)
        return found

    def _next_batch(self, waiting: deque[MappedCall], most: int) -> list[MappedCall]:
        """Return the next calls to send, ready to be sent."""
        batch: list[MappedCall] = []
        size = 0
        while len(batch) < most and size < BYTES_AT_ONCE:
            one = waiting.popleft() if waiting else self._pull()
            if one is None:
                break
            if not self._prepare(one):
                self._failed = True
                break
            batch.append(one)
            size += len(one.body)
        return batch

    def _pull(self) -> MappedCall | None:
        """Take the next arguments, if they are wanted."""
        if self._failed:
            return None
        try:
            args = next(self._rows, None)
        except Exception as error:  # noqa: BLE001 - the caller's own, raised at its turn
            self._failed = True
            one = MappedCall((), ShownCall(self._method.__name__, (), {}), error=error)
            self._calls.append(one)
            return None
        if args is None:
            return None
        one = MappedCall(args, ShownCall(self._method.__name__, args, {}))
        self._calls.append(one)
        return one

    def _prepare(self, one: MappedCall) -> bool:
        try:
            return self._core.drive(one.prepare(self._method, self._options))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised at its turn
            one.error = error
            return False

    def _send(self, batch: list[MappedCall]) -> list[bytes | None]:
        """Send calls in one write. Returns what was said of each, None: it may be lost."""
        deadline = batch[0].deadline
        assert deadline is not None
        timeout = min(slice_of(d, FIRST_SLICE_SECONDS)[1] for d in (deadline, self._end))
        commands = [one.send(self._options) for one in batch]
        try:
            replies = self._core.transport.exchange_each(*commands, timeout=timeout)
        except BaseException:  # the user's interrupt, say
            self._doubtful += [one.cancel() for one in batch]
            raise
        statuses: list[bytes | None] = []
        for one, reply in zip(batch, replies, strict=True):
            if isinstance(reply, BusError):
                if one.refused(reply):
                    self._doubtful.append(one.cancel())
                statuses.append(None)
            else:
                one.answered(reply)
                statuses.append(reply[0] if isinstance(reply, list) else b"")
            self._failed = self._failed or one.has_failed
        return statuses

    # -- reading ------------------------------------------------------------------------------

    def _value(self, one: MappedCall) -> object:
        """Return the value of the first call, or raise why there is none."""
        if one.is_unsent:
            return self._call_now(one)
        if one.entry is not None:
            assert one.target is not None
            with contextlib.suppress(ProtocolError, SerializationError):
                cached = parse_entry(one.entry)
                if not outcome.is_error(cached):  # which is never cached
                    return outcome.decode(cached, one.target.serializer)
            return self._call_now(one)  # it forgets what cannot be read
        if one.is_unread:
            deadline = one.deadline
            is_slow = deadline is not None and deadline.left() == 0.0
            try:
                if self._is_gone(one):
                    return self._call_now(one)
                self._await(one)
            except FlightLostError:
                return self._call_now(one)
            except CallTimeout:
                # An outcome that many share is not kept for a consumer that is slow.
                if not is_slow or one.key is None or self._end.left() == 0.0:
                    raise
                return self._call_now(one)
        if one.error is not None:
            raise one.error
        assert one.found is not None
        assert one.target is not None
        return decode_outcome(one.found, one.target, one.shown, self._options)

    def _is_gone(self, one: MappedCall) -> bool:
        """Whether nothing is left of a cached call, whose outcome is not kept for long."""
        ticket, deadline = one.ticket, one.deadline
        if ticket is None or ticket.flight is None or deadline is None:
            return False
        if one.found is not None or deadline.passed() < OLD_SECONDS:
            return False
        look = ticket.route.service.look(ticket.job)
        flown, found = self._core.transport.ask(("GET", ticket.flight), look)
        return found is None and not (flown or b"").startswith(ticket.job.encode() + b" ")

    def _call_now(self, one: MappedCall) -> object:
        """Make a call that was not sent, or is to be made again, as a plain one."""
        while True:
            options = self._options
            left = None if self._timeout is None else self._end.left()
            if left is not None:
                target = self._method.target
                own = options.timeout if options.has_timeout else target.timeout
                shorter = left if own is None else min(left, own)
                options = replace(options, timeout=shorter, has_timeout=True)
            try:
                return self._core.drive(call(self._method, one.args, {}, options))
            except QueueFull as error:
                # With our own calls behind it, maybe; what the function raised has a cause.
                other = next((other for other in self._calls if other.is_unread), None)
                if other is None or error.__cause__ is not None:
                    raise
            try:
                self._await(other)
            except (BusError, FlightLostError) as error:
                other.ticket = None
                other.error = None if isinstance(error, FlightLostError) else error

    def _await(self, one: MappedCall) -> None:
        """Wait for the outcome of a call, and read those behind it that are there."""
        ticket, deadline = one.ticket, one.deadline
        assert ticket is not None
        assert deadline is not None
        if (
            self._timeout is not None
            and self._end.end is not None
            and (deadline.end is None or self._end.end < deadline.end)
        ):
            deadline = self._end
            ticket = replace(ticket, shown=f"{one.shown} in map(timeout={self._timeout:g})")
        has_waited = False
        if deadline.left() != 0.0:
            has_waited = self._look(one, deadline)
        if one.found is None:
            found = self._core.drive(wait(ticket, deadline, has_waited=has_waited))
            self._take(one, found)

    def _look(self, first: MappedCall, deadline: Deadline) -> bool:
        """Block for one outcome for a slice, and look for others, in one write.

        Returns whether the slice is over, without that one.
        """
        assert first.ticket is not None
        ahead = (one for one in self._calls if one.is_unread and one is not first)
        others = list(islice(ahead, self._ahead))
        seconds, timeout = slice_of(deadline, FIRST_SLICE_SECONDS)
        commands = self._unlink() if len(self._read) >= READ_AT_ONCE else []
        commands.append(first.ticket.route.service.wait_shared(first.ticket.job, seconds))
        for one in others:
            assert one.ticket is not None
            commands.append(one.ticket.route.service.look(one.ticket.job))
        try:
            replies = self._core.transport.exchange(*commands, timeout=timeout)
        except ConnectionLost as error:
            # The outcomes are read without taking them; and who waits tries again for a while.
            logger.debug("%s: %s; trying again", first.shown, error)
            return False
        found = replies[len(commands) - len(others) - 1 :]
        there = 0
        for one, reply in zip((first, *others), found, strict=True):
            if reply is not None and not reply.startswith(MOVED_TAG):
                self._take(one, reply)
                there += one is not first
        self._ahead = max(LEAST_AHEAD, 2 * there)
        return found[0] is None

    def _take(self, one: MappedCall, found: bytes) -> None:
        assert one.ticket is not None
        one.found = found
        if outcome.is_error(found):
            self._failed = True
        if one.key is None:  # nobody else knows its job
            self._read.append(one.ticket.route.service.reply(one.ticket.job))

    # -- ending -------------------------------------------------------------------------------

    def _withdraw(self) -> None:
        """Withdraw what no worker has taken, and delete the outcomes that nobody will read."""
        if self._pid != os.getpid():
            return  # the parent's
        commands = self._doubtful
        for one in self._calls:
            ticket = one.ticket
            if ticket is None or ticket.job != one.job:
                continue
            if one.found is None:
                commands.append(one.cancel())
            if one.key is None:
                self._read.append(ticket.route.service.reply(one.job))
        commands += self._unlink()
        self._calls.clear()
        if not commands:
            return
        try:
            replies = self._core.transport.exchange_each(*commands, timeout=WITHDRAW_SECONDS)
        except Exception:
            if sys.is_finalizing():
                return  # a new connection cannot be made any more
            raise
        for reply in replies:
            if isinstance(reply, BusError):
                name = self._method.__name__
                logger.debug("%s: what map left over is not withdrawn: %s", name, reply)

    def _unlink(self) -> list[Command]:
        read, self._read = self._read, []
        return [("UNLINK", *read)] if read else []
