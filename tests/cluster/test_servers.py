"""The servers that the other tests of this folder break do break, and are whole again."""

from __future__ import annotations

import signal
from contextlib import closing

import pytest
import redis

from tests.cluster_moves import slot_of
from tests.cluster_node import ClusterNode
from tests.cluster_servers import Cluster
from tests.sentinel_servers import Sentinels
from tests.server_group import free_ports
from tests.servers import find_servers, oldest
from tests.support import ROOT, Processes, eventually

TAG = "{tag}"
KEYS = [f"{TAG}{n}" for n in range(5)]


def _fill(cluster: Cluster) -> None:
    """Write keys of one slot, and wait until the replica has them."""
    with closing(cluster.client()) as client:
        for key in KEYS:
            client.set(key, key)
    cluster.wait_until_ok()


def _read(cluster: Cluster) -> list[object]:
    with closing(cluster.client(decode_responses=True)) as client:
        return [client.get(key) for key in KEYS]


def test_a_cluster_has_three_masters_with_a_replica_each(cluster: Cluster) -> None:
    _fill(cluster)
    assert _read(cluster) == KEYS
    assert len(cluster.masters) == 3
    replicas = [cluster.replicas_of(master) for master in cluster.masters]
    assert [len(found) for found in replicas] == [1, 1, 1]
    assert {*cluster.masters, *(one for found in replicas for one in found)} == {*cluster.nodes}
    assert [int(url.split(":")[2].split("/")[0]) for url in cluster.urls] == [
        int(host.split(":")[1]) for host in cluster.address.split("//")[1].split(",")
    ]


def test_a_slot_moves_in_stages(cluster: Cluster) -> None:
    _fill(cluster)
    slot = slot_of(TAG)
    source = cluster.master_of(TAG)
    target = next(node for node in cluster.masters if node is not source)
    move = cluster.start_move(slot, target)
    move.move_key(KEYS[0])
    assert source.call("GET", KEYS[1]) == KEYS[1]
    with pytest.raises(redis.exceptions.AskError) as ask:
        source.call("GET", KEYS[0])
    assert ask.value.port == target.port
    with pytest.raises(redis.exceptions.MovedError):
        target.call("GET", KEYS[0])
    with target.control.pipeline(transaction=False) as pipe:
        pipe.execute_command("ASKING")
        pipe.execute_command("GET", KEYS[0])
        assert pipe.execute()[1] == KEYS[0]
    assert _read(cluster) == KEYS
    move.move_keys()
    assert move.keys() == []
    move.finish()
    with pytest.raises(redis.exceptions.MovedError) as moved:
        source.call("GET", KEYS[0])
    assert moved.value.port == target.port
    assert cluster.master_of(slot) is target
    assert _read(cluster) == KEYS


def test_a_flushed_cluster_has_its_slots_where_they_were(cluster: Cluster) -> None:
    _fill(cluster)
    owner = cluster.master_of(TAG)
    other, third = (node for node in cluster.masters if node is not owner)
    cluster.move_slot(slot_of(TAG), other)
    cluster.start_move(slot_of(TAG) + 1, third)
    cluster.flush()
    assert cluster.master_of(TAG) is owner
    assert not any(entry.open_slots for node in cluster.nodes for entry in node.view().values())
    assert _read(cluster) == [None] * len(KEYS)


def test_a_killed_master_is_replaced_and_comes_back_as_a_replica(cluster: Cluster) -> None:
    _fill(cluster)
    master = cluster.master_of(TAG)
    (replica,) = cluster.replicas_of(master)
    cluster.kill(master)
    cluster.wait_until_ok()
    assert cluster.master_of(TAG) is replica
    assert _read(cluster) == KEYS
    cluster.restart(master)
    cluster.wait_until_ok()
    assert cluster.replicas_of(replica) == [master]
    assert master.call("DBSIZE") == len(KEYS)


def test_a_replica_becomes_the_master_by_command_however_often(cluster: Cluster) -> None:
    _fill(cluster)
    master = cluster.master_of(TAG)
    (replica,) = cluster.replicas_of(master)
    for expected in (replica, master, replica):
        assert cluster.fail_over(TAG) is expected
        assert cluster.master_of(TAG) is expected
    assert cluster.replicas_of(replica) == [master]
    assert _read(cluster) == KEYS


