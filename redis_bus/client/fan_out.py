"""Fan-out: a method called for many arguments, a window of calls at a time, its values in order."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..calls.calls import call, decode_outcome
from ..calls.failures import is_out_of_memory
from ..calls.mapped_call import MappedCall
from ..calls.waiting import FIRST_SLICE_SECONDS, FlightLostError, outcome_of, slice_of
from ..errors import (
    BusError,
    CallTimeout,
    Cancelled,
    ConnectionLost,
    ProtocolError,
    QueueFull,
    SerializationError,
)
from ..protocol import outcome
from ..protocol.commands import MOVED_TAG, Command
from ..protocol.deadline import Deadline, check_seconds
from ..protocol.entries import parse_entry
from ..protocol.target import Args, Options
from .window import Window

if TYPE_CHECKING:
    from .core import Core
    from .method import Method

logger = logging.getLogger("redis_bus.fan_out")

DEFAULT_WINDOW = 64
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


def check_iterables(name: str, iterables: tuple[object, ...]) -> None:
    """Raise TypeError where there are none, as the builtin `map` does."""
    if not iterables:
        raise TypeError(f"{name}.map() must have at least one iterable")


def fan_out(
    core: Core,
    method: Method[..., Any],
    options: Options,
    iterables: tuple[Iterable[object], ...],
    timeout: float | None,
    size: int,
) -> Iterator[Any]:
    """Send the first window of calls, and return the iterator of the values. See `Method.map`."""
    check_iterables(method.__name__, iterables)
    check_seconds("timeout", timeout)
    check_window(size)
    rows: Iterator[Args] = zip(*iterables, strict=False)
    values = FanOut(core, method, options, rows, timeout, size).values()
    # A generator that was never begun would not end either: nothing would be withdrawn.
    next(values)
    return values


class FanOut:
    """The values of the calls of a window, each at its turn.

    What was not sent is called at its turn, as a plain call is.
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
        self._timeout, self._end = timeout, Deadline(timeout)
        self._window = Window(core, method, options, rows, size, self._end)
        self._ahead = LEAST_AHEAD
        self._read: list[str] = []  # reply lists that nobody else reads
        self._pid = os.getpid()

    def values(self) -> Iterator[Any]:
        """Yield None once the first window was sent, then the values."""
        __tracebackhide__ = True
        window = self._window
        try:
            window.fill()
            yield None
            while window.calls:
                value = self._turn(window.calls[0])
                window.pop()
                yield value
        finally:
            if self._pid == os.getpid():  # else they are the parent's
                self._end_calls()

    # -- reading ------------------------------------------------------------------------------

    def _turn(self, one: MappedCall) -> object:
        """Return the value of the first call, or raise why there is none; middleware is told."""
        __tracebackhide__ = True
        if one.seen is None:
            return self._value(one)
        try:
            return self._window.hooks.then(one.seen, partial(self._value, one))
        finally:
            one.seen = None

    def _value(self, one: MappedCall) -> object:
        """Return the value of the first call, or raise why there is none."""
        __tracebackhide__ = True
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
        _, args, kwargs = one.shown
        while True:
            options = self._options
            left = None if self._timeout is None else self._end.left()
            if left is not None:
                target = self._method.target
                own = options.timeout if options.has_timeout else target.timeout
                shorter = left if own is None else min(left, own)
                options = replace(options, timeout=shorter, has_timeout=True)
            try:
                return self._core.drive(call(self._method, args, kwargs, options, one.seen))
            except QueueFull as error:
                # With our own calls behind it, maybe; what the function raised has a cause.
                other = next((other for other in self._window.calls if other.is_unread), None)
                if other is None or error.__cause__ is not None:
                    raise
            try:
                self._await(other)
            except (BusError, FlightLostError) as error:
                other.ticket = None
                other.error = None if isinstance(error, FlightLostError) else error

    def _await(self, one: MappedCall) -> None:
        """Wait for the outcome of a call, and read those behind it that are there."""
        __tracebackhide__ = True
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
            found = self._core.drive(outcome_of(ticket, deadline, has_waited=has_waited))
            self._take(one, found)

    def _look(self, first: MappedCall, deadline: Deadline) -> bool:
        """Block for one outcome for a slice, and look for others, in one write.

        Returns whether the slice is over, without that one.
        """
        assert first.ticket is not None
        ahead = (one for one in self._window.calls if one.is_unread and one is not first)
        # Those of a partition side by side: on a cluster they go in one write.
        own = _partition(first)
        others = sorted(
            islice(ahead, self._ahead), key=lambda one: (_partition(one) != own, _partition(one))
        )
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
        except BusError as error:
            if not is_out_of_memory(error):
                raise
            return False  # `wait` knows what to do then
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
            self._window.failed = True
        if one.key is None:  # nobody else knows its job
            self._read.append(one.ticket.route.service.reply(one.ticket.job))

    # -- ending -------------------------------------------------------------------------------

    def _end_calls(self) -> None:
        """Withdraw the calls whose turn will not come, and tell middleware that they failed."""
        left = [one for one in self._window.calls if one.seen is not None]
        try:
            self._withdraw()
        finally:
            for one in left:
                error = one.error or Cancelled(f"{one.shown}: its map ended before its turn")
                self._window.hooks.failed(one.seen, error)

    def _withdraw(self) -> None:
        """Withdraw what no worker has taken, and delete the outcomes that nobody will read."""
        commands = self._window.doubtful
        for one in self._window.calls:
            ticket = one.ticket
            if ticket is None or ticket.job != one.job:
                continue
            if one.found is None:
                commands.append(one.cancel())
            if one.key is None:
                self._read.append(ticket.route.service.reply(one.job))
        commands += self._unlink()
        self._window.calls.clear()
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
        by_partition: dict[str, list[str]] = {}
        for key in read:
            by_partition.setdefault(key.partition("}")[0], []).append(key)
        return [("UNLINK", *keys) for keys in by_partition.values()]


def _partition(one: MappedCall) -> int:
    return 0 if one.ticket is None else one.ticket.route.service.part
