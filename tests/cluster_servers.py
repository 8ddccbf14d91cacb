"""A Redis Cluster of a test's own, whose nodes can be killed and whose slots can be moved.

::

    cluster = Cluster(executable)                  # three masters, each with a replica
    bus = Bus("test", url=cluster.address)
    node = cluster.master_of("rb:{test:math}:meta")      # a key, or the number of a slot
    cluster.fail_over("rb:{test:math}:meta")       # the replica is the master, and all know it
    cluster.move_slot(slot, cluster.masters[1])
    move = cluster.start_move(slot, target)        # from now on the source answers ASK
    move.move_key(key), move.move_keys()           # one; all that are left
    move.finish()                                  # from now on the source answers MOVED
    cluster.migrate_slot(slot, target)             # the same as one command of Valkey 9
    cluster.kill(node), cluster.restart(node), node.stop_signal(), node.cont()
    cluster.wait_until_ok()                        # all that run agree, the dead are known to be
    cluster.flush()                                # empty and whole again: for the next test
    cluster.close()
"""

from __future__ import annotations

import time
from typing import Any

import redis
from redis.cluster import ClusterNode as Address

from tests.cluster_moves import SlotMove, slot_of
from tests.cluster_node import SLOTS, ClusterNode, Entry
from tests.server_group import POLL_SECONDS, Group, free_ports, pairs, start_all
from tests.support import PATIENCE_SECONDS, eventually

# What a cluster gets to be whole again, before it is made anew.
HEALING_SECONDS = 6.0
# A replica gives up a failover by command after 5 s, and says nothing of it.
FAIL_OVER_SECONDS = 5.5
MOVES_AT_MOST = 50


