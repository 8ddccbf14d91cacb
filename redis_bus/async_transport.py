"""Connections of `AsyncBus`: one for the commands of all calls, one on which outcomes are told."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import re
import select
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import hiredis
import redis
import redis.asyncio as aioredis

from . import scripts
from .errors import BusError, ConnectionLost
from .protocol import Command, pack
from .transport import (
    FRESH_SECONDS,
    LOAD_TRIES,
    PASSING,
    READ_SECONDS,
    Transport,
    is_unreachable,
    refusal,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)

# An inbox is pinged where it was silent for so long; its answer may take as long again.
INBOX_SECONDS = 2.0
# Before an answer counts as late it is looked for once more: the loop may have stood still.
LOOK_AGAIN_SECONDS = 0.05
# How long it may take to hand the last bytes to Redis when a connection is closed.
CLOSE_SECONDS = 1.0
# So many fresh connections may be lost, each at once, before a call is told.
CONNECT_TRIES = 2
# How many commands that nobody waits for are kept for the next connection.
MAX_FORGOTTEN = 10_000
# Settings of a blocking connection that mean something else, or nothing, for one of asyncio.
BLOCKING_ONLY = {
    "command_packer",
    "event_dispatcher",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "parser_class",
    "retry",
}
CLASSES: dict[type[Any], type[Any]] = {
    redis.UnixDomainSocketConnection: aioredis.UnixDomainSocketConnection,
    redis.SSLConnection: aioredis.SSLConnection,
    redis.Connection: aioredis.Connection,
}
# Of blocking TLS connections only; they are in the settings where nobody asked for them, too.
OCSP = {
    "ssl_ocsp_context",
    "ssl_ocsp_expected_cert",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
}
HUNG_UP = select.POLLHUP | getattr(select, "POLLRDHUP", 0)  # the latter is Linux's
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_NOT_YET = object()
CLOSED = "Redis closed it"
BUS_CLOSED = "the bus was closed meanwhile"
HANG_UPS = (ConnectionResetError, BrokenPipeError)


class BusClosed(BusError):
    """The bus was closed while something was awaited on it."""


class Exchange:
    """Commands on their way: as many replies as they are make the future's result."""

    __slots__ = ("count", "future", "replies", "since")

    def __init__(self, count: int, future: asyncio.Future[list[Any]], since: float) -> None:
        self.count = count
        self.future = future
        self.since = since
        self.replies: list[Any] = []


