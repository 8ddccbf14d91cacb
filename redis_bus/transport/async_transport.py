"""Connections of `AsyncBus`: one for the commands of all calls, one on which outcomes are told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis

from ..calls.failures import MAXCLIENTS, NotNow, is_undone
from ..calls.patience import GRACE_SECONDS, Patience
from ..errors import BusError, ConnectionLost
from ..protocol import scripts
from ..protocol.commands import ROLE, Command
from ..protocol.confirm import Confirm
from . import hooks
from .async_confirm import Confirmer
from .async_inbox import Inbox, InboxName
from .async_link import (
    LOOK_AGAIN_SECONDS,
    AsyncLink,
    Receiver,
    ignore,
    unasked,
    with_asking,
    within,
)
from .limit import Seat
from .loops import BUS_CLOSED, BusClosed, LoopBound, ask_twice
from .refusals import Failure, is_passing, is_role_of_master, replica_error
from .transport import LOAD_TRIES, READ_SECONDS, SOON_SECONDS, NodeTransport
from .twins import asyncio_class, for_asyncio

T = TypeVar("T")
Link = TypeVar("Link", bound=AsyncLink)
logger = logging.getLogger("redis_bus.async_transport")

# So many fresh connections may be lost, each at once, before a call is told.
CONNECT_TRIES = 2
# How many commands that nobody waits for are kept for the next connection.
MAX_FORGOTTEN = 10_000


class AsyncTransport(LoopBound):
    """The connections to one server: they are made when needed, and again where lost."""

    def __init__(
        self,
        base: NodeTransport,
        owner: LoopBound | None = None,
        connect_seconds: float = READ_SECONDS,
    ) -> None:
        super().__init__(owner)
        self._base = base
        self.address = base.address
        self._connect_seconds = connect_seconds
        self._link: AsyncLink | None = None
        self._inbox: Inbox | None = None
        self._inbox_name = InboxName()
        self._confirmer = Confirmer(self._open, self._begin, base)
        self._left: list[AsyncLink] = []  # given up, but not all was answered yet
        self._moves = False  # whether a master was a replica, and none has answered since
        self._forgotten: deque[Command] = deque(maxlen=MAX_FORGOTTEN)
        self._unlinked: dict[str, list[str]] = {}

    async def exchange(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        """Send commands and return their replies, of which none is an error.

        See `Transport.exchange`. Raises BusClosed, too.
        """
        replies, failure = await self.converse(commands, timeout, confirm=confirm)
        if failure is None:
            return replies
        return await self._go_on(commands, replies, failure, timeout, confirm)

    async def _go_on(
        self,
        commands: Sequence[Command],
        replies: list[Any],
        failure: Failure,
        timeout: float,
        confirm: Confirm | None,
    ) -> list[Any]:
        """Send what was not carried out: once Redis knows the scripts, and takes it again."""
        patience = Patience(timeout - GRACE_SECONDS)
        load: tuple[Command, ...] = ()
        loads = 0
        try:
            while True:
                left = max(LOOK_AGAIN_SECONDS, timeout - patience.passed())
                if isinstance(failure, redis.exceptions.NoScriptError):
                    if loads == LOAD_TRIES:
                        raise self._base.forgets()
                    if loads == 0:
                        await self.load_scripts(left)
                    else:  # somebody flushes them at once: what is needed goes along
                        load = (scripts.loading(str(commands[len(replies)][1])),)
                    loads += 1
                else:
                    await asyncio.sleep(self._base.bear(failure, patience))
                rest = commands[len(replies) :]
                left = max(LOOK_AGAIN_SECONDS, timeout - patience.passed())
                more, lasting = await self.converse((*load, *rest), left, confirm=confirm)
                replies += more[len(load) :]
                if lasting is None:
                    return replies
                failure = lasting
        except ConnectionLost as error:
            if not replies or not is_undone(error):
                raise
            # The first of them were carried out.
            raise self._base.cut_off(error) from error.__cause__

    async def converse(
        self,
        commands: Sequence[Command],
        timeout: float,
        *,
        asking: bool = False,
        confirm: Confirm | None = None,
    ) -> tuple[list[Any], Failure | None]:
        """Send commands in one write. See `NodeTransport.converse`; raises BusClosed, too."""
        if confirm is not None:
            await self.begin()
            return await self._confirmer.converse(commands, timeout, confirm, asking=asking)
        started = self._loop.time()
        try:
            link = await self._connected(min(timeout, self._connect_seconds))
        except ConnectionLost as error:
            return [], error
        passed = self._loop.time() - started
        if passed > SOON_SECONDS:  # else it is not worth a timer of its own: see `within`
            timeout = max(LOOK_AGAIN_SECONDS, timeout - passed)
        if asking:
            found = unasked(await within(link, link.exchange(with_asking(commands)), timeout))
        else:
            found = await within(link, link.exchange(tuple(commands)), timeout)
        for index, reply in enumerate(found):
            if type(reply) is list and commands[index] == ROLE:
                reply = replica_error(ROLE, reply) or reply
            if isinstance(reply, redis.RedisError):
                self._give_up(link, reply)
                if MAXCLIENTS in str(reply):  # there was no handshake in which it would be told
                    return found[:index], self._base.lost_connecting(reply)
                return found[:index], reply
        if self._moves:
            self._moves = False
            self._leave_inbox()  # it may have been made while the address led to the old master
        return found, None

    def _give_up(self, link: AsyncLink, error: BaseException) -> None:
        """Use no connection any more that leads where a master is none now, as that error says.

        Where the address leads elsewhere by now, new ones do.
        """
        if link is not self._link or not is_passing(error):
            return
        self._link, self._moves = None, True
        self._left = [one for one in self._left if not one.is_closed] + [link]
        link.retire()
        for other in self._confirmer.links:
            other.retire()
        self._leave_inbox()

    def _leave_inbox(self) -> None:
        if self._inbox is not None:
            self._inbox.close(redis.ConnectionError("it is no master any more"))

    async def load_scripts(self, timeout: float) -> None:
        """Make every script of ours known to Redis; once, for all who lack one now."""
        await self.once("scripts", self._load_scripts, timeout, self._base.lost)

    async def ask(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        """Like `exchange`, for commands that do no harm when they are sent twice."""
        return await ask_twice(self, commands, timeout, place, confirm)

    async def masters(self) -> list[AsyncTransport]:
        """Return the servers that hold the keys, each to be asked by itself."""
        return [self]

    def post(self, command: Command, receiver: Receiver) -> bool:
        """Send a command at once, where there is a connection; return whether it was sent."""
        link = self._link
        if link is None or link.is_stale():
            return False
        link.post((command,), receiver)
        return True

    def forget(self, command: Command) -> None:
        """Send a command whose reply nobody needs, and that does no harm when it is sent twice."""
        link = self._link
        if link is None and not self._confirmer.links:  # what it would undo was not sent either
            return
        if link is None or link.is_closed:
            self._forget_later(command)
            return

        def again(future: asyncio.Future[list[Any]]) -> None:
            lacks = redis.exceptions.NoScriptError
            if future.exception() is not None:
                self._forget_later(command)
            elif isinstance(future.result()[0], lacks):
                load = scripts.loading(str(command[1]))
                link.exchange((load, command)).add_done_callback(ignore)

        link.exchange((command,)).add_done_callback(again)

    def unlink(self, place: str, key: str) -> None:
        """Delete a key of a place, with all others of this turn; nobody waits for it."""
        if not self._unlinked:
            self._loop.call_soon(self._unlink)
        self._unlinked.setdefault(place, []).append(key)

    def _unlink(self) -> None:
        found, self._unlinked = self._unlinked, {}
        for keys in found.values():
            self.forget(("UNLINK", *keys))

    def shut(self) -> tuple[list[asyncio.Task[Any]], list[AsyncLink]]:
        self._unlink()
        return super().shut()

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

    async def inbox(self, timeout: float, place: str | None = None) -> Inbox:
        """Return the connection on which outcomes are told."""
        inbox, patience = self.open_inbox(), Patience(timeout - GRACE_SECONDS)
        while inbox is None:
            left = max(LOOK_AGAIN_SECONDS, timeout - patience.passed())
            try:
                inbox = await self.once("inbox", self._connect_inbox, left, self._late)
            except NotNow as error:
                await asyncio.sleep(self._base.bear(error, patience))
        return inbox

    def open_inbox(self, place: str | None = None) -> Inbox | None:
        """Return the same, where it is there already."""
        inbox = self._inbox
        return None if inbox is None or inbox.is_closed else inbox

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that is not closed."""
        return any(not link.is_closed for link in self._links())

    def retire(self) -> None:
        """Close the connections to a server that is of no use any more: when they are answered."""
        if self._link is not None:
            self._link.retire()
        for link in self._confirmer.links:
            link.retire()
        self._leave_inbox()

    def _links(self) -> list[AsyncLink]:
        own = [link for link in (self._link, self._inbox) if link is not None]
        return [*own, *self._confirmer.links, *self._left]

    async def _connected(self, timeout: float) -> AsyncLink:
        """Return the connection for commands."""
        link = self._link
        for _ in range(CONNECT_TRIES):  # it may be lost before who waits for it has its turn
            if link is not None and not link.is_stale():
                break
            link = await self.once("link", self._connect, timeout, self._late)
        assert link is not None
        return link

    async def _connect(self) -> AsyncLink:
        return await _persist(self._make_link)

    async def _make_link(self) -> AsyncLink:
        self._link = await self._open()
        return self._link

    async def _seat(self) -> Seat | None:
        """Wait until there may be one more connection. Raises NotNow where that takes too long."""
        limit = self._base.limit
        if limit is None:
            return None
        end, again = time.monotonic() + READ_SECONDS, False
        while True:
            seen = limit.changes
            if again or not limit.is_awaited:
                seat = limit.enter()
                if seat is not None:
                    return seat
                if self._base.spare_idle():  # one of a worker beside
                    continue
            if not await limit.wait_async(end, seen, again=again):
                raise NotNow(limit.reached(self.address))
            again = True

    def _late(self, error: BaseException) -> ConnectionLost:
        """Return the error of who waited too long for a connection."""
        limit = self._base.limit
        if limit is not None and limit.is_awaited:
            return NotNow(limit.reached(self.address))
        return self._base.lost_connecting(error)

    async def _open(self) -> AsyncLink:
        seat = await self._seat()
        link = AsyncLink(make_connection(self._base), self._base)
        link.seat = seat
        await link.connect(READ_SECONDS)
        await self._check_role(link)
        return self._wanted(link)

    async def _connect_inbox(self) -> Inbox:
        return await _persist(self._subscribe)

    async def _subscribe(self) -> Inbox:
        seat = await self._seat()
        inbox = Inbox(make_connection(self._base), self._base, self._inbox_name)
        inbox.seat = seat
        await inbox.connect(READ_SECONDS)
        await self._check_role(self._wanted(inbox))
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

    async def _check_role(self, link: AsyncLink) -> None:
        """Raise ConnectionLost where a server is not the master that it was said to be."""
        if not self._base.endpoint.is_master:
            return
        try:
            reply = (await within(link, link.exchange((("ROLE",),)), READ_SECONDS))[0]
        except BaseException:
            link.close()
            raise
        if not is_role_of_master(reply):
            link.close()
            raise self._base.no_master()

    async def _load_scripts(self) -> None:
        await _persist(self._load_all)

    async def _load_all(self) -> None:
        commands = tuple(("SCRIPT", "LOAD", script.source) for script in scripts.load().values())
        link = await self._connected(self._connect_seconds)
        for reply in await within(link, link.exchange(commands), READ_SECONDS):
            if isinstance(reply, redis.ResponseError):
                raise BusError(f"Redis at {self.address} refused our scripts: {reply}")
            if isinstance(reply, redis.RedisError):
                raise self._base.refused(reply)


def make_connection(base: NodeTransport) -> Any:
    """Return a connection for asyncio that leads where those of a blocking transport do."""
    ours, settings = translate(base)
    return ours(**settings)


def translate(base: NodeTransport) -> tuple[type[Any], dict[str, Any]]:
    """Return the class of connections for asyncio, and their settings. Raises TypeError."""
    endpoint = base.endpoint
    settings = hooks.on_asyncio(for_asyncio(endpoint.settings))
    return asyncio_class(endpoint.connection_class), settings


async def _persist(work: Callable[[], Awaitable[T]]) -> T:
    """Do what does no harm when it is done twice; again where the connection is lost meanwhile."""
    try:
        return await work()
    except ConnectionLost as error:
        if is_undone(error) and not isinstance(error, NotNow):
            raise
    return await work()
