"""Connections of an `AsyncBus` to several servers: see `cluster`, which has the blocking ones."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from ..calls.patience import Patience
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Command
from ..protocol.confirm import Confirm
from ..protocol.slots import Node, slot_of, slot_of_command
from .async_inbox import Inbox
from .async_link import AsyncLink, Receiver
from .async_transport import AsyncTransport, translate
from .cluster import RoutedTransport
from .loops import LoopBound, Loops, ask_twice
from .routing import ASK_SECONDS, CONNECT_SECONDS, Act, Acts, Learn, Load, Pause, Send
from .transport import READ_SECONDS, NodeTransport, Transport

T = TypeVar("T")


def open_loops(base: Transport) -> Loops:
    """Return the connections for asyncio that lead where those of a blocking transport do.

    Raises TypeError where there can be none.
    """
    if isinstance(base, RoutedTransport):
        translate(NodeTransport(base.map.template))  # what cannot be is said here and now
        return Loops(lambda: AsyncRouted(base))
    assert isinstance(base, NodeTransport)
    translate(base)
    return Loops(lambda: AsyncTransport(base))


class AsyncRouted(LoopBound):
    """Carries out the steps of `Routes` over an `AsyncTransport` for each server.

    What is known of the servers it shares with the blocking transport, and with other loops.
    """

    def __init__(self, base: RoutedTransport) -> None:
        super().__init__()
        self._base, self._map, self._routes = base, base.map, base.routes
        self._nodes: dict[Node, AsyncTransport] = {}
        self._retired: list[AsyncTransport] = []
        self._version = self._map.version

    async def exchange(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        return await self._drive(self._routes.exchange(commands, timeout, place, confirm))

    async def ask(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        return await ask_twice(self, commands, timeout, place, confirm)

    async def inbox(self, timeout: float, place: str | None = None) -> Inbox:
        patience, slot = Patience(timeout), None if place is None else slot_of(place)
        while True:
            node = await self._drive(self._routes.find(slot, patience))
            try:
                return await self._node(node).inbox(min(patience.left(), CONNECT_SECONDS))
            except ConnectionLost as error:
                await self._drive(self._routes.reach(error, node, patience))

    def open_inbox(self, place: str | None = None) -> Inbox | None:
        node = self._map.node(None if place is None else slot_of(place))
        return self._nodes[node].open_inbox() if node in self._nodes else None

    async def masters(self) -> list[AsyncTransport]:
        await self._learn(self._map.version)
        return [self._node(node) for node in sorted(self._map.masters())]

    def post(self, command: Command, receiver: Receiver) -> bool:
        node = self._map.node(slot_of_command(command))
        return node in self._nodes and self._nodes[node].post(command, receiver)

    def forget(self, command: Command) -> None:
        node = self._map.node(slot_of_command(command))
        if node in self._nodes:
            self._nodes[node].forget(command)

    def unlink(self, place: str, key: str) -> None:
        node = self._map.node(slot_of(place))
        if node in self._nodes:
            self._nodes[node].unlink(place, key)

    def nodes(self) -> list[AsyncTransport]:
        """Return the servers to which there may be connections."""
        return list(self._nodes.values())

    def _node(self, node: Node) -> AsyncTransport:
        if node not in self._nodes:
            base = NodeTransport(self._map.endpoint(node))
            base.limit = self._base.node(node).limit  # of a worker's connections, too
            self._nodes[node] = AsyncTransport(base, self, CONNECT_SECONDS)
        return self._nodes[node]

    async def _drive(self, acts: Acts[T]) -> T:
        await self.begin()
        if self._version != self._map.version:
            self._retire()
        try:
            act = next(acts)
            while True:
                try:
                    answer = await self._do(act)
                except BusError as error:
                    act = acts.throw(error)
                else:
                    act = acts.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _do(self, act: Act) -> Any:
        match act:
            case Send(node, commands, seconds, asking):
                return await self._node(node).converse(
                    commands, seconds, asking=asking, confirm=act.confirm
                )
            case Load(node, seconds):
                return await self._node(node).load_scripts(seconds)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Learn(version, seconds):
                return await self._learn(version, seconds)

    async def _learn(self, version: int, seconds: float = READ_SECONDS) -> None:
        """Learn anew where everything is; of several tasks, one does it for all.

        Raises NotNow where that takes longer.
        """
        if self._map.version == version:
            await self.once("map", self._search, seconds, lambda _: self._base.not_learnt())
        self._retire()

    async def _search(self) -> None:
        search = self._map.learn()
        try:
            node, command = next(search)
            while True:
                try:
                    reply = (await self._node(node).ask(command, timeout=ASK_SECONDS))[0]
                except BusError as error:
                    node, command = search.throw(error)
                else:
                    node, command = search.send(reply)
        except StopIteration:
            pass

    def _retire(self) -> None:
        """Let go of the servers that are of no use any more."""
        self._version = self._map.version
        self._retired = [one for one in self._retired if one.is_connected]
        for node in self._map.gone(self._nodes):
            transport = self._nodes.pop(node)
            transport.retire()
            self._retired.append(transport)

    def shut(self) -> tuple[list[asyncio.Task[Any]], list[AsyncLink]]:
        shared, links = super().shut()
        for transport in [*self._nodes.values(), *self._retired]:
            more, others = transport.shut()
            shared += more
            links += others
        return shared, links
