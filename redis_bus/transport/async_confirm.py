"""Confirmer: what replicas are to confirm, sent over connections that may block meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from ..calls.failures import NotNow
from ..errors import ConnectionLost
from ..protocol.commands import Command
from ..protocol.confirm import Confirm
from .async_link import AsyncLink, late, unasked, with_asking
from .loops import BUS_CLOSED, BusClosed
from .refusals import Failure
from .transport import NodeTransport

# How many connections to one server may wait for its replicas at the same time.
LINKS = 4
# How long a call that is cancelled waits until it is known that Redis has its commands (s): only
# behind them, on another connection, is it of use to withdraw it.
SENT_SECONDS = 1.0

Answer = tuple[list[Any], Failure | None]


@dataclass(slots=True, eq=False)
class _Entry:
    """Commands of one caller: what they are, how far they have come, and what came of them."""

    commands: tuple[Command, ...]
    asking: bool
    confirm: Confirm
    answer: asyncio.Future[Answer]
    sent: asyncio.Future[None]  # done once there are replies, or will be none
    is_sent: bool = False
    replies: list[Any] | None = None  # while replicas are waited for

    def settle(self, answer: Answer | Exception) -> None:
        if not self.sent.done():
            self.sent.set_result(None)
        if self.answer.done():
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Confirmer:
    """A few connections to one server, made when needed.

    What comes while all of them wait goes out together on the next that is free, with one wait
    for all: replicas confirm whatever was written before.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AsyncLink]],
        begin: Callable[[str, Callable[[], Awaitable[None]]], object],
        base: NodeTransport,
    ) -> None:
        self._connect, self._begin, self._base = connect, begin, base
        self._queue: deque[_Entry] = deque()
        self._idle: list[AsyncLink] = []
        self._senders: set[int] = set()
        self.links: list[AsyncLink] = []

    async def converse(
        self, commands: Sequence[Command], timeout: float, confirm: Confirm, *, asking: bool
    ) -> Answer:
        """Send commands, then wait for replicas. See `NodeTransport.converse`."""
        loop = asyncio.get_running_loop()
        sent: asyncio.Future[None] = loop.create_future()
        entry = _Entry(tuple(commands), asking, confirm, loop.create_future(), sent)
        self._queue.append(entry)
        free = next((n for n in range(LINKS) if n not in self._senders), None)
        if free is not None:
            self._senders.add(free)
            self._begin(f"confirm {free}", lambda: self._send_all(free))
        try:
            await asyncio.wait([entry.answer], timeout=timeout)
        except asyncio.CancelledError:
            entry.answer.cancel()
            if entry.is_sent:
                await asyncio.wait([entry.sent], timeout=SENT_SECONDS)
            raise
        if entry.answer.done():
            return entry.answer.result()
        entry.answer.cancel()
        if not entry.is_sent:
            raise NotNow("no connection was free in time: others wait for replicas; not sent")
        if entry.replies is None:
            raise self._base.lost(late())
        return [*entry.replies, 0], None  # others, in whose company it is, have more time

    async def _send_all(self, number: int) -> None:
        """Send what waits to be sent, until nothing does."""
        batch: list[_Entry] = []
        try:
            while self._queue:
                batch = [entry for entry in self._queue if not entry.answer.done()]
                self._queue.clear()
                await self._send(batch)
        except asyncio.CancelledError:  # the bus is closed
            for entry in (*batch, *self._queue):
                entry.settle(BusClosed(BUS_CLOSED))
            raise
        finally:
            self._senders.discard(number)

    async def _send(self, batch: list[_Entry]) -> None:
        """Send commands over one connection, and settle what comes of them."""
        try:
            link = await self._free_link()
        except ConnectionLost as error:
            for entry in batch:
                entry.settle(([], type(error)(*error.args)))
            return
        try:
            await self._exchange(link, [entry for entry in batch if not entry.answer.done()])
        except ConnectionLost as error:
            for entry in batch:
                entry.settle(ConnectionLost(*error.args))
        finally:
            if not link.is_closed:
                self._idle.append(link)

    async def _exchange(self, link: AsyncLink, batch: list[_Entry]) -> None:
        for entry in batch:
            entry.is_sent = True
        sent = [
            link.exchange(with_asking(entry.commands) if entry.asking else entry.commands)
            for entry in batch
        ]
        if sent:
            await asyncio.wait(sent)
        waiting: list[_Entry] = []
        for entry, future in zip(batch, sent, strict=True):
            lost = future.exception()
            if lost is not None:
                assert isinstance(lost, Exception)
                entry.settle(lost)
                continue
            found = unasked(future.result()) if entry.asking else future.result()
            failed = next((n for n, r in enumerate(found) if isinstance(r, redis.RedisError)), None)
            if failed is not None:
                entry.settle((found[:failed], found[failed]))
            elif not entry.confirm.applies(found[-1]):
                entry.settle(([*found, None], None))
            else:
                entry.replies = found
                entry.sent.set_result(None)
                waiting.append(entry)
        if not waiting:
            return
        asked = [entry.confirm for entry in waiting]
        widest = Confirm(max(c.replicas for c in asked), max(c.seconds for c in asked))
        count = (await link.exchange((widest.command,)))[0]
        for entry in waiting:
            if isinstance(count, redis.ResponseError):
                entry.settle(self._base.unconfirmed(count))
            else:
                entry.settle(([*(entry.replies or []), count], None))

    async def _free_link(self) -> AsyncLink:
        while self._idle:
            link = self._idle.pop()
            if not link.is_stale():
                return link
        self.links = [link for link in self.links if not link.is_closed]
        link = await self._connect()
        self.links.append(link)
        return link
