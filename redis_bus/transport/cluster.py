"""Cluster: the transport of several servers, of a Redis Cluster or of a master under Sentinel."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, TypeVar

from ..calls.failures import NO_REDIS, NotNow
from ..calls.patience import LEAST_SECONDS, Patience
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Command
from ..protocol.confirm import Confirm
from ..protocol.slots import Node, slot_of
from .distributed import Deployment, OneNode, Sentinels
from .link import Link
from .maps import ClusterMap, Map, SentinelMap
from .refusals import explain
from .routing import (
    ASK_SECONDS,
    CONNECT_SECONDS,
    Act,
    Acts,
    Learn,
    Load,
    Pause,
    Routes,
    Send,
    is_routing,
)
from .transport import READ_SECONDS, NodeTransport, Transport, ask_twice

T = TypeVar("T")


def open_transport(deployment: Deployment) -> Transport:
    """Return the transport of a Redis of any kind. Does no I/O."""
    if isinstance(deployment, OneNode):
        return NodeTransport(deployment.endpoint)
    NodeTransport(deployment.endpoint)  # settings that cannot be are told here and now
    if isinstance(deployment, Sentinels):
        return RoutedTransport(SentinelMap(deployment))
    return RoutedTransport(ClusterMap(deployment))


class RoutedTransport:
    """Carries out the steps of `Routes` over one `NodeTransport` for each server."""

    def __init__(self, places: Map) -> None:
        self.map = places
        self.routes = Routes(places)
        self.address, self.kind = places.address, places.kind
        self.max_connections = places.template.max_connections
        self.closings = 0
        self._nodes: dict[Node, NodeTransport] = {}
        self._learning = threading.Lock()
        self._pid = os.getpid()

    def exchange(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        return self._drive(self.routes.exchange(commands, timeout, place, confirm))

    def exchange_each(
        self, *commands: Command, timeout: float = READ_SECONDS, place: str | None = None
    ) -> list[Any]:
        return self._drive(self.routes.exchange_each(commands, timeout, place))

    def ask(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        return ask_twice(self, commands, timeout, place, confirm)

    def checkout(self, timeout: float = READ_SECONDS, place: str | None = None) -> Link:
        patience, slot = Patience(timeout), None if place is None else slot_of(place)
        while True:
            node = self._drive(self.routes.find(slot, patience))
            try:
                return self.node(node).checkout(min(patience.left(), CONNECT_SECONDS))
            except ConnectionLost as error:
                self._drive(self.routes.reach(error, node, patience))

    def checkin(self, link: Link) -> None:
        link.home.checkin(link)

    def is_astray(self, link: Link, error: BaseException | None = None) -> bool:
        node = link.home.endpoint.node
        if error is None:
            return node not in self.map.masters()
        if not is_routing(error):
            return False
        self.routes.note(error, node)
        return True

    def masters(self) -> list[NodeTransport]:
        self._learn(self.map.version)
        return [self.node(node) for node in sorted(self.map.masters())]

    def ranges(self, master: NodeTransport) -> list[tuple[int, int]]:
        return self.map.ranges(master.endpoint.node)

    def lost(self, error: BaseException, *, connecting: bool = False) -> ConnectionLost:
        return ConnectionLost(explain(error, self.address, connecting=connecting))

    def close(self) -> None:
        self.closings += 1
        for node in list(self._nodes.values()):
            node.close()

    def node(self, node: Node) -> NodeTransport:
        """Return the transport of one server."""
        found = self._nodes.get(node)
        if found is None:
            made = NodeTransport(self.map.endpoint(node), CONNECT_SECONDS)
            found = self._nodes.setdefault(node, made)  # of two threads, one makes it
        return found

    def _drive(self, acts: Acts[T]) -> T:
        try:
            act = next(acts)
            while True:
                try:
                    answer = self._do(act)
                except BusError as error:
                    act = acts.throw(error)
                else:
                    act = acts.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _do(self, act: Act) -> Any:
        match act:
            case Send(node, commands, seconds, asking, each=True):
                return self.node(node).converse_each(commands, seconds, asking=asking)
            case Send(node, commands, seconds, asking):
                try:
                    return self.node(node).converse(
                        commands, seconds, asking=asking, confirm=act.confirm
                    )
                except ConnectionLost:
                    # The other connections to it may be dead, too, and would take as long.
                    self.node(node).close()
                    raise
            case Load(node, seconds):
                return self.node(node).load_scripts(seconds)
            case Pause(seconds):
                return time.sleep(seconds)
            case Learn(version, seconds):
                return self._learn(version, seconds)

    def _learn(self, version: int, seconds: float = READ_SECONDS) -> None:
        """Learn anew where everything is; of several threads, one does it for all.

        Raises NotNow where that takes longer: servers that do not answer may be many.
        """
        end = time.monotonic() + seconds
        if self._pid != os.getpid():  # of the parent's threads, one may have held it
            self._learning, self._pid = threading.Lock(), os.getpid()
        learning = self._learning
        if not learning.acquire(timeout=seconds):
            raise self.not_learnt()
        try:
            if self.map.version == version:
                self._search(end)
        finally:
            learning.release()

    def _search(self, end: float) -> None:
        search = self.map.learn()
        try:
            node, command = next(search)
            while True:
                left = end - time.monotonic()
                if left <= LEAST_SECONDS:
                    raise self.not_learnt()
                try:
                    reply = self.node(node).ask(command, timeout=min(left, ASK_SECONDS))[0]
                except BusError as error:
                    node, command = search.throw(error)
                else:
                    node, command = search.send(reply)
        except StopIteration:
            pass
        for node in self.map.gone(self._nodes):
            self._nodes.pop(node).close()

    def not_learnt(self) -> NotNow:
        """Return the error for a search that takes too long."""
        return NotNow(f"{NO_REDIS} {self.address} (nobody said in time where its masters are)")
