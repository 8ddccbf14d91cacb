"""Calls of an `AsyncBus` over several servers: slots that move, masters that are replaced."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from redis_bus import AsyncBus, ConnectionLost
from redis_bus.protocol.slots import slot_of
from tests.async_support import calling, run
from tests.cluster.support import Servers, Service, away_from, kill_master, replace_master
from tests.cluster_servers import Cluster
from tests.sentinel_servers import Sentinels


async def here(function: Any, *args: Any) -> Any:
    """Do something to the servers while the loop goes on."""
    return await asyncio.to_thread(function, *args)


def test_all_kinds_of_calls(service: Service, servers: Servers) -> None:
    async def body() -> None:
        async with calling(servers.address) as far:
            assert await far.all_methods() == ["cached", "echo", "held"]
            assert await far.echo(1) == 1
            assert [await far.cached(2), await far.cached(2)] == [2, 2]
            assert await far.cached.clear_cache(2)
            assert await asyncio.gather(*(far.echo(n) for n in range(100))) == list(range(100))
            assert [n async for n in far.echo.map(range(50))] == list(range(50))
            result = await far.echo.run(7)
            assert await result.get() == 7
            assert (await far.stats())["echo"]["calls"] == 152
            assert await far.cleanup() > 3

    run(body())


def test_an_async_bus_serves(servers: Servers) -> None:
    async def body() -> None:
        async with AsyncBus("test", url=servers.address, prefix="far_") as far:

            @far.register()
            async def double(n: int) -> int:
                return 2 * n

            task = asyncio.create_task(far.serve())
            async with calling(servers.address) as caller:
                while not await caller.get_method("far_double"):
                    await asyncio.sleep(0.01)
                assert await caller.far_double(4) == 8
            far.stop()
            await task

    run(body())


def test_a_slot_that_moved_is_found(cluster: Cluster, on_cluster: Service) -> None:
    async def body() -> None:
        async with calling(cluster.address) as far:
            assert await far.echo(1) == 1
            for target in await here(away_from, cluster, on_cluster.tag):
                await here(cluster.move_slot, slot_of(on_cluster.tag), target)
                assert await far.echo(2) == 2

    run(body())
    assert on_cluster.ran == [1, 2, 2]


@pytest.mark.parametrize("name", ["echo", "cached"])
def test_a_call_waits_while_its_slot_moves_and_runs_once(
    cluster: Cluster, on_cluster: Service, name: str
) -> None:
    async def body() -> None:
        async with calling(cluster.address) as far:
            assert await far[name](1) == 1
            target = away_from(cluster, on_cluster.tag)[0]
            move = await here(cluster.start_move, slot_of(on_cluster.tag), target)
            call = asyncio.create_task(far[name](2))
            await here(move.move_keys)
            done, _ = await asyncio.wait([call], timeout=0.3)
            assert not done
            await here(move.move_keys)
            await here(move.finish)
            assert await call == 2

    run(body())
    assert on_cluster.ran == [1, 2]


def test_waits_go_on_where_the_slot_went(cluster: Cluster, on_cluster: Service) -> None:
    async def body() -> None:
        async with calling(cluster.address) as far:
            call = asyncio.create_task(far.held(5))
            assert await here(on_cluster.entered.wait, 30)
            target = away_from(cluster, on_cluster.tag)[0]
            await here(cluster.move_slot, slot_of(on_cluster.tag), target)
            on_cluster.go.set()
            assert await call == 5

    run(body())
    assert on_cluster.ran == [5]


def test_waits_go_on_at_the_new_master(servers: Servers, service: Service) -> None:
    async def body() -> None:
        async with calling(servers.address) as far:
            call = asyncio.create_task(far.held(5))
            assert await here(service.entered.wait, 30)
            await here(replace_master, servers, service.tag)
            service.go.set()
            assert await call == 5
            assert await far.echo(6) == 6

    run(body())
    assert service.ran == [5, 6]


def test_calls_go_on_after_a_master_was_killed(servers: Servers, service: Service) -> None:
    async def body() -> None:
        async with calling(servers.address) as far:
            assert await far.cached(1) == 1
            await here(kill_master, servers, service.tag)
            assert await far.cached(2) == 2
            assert await far.echo(3) == 3

    run(body())
    assert service.ran.count(3) == 1


def test_loops_in_threads_share_what_is_known(cluster: Cluster, on_cluster: Service) -> None:
    far = AsyncBus("test", url=cluster.address, timeout=20)
    found: list[int] = []

    async def body() -> None:
        found.extend(await asyncio.gather(*(far.echo(n) for n in range(20))))
        await far.aclose()

    threads = [threading.Thread(target=run, args=(body(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == sorted([*range(20)] * 3)


def test_an_old_master_that_knows_no_better_is_left_within_a_second(sentinels: Sentinels) -> None:
    async def body() -> None:
        async with calling(sentinels.address) as far:
            transport = far._core.loops.here()
            assert await transport.exchange(("SET", "key", 1)) == [b"OK"]
            old = await here(sentinels.switch_master)
            await asyncio.sleep(1.1)  # which is what is promised
            await transport.exchange(("SET", "key", 2))
            assert old.call("GET", "key") == "1"
            assert sentinels.master().call("GET", "key") == "2"

    run(body())


def test_no_server_at_all_is_told_at_once() -> None:
    async def body(url: str) -> None:
        async with AsyncBus("test", url=url) as bus:
            with pytest.raises(ConnectionLost, match=r"^no Redis at"):
                await bus.all_methods()

    for url in ("redis+cluster://127.0.0.1:1,127.0.0.1:2", "redis+sentinel://127.0.0.1:1/name"):
        run(body(url))