class AsyncLink(asyncio.Protocol):
    """One connection that many tasks share. What they send in one turn of the loop is one write.

    Replies come in the order of the commands; none of them may block. Where the oldest command
    waits longer than ``patience`` while nothing comes, the connection is taken to be dead.
    """

    patience = READ_SECONDS

    # redis-py's classes are typed in part only.
    def __init__(self, connection: Any, base: Transport) -> None:
        self._connection = connection
        self._base = base
        self._waiting: deque[Exchange] = deque()
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=redis.exceptions.InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_NOT_YET,
        )
        self._writer: asyncio.StreamWriter | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._watch: asyncio.TimerHandle | None = None
        self._heard = self._loop.time()
        self._doubted = False
        self.is_closed = False

    async def connect(self, timeout: float) -> None:
        """Connect in at most ``timeout`` seconds. Raises ConnectionLost."""
        try:
            await asyncio.wait_for(self._take_over(), timeout)
        except BaseException as error:
            # Cancelled, it may be made all the same.
            self._connection._close()
            self.close(redis.ConnectionError("it is not wanted"))
            if isinstance(error, asyncio.TimeoutError):
                raise self._base.lost_connecting(late()) from None
            if isinstance(error, (redis.RedisError, OSError)):
                plain = _plain(error)
                # Whoever hangs up was there.
                lost = (
                    self._base.lost if isinstance(plain, HANG_UPS) else self._base.lost_connecting
                )
                raise lost(plain) from None
            raise

    def _lost_connecting(self, error: Exception) -> ConnectionLost:
        if isinstance(error, HANG_UPS):  # who hangs up was there
            return self._base.lost(error)
        return self._base.lost_connecting(error)

    async def _take_over(self) -> None:
        """Connect. After the handshake, what comes is ours, without a stream between."""
        connection = self._connection
        await connection.connect()
        reader, writer = connection._reader, connection._writer
        writer.transport.set_protocol(self)
        if writer.transport.is_closing() or reader.at_eof():
            # The stream was told of it, this will not be.
            raise redis.ConnectionError(CLOSED)
        connection._reader = connection._writer = None
        self._writer, self._heard = writer, self._loop.time()

    def exchange(self, commands: tuple[Command, ...]) -> asyncio.Future[list[Any]]:
        """Send commands; the future gets their replies, errors among them as values."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.is_closed:
            future.set_exception(self._base.lost(redis.ConnectionError("it is closed")))
            return future
        data = pack(*commands)
        self._waiting.append(Exchange(len(commands), future, self._loop.time()))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)
        if self._watch is None:
            self._watch = self._loop.call_later(self.patience, self._look)
        return future

    def is_stale(self) -> bool:
        """Whether it was idle, and the other side has closed it meanwhile.

        The loop cannot know of that where it did not run, as that of a worker between two jobs.
        """
        if self.is_closed:
            return True
        if self._loop.time() - self._heard < FRESH_SECONDS:
            return False
        assert self._writer is not None
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), HUNG_UP)
        if not poll.poll(0):
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
        if self._writer is not None:
            if error is None:
                self._writer.transport.close()
            else:
                self._writer.transport.abort()
        for exchange in self._waiting:
            if not exchange.future.done():
                # One for each: what is raised in many tasks at once collects all their frames.
                lost = self._base.lost(error or redis.ConnectionError("it was closed"))
                exchange.future.set_exception(lost)
        self._waiting.clear()

    async def closed(self) -> None:
        """Wait until the socket is closed."""
        if self._writer is None:
            return
        await asyncio.wait([self._gone], timeout=CLOSE_SECONDS)
        if not self._gone.done():
            self._writer.transport.abort()
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

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        self.close(exc or redis.ConnectionError(CLOSED))

    def received(self, reply: Any) -> None:
        """Take a reply, or what Redis says unasked."""
        if type(reply) is not hiredis.PushNotification:
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

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and not self.is_closed and self._writer is not None:
            self._writer.transport.write(b"".join(out))

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


class Inbox(AsyncLink):
    """A connection that subscribes one channel, on which the outcomes of jobs are told."""

    def __init__(self, connection: Any, base: Transport) -> None:
        super().__init__(connection, base)
        self.channel = f"rb:inbox:{os.urandom(9).hex()}"
        self._expected: dict[bytes, set[asyncio.Future[bytes | None]]] = {}

    async def subscribe(self) -> None:
        """Listen on the channel. Raises ConnectionLost, BusError."""
        reply = (await within(self, self.exchange((("SUBSCRIBE", self.channel),)), READ_SECONDS))[0]
        if isinstance(reply, redis.RedisError):
            self.close(reply)
            if not isinstance(reply, redis.ResponseError):
                raise self._base.lost(reply)
            raise BusError(f"Redis at {self._base.address} {refusal(reply)}")
        self.patience = INBOX_SECONDS
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def expect(self, job: str) -> asyncio.Future[bytes | None]:
        """Return the outcome to be; empty where it is to be looked for in its reply list."""
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        if self.is_closed:  # since it was asked for: nothing will be told here
            future.set_result(b"")
        else:
            self._expected.setdefault(job.encode(), set()).add(future)
        return future

    def ignore(self, job: str, future: asyncio.Future[bytes | None]) -> None:
        """Wait for it no longer."""
        futures = self._expected.get(job.encode())
        if futures is not None:
            futures.discard(future)
            if not futures:
                del self._expected[job.encode()]

    def check(self) -> None:
        """See to it that a dead connection is noticed, where nothing has come for a while."""
        silent = self._loop.time() - self._heard
        if not self.is_closed and not self._waiting and silent > INBOX_SECONDS:
            self.exchange((("PING",),)).add_done_callback(_ignore)

    def close(self, error: BaseException | None = None) -> None:
        """Close it; who waits for an outcome is to look for it."""
        super().close(error)
        for futures in self._expected.values():
            for future in futures:
                if not future.done():
                    future.set_result(b"")
        self._expected.clear()

    def received(self, reply: Any) -> None:
        if isinstance(reply, list):
            if reply[0] == b"message":
                self._told(reply[2])
                return
            if reply[0] not in (b"subscribe", b"pong"):
                return
        self.answered(reply)

    def _told(self, message: bytes) -> None:
        job, _, outcome = message.partition(b" ")
        for future in self._expected.pop(job, ()):
            if not future.done():
                future.set_result(outcome)


Link = TypeVar("Link", bound=AsyncLink)


class AsyncTransport:
    """The connections of one event loop: they are made when needed, and again where lost."""

    def __init__(self, base: Transport) -> None:
        self._base = base
        self.address = base.address
        self.is_closed = False
        self._link: AsyncLink | None = None
        self._inbox: Inbox | None = None
        self._loop = asyncio.get_running_loop()
        self._shared: dict[str, asyncio.Task[Any]] = {}
        self._forgotten: deque[Command] = deque(maxlen=MAX_FORGOTTEN)
        self._ending: AsyncGenerator[None, None] | None = None

    async def exchange(self, *commands: Command, timeout: float = READ_SECONDS) -> list[Any]:
        """Send commands and return their replies, of which none is an error.

        See `Transport.exchange`. Raises BusClosed, too.
        """
        replies: list[Any] = []
        load: tuple[Command, ...] = ()
        for turn in range(LOAD_TRIES):
            started = self._loop.time()
            link = await self._connected(timeout)
            timeout = max(LOOK_AGAIN_SECONDS, timeout - (self._loop.time() - started))
            future = link.exchange((*load, *commands[len(replies) :]))
            for reply in (await within(link, future, timeout))[len(load) :]:
                if isinstance(reply, redis.exceptions.NoScriptError):
                    break
                if isinstance(reply, redis.RedisError):
                    raise self._refused(reply)
                replies.append(reply)
            if len(replies) == len(commands):
                return replies
            if turn == 0:
                await self.once("scripts", self._load_scripts, timeout, self._base.lost)
            else:  # somebody flushes them at once: what is needed goes along
                load = (_load_of(commands[len(replies)]),)
        raise BusError(f"Redis at {self.address} forgets its scripts faster than they are loaded")

    async def ask(self, *commands: Command, timeout: float = READ_SECONDS) -> list[Any]:
        """Like `exchange`, for commands that do no harm when they are sent twice."""
        try:
            return await self.exchange(*commands, timeout=timeout)
        except ConnectionLost as error:
            if is_unreachable(error):
                raise
        return await self.exchange(*commands, timeout=timeout)

    def forget(self, command: Command) -> None:
        """Send a command whose reply nobody needs, and that does no harm when it is sent twice."""
        link = self._link
        if link is None:  # what it would undo was not sent either
            return
        if link.is_closed:
            self._forget_later(command)
            return

        def again(future: asyncio.Future[list[Any]]) -> None:
            lacks = redis.exceptions.NoScriptError
            if future.exception() is not None:
                self._forget_later(command)
            elif isinstance(future.result()[0], lacks):
                link.exchange((_load_of(command), command)).add_done_callback(_ignore)

        link.exchange((command,)).add_done_callback(again)

    def _forget_later(self, command: Command) -> None:
        """Send such a command over the next connection, which is made for it if need be."""
        if self.is_closed:
            return
        self._forgotten.append(command)
        if "forgotten" not in self._shared:
            self._begin("forgotten", self._send_forgotten)

    async def _send_forgotten(self) -> None:
        while self._forgotten:
            commands = tuple(self._forgotten)
            self._forgotten.clear()
            try:
                await self.ask(*commands)
            except BusError as error:
                logger.debug("%d commands that nobody waits for are lost: %s", len(commands), error)

    async def inbox(self, timeout: float) -> Inbox:
        """Return the connection on which outcomes are told."""
        if self._inbox is None or self._inbox.is_closed:
            lost = self._base.lost_connecting
            return await self.once("inbox", self._connect_inbox, timeout, lost)
        return self._inbox

    async def once(
        self,
        name: str,
        work: Callable[[], Awaitable[T]],
        timeout: float,
        lost: Callable[[BaseException], ConnectionLost],
    ) -> T:
        """Have work done once for all who want it now; it goes on where one of them goes away.

        Who waits longer than ``timeout`` gets ``lost``.
        """
        if self.is_closed:
            raise BusClosed(BUS_CLOSED)
        if self._ending is None:
            self._ending = self._until_the_loop_ends()
            await anext(self._ending)
        task = self._shared.get(name)
        if task is None or task.done():
            task = self._begin(name, work)
        await asyncio.wait([task], timeout=timeout)
        if not task.done():
            raise lost(late())
        if task.cancelled():
            raise BusClosed(BUS_CLOSED)
        error = task.exception()
        if isinstance(error, BusError):
            raise type(error)(*error.args)  # each has one of its own
        return task.result()  # type: ignore[no-any-return]

    def _begin(self, name: str, work: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
        """Begin shared work, in a context of its own: it is not for one job alone."""
        begin = contextvars.Context().run
        task = self._shared[name] = begin(self._loop.create_task, _awaited(work))
        task.add_done_callback(functools.partial(self._shared_is_done, name))
        return task

    def _shared_is_done(self, name: str, task: asyncio.Task[Any]) -> None:
        if self._shared.get(name) is task:
            del self._shared[name]
        _ignore(task)

    async def close(self) -> None:
        """Close both connections; who still waits gets an error."""
        if self._ending is not None:
            await self._ending.aclose()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        """Close the connections where nobody else does: a loop closes its generators at its end."""
        try:
            yield
        finally:
            await self._close()

    async def _close(self) -> None:
        self.is_closed = True
        shared = list(self._shared.values())
        links = [link for link in (self._link, self._inbox) if link is not None]
        # All of it before anything is awaited: whoever closes may be cancelled there.
        for task in shared:
            task.cancel()
        for link in links:
            link.close()
        if shared:
            await asyncio.wait(shared)
        for link in links:
            await link.closed()

    async def _connected(self, timeout: float) -> AsyncLink:
        """Return the connection for commands."""
        link = self._link
        for _ in range(CONNECT_TRIES):  # it may be lost before who waits for it has its turn
            if link is not None and not link.is_stale():
                break
            link = await self.once("link", self._connect, timeout, self._base.lost_connecting)
        assert link is not None
        return link

    async def _connect(self) -> AsyncLink:
        return await _persist(self._make_link)

    async def _make_link(self) -> AsyncLink:
        link = AsyncLink(make_connection(self._base), self._base)
        await link.connect(READ_SECONDS)
        self._link = self._wanted(link)
        return link

    async def _connect_inbox(self) -> Inbox:
        return await _persist(self._subscribe)

    async def _subscribe(self) -> Inbox:
        inbox = Inbox(make_connection(self._base), self._base)
        await inbox.connect(READ_SECONDS)
        self._wanted(inbox)
        try:
            await inbox.subscribe()
        except asyncio.CancelledError:
            inbox.close()
            raise
        self._inbox = self._wanted(inbox)
        return inbox

    def _wanted(self, link: Link) -> Link:
        """Return a link that was made; close it where that came too late."""
        if self.is_closed:
            link.close()
            raise BusClosed(BUS_CLOSED)
        return link

    async def _load_scripts(self) -> None:
        await _persist(self._load_all)

    async def _load_all(self) -> None:
        commands = tuple(("SCRIPT", "LOAD", script.source) for script in scripts.load().values())
        link = await self._connected(READ_SECONDS)
        for reply in await within(link, link.exchange(commands), READ_SECONDS):
            if isinstance(reply, redis.ResponseError):
                raise BusError(f"Redis at {self.address} refused our scripts: {reply}")
            if isinstance(reply, redis.RedisError):
                raise self._refused(reply)

    def _refused(self, error: redis.RedisError) -> BusError:
        if not isinstance(error, redis.ResponseError):  # it loads its data, say
            return self._base.lost(error)
        if str(error).startswith(PASSING):
            return ConnectionLost(f"Redis at {self.address} cannot do this now: {error}")
        return BusError(f"Redis at {self.address} {refusal(error)}")


class Loops:
    """The connections of an `AsyncBus`: each event loop, in each process, has its own."""

    def __init__(self, base: Transport) -> None:
        _translate(base)  # what cannot be is said here and now
        self._base = base
        self._pid = os.getpid()
        self._open: dict[asyncio.AbstractEventLoop, AsyncTransport] = {}
        self._parents: dict[asyncio.AbstractEventLoop, AsyncTransport] = {}

    def here(self) -> AsyncTransport:
        """Return the connections of the loop that runs."""
        if self._pid != os.getpid():
            # The parent's sockets: both sides writing to one would mix their bytes. They are kept,
            # as to let go of them would turn to the parent's loop.
            self._parents, self._open = self._open, {}
            self._pid = os.getpid()  # last: another thread that finds it is to find the others
        loop = asyncio.get_running_loop()
        transport = self._open.get(loop)
        if transport is None or transport.is_closed:
            # Loops that were closed with their connections open: these are of no use to anybody.
            for other in list(self._open):
                if other.is_closed():
                    self._open.pop(other, None)
            transport = self._open[loop] = AsyncTransport(self._base)
        return transport

    async def close(self) -> None:
        """Close the connections of the loop that runs."""
        if self._pid == os.getpid():
            transport = self._open.pop(asyncio.get_running_loop(), None)
            if transport is not None:
                await transport.close()


def make_connection(base: Transport) -> Any:
    """Return a connection for asyncio that leads where those of a blocking transport do."""
    ours, settings = _translate(base)
    return ours(**settings)


def _translate(base: Transport) -> tuple[type[Any], dict[str, Any]]:
    known = next((c for c in CLASSES if issubclass(base.connection_class, c)), None)
    if known is None or "connection_pool" in base.settings:
        # One of Sentinel's, say, which finds its address in a way of its own.
        raise TypeError(f"conn: AsyncBus cannot connect as {base.connection_class.__name__} does")
    ours = CLASSES[known]
    for name in sorted(OCSP):
        if base.settings.get(name):
            raise TypeError(f"{name}=: AsyncBus cannot do that")
    left_out = BLOCKING_ONLY | OCSP
    return ours, {k: v for k, v in base.settings.items() if k not in left_out}


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


def late() -> TimeoutError:
    """Return the error of an answer that does not come; OSError's kind in each Python."""
    return TimeoutError("it did not answer in time")


def _plain(error: Exception) -> Exception:
    """Return an error as the operating system words it, not as asyncio does."""
    system = error.__context__
    found = _ERRNO.search(str(system))
    number = system.errno if isinstance(system, OSError) else None
    if number is None and found:  # there are several addresses, and so several errors
        number = int(found[1])
    if not isinstance(system, OSError) or isinstance(system, ssl.SSLError) or not number:
        return error
    return OSError(number, os.strerror(number))


async def _persist(work: Callable[[], Awaitable[T]]) -> T:
    """Do what does no harm when it is done twice; again where the connection is lost meanwhile."""
    try:
        return await work()
    except ConnectionLost as error:
        if is_unreachable(error):
            raise
    return await work()


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def _load_of(command: Command) -> Command:
    """Return what loads the script that a command calls."""
    known = {script.sha: script.source for script in scripts.load().values()}
    return ("SCRIPT", "LOAD", known[str(command[1])])


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
