"""Async wire: what is used of redis-py's insides, of connections of asyncio; see `wire`, too.

Where one is missing, in another version or in a class of the user's, its public calls have to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import Any, Protocol

import redis

from .hooks import prepare

# Where a connection has its streams.
READER, WRITER = "_reader", "_writer"
HUNG_UP = select.POLLHUP | getattr(select, "POLLRDHUP", 0)  # the latter is Linux's
CLOSED = "Redis closed it"


class Owner(Protocol):
    """Who is told of what comes, beside what `asyncio.Protocol` is told."""

    takes_pushes: bool  # whether what Redis says unasked is wanted

    def replied(self, reply: Any) -> None:
        """Take a reply, where it is not bytes that are to be read."""

    def connection_lost(self, exc: Exception | None, /) -> None:
        """Know that the connection is gone."""


class Wire(Protocol):
    """A connection that is made, as it is written to."""

    def write(self, data: bytes) -> None:
        """Send bytes, soon."""

    def is_hung_up(self) -> bool:
        """Whether the other side closed it, as far as the system knows."""

    def close(self) -> None:
        """Close it once all is sent."""

    def abort(self) -> None:
        """Close it at once."""


async def take_over(connection: Any, owner: Owner) -> Wire:
    """Connect and log in; from then on, what comes is for the owner. Raises as redis-py does."""
    await prepare(connection)
    await connection.connect()
    reader, writer = getattr(connection, READER, None), getattr(connection, WRITER, None)
    if not isinstance(writer, asyncio.StreamWriter) or not isinstance(reader, asyncio.StreamReader):
        return PublicWire(connection, owner)
    writer.transport.set_protocol(owner)  # type: ignore[arg-type]
    if writer.transport.is_closing() or reader.at_eof():
        # The stream was told of it, this will not be.
        raise redis.ConnectionError(CLOSED)
    setattr(connection, READER, None)
    setattr(connection, WRITER, None)
    return StreamWire(writer)


def drop(connection: Any) -> None:
    """Close a connection that may be half-way to being made, without waiting."""
    if hasattr(connection, WRITER):
        writer = getattr(connection, WRITER)
        if writer is not None:
            writer.close()
            setattr(connection, READER, None)
            setattr(connection, WRITER, None)
        return
    _ignore(asyncio.get_running_loop().create_task(connection.disconnect(nowait=True)))


class StreamWire:
    """The stream of redis-py's connection: what comes goes to the owner, with nothing between."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer  # it is kept: its end would close the transport

    def write(self, data: bytes) -> None:
        self._writer.transport.write(data)

    def is_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), HUNG_UP)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._writer.transport.close()

    def abort(self) -> None:
        self._writer.transport.abort()


class PublicWire:
    """A connection that is used by redis-py's public calls alone, in two tasks."""

    def __init__(self, connection: Any, owner: Owner) -> None:
        self._connection, self._owner = connection, owner
        connection.socket_timeout = None  # the owner knows how long to wait
        self._out: list[bytes] = []
        self._more = asyncio.Event()
        self._is_closing = False
        loop = asyncio.get_running_loop()
        self._sender = loop.create_task(self._send())
        self._reader = loop.create_task(self._read())
        self._ender: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        self._out.append(data)
        self._more.set()

    def is_hung_up(self) -> bool:
        return self._reader.done()

    def close(self) -> None:
        self._is_closing = True
        self._more.set()

    def abort(self) -> None:
        if self._ender is None:
            loop = asyncio.get_running_loop()
            self._ender = loop.create_task(self._end(redis.ConnectionError("it was closed")))

    async def _send(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                data, self._out = b"".join(self._out), []
                if data:
                    await self._connection.send_packed_command([data], check_health=False)
                elif self._is_closing:
                    break
                if self._is_closing:
                    self._more.set()
        except (redis.RedisError, OSError) as error:
            self._fail(error)
        else:
            self.abort()

    async def _read(self) -> None:
        try:
            while True:
                try:
                    reply = await self._connection.read_response(
                        disable_decoding=True,
                        disconnect_on_error=False,
                        push_request=self._owner.takes_pushes,
                    )
                except redis.ResponseError as error:
                    reply = error
                self._owner.replied(reply)
        except (redis.RedisError, OSError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._ender is None:
            self._ender = asyncio.get_running_loop().create_task(self._end(error))

    async def _end(self, error: Exception) -> None:
        for task in (self._sender, self._reader):
            task.cancel()
        await asyncio.wait([self._sender, self._reader])
        with contextlib.suppress(redis.RedisError, OSError):
            await self._connection.disconnect(nowait=True)
        self._owner.connection_lost(error)


def _ignore(task: asyncio.Task[Any]) -> None:
    _DROPPING.add(task)
    task.add_done_callback(_dropped)


_DROPPING: set[asyncio.Task[Any]] = set()  # a loop alone keeps no task


def _dropped(task: asyncio.Task[Any]) -> None:
    _DROPPING.discard(task)
    if not task.cancelled():
        task.exception()
