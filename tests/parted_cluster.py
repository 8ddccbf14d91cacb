"""A Redis Cluster whose network can be parted: each node has a host, and proxies in front of it.

::

    cluster = PartedCluster(executable)
    old = cluster.master_of(key)
    cluster.part(old)                              # the others cannot reach it, nor it them
    cluster.part(old, island=[ISLAND])             # some clients are on its side
    cluster.part(old, spared=[MAINLAND])           # clients reach both sides
    cluster.wait_until_ok()                        # the others have another master
    cluster.heal()
    cluster.wait_until_ok()

Nodes tell each other, and clients, the addresses of the proxies. A test's own questions go past
them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from typing import Any

import redis
from redis.cluster import ClusterNode as Address

from tests.cluster_node import ClusterNode
from tests.cluster_servers import Cluster
from tests.partition_proxy import How, Network
from tests.server_group import BUS_OFFSET

# Where clients find the nodes: the one that nodes announce, and one for those who may be on
# another side of the network.
MAINLAND = "127.0.0.1"
ISLAND = "127.0.2.1"


class PartedNode(ClusterNode):
    """A node on a host of its own."""

    def __init__(self, executable: str, port: int, host: str, **options: object) -> None:
        # Before 7.0 what a server opens comes from the first address to which it is bound.
        is_named = _version(executable) >= 7
        more = {"bind_source_addr": host} if is_named else {}
        super().__init__(executable, port, **{"bind": host, **more, **options})
        self.host = host
        self.url = f"redis://{host}:{port}/0"
        self.is_cut_off = False

    @property
    def running(self) -> bool:
        """Whether the node runs, and is not cut off from the others."""
        return super().running and not self.is_cut_off


class PartedCluster(Cluster):
    """See the module."""

    nodes: list[PartedNode]

    def _make_nodes(self, executable: str, ports: list[int], options: Any) -> list[PartedNode]:
        self.network = Network()
        made = []
        for number, port in enumerate(ports, start=1):
            made.append(PartedNode(executable, port, f"127.0.1.{number}", **options))
            for door in (MAINLAND, ISLAND):
                self.network.open((door, port), (made[-1].host, port))
            bus = port + BUS_OFFSET
            self.network.open((MAINLAND, bus), (made[-1].host, bus))
        return made

    def part(
        self,
        node: PartedNode,
        how: How = How.SILENCE,
        *,
        island: Iterable[str] = (),
        spared: Iterable[str] = (),
    ) -> None:
        """Cut a node off, with those clients that are on its side."""
        node.is_cut_off = True
        self.network.part({node.host, *island}, how, spared)

    def heal(self) -> None:
        """Make the network whole."""
        self.network.heal()
        for node in self.nodes:
            node.is_cut_off = False

    def flush(self) -> None:
        self.heal()
        super().flush()

    def close(self) -> None:
        super().close()
        self.network.close()

    @property
    def places(self) -> str:
        """Where clients of the island find the nodes, separated by commas."""
        return ",".join(f"{ISLAND}:{node.port}" for node in self.nodes)


def from_island(places: str) -> redis.RedisCluster:
    """Return a client that reaches all nodes by the proxies of the island."""
    nodes = [Address(*place.split(":")) for place in places.split(",")]
    return redis.RedisCluster(
        startup_nodes=nodes, address_remap=_to_island, dynamic_startup_nodes=False
    )


def _to_island(address: tuple[str, int]) -> tuple[str, int]:
    return ISLAND, address[1]


def _version(executable: str) -> int:
    told = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True)
    return int(told.stdout.partition(" v=")[2].partition(".")[0])
