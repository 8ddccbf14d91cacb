"""The network of a cluster is parted while callers call and workers work, and becomes whole again.

A master that is cut off takes writes until it knows that it is: `Cluster.wait_until_ok` and it say
when nothing can get lost any more. What was acknowledged until then is counted, as in
test_under_load.py; what is acknowledged later must hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import redis_bus.transport.async_cluster
import redis_bus.transport.cluster
from redis_bus import Bus, ConnectionLost, NoWorkers
from redis_bus.calls.directory import UnknownMethod
from redis_bus.protocol.commands import Command
from redis_bus.transport import maps
from redis_bus.transport.async_transport import AsyncTransport
from redis_bus.transport.transport import NodeTransport
from tests.cluster import split_load
from tests.cluster.load import MAINLAND, Loaded
from tests.cluster.split_load import SplitLoad
from tests.faults.faces import AsyncFace
from tests.parted_cluster import ISLAND, PartedCluster, PartedNode, from_island
from tests.parted_cluster import MAINLAND as ADDRESS
from tests.partition_proxy import How
from tests.programs.load import TAG
from tests.servers import find_servers
from tests.support import PATIENCE_SECONDS, eventually


@pytest.fixture(scope="module")
def cluster(kind: str) -> Iterator[PartedCluster]:
    with PartedCluster(find_servers()[kind]) as cluster:
        yield cluster


def replaced(cluster: PartedCluster, old: PartedNode) -> None:
    """Wait until a master that is cut off takes nothing, and the others have another one."""
    eventually(lambda: not old.says_ok())
    cluster.wait_until_ok()


# -- callers and workers go on --------------------------------------------------------------------


@pytest.mark.parametrize("how", How, ids=[how.name.lower() for how in How])
def test_a_master_is_cut_off_from_all(cluster: PartedCluster, loaded: Loaded, how: How) -> None:
    what = f"a master is cut off from all, {how.name.lower()}"
    with loaded(cluster, what) as load, load.failing():
        old = cluster.master_of(TAG)
        with load.losing():
            cluster.part(old, how)
            replaced(cluster, old)
        load.goes_on()
        cluster.heal()
        cluster.wait_until_ok()


def test_a_master_is_cut_off_with_callers_and_a_worker(
    cluster: PartedCluster, loaded: Loaded
) -> None:
    make = partial(SplitLoad, places=cluster.places)
    with (
        loaded(cluster, "a master is cut off with callers and a worker", make) as load,
        load.failing(),
    ):
        old = cluster.master_of(TAG)
        with load.losing():
            before = load.right(split_load.ISLAND)
            cluster.part(old, island=[ISLAND])
            # It may be stopped before the next call there is through.
            eventually(lambda: load.right(split_load.ISLAND) > before or not old.says_ok())
            replaced(cluster, old)
        load.goes_on(where=MAINLAND)
        before = load.right(split_load.ISLAND)
        load.fail(split_load.ISLAND)
        assert load.right(split_load.ISLAND) == before
        cluster.heal()
        cluster.wait_until_ok()
        load.goes_on()


def test_a_master_is_cut_off_from_the_other_nodes_alone(
    cluster: PartedCluster, loaded: Loaded
) -> None:
    """Clients reach both sides: who is connected to the old master has to find the new one."""
    make = partial(SplitLoad, places=cluster.places)
    with (
        loaded(cluster, "a master is cut off from other nodes alone", make) as load,
        load.failing(),
    ):
        old = cluster.master_of(TAG)
        with load.losing():
            cluster.part(old, spared=[ADDRESS, ISLAND])
            replaced(cluster, old)
        load.goes_on()
        cluster.heal()
        cluster.wait_until_ok()


# -- servers that do not answer -------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports of the servers that are asked where everything is, one after the other."""
    asked: list[int] = []
    for kind in (NodeTransport, AsyncTransport):

        def ask(self: Any, *commands: Command, real: Any = kind.ask, **how: Any) -> Any:
            if commands == (("CLUSTER", "SLOTS"),):
                asked.append(int(self.address.rpartition(":")[2]))
            return real(self, *commands, **how)

        monkeypatch.setattr(kind, "ask", ask)
    monkeypatch.setattr(maps, "MUTE_SECONDS", PATIENCE_SECONDS)
    return asked


@pytest.fixture(params=[Bus, AsyncFace], ids=["bus", "async"])
def marooned(request: pytest.FixtureRequest, cluster: PartedCluster) -> Iterator[Any]:
    """A bus on the side of a master that is cut off, and knows it."""
    with Bus("test", url=cluster.address) as bus:
        bus.register("m")(lambda: None)
        assert bus.get_method("m") is not None
        with from_island(cluster.places) as conn:
            far: Any = request.param("test", conn=conn, timeout=0.5)
        far["m"].run()  # so it has been found
        old = cluster.master_of("rb:{test:}:meta")
        cluster.part(old, island=[ISLAND])
        eventually(lambda: not old.says_ok())
        yield far
        far.close()


def fail(far: Any, text: str = "The cluster is down") -> bool:
    with pytest.raises(ConnectionLost, match=text):
        far["m"]()
    return False


@pytest.mark.parametrize("marooned", [Bus], ids=["bus"], indirect=True)
def test_a_call_asks_no_more_of_many_mute_servers_than_it_has_time_for(
    cluster: PartedCluster, marooned: Bus, asked: list[int]
) -> None:
    fail(marooned)
    assert 0 < len(asked) < len(cluster.nodes) - 1


def test_servers_that_were_mute_are_asked_after_one_that_is_no_master(
    cluster: PartedCluster, marooned: Any, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (redis_bus.transport.cluster, redis_bus.transport.async_cluster):
        monkeypatch.setattr(module, "ASK_SECONDS", 0.1)
    old = next(node for node in cluster.nodes if node.is_cut_off)
    others = {node.port for node in cluster.nodes} - {old.port}
    # On a busy machine one that is well may not answer so soon either: then it counts as mute, too,
    # until it does, and a call ends in other words.
    eventually(lambda: fail(marooned, ".") or others <= set(asked[:-1]))

    def asks_the_old_one_alone() -> bool:
        asked.clear()
        fail(marooned, ".")
        return set(asked) == {old.port}

    eventually(asks_the_old_one_alone)
    cluster.wait_until_ok()
    cluster.heal()
    cluster.wait_until_ok()
    # That it was published may be lost with the old master.
    with pytest.raises((NoWorkers, UnknownMethod)):
        marooned["m"]()