class Cluster(Group):
    """A cluster on free ports of the loopback interface; its ports stay the same.

    ``options`` are those of redis.conf for each node, with ``_`` for ``-``, as
    ``cluster_require_full_coverage="no"``.
    """

    def __init__(
        self, executable: str, masters: int = 3, replicas: int = 1, **options: object
    ) -> None:
        ports = free_ports(masters * (1 + replicas))
        self.nodes = self._make_nodes(executable, ports, options)
        # The nodes that have the same slots. Which of them is the master may change.
        self.shards = [self.nodes[n::masters] for n in range(masters)]
        super().__init__(self.nodes)

    def _make_nodes(
        self, executable: str, ports: list[int], options: dict[str, Any]
    ) -> list[ClusterNode]:
        return [ClusterNode(executable, port, **options) for port in ports]

    # -- who is who -----------------------------------------------------------------------------

    @property
    def urls(self) -> list[str]:
        """The address of each node."""
        return [node.url for node in self.nodes]

    @property
    def address(self) -> str:
        """The URL of the whole cluster."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def client(self, **kwargs: Any) -> redis.RedisCluster:
        """Return a new client on the cluster, for the caller to close."""
        nodes = [Address("127.0.0.1", node.port) for node in self.nodes]
        return redis.RedisCluster(startup_nodes=nodes, **kwargs)

    @property
    def running(self) -> list[ClusterNode]:
        """The nodes that run, and are not stopped by a signal."""
        return [node for node in self.nodes if node.running]

    @property
    def masters(self) -> list[ClusterNode]:
        """The running nodes that call themselves masters and have slots, by the slots' order."""
        own = [(node, node.view()[node.name]) for node in self.running]
        found = [(entry.slots, node) for node, entry in own if entry.is_master and entry.slots]
        return [node for _, node in sorted(found, key=lambda pair: pair[0])]

    def master_of(self, key: str | bytes | int) -> ClusterNode:
        """Return the running node that has a key or, for a number, a slot."""
        slot = slot_of(key)
        own = [(node, node.view()[node.name]) for node in self.running]
        found = [(entry.epoch, node) for node, entry in own if entry.is_master and entry.owns(slot)]
        assert found, f"no running node has slot {slot}"
        return max(found, key=lambda pair: pair[0])[1]

    def replicas_of(self, node: ClusterNode) -> list[ClusterNode]:
        """Return the running nodes that say that they are replicas of this one."""
        return [other for other in self.running if other.view()[other.name].master == node.name]

    # -- what happens to them -------------------------------------------------------------------

    def kill(self, node: ClusterNode) -> None:
        """End a node with SIGKILL. Its replica takes over, some seconds later."""
        node.kill()

    def restart(self, node: ClusterNode) -> None:
        """Start a node again, after killing it where it runs. It is empty, and knows its place."""
        node.kill()
        node.start()

    def fail_over(self, key: str | bytes | int) -> ClusterNode:
        """Make a replica the master by command; return it once all agree."""
        slot = slot_of(key)
        old = self.master_of(slot)
        new = self.replicas_of(old)[0]
        end = time.monotonic() + PATIENCE_SECONDS
        while self.master_of(slot) is not new:
            assert time.monotonic() < end, f"{new} does not become the master"
            eventually(lambda: new.replicates(old))
            self.renew_epochs()
            new.call("CLUSTER", "FAILOVER")
            again = time.monotonic() + FAIL_OVER_SECONDS
            while time.monotonic() < again and not new.view()[new.name].is_master:
                time.sleep(POLL_SECONDS)
            self.wait_until_ok()
        self.renew_epochs()
        return new

    def renew_epochs(self) -> None:
        """Make replicas ready to be elected, each with an epoch that is newer than its master's.

        A replica that won an election some seconds ago takes itself to have won the next one too,
        with the epoch of that one. If its master has a newer one by then, half the cluster does
        not believe the replica, for ever. With an epoch of its own it does not use that one.
        """
        for node in self.running:
            if not node.view()[node.name].is_master:
                node.call("CLUSTER", "BUMPEPOCH")

    def start_move(self, slot: int, target: ClusterNode) -> SlotMove:
        """Open a slot for its move to another master; no key is moved yet."""
        return SlotMove(self, slot, target)

    def move_slot(self, slot: int, target: ClusterNode) -> None:
        """Move a slot with its keys to another master; return once all agree."""
        move = self.start_move(slot, target)
        move.move_keys()
        move.finish()

    def migrate_slot(self, slot: int, target: ClusterNode) -> None:
        """Have the server itself move a slot as a whole; return once all agree. Valkey 9."""
        source = self.master_of(slot)
        source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.name)
        eventually(lambda: self._has_migrated(source, slot, target))
        self.wait_until_ok()
        self.renew_epochs()

    def _has_migrated(self, source: ClusterNode, slot: int, target: ClusterNode) -> bool:
        for job in map(pairs, source.call("CLUSTER", "GETSLOTMIGRATIONS")):
            if job["target_node"] == target.name and job["slot_ranges"] == f"{slot}-{slot}":
                assert job["state"] not in ("failed", "canceled"), job
        return self.master_of(slot) is target

    # -- being whole ----------------------------------------------------------------------------

    def _problem(self) -> str:
        running = self.running
        by_name = {node.name: node for node in self.nodes}
        views = [node.view() for node in running]
        for node, view in zip(running, views, strict=True):
            if view.keys() != by_name.keys():
                return f"{node} knows {len(view)} of {len(by_name)} nodes"
            for entry in view.values():
                if not (entry.well if by_name[entry.name] in running else entry.failed):
                    return f"{node} does not know how {entry} is"
            if _places(view) != _places(views[0]):
                return f"{node} and {running[0]} do not tell the same"
        entries = views[0].values()
        alive = [entry for entry in entries if by_name[entry.name] in running]
        if sum(entry.count for entry in alive if entry.is_master) < SLOTS:
            return "some slots have no master that runs"
        for node in running:
            if not node.says_ok():
                return f"{node} takes no commands"
        for entry in alive:
            master = by_name.get(entry.master)
            if master and master.running and not by_name[entry.name].replicates(master):
                return f"{by_name[entry.name]} has not all data of {master}"
        return ""

    def describe(self) -> str:
        """Return the cluster as each running node sees it."""
        seen = [f"{node}:\n{node.call('CLUSTER', 'NODES')}" for node in self.running]
        return "\n".join(seen)

    def flush(self) -> None:
        """Empty the cluster and make it whole: every node runs, each shard has its slots again.

        Which node of a shard is its master may have changed. Where nodes are gone, or do not
        agree, the cluster is made anew on the same ports, which is as quick as healing it. What a
        test set with CONFIG SET is for the test to set back.
        """
        if not self._heal():
            self._create()

    def _heal(self) -> bool:
        if len(self.running) < len(self.nodes):
            return False
        try:
            for node in self.masters:
                node.call("FLUSHALL")
            for node in self.nodes:
                node.call("SCRIPT", "FLUSH")
                for slot in node.view()[node.name].open_slots:
                    node.call("CLUSTER", "SETSLOT", slot.strip("[").partition("-")[0], "STABLE")
            self.wait_until_ok(HEALING_SECONDS)
            return self._bring_slots_home()
        except (AssertionError, redis.RedisError, OSError):
            return False

    def _bring_slots_home(self) -> bool:
        own = [[(node, node.view()[node.name]) for node in shard] for shard in self.shards]
        masters = [[node for node, entry in shard if entry.is_master] for shard in own]
        if any(len(found) != 1 for found in masters):
            return False
        abroad = []
        for n, shard in enumerate(own):
            slots = {s for _, entry in shard for a, b in entry.slots for s in range(a, b + 1)}
            abroad += [(slot, masters[n][0]) for slot in self._slots(n) if slot not in slots]
        if len(abroad) > MOVES_AT_MOST or any(e.open_slots for shard in own for _, e in shard):
            return False
        for slot, home in abroad:
            self.move_slot(slot, home)
        return True

    def _slots(self, shard: int) -> range:
        count = len(self.shards)
        return range(SLOTS * shard // count, SLOTS * (shard + 1) // count)

    def _create(self) -> None:
        for node in self.nodes:
            node.reset()
        start_all(self.nodes)
        for number, node in enumerate(self.nodes, start=1):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number)
        for number, shard in enumerate(self.shards):
            shard[0].call("CLUSTER", "ADDSLOTS", *self._slots(number))
        for number, node in enumerate(self.nodes):  # each pair: gossip would take seconds
            for other in self.nodes[:number]:
                node.call("CLUSTER", "MEET", "127.0.0.1", other.port)
        for master, *replicas in self.shards:
            for replica in replicas:
                eventually(lambda a=replica, b=master: self._knows(a, b))  # type: ignore[misc]
                replica.call("CLUSTER", "REPLICATE", master.name)
        self.wait_until_ok()
        self.renew_epochs()

    @staticmethod
    def _knows(node: ClusterNode, other: ClusterNode) -> bool:
        entry = node.view().get(other.name)
        return entry is not None and entry.well and bool(entry.slots)


def _places(view: dict[str, Entry]) -> set[tuple[object, ...]]:
    return {entry.place for entry in view.values()}
