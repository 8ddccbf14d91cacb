"""Maps: where the masters of a cluster are, or the one under Sentinel, as they and others say.

What is to be asked of whom is yielded, with no I/O here; see `routing`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterable
from typing import Any, Protocol, TypeVar

from redis.exceptions import AskError, MovedError

from ..calls.failures import NO_REDIS, WAYS_OUT, NotNow
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Command
from ..protocol.slots import Node, Topology, node_of, parse_slots
from .distributed import Cluster, Endpoint, Sentinels

T = TypeVar("T")

# How old what the sentinels said may be: an old master that is cut off does not know that it is.
FRESH_SECONDS = 1.0
# How long a server that does not answer is asked after all others.
MUTE_SECONDS = 5.0
# What is asked of which server; the answer is a reply, or a BusError is thrown.
Search = Generator[tuple[Node, Command], Any, T]


class Map(Protocol):
    """Where the masters are, as far as is known."""

    address: str
    kind: str
    template: Endpoint  # how connections to the masters are made
    version: int  # another one whenever it was learnt anew

    def node(self, slot: int | None) -> Node | None:
        """Return the master of a slot; None where it is not known."""

    def endpoint(self, node: Node) -> Endpoint:
        """Return how to connect to a server."""

    def is_due(self) -> bool:
        """Whether it is to be learnt anew before it is used."""

    def learn(self) -> Search[None]:
        """Ask where the masters are. Raises ConnectionLost where nobody says it."""

    def heed(self, error: MovedError, asked: Node) -> None:
        """Note what a server said of a slot that is not its own."""

    def heed_ask(self, error: AskError, asked: Node) -> Node:
        """Return the server to which a slot is about to move."""

    def doubt(self, node: Node) -> None:
        """Note that a server may not be a master any more."""

    def masters(self) -> set[Node]:
        """Return the masters, as far as they are known."""

    def ranges(self, of: Node) -> list[tuple[int, int]]:
        """Return the slots that a master has. See `Topology.ranges`."""

    def gone(self, nodes: Iterable[Node]) -> list[Node]:
        """Return those servers that are of no use any more."""


class ClusterMap:
    """Which master of a cluster has which slots."""

    kind = "cluster"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._topology = Topology()
        self._last: list[Node] = []  # asked last: they may be wrong
        self._mute: dict[Node, float] = {}  # since when they do not answer; asked later still
        self.version = 0
        self.address = cluster.address
        self.template = cluster.endpoint

    def node(self, slot: int | None) -> Node | None:
        return self._topology.node(slot)

    def endpoint(self, node: Node) -> Endpoint:
        return self._cluster.endpoint.at(node)

    def is_due(self) -> bool:
        return False

    def masters(self) -> set[Node]:
        return set(self._topology.masters)

    def gone(self, nodes: Iterable[Node]) -> list[Node]:
        return [node for node in nodes if node not in self._topology.masters]

    def ranges(self, of: Node) -> list[tuple[int, int]]:
        return self._topology.ranges(of)

    def doubt(self, node: Node) -> None:
        self._last = [*(other for other in self._last if other != node), node]

    def heed(self, error: MovedError, asked: Node) -> None:
        self._topology.heed(error.slot_id, self.heed_ask(error, asked))

    def heed_ask(self, error: AskError, asked: Node) -> Node:
        return self._mapped(node_of(error.host, error.port, asked))

    def learn(self) -> Search[None]:
        failure: BusError | None = None
        for node in self._order():
            try:
                reply = yield node, ("CLUSTER", "SLOTS")
            except BusError as error:
                self._mute[node] = time.monotonic()
                failure = error if failure is None else failure
                continue
            self._mute.pop(node, None)
            try:
                topology = parse_slots(reply, node)
            except (ValueError, TypeError, IndexError):
                failure = BusError(f"Redis at {self.address}: CLUSTER SLOTS says {reply!r}")
                continue
            if topology.masters:
                self._adopt(topology)
                return
        raise failure or ConnectionLost(f"Redis at {self.address} has no slots yet")

    def _order(self) -> list[Node]:
        """Return the servers in the order in which they are asked."""
        known = [node for node in self._topology.masters if node not in self._cluster.nodes]
        every = [*self._cluster.nodes, *known]
        # A copy: loops in other threads learn, too.
        since = {node: when for node, when in list(self._mute.items()) if node in every}
        self._mute, mute = since, sorted(since, key=since.__getitem__)
        # Each costs a second, and there may be many; but one of them may be well again.
        tried = [node for node in mute[:1] if time.monotonic() - since[node] > MUTE_SECONDS]
        last = [node for node in self._last if node in every and node not in mute]
        # Not all processes are to ask the same one; and one that was wrong may be cut off.
        first = [node for node in random.sample(every, len(every)) if node not in [*last, *mute]]
        return [*first, *tried, *last, *mute[len(tried) :]]

    def _adopt(self, topology: Topology) -> None:
        if self._cluster.remap is not None:
            every = [
                (a, b, self._mapped(n)) for n in topology.masters for a, b in topology.ranges(n)
            ]
            topology = Topology(every)
        self._topology = topology
        self._last = [node for node in self._last if node in topology.masters]
        self.version += 1

    def _mapped(self, node: Node) -> Node:
        return node if self._cluster.remap is None else self._cluster.remap(node)


class SentinelMap:
    """Where the master of a service is, as its sentinels say."""

    kind = "sentinel"

    def __init__(self, deployment: Sentinels) -> None:
        self._deployment = deployment
        self._sentinels = {one.node: one for one in deployment.sentinels}
        self._order = list(self._sentinels)
        self._master: Node | None = None
        self._learnt = 0.0
        self._doubted = False
        self.version = 0
        self.address = deployment.address
        self.template = deployment.endpoint

    def node(self, slot: int | None) -> Node | None:
        return self._master

    def endpoint(self, node: Node) -> Endpoint:
        return self._sentinels.get(node) or self._deployment.endpoint.at(node)

    def is_due(self) -> bool:
        return time.monotonic() - self._learnt > FRESH_SECONDS

    def masters(self) -> set[Node]:
        return set() if self._master is None else {self._master}

    def gone(self, nodes: Iterable[Node]) -> list[Node]:
        return [node for node in nodes if node != self._master and node not in self._sentinels]

    def ranges(self, of: Node) -> list[tuple[int, int]]:
        return []

    def doubt(self, node: Node) -> None:
        self._doubted, self._learnt = True, 0.0

    def heed(self, error: MovedError, asked: Node) -> None:
        pass

    def heed_ask(self, error: AskError, asked: Node) -> Node:
        return asked

    def learn(self) -> Search[None]:
        """Ask the sentinel that knew it last; all of them where it may be wrong."""
        # Not again at once where nobody answers: the master that is known may do.
        self._learnt = time.monotonic()
        name, failure = self._deployment.service, None
        found: list[tuple[int, Node, Node]] = []
        for sentinel in list(self._order):
            try:
                reply = yield sentinel, ("SENTINEL", "MASTER", name)
            except BusError as error:
                failure = error if failure is None or isinstance(failure, NotNow) else failure
                continue
            state = _as_dict(reply)
            node = self._master_in(state)
            if node is None:
                failure = failure or NotNow(f"{NO_REDIS} {self.address} (no master is known now)")
                continue
            found.append((int(state.get("config-epoch", "0")), node, sentinel))
            if not self._doubted:
                break
        if not found:
            raise failure or ConnectionLost(f"{NO_REDIS} {self.address}; {WAYS_OUT}")
        _, self._master, sentinel = max(found, key=lambda one: one[0])
        self._order = [sentinel, *(other for other in self._order if other != sentinel)]
        self._doubted = False
        self.version += 1

    def _master_in(self, state: dict[str, str]) -> Node | None:
        """Return the master that a sentinel names, unless it is down, or cut off from others."""
        flags = state.get("flags", "").split(",")
        if "master" not in flags or {"s_down", "o_down"} & set(flags):
            return None
        if int(state.get("num-other-sentinels", "0")) < self._deployment.least_others:
            return None
        return self._deployment.force_host or state["ip"], int(state["port"])


def _as_dict(reply: Any) -> dict[str, str]:
    """Return the fields of a reply: RESP3 answers with a map, RESP2 with a flat list."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value.decode("utf-8", "replace") for name, value in pairs}
