"""One connection of asyncio, shared by the commands of all calls."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import hiredis
import redis

from ..protocol.commands import Command, pack
from . import async_wire, wire
from .async_wire import CLOSED
from .limit import Seat
from .link import PUSHED
from .transport import FRESH_SECONDS, READ_SECONDS, NodeTransport

# Before an answer counts as late it is looked for once more: the loop may have stood still.
LOOK_AGAIN_SECONDS = 0.05
# How long it may take to hand the last bytes to Redis when a connection is closed.
CLOSE_SECONDS = 1.0
# So many commands go out at once, before the turn of the loop ends.
AT_ONCE = 16
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_NOT_YET = object()
ASKING: Command = ("ASKING",)
HANG_UPS = (ConnectionResetError, BrokenPipeError)


class Receiver(Protocol):
    """What gets the replies to commands: a future, or what is quicker as nobody awaits it."""

    def done(self) -> bool:
        """Whether it wants none any more."""

    def set_result(self, replies: list[Any], /) -> None:
        """Take the replies, errors among them as values. It must not raise, and not wait."""

    def set_exception(self, error: BaseException, /) -> None:
        """Take ConnectionLost instead."""


class Exchange:
    """Commands on their way: as many replies as they are make the receiver's result."""

    __slots__ = ("count", "future", "replies", "since")

    def __init__(self, count: int, future: Receiver, since: float) -> None:
        self.count = count
        self.future = future
        self.since = since
        self.replies: list[Any] = []


