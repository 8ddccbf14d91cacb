"""A service in several partitions, on several nodes: the promises of one server hold there, too.

The tests of `tests.calls.test_partitions` are run on a cluster; what comes below is for a cluster
alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from redis_bus.protocol.slots import slot_of
from redis_bus.transport.async_cluster import AsyncRouted
from redis_bus.transport.transport import NodeTransport
from tests import async_support
from tests.calls import test_partitions
from tests.calls.test_partitions import (  # noqa: F401 - they are run here, with the fixtures below
    NAME,
    Make,
    N,
    queued,
    routes,
    test_a_clear_by_who_knows_the_former_number_reaches_the_new_partitions,
    test_a_clear_of_all_is_made_again_where_the_number_changes_meanwhile,
    test_a_flooded_partition_does_not_starve_the_others,
    test_a_key_is_computed_once_for_all_who_call_at_once,
    test_a_worker_holds_no_job_that_it_cannot_run_now,
    test_async_callers_find_the_same,
    test_bytes_that_are_no_job_are_buried_in_their_partition,
    test_cached_calls_go_by_their_key_and_every_caller_finds_the_value,
    test_cleanup_forgets_the_partitions_too,
    test_clears_reach_every_partition,
    test_counters_are_sums,
    test_dead_letters_of_all_partitions_are_listed_and_retried,
    test_each_partition_has_its_share_of_max_queue,
    test_jobs_of_a_killed_child_run_again_at_once_in_all_partitions,
    test_jobs_of_a_worker_lost_in_a_former_partition_run_again,
    test_jobs_queued_in_a_former_partition_are_run,
    test_max_jobs_counts_those_of_all_partitions,
    test_no_job_is_lost_or_run_twice_while_the_number_changes,
    test_nothing_cached_under_another_number_is_served_again,
    test_results_are_found_by_their_ids,
    test_the_first_signal_lets_the_job_finish_and_leaves_all_partitions,
    test_the_second_signal_stops_at_once_and_tells_the_caller,
    test_uncached_calls_of_many_threads_are_spread_evenly,
    test_what_a_lost_worker_held_in_any_partition_runs_again,
    test_what_a_publisher_left_half_way_its_callers_finish,
)
from tests.cluster.support import away_from
from tests.cluster.test_layout import shown
from tests.cluster_servers import Cluster
from tests.support import eventually
from tests.worker.test_concurrency import serving

make = test_partitions.make


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.address


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    with contextlib.closing(cluster.client()) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_command_has_keys_of_two_slots(cluster: Cluster) -> Iterator[None]:
    """Nor does a script touch a key of another node: a cluster refuses both."""
    for node in cluster.nodes:
        node.call("CONFIG", "RESETSTAT")
    yield
    for node in cluster.nodes:
        refused = str(node.call("INFO", "errorstats"))
        # ERR: also for a key that a script did not declare.
        assert "CROSSSLOT" not in refused and "errorstat_ERR:" not in refused, refused


def test_the_partitions_are_on_different_nodes_and_so_said(make: Make, cluster: Cluster) -> None:
    bus = make(prefix="math_")
    bus.register("m")(lambda a: a)
    found = routes(bus, "m")
    assert len({cluster.master_of(route.queue).port for route in found}) == N
    with serving(bus, 1):
        assert [bus.m(a) for a in range(2 * N)] == list(range(2 * N))
        told = shown(cluster.address, "ping", NAME)
    for name, route in zip(("math_", "math_#1", "math_#2"), found, strict=True):
        assert f"service '{name}' in slot {slot_of(route.queue)}" in told
    assert f"bus '{NAME}': 1 method, 1 worker alive" in told


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_map_sends_one_write_to_each_node(
    make: Make, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    bus, writes = make(), list[tuple[str, int]]()
    bus.register("plain")(lambda a: a)
    bus.register("keyed", "{a}")(lambda a: a)
    real = NodeTransport.converse_each

    def counting(self: NodeTransport, commands: Any, *args: Any, **kwargs: Any) -> Any:
        if commands[0][0] == "EVALSHA":
            writes.append((self.address, len(commands)))
        return real(self, commands, *args, **kwargs)

    with serving(bus, concurrency):
        bus.plain(0), bus.keyed(0)
        monkeypatch.setattr(NodeTransport, "converse_each", counting)
        for method in (bus.plain, bus.keyed):
            writes.clear()
            values = method.map(range(60), buffersize=60)
            assert len({address for address, _ in writes}) == len(writes) == N
            assert sum(commands for _, commands in writes) == 60
            assert list(values) == list(range(60))


def test_an_async_bus_is_told_outcomes_by_the_node_of_each_partition(make: Make, url: str) -> None:
    bus = make()
    bus.register("m")(lambda a: a)

    async def body() -> None:
        async with async_support.calling(url, name=NAME) as far:
            assert await asyncio.gather(*(far.m(a) for a in range(60))) == list(range(60))
            transport = far._core.loops.here()
            assert isinstance(transport, AsyncRouted)
            assert sum(node._inbox is not None for node in transport.nodes()) == N

    with serving(bus, 4):
        async_support.run(body())
    assert sum(queued(bus, "m")) == 60 and min(queued(bus, "m")) == 20


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("what", ["slot", "master"])
def test_calls_go_on_and_run_once_while_a_partition_changes_its_node(
    make: Make, cluster: Cluster, concurrency: int, what: str
) -> None:
    bus, ran, stop = make(), Counter[str](), threading.Event()
    bus.register("m")(lambda a: ran.update([a]))
    counts = [0, 0]

    def call(number: int) -> None:
        caller = make(1)
        while not stop.is_set():
            caller.m(f"{number} {counts[number]}")
            counts[number] += 1

    def go_on() -> None:
        enough = [count + 2 * N for count in counts]
        eventually(lambda: all(a > b for a, b in zip(counts, enough, strict=True)))

    with serving(bus, concurrency):
        threads = [threading.Thread(target=call, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        go_on()
        key = routes(bus, "m")[1].queue
        if what == "slot":
            cluster.move_slot(slot_of(key), away_from(cluster, key)[0])
        else:
            cluster.fail_over(key)
        go_on()
        stop.set()
        for thread in threads:
            thread.join(30)
    assert set(ran.values()) == {1}
    assert sum(ran.values()) == sum(counts)
