"""Loops: what an `AsyncBus` has on each event loop, and how it ends with it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..calls.failures import is_undone
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Command
from ..protocol.confirm import Confirm
from .async_link import ignore, late
from .transport import READ_SECONDS

if TYPE_CHECKING:
    from .async_inbox import Inbox
    from .async_link import AsyncLink, Receiver
    from .async_transport import AsyncTransport

T = TypeVar("T")
# What a second try gets at least, where the first one took all the time: it connects anew.
AGAIN_SECONDS = 1.0
BUS_CLOSED = "the bus was closed meanwhile"


class BusClosed(BusError):
    """The bus was closed while something was awaited on it."""


class LoopBound:
    """What belongs to one event loop, and is closed at its end at the latest."""

    def __init__(self, owner: LoopBound | None = None) -> None:
        self.is_closed = False
        self._owner = owner  # it closes this one
        self._loop = asyncio.get_running_loop()
        self._shared: dict[str, asyncio.Task[Any]] = {}
        self._ending: AsyncGenerator[None, None] | None = None

    async def begin(self) -> None:
        """Have it closed at the loop's end. Raises BusClosed where it is closed already."""
        if self.is_closed:
            raise BusClosed(BUS_CLOSED)
        if self._owner is not None:
            await self._owner.begin()
        elif self._ending is None:
            self._ending = self._until_the_loop_ends()
            await anext(self._ending)

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
        await self.begin()
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
        ignore(task)

    async def close(self) -> None:
        """Close all connections; who still waits gets an error."""
        if self._ending is not None:
            await self._ending.aclose()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        """Close the connections where nobody else does: a loop closes its generators at its end."""
        try:
            yield
        finally:
            shared, links = self.shut()
            if shared:
                await asyncio.wait(shared)
            for link in links:
                await link.closed()

    def shut(self) -> tuple[list[asyncio.Task[Any]], list[AsyncLink]]:
        """Close all, and return what has to end then.

        Nothing is awaited before all of it is closed: whoever closes may be cancelled there.
        """
        self.is_closed = True
        shared, links = list(self._shared.values()), self._links()
        for task in shared:
            task.cancel()
        for link in links:
            link.close()
        return shared, links

    def _links(self) -> list[AsyncLink]:
        return []


class Connections(Protocol):
    """The connections of one event loop: to one server, or to several. See `Transport`."""

    is_closed: bool

    async def exchange(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        """Send commands and return their replies, of which none is an error."""

    async def ask(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        """Like `exchange`, for commands that do no harm when they are sent twice."""

    async def inbox(self, timeout: float, place: str | None = None) -> Inbox:
        """Return the connection on which the outcomes of a service are told."""

    def open_inbox(self, place: str | None = None) -> Inbox | None:
        """Return the same, where it is there already."""

    async def masters(self) -> list[AsyncTransport]:
        """Return the servers that hold the keys, each to be asked by itself."""

    def post(self, command: Command, receiver: Receiver) -> bool:
        """Send a command at once, where there is a connection for it; return whether it was sent.

        The receiver gets its reply alone, which may be an error, or ConnectionLost.
        """

    def forget(self, command: Command) -> None:
        """Send a command whose reply nobody needs, where there is a connection."""

    def unlink(self, place: str, key: str) -> None:
        """Delete a key, which is at that place, soon; nobody waits for it."""

    async def once(
        self,
        name: str,
        work: Callable[[], Awaitable[T]],
        timeout: float,
        lost: Callable[[BaseException], ConnectionLost],
    ) -> T:
        """Have work done once for all who want it now."""

    async def close(self) -> None:
        """Close all connections; who still waits gets an error."""


class Loops:
    """The connections of an `AsyncBus`: each event loop, in each process, has its own."""

    def __init__(self, make: Callable[[], Connections]) -> None:
        self._make = make
        self._pid = os.getpid()
        self._open: dict[asyncio.AbstractEventLoop, Connections] = {}
        self._parents: dict[asyncio.AbstractEventLoop, Connections] = {}

    def here(self) -> Connections:
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
            transport = self._open[loop] = self._make()
        return transport

    async def close(self) -> None:
        """Close the connections of the loop that runs."""
        if self._pid == os.getpid():
            transport = self._open.pop(asyncio.get_running_loop(), None)
            if transport is not None:
                await transport.close()


async def ask_twice(
    transport: Connections,
    commands: tuple[Command, ...],
    timeout: float,
    place: str | None,
    confirm: Confirm | None,
) -> list[Any]:
    """Send commands again, once, where the connection turns out to be dead."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    try:
        return await transport.exchange(*commands, timeout=timeout, place=place, confirm=confirm)
    except ConnectionLost as error:
        if is_undone(error):
            raise
    left = min(timeout, max(AGAIN_SECONDS, end - loop.time()))
    return await transport.exchange(*commands, timeout=left, place=place, confirm=confirm)


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