def test_a_stopped_replica_gets_what_was_written_meanwhile(cluster: Cluster) -> None:
    master = cluster.master_of(TAG)
    (replica,) = cluster.replicas_of(master)
    replica.stop_signal()
    master.call("SET", TAG, "written")
    assert replica not in cluster.running
    assert not master.call("WAIT", 1, 50)
    replica.cont()
    assert master.call("WAIT", 1, 0) == 1
    assert replica in cluster.running


def test_a_cluster_that_lost_a_shard_is_made_anew_on_its_ports(cluster: Cluster) -> None:
    address = cluster.address
    _fill(cluster)
    for node in cluster.shards[0]:
        cluster.kill(node)
    cluster.shards[1][0].stop_signal()
    cluster.flush()
    assert cluster.address == address
    assert cluster.running == cluster.nodes
    assert _read(cluster) == [None] * len(KEYS)


def test_sentinels_agree_on_a_master_with_two_replicas(sentinels: Sentinels) -> None:
    master = sentinels.master()
    assert {master, *sentinels.replicas()} == {*sentinels.servers}
    assert len(sentinels.replicas()) == 2
    hosts, name, number = sentinels.address.removeprefix("redis+sentinel://").split("/")
    assert number == "0"
    for host in hosts.split(","):
        with closing(redis.Redis.from_url(f"redis://{host}", decode_responses=True)) as client:
            assert client.sentinel_get_master_addr_by_name(name) == ("127.0.0.1", master.port)
    with closing(sentinels.client()) as client:
        client.set("key", "value")
    assert master.call("GET", "key") == "value"


def test_a_replica_becomes_the_master_by_command_of_a_sentinel(sentinels: Sentinels) -> None:
    old = sentinels.master()
    with closing(sentinels.client()) as client:
        client.set("key", "value")
        sentinels.wait_until_ok()
        new = sentinels.fail_over()
        assert new is not old
        assert new.call("GET", "key") == "value"
        assert {new, *sentinels.replicas()} == {*sentinels.servers}
        eventually(lambda: _written(client))
    assert new.call("GET", "key") == "again"


def _written(client: redis.Redis) -> bool:
    try:
        return bool(client.set("key", "again"))
    except redis.RedisError:  # a connection to the old master
        return False


def test_a_killed_master_is_replaced_by_the_sentinels(sentinels: Sentinels) -> None:
    with closing(sentinels.client()) as client:
        client.set("key", "value")
    sentinels.wait_until_ok()
    old = sentinels.kill_master()
    sentinels.wait_until_ok()
    new = sentinels.master()
    assert new is not old
    assert new.call("GET", "key") == "value"
    sentinels.restart_as_replica(old)
    sentinels.wait_until_ok()
    assert old in sentinels.replicas()
    assert old.call("GET", "key") == "value"


def test_sentinels_without_their_master_are_made_anew_on_their_ports(
    sentinels: Sentinels,
) -> None:
    address = sentinels.address
    sentinels.kill_master()
    sentinels.sentinels[0].kill()
    sentinels.sentinels[1].stop_signal()
    sentinels.flush()
    assert sentinels.address == address
    assert not sentinels.problem()
    assert all(server.running for server in (*sentinels.servers, *sentinels.sentinels))


def test_no_server_outlives_a_killed_test_run(some: Processes) -> None:
    executable = find_servers()[oldest()]
    run = some.python(
        f"""
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from tests.cluster_node import ClusterNode
        from tests.server_group import free_ports, start_all
        nodes = [ClusterNode({executable!r}, port) for port in free_ports(2)]
        start_all(nodes)
        nodes[0].stop_signal()
        print(*[node.pid for node in nodes], flush=True)
        time.sleep(60)
        """
    )
    assert run.stdout is not None
    servers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(servers) == 2
    assert all(_lives(pid) for pid in servers)
    run.send_signal(signal.SIGKILL)
    run.wait()
    eventually(lambda: not any(_lives(pid) for pid in servers))


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as about:
            return about.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ports_are_given_once_and_have_bus_ports() -> None:
    ports = free_ports(50)
    assert len({*ports}) == 50
    assert max(ports) + 10000 < 32768
    assert not {*ports} & {port + 10000 for port in ports}


def test_a_node_keeps_its_port_and_its_name_over_restarts() -> None:
    node = ClusterNode(find_servers()[oldest()], *free_ports(1))
    with closing(node):
        node.start()
        name, url = node.name, node.url
        node.restart()
        assert (node.call("CLUSTER", "MYID"), node.url) == (name, url)
