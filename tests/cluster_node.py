"""One node of a Redis Cluster: a server process, and what it says of the others."""

from __future__ import annotations

from dataclasses import dataclass

from tests.server_group import Server

NODE_TIMEOUT_MS = 1500
SLOTS = 16384


@dataclass(frozen=True)
class Entry:
    """What one node says of one: a line of its CLUSTER NODES."""

    name: str
    port: int
    flags: frozenset[str]
    master: str
    epoch: int
    slots: tuple[tuple[int, int], ...]
    open_slots: tuple[str, ...]
    connected: bool

    @property
    def is_master(self) -> bool:
        return "master" in self.flags

    @property
    def failed(self) -> bool:
        """Whether the node is seen as dead by all."""
        return "fail" in self.flags

    @property
    def well(self) -> bool:
        """Whether the node is known fully, and nobody doubts that it lives."""
        return self.connected and not self.flags & {"fail", "fail?", "handshake", "noaddr"}

    @property
    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.slots)

    def owns(self, slot: int) -> bool:
        return any(first <= slot <= last for first, last in self.slots)

    @property
    def place(self) -> tuple[object, ...]:
        """What all nodes must say alike of this one."""
        # An election that is given to a replica again may reuse an epoch: then nodes differ here,
        # and some of them never hear of the new master.
        epoch = self.epoch if self.is_master and not self.failed else None
        return self.name, self.port, self.is_master, self.master, epoch, self.slots


class ClusterNode(Server):
    """A server in cluster mode: ``place.RedisServer`` with its own view of the cluster."""

    def __init__(self, executable: str, port: int, **options: object) -> None:
        super().__init__(
            executable,
            port,
            **{
                "cluster_enabled": "yes",
                "cluster_config_file": "nodes.conf",
                "cluster_node_timeout": NODE_TIMEOUT_MS,
                "cluster_announce_ip": "127.0.0.1",
                "cluster_replica_validity_factor": 0,
                # No replica leaves its master for one that lost its own.
                "cluster_migration_barrier": 100,
                "repl_diskless_sync": "yes",
                "repl_diskless_sync_delay": 0,
                **options,
            },
        )
        self._name = ""

    @property
    def name(self) -> str:
        """The node's name in the cluster, which it keeps over restarts."""
        if not self._name:
            self._name = str(self.call("CLUSTER", "MYID"))
        return self._name

    def view(self) -> dict[str, Entry]:
        """Return what this node knows of each node, by its name."""
        # Not as redis-py reads it: two nodes at the same address are one there.
        text = str(self.call("CLUSTER", "NODES"))
        entries = [_entry(line) for line in text.splitlines()]
        return {entry.name: entry for entry in entries}

    def says_ok(self) -> bool:
        """Whether this node takes commands on keys."""
        return "cluster_state:ok" in str(self.call("CLUSTER", "INFO"))

    def reset(self) -> None:
        """End the node and forget the cluster that it was in; it starts as a new one."""
        self.kill()
        self._name = ""
        (self.folder / "nodes.conf").unlink(missing_ok=True)


def _entry(line: str) -> Entry:
    name, address, flags, master, _, _, epoch, link, *rest = line.split()
    ranges = [part.partition("-") for part in rest if not part.startswith("[")]
    return Entry(
        name=name,
        port=int(address.partition("@")[0].rpartition(":")[2]),
        flags=frozenset(flags.split(",")) - {"myself"},
        master=master.replace("-", ""),
        epoch=int(epoch),
        slots=tuple((int(first), int(last or first)) for first, _, last in ranges),
        open_slots=tuple(part for part in rest if part.startswith("[")),
        connected=link == "connected",
    )