class AsyncLink(asyncio.Protocol):
    """One connection that many tasks share. What they send in one turn of the loop is one write,
    or a few.

    Replies come in the order of the commands; none of them may block. Where the oldest command
    waits longer than ``patience`` while nothing comes, the connection is taken to be dead.
    """

    patience = READ_SECONDS
    takes_pushes = False

    # redis-py's classes are typed in part only.
    def __init__(self, connection: Any, base: NodeTransport) -> None:
        self._connection = connection
        self._base = base
        self._waiting: deque[Exchange] = deque()
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=redis.exceptions.InvalidResponse,
            replyError=wire.error_maker(connection),
            notEnoughData=_NOT_YET,
        )
        self._wire: async_wire.Wire | None = None
        self.seat: Seat | None = None  # where there may be only so many connections
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._watch: asyncio.TimerHandle | None = None
        self._heard = self._loop.time()
        self._doubted = False
        self._retired = False
        self.is_closed = False

    async def connect(self, timeout: float) -> None:
        """Connect in at most ``timeout`` seconds. Raises ConnectionLost."""
        try:
            await asyncio.wait_for(self._take_over(), timeout)
        except BaseException as error:
            # Cancelled, it may be made all the same.
            async_wire.drop(self._connection)
            self.close(redis.ConnectionError("it is not wanted"))
            if isinstance(error, asyncio.TimeoutError):
                raise self._base.lost_connecting(late()) from None
            if isinstance(error, (redis.RedisError, OSError)):
                raise self._base.lost_connecting(plain(error)) from None
            raise
        self._base.connected()

    async def _take_over(self) -> None:
        """Connect. After the handshake, what comes is ours, without a stream between."""
        self._wire = await async_wire.take_over(self._connection, self)
        self._heard = self._loop.time()

    def exchange(self, commands: tuple[Command, ...]) -> asyncio.Future[list[Any]]:
        """Send commands; the future gets their replies, errors among them as values."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self.post(commands, future)
        return future

    def post(self, commands: tuple[Command, ...], receiver: Receiver) -> None:
        """Send commands; the receiver gets their replies."""
        if self.is_closed:
            receiver.set_exception(self._base.lost(redis.ConnectionError("it is closed")))
            return
        data = pack(*commands)
        self._waiting.append(Exchange(len(commands), receiver, self._loop.time()))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)
        if len(self._out) >= AT_ONCE:
            self._flush()  # so that Redis and who is told by it need not wait for this process
        if self._watch is None:
            self._watch = self._loop.call_later(self.patience, self._look)

    def is_stale(self) -> bool:
        """Whether it was idle, and the other side has closed it meanwhile.

        The loop cannot know of that where it did not run, as that of a worker between two jobs.
        """
        if self.is_closed:
            return True
        if self._loop.time() - self._heard < FRESH_SECONDS:
            return False
        if self._wire is None or not self._wire.is_hung_up():
            return False
        self.close(redis.ConnectionError(CLOSED))
        return True

    def close(self, error: BaseException | None = None) -> None:
        """Close it; who waits for a reply gets ConnectionLost. No error: what is to go out goes."""
        if self.is_closed:
            return
        if error is None:
            self._flush()
        self.is_closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._wire is not None:
            if error is None:
                self._wire.close()
            else:
                self._wire.abort()
        for exchange in self._waiting:
            if not exchange.future.done():
                # One for each: what is raised in many tasks at once collects all their frames.
                lost = self._base.lost(error or redis.ConnectionError("it was closed"))
                exchange.future.set_exception(lost)
        self._waiting.clear()
        if self.seat is not None:
            self.seat.leave()

    def retire(self) -> None:
        """Close it once all that was sent is answered."""
        self._retired = True
        if not self._waiting:
            self.close()

    async def closed(self) -> None:
        """Wait until the socket is closed."""
        if self._wire is None:
            return
        await asyncio.wait([self._gone], timeout=CLOSE_SECONDS)
        if not self._gone.done():
            self._wire.abort()
            await asyncio.wait([self._gone], timeout=CLOSE_SECONDS)

    # -- what asyncio calls -------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard, self._doubted = self._loop.time(), False
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets(False)) is not _NOT_YET:
                self.received(reply)
        except redis.RedisError as error:
            self.close(error)

    def replied(self, reply: Any) -> None:
        """Take a reply that redis-py has read."""
        self._heard, self._doubted = self._loop.time(), False
        try:
            self.received(reply)
        except redis.RedisError as error:
            self.close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        self.close(exc or redis.ConnectionError(CLOSED))

    def received(self, reply: Any) -> None:
        """Take a reply, or what Redis says unasked."""
        if type(reply) is not PUSHED:
            self.answered(reply)

    def answered(self, reply: Any) -> None:
        """Give a reply to who waits for it."""
        if not self._waiting:
            raise redis.exceptions.InvalidResponse("a reply that nobody asked for")
        exchange = self._waiting[0]
        exchange.replies.append(reply)
        if len(exchange.replies) == exchange.count:
            self._waiting.popleft()
            if not exchange.future.done():  # its caller may have gone
                exchange.future.set_result(exchange.replies)
            if self._retired and not self._waiting:
                self.close()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and not self.is_closed and self._wire is not None:
            self._wire.write(b"".join(out))

    def _look(self) -> None:
        """Close the connection where the oldest command waits too long."""
        self._watch = None
        if self.is_closed or not self._waiting:
            return
        left = max(self._waiting[0].since, self._heard) + self.patience - self._loop.time()
        if left <= 0 and self._doubted:
            self.close(late())
            return
        self._doubted = left <= 0
        self._watch = self._loop.call_later(max(left, LOOK_AGAIN_SECONDS), self._look)


async def within(link: AsyncLink, future: asyncio.Future[list[Any]], timeout: float) -> list[Any]:
    """Wait for replies so long; the connection itself sees to it that none waits for ever."""
    if timeout >= READ_SECONDS:
        return await future
    timer: asyncio.TimerHandle

    def give_up(again: bool) -> None:
        nonlocal timer
        if future.done():
            return
        if again:
            timer = link._loop.call_later(LOOK_AGAIN_SECONDS, give_up, False)
        else:
            future.set_exception(link._base.lost(late()))

    timer = link._loop.call_later(timeout, give_up, True)
    try:
        return await future
    finally:
        timer.cancel()


def with_asking(commands: Iterable[Command]) -> tuple[Command, ...]:
    """Return commands for a node of a cluster to which their slot is about to come."""
    return tuple(part for command in commands for part in (ASKING, command))


def unasked(answers: list[Any]) -> list[Any]:
    """Return the replies to such commands: a refusal of ASKING is one of what followed it."""
    return [
        asked if isinstance(asked, redis.RedisError) else reply
        for asked, reply in zip(answers[::2], answers[1::2], strict=True)
    ]


def late() -> TimeoutError:
    """Return the error of an answer that does not come; OSError's kind in each Python."""
    return TimeoutError("it did not answer in time")


def plain(error: Exception) -> Exception:
    """Return an error as the operating system words it, not as asyncio does."""
    system = error.__context__
    found = _ERRNO.search(str(system))
    number = system.errno if isinstance(system, OSError) else None
    if number is None and found:  # there are several addresses, and so several errors
        number = int(found[1])
    if not isinstance(system, OSError) or isinstance(system, ssl.SSLError) or not number:
        return error
    return OSError(number, os.strerror(number))


def ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
