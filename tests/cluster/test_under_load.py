"""Slots that move and masters that are replaced while callers call and workers work.

No call hangs, none has another's value, no cached value is from before a clear, nothing that must
not runs twice: but for what asynchronous replication loses, which is counted and told.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from redis_bus.protocol.commands import Service as Keys
from redis_bus.protocol.commands import methods_key
from redis_bus.protocol.slots import slot_of
from tests.cluster.load import Load, Loaded
from tests.cluster.support import Servers, away_from, blocked
from tests.cluster_servers import Cluster
from tests.programs.load import BUS, FIRST_SLOTS, TAG
from tests.sentinel_servers import Sentinels
from tests.server_group import Server
from tests.servers import with_slot_migration
from tests.support import eventually

PARTITIONS = 3
MIGRATIONS = 6


# -- nothing gets lost --------------------------------------------------------------------------


@pytest.mark.brief
def test_a_slot_moves_in_stages(cluster: Cluster, loaded: Loaded) -> None:
    with loaded(cluster, "a slot moves in stages") as load:
        source, target = cluster.master_of(TAG), away_from(cluster, TAG)[0]
        nodes = (source, target)
        move = cluster.start_move(slot_of(TAG), target)
        eventually(lambda: blocked(cluster, TAG))
        with errors_on(nodes, "TRYAGAIN"):
            move.move_key(f"{TAG}meta")
        with errors_on(nodes, "ASK"):
            move.move_keys()
        with errors_on(nodes, "MOVED"):
            move.finish()
        load.goes_on()
        cluster.move_slot(slot_of(methods_key(BUS)), away_from(cluster, methods_key(BUS))[0])
        cluster.move_slot(slot_of(TAG), source)


@contextmanager
def errors_on(nodes: Iterable[Server], name: str) -> Iterator[None]:
    """Wait until the nodes answered with such an error again."""
    before = count_errors(nodes, name)
    yield
    eventually(lambda: count_errors(nodes, name) > before)


def count_errors(nodes: Iterable[Server], name: str) -> int:
    found = [node.info("errorstats").get(f"errorstat_{name}", {"count": 0}) for node in nodes]
    return sum(int(one["count"]) for one in found)


@pytest.mark.parametrize("kind", with_slot_migration(), scope="session")
@pytest.mark.parametrize("partitions", [1, PARTITIONS])
def test_whole_slots_are_migrated_by_the_server_itself(
    cluster: Cluster, loaded: Loaded, partitions: int
) -> None:
    """A client that is blocked there gets MOVED at the hand-over, and scripts stay behind."""
    make = partial(Load, partitions=partitions)
    with loaded(cluster, f"CLUSTER MIGRATESLOTS, partitions: {partitions}", make) as load:
        seen = set()
        for n in range(MIGRATIONS):
            key = Keys(BUS, "", n % partitions).base
            source, target = cluster.master_of(key), away_from(cluster, key)[n % 2]
            seen |= {source.port}
            without_scripts = count_errors([target], "NOSCRIPT")
            eventually(lambda: blocked(cluster, key))  # noqa: B023 - it is called here
            with errors_on([source], "MOVED"):
                cluster.migrate_slot(slot_of(key), target)
            load.goes_on()
            if n == 0 and partitions == 1:
                assert count_errors([target], "NOSCRIPT") > without_scripts
        assert len(seen) == len(cluster.masters)
        cluster.migrate_slot(slot_of(methods_key(BUS)), away_from(cluster, methods_key(BUS))[0])


def test_slots_are_moved_by_redis_cli(cluster: Cluster, loaded: Loaded) -> None:
    cli = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if cli is None:
        pytest.skip("no redis-cli on PATH")
    source, target = cluster.master_of(TAG), away_from(cluster, TAG)[0]
    with loaded(cluster, "redis-cli --cluster reshard"):
        command = [cli, "--cluster", "reshard", f"127.0.0.1:{source.port}", "--cluster-yes"]
        command += ["--cluster-from", source.name, "--cluster-to", target.name]
        done = subprocess.run(
            [*command, "--cluster-slots", str(FIRST_SLOTS)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        cluster.wait_until_ok()
        cluster.renew_epochs()
        assert cluster.master_of(TAG) is target


def test_a_replica_becomes_the_master_of_a_cluster_by_command(
    cluster: Cluster, loaded: Loaded
) -> None:
    with loaded(cluster, "CLUSTER FAILOVER") as load:
        cluster.fail_over(TAG)
        load.goes_on()
        cluster.fail_over(TAG)


def test_a_replica_is_lost_and_comes_back(servers: Servers, loaded: Loaded) -> None:
    with loaded(servers, "a replica is lost") as load:
        replica = replica_of(servers)
        replica.kill()
        load.goes_on()
        replica.start()
        servers.wait_until_ok()


def replica_of(servers: Servers) -> Server:
    if isinstance(servers, Cluster):
        return servers.replicas_of(servers.master_of(TAG))[0]
    return servers.replicas()[0]


def test_calls_wait_until_there_are_as_many_replicas_as_are_asked_for(
    sentinels: Sentinels, loaded: Loaded
) -> None:
    master = sentinels.master()
    with loaded(sentinels, "min-replicas-to-write") as load:
        try:
            with errors_on([master], "NOREPLICAS"):
                master.call("CONFIG", "SET", "min-replicas-to-write", 3)
        finally:
            master.call("CONFIG", "SET", "min-replicas-to-write", 0)
        load.goes_on()


# -- what was acknowledged may get lost ---------------------------------------------------------


def test_a_master_is_killed_and_comes_back_as_a_replica(servers: Servers, loaded: Loaded) -> None:
    with loaded(servers, "a master is killed") as load:
        with load.losing():
            old = master_of(servers)
            old.kill()
            servers.wait_until_ok()
        load.goes_on()
        if isinstance(servers, Cluster):
            servers.restart(old)
        else:
            servers.restart_as_replica(old)
        servers.wait_until_ok()


def test_the_master_of_one_of_several_partitions_is_killed_and_comes_back(
    cluster: Cluster, loaded: Loaded
) -> None:
    masters = [cluster.master_of(Keys(BUS, "", part).base) for part in range(PARTITIONS)]
    assert len(set(masters)) == PARTITIONS
    make = partial(Load, partitions=PARTITIONS)
    with loaded(cluster, "a master of one of 3 partitions is killed", make) as load:
        with load.losing():
            cluster.kill(masters[1])
            cluster.wait_until_ok()
        load.goes_on()
        cluster.restart(masters[1])
        cluster.wait_until_ok()


def test_a_master_stands_still_until_it_is_replaced(servers: Servers, loaded: Loaded) -> None:
    """It goes on with what it knew, and takes writes until it hears that it is a replica."""
    with loaded(servers, "a master is cut off") as load, load.failing():
        old = master_of(servers)
        with load.losing():
            old.stop_signal()
            servers.wait_until_ok()
        load.goes_on(0.5)
        with load.losing():
            old.cont()
            load.goes_on()
            if isinstance(servers, Sentinels):
                servers.demote(old)
            servers.wait_until_ok()


def master_of(servers: Servers) -> Any:
    return servers.master_of(TAG) if isinstance(servers, Cluster) else servers.master()


def test_a_replica_becomes_the_master_by_command_of_a_sentinel(
    sentinels: Sentinels, loaded: Loaded
) -> None:
    with loaded(sentinels, "SENTINEL FAILOVER") as load, load.losing():
        old = sentinels.switch_master()
        load.goes_on()
        sentinels.demote(old)
        sentinels.wait_until_ok()
