"""Durable methods in several partitions: each is confirmed by the replicas of its own master."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from redis_bus import Bus, NotConfirmed
from redis_bus.calls import durable
from redis_bus.protocol.commands import Service as Keys
from tests.async_support import calling, run
from tests.cluster.test_durable import Methods, go_on
from tests.cluster_servers import Cluster
from tests.server_group import Server
from tests.support import eventually
from tests.worker.test_concurrency import serving

# On a cluster of three nodes, three partitions of this bus are on three nodes.
MANY, N = "many", 3


@pytest.fixture
def many(cluster: Cluster) -> Iterator[Methods]:
    """Methods in several partitions, published and not served yet."""
    with Bus(MANY, url=cluster.address, timeout=20, partitions=N) as bus:
        methods = Methods(bus)
        for name in bus._core.registrations:
            bus.get_method(name)
        cluster.wait_until_ok()
        yield methods


@contextlib.contextmanager
def partition_standing_still(cluster: Cluster, part: int) -> Iterator[Server]:
    """Stop the replicas of one partition; give its master."""
    master = cluster.master_of(Keys(MANY, "", part).base)
    replicas = cluster.replicas_of(master)
    for replica in replicas:
        replica.stop_signal()
    try:
        yield master
    finally:
        for replica in replicas:
            replica.cont()


@pytest.mark.parametrize("concurrency", [1, 4])
def test_calls_in_several_partitions_are_confirmed_in_each(
    cluster: Cluster, many: Methods, concurrency: int
) -> None:
    bus = many.bus
    masters = [cluster.master_of(route.queue) for route in bus.sure.target.routes]
    assert len(set(masters)) == N
    for master in masters:
        master.call("CONFIG", "RESETSTAT")
    calls = 4 * N

    async def body() -> None:
        async with calling(cluster.address, name=MANY) as far:
            for number in range(calls):
                assert await far.sure(number) == number

    with serving(bus, concurrency=concurrency):
        assert [bus.sure(number) for number in range(calls)] == list(range(calls))
        assert list(bus.sure.map(range(calls))) == list(range(calls))
        assert [bus.sure.run(n).get() for n in range(calls)] == list(range(calls))
        run(body())
    assert len(many.ran) == 4 * calls
    for master in masters:
        # A third of the calls, each with a confirmation that it is queued, taken, and done.
        assert master.info("commandstats")["cmdstat_wait"]["calls"] >= 4 * calls / N * 3


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_partition_whose_replicas_stand_still_keeps_no_other_from_its_jobs(
    cluster: Cluster, many: Methods, caplog: pytest.LogCaptureFixture, concurrency: int
) -> None:
    caplog.set_level(logging.INFO, "redis_bus")
    bus, stuck = many.bus, 1
    for _ in range(N):
        bus.sure.run("queued")
    with partition_standing_still(cluster, stuck), serving(bus, concurrency=concurrency):
        eventually(lambda: "it begins no job of a durable method until they do" in caplog.text)
        eventually(lambda: len(many.ran) == N - 1)
        done = failed = 0
        for _ in range(2 * N):
            try:
                bus.sure.options(timeout=0.5)("called")
                done += 1
            except NotConfirmed:
                failed += 1
        assert (done, failed) == (2 * N - 2, 2)
        assert [bus.plain(number) for number in range(N)] == list(range(N))  # in all of them
        go_on(cluster)
        eventually(lambda: "replicas confirm again what it does" in caplog.text)
        eventually(lambda: many.ran.count("queued") == N)
        assert [bus.sure(number) for number in range(N)] == list(range(N))


def test_a_clear_of_all_clears_every_partition_though_one_does_not_confirm_it(
    cluster: Cluster, many: Methods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "SLICE_SECONDS", 0.2)
    bus = many.bus
    values = range(4 * N)
    with serving(bus):
        assert [bus.cached(value) for value in values] == list(values)
    with (
        partition_standing_still(cluster, 0),
        pytest.raises(NotConfirmed, match=r"^cached: cleared, but 0 of 1 replicas confirmed it"),
    ):
        bus.cached.clear_all_cache()
    assert not any(bus.cached.clear_cache(value) for value in values)
