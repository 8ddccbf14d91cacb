"""Every kind of call on a cluster, watched: no command has keys of two slots, and no script touches
a key that it does not declare, of whichever slot."""

from __future__ import annotations

import contextlib
from typing import Any

import redis

from redis_bus import Bus, as_completed
from redis_bus.protocol import scripts
from redis_bus.protocol.commands import Post
from redis_bus.protocol.slots import slot_of
from tests import async_support
from tests.calls.test_partitions import NAME, N, lose, routes
from tests.cluster_servers import Cluster
from tests.declared_keys import Watch, watched
from tests.support import eventually
from tests.worker.test_concurrency import serving


def make(url: str, partitions: int = N) -> Bus:
    bus = Bus(NAME, url=url, partitions=partitions, timeout=20)
    bus.register("plain")(lambda a: a)
    bus.register("again", idempotent=True)(lambda a: a)
    bus.register("keyed", "{a}", stale=1)(lambda a: a)
    bus.register("sure", "{a}", durable=True)(lambda a: a)
    return bus


def tour(url: str) -> None:
    """Have each script run, in several partitions."""
    with make(url) as bus:
        few = range(20)
        runs = [bus[name].run(a) for name in ("plain", "again", "keyed") for a in few]
        assert bus.plain.run(0).cancel()
        for name in ("plain", "again", "keyed"):
            lose(bus, name)
        hand_back(bus)
        with serving(bus, 4):
            assert len(list(as_completed(runs))) == len(runs)
            assert list(bus.plain.map(few)) == list(bus.keyed.map(few)) == list(few)
            for a in few:
                assert (bus.plain(a), bus.keyed(a)) == (a, a)
                spoil(bus, a)
                assert bus.keyed(a) == a
                assert bus.keyed.clear_cache(a)
            bus.keyed.clear_all_cache()
            assert list(bus.sure.map(few)) == [bus.sure(a) for a in few]
            bus.sure.clear_all_cache()
            for letter in bus.plain.dead_letters():
                letter.retry().get()
            for route in routes(bus, "plain"):
                bus.conn.rpush(route.queue, "foreign")
                bus.conn.rpush(route.wake, 1)
            eventually(lambda: len(bus.plain.dead_letters()) == N)
            async_support.run(async_tour(url))
            with make(url, 1) as other:
                assert [other.keyed(a) for a in few] == list(few)
        for name in ("plain", "keyed"):
            assert bus.stats()[name]["calls"] > 0
        bus.plain.run(1)
        assert bus.serve_once() == 1


async def async_tour(url: str) -> None:
    async with async_support.calling(url, name=NAME) as far:
        assert [a async for a in far.plain.map(range(9))] == list(range(9))
        assert [a async for a in far.keyed.map(range(9))] == list(range(9))
        assert await (await far.plain.run(1)).get() == 1
        assert await far.keyed.clear_cache(1)
        await far.keyed.clear_all_cache()
        for letter in await far.plain.dead_letters():
            assert letter.why == "foreign"


def hand_back(bus: Bus) -> None:
    """Let a worker take a job and give it back."""
    for route in routes(bus, "plain"):
        post = Post(route.service, "other", [route])
        claim = post.parse_take(bus._core.transport.ask(post.take([route]))[0], [route])
        assert claim is not None
        bus._core.transport.ask(post.release(route, claim.entry.split(b" ")[0].decode()))


def spoil(bus: Bus, a: int) -> None:
    """Make a cached value one that cannot be read."""
    key = bus.keyed.target.route_for(b"%d" % a).cache(b"%d" % a)
    entry: Any = bus.conn.get(key)
    bus.conn.set(key, entry.partition(b"\n")[0] + b"\nm\xc1")


def test_no_script_and_no_command_touches_a_key_of_another_slot_or_an_undeclared_one(
    cluster: Cluster,
) -> None:
    watches: list[Watch] = []
    with contextlib.ExitStack() as stack:
        for node in cluster.masters:
            client = stack.enter_context(redis.Redis(port=node.port))
            watches.append(stack.enter_context(watched(client)))
        tour(cluster.address)
    assert [problem for watch in watches for problem in watch.problems] == []
    assert set().union(*(watch.seen for watch in watches)) - {""} == set(scripts.load())
    services = [f"{{{NAME}:}}", *(f"{{{NAME}:#{part}}}" for part in range(1, N))]
    for watch, service in zip(watches, sorted(services, key=slot_of), strict=True):
        assert slot_of(service) in watch.slots and "finish" in watch.seen
