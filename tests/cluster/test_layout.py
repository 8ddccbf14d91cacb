"""What `redis-bus ping` and `redis-bus stats` tell of the servers of a bus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from redis_bus import Bus
from redis_bus.cli.group import main
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import methods_key
from redis_bus.protocol.slots import slot_of
from tests.cluster.support import Servers, Service
from tests.cluster_servers import Cluster
from tests.sentinel_servers import Sentinels


def shown(url: str, *words: str) -> str:
    result = CliRunner().invoke(main, [*words, "--url", url], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_cluster_is_shown_with_its_nodes_the_slots_of_the_bus_and_its_replicas(
    cluster: Cluster, on_cluster: Service
) -> None:
    told = shown(cluster.address, "ping", "test")
    assert f"at cluster {cluster.address.split('//')[1]}: " in told
    for master in cluster.masters:
        assert f"master 127.0.0.1:{master.port}: 5461 slots (" in told or "5462 slots (" in told
    assert f"the registry in slot {slot_of(methods_key('test'))}" in told
    assert f"service 'math_' in slot {slot_of(on_cluster.tag)}" in told
    for replica in [one for one in cluster.nodes if one not in cluster.masters]:
        assert f"    replica 127.0.0.1:{replica.port}: " in told
    assert "bus 'test': 3 methods, 1 worker alive" in told
    lines = told.splitlines()[1:-1]
    assert shown(cluster.address, "stats", "test").splitlines()[4:][0] == lines[0]


def test_the_slots_and_the_lag_are_there_for_programs(
    cluster: Cluster, on_cluster: Service
) -> None:
    found: dict[str, Any] = json.loads(shown(cluster.address, "ping", "test", "--json"))
    assert found["kind"] == "cluster"
    assert [node["slots"] for node in found["nodes"]] == [
        [[a, b] for a, b in view.slots]
        for view in (
            node.view()[node.name] for node in sorted(cluster.masters, key=lambda node: node.port)
        )
    ]
    holds = {what: slot for node in found["nodes"] for what, slot in node["holds"].items()}
    assert holds == {
        "the registry": slot_of(methods_key("test")),
        "service 'math_'": slot_of(on_cluster.tag),
    }
    replicas = [replica for node in found["nodes"] for replica in node["replicas"]]
    assert {replica["state"] for replica in replicas} == {"online"}
    assert all(replica["behind_bytes"] >= 0 for replica in replicas)


def test_a_master_under_sentinels_is_shown_with_its_replicas(sentinels: Sentinels) -> None:
    told = shown(sentinels.address, "ping")
    assert f"\nmaster 127.0.0.1:{sentinels.master().port}\n" in told
    for replica in sentinels.replicas():
        assert f"    replica 127.0.0.1:{replica.port}: " in told
    assert "last heard of" in told


def test_a_replica_that_is_gone_is_not_shown(cluster: Cluster) -> None:
    master = cluster.masters[0]
    cluster.kill(cluster.replicas_of(master)[0])
    cluster.wait_until_ok()
    told = shown(cluster.address, "ping").partition(f"master 127.0.0.1:{master.port}:")[2]
    assert told.splitlines()[1] == "    no replica: what it holds is lost with it"


def test_one_server_alone_is_one_line(tmp_path: Path) -> None:
    with EmbeddedRedis() as server, Bus("test", url=server.url):
        assert len(shown(server.url, "ping").splitlines()) == 1


def test_the_buses_of_all_masters_are_listed_with_their_workers(
    servers: Servers, service: Service
) -> None:
    names = [f"bus{number}" for number in range(12)]
    for name in names:
        with Bus(name, url=servers.address) as bus:
            bus.register("f")(print)
            assert bus.get_method("f")
    if isinstance(servers, Cluster):
        assert {servers.master_of(methods_key(name)) for name in names} == set(servers.masters)
    expected = [{"name": name, "methods": 1, "workers": 0} for name in sorted(names)]
    expected.append({"name": "test", "methods": 3, "workers": 1})
    for command in ("buses", "ls"):
        assert json.loads(shown(servers.address, command, "--json")) == expected
    assert shown(servers.address, "buses").splitlines()[-1].split() == ["test", "3", "1"]


def test_a_ping_of_a_bus_that_nobody_serves_says_so_with_a_code_of_its_own(
    servers: Servers,
) -> None:
    result = CliRunner().invoke(main, ["ping", "NOSUCH", "--url", servers.address])
    assert result.exit_code == 3
    assert "bus 'NOSUCH' has no methods" in result.stderr
    assert "master 127.0.0.1:" in result.stdout


@pytest.mark.parametrize("command", ["ls", "stats", "cleanup --yes"])
def test_commands_look_on_every_node(cluster: Cluster, on_cluster: Service, command: str) -> None:
    told = shown(cluster.address, *command.split()[:1], "test", *command.split()[1:])
    assert ("echo" in told) or told.startswith("deleted ")
