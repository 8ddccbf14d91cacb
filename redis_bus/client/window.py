"""Window: the calls of a fan-out that are in flight or unread, and how they are sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..calls.calls import MAX_TRIES, renew
from ..calls.mapped_call import MappedCall
from ..calls.waiting import FIRST_SLICE_SECONDS, slice_of
from ..errors import BusError
from ..protocol.commands import Command
from ..protocol.deadline import Deadline
from ..protocol.target import Args, Options, ShownCall

if TYPE_CHECKING:
    from .core import Core
    from .method import Method

# How many calls are sent in one write, and of about how many bytes at the most.
CALLS_AT_ONCE = 256
BYTES_AT_ONCE = 1024 * 1024


class Window:
    """The calls that are in flight or unread, in the order of the arguments.

    Uncached jobs are of the mode of runs: their outcomes are kept for a consumer that is slow, and
    they can be withdrawn. What cannot be sent now stays unsent, until it is sent or its turn comes.
    ``end`` is that of the whole fan-out.
    """

    def __init__(
        self,
        core: Core,
        method: Method[..., Any],
        options: Options,
        rows: Iterator[Args],
        size: int,
        end: Deadline,
    ) -> None:
        self._core, self._method, self._options = core, method, options
        self._rows, self._size, self._end = rows, size, end
        self._limit = size  # less where the method's queue has no room for so many
        self._holds = False  # whether some are not sent yet
        # A call ends with the hooks that it began with, whatever becomes of the list meanwhile.
        self.hooks = core.middleware.calls
        self.calls: deque[MappedCall] = deque()
        self.failed = False  # then what comes behind is not wanted any more
        self.doubtful: list[Command] = []  # what withdraws jobs that may be enqueued, or not

    def pop(self) -> None:
        """Drop the first call, whose turn is over, and send more where there is much room."""
        self.calls.popleft()
        if self._flying() <= self._limit // 2:
            self.fill()

    def _flying(self) -> int:
        """How many calls are in flight or unread."""
        return len(self.calls) - (sum(one.is_unsent for one in self.calls) if self._holds else 0)

    def fill(self) -> None:
        """Send calls until as many are in flight or unread as may be."""
        refused = False
        for _ in range(MAX_TRIES):
            waiting = self._unsent()
            flying = len(self.calls) - len(waiting)
            is_stale = False
            while not (refused or is_stale) and flying < self._limit:
                # Where replicas are to confirm, what is behind a call that fails is not sent.
                at_once = 1 if self._method.target.route.durable else CALLS_AT_ONCE
                batch = self._next_batch(waiting, min(at_once, self._limit - flying))
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
        self._holds = any(one.is_unsent for one in self.calls)
        if not refused:
            self._limit = min(self._size, 2 * self._limit)

    def _unsent(self) -> deque[MappedCall]:
        """Return the calls that are to be sent yet, but for those behind one that failed."""
        found: deque[MappedCall] = deque()
        for one in self.calls:
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
                break
            batch.append(one)
            size += len(one.body)
        return batch

    def _pull(self) -> MappedCall | None:
        """Take the next arguments, if they are wanted."""
        if self.failed:
            return None
        try:
            args = next(self._rows, None)
        except Exception as error:  # noqa: BLE001 - the caller's own, raised at its turn
            self.failed = True
            one = MappedCall(ShownCall(self._method.__name__, (), {}), error=error)
            self.calls.append(one)
            return None
        if args is None:
            return None
        one = MappedCall(ShownCall(self._method.__name__, args, {}))
        self.calls.append(one)
        return one

    def _prepare(self, one: MappedCall) -> bool:
        """Make a call ready to be sent. Returns whether it can be."""
        __tracebackhide__ = True
        try:
            if self.hooks:
                one.begin(self._core.name, self.hooks)
            return self._core.drive(one.prepare(self._method, self._options))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised at its turn
            one.error = error
            self.failed = True
            return False

    def _send(self, batch: list[MappedCall]) -> list[bytes | None]:
        """Send calls in one write. Returns what was said of each, None: it may be lost."""
        try:
            if self._method.target.route.durable:
                replies = [self._send_durably(one) for one in batch]
            else:
                replies = self._send_at_once(batch)
        except BaseException:  # the user's interrupt, say
            self.doubtful += [one.cancel() for one in batch if one.route is not None]
            raise
        statuses: list[bytes | None] = []
        for one, reply in zip(batch, replies, strict=True):
            if isinstance(reply, BusError):
                if one.refused(reply):
                    self.doubtful.append(one.cancel())
                statuses.append(None)
            else:
                one.answered(reply)
                statuses.append(reply[0] if isinstance(reply, list) else b"")
            self.failed = self.failed or one.has_failed
        return statuses

    def _send_at_once(self, batch: list[MappedCall]) -> list[Any]:
        deadline = batch[0].deadline
        assert deadline is not None
        timeout = min(slice_of(d, FIRST_SLICE_SECONDS)[1] for d in (deadline, self._end))
        commands = [one.send(self._options) for one in batch]
        return self._core.transport.exchange_each(*commands, timeout=timeout)

    def _send_durably(self, one: MappedCall) -> Any:
        """Send a call by itself: replicas are to confirm it before the next one goes out."""
        try:
            return self._core.drive(one.send_durably(self._options))
        except BusError as error:
            return error
