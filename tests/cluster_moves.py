"""Slots of a Redis Cluster that are on their way from one master to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from redis.crc import key_slot

from tests.cluster_node import ClusterNode

if TYPE_CHECKING:
    from tests.cluster_servers import Cluster

MIGRATE_MS = 5000
KEYS_AT_ONCE = 1000


class SlotMove:
    """A slot on its way from one master to another, one stage after the other."""

    def __init__(self, cluster: Cluster, slot: int, target: ClusterNode) -> None:
        self.slot = slot
        self.source = cluster.master_of(slot)
        self.target = target
        self._cluster = cluster
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.source.name)
        self.source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.name)

    def keys(self) -> list[str]:
        """Return the keys that are still in the source."""
        return cast(
            list[str], self.source.call("CLUSTER", "GETKEYSINSLOT", self.slot, KEYS_AT_ONCE)
        )

    def move_key(self, key: str) -> None:
        """Move one key, whether or not it is there still."""
        to = ("127.0.0.1", self.target.port)
        self.source.call("MIGRATE", *to, key, 0, MIGRATE_MS, "REPLACE")

    def move_keys(self) -> None:
        """Move all keys that are left."""
        while keys := self.keys():
            for key in keys:
                self.move_key(key)

    def finish(self) -> None:
        """Give the slot to the target, and return once all agree. No key may be left."""
        masters = [node for node in self._cluster.masters if node is not self.target]
        for node in (self.target, *sorted(masters, key=lambda node: node is not self.source)):
            node.call("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.name)
        self._cluster.wait_until_ok()
        self._cluster.renew_epochs()  # that of the target is new


def slot_of(key: str | bytes | int) -> int:
    """Return the slot of a key; a number is one already."""
    if isinstance(key, int):
        return key
    return key_slot(key.encode() if isinstance(key, str) else key)
