"""``max_connections`` is kept; ``unix_socket_path`` and ``connection_pool`` are taken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
import valkey
import valkey.asyncio as aiovalkey

from redis_bus import AsyncBus, Bus, BusError, CallTimeout, ConnectionLost
from redis_bus.embedded import EmbeddedRedis
from redis_bus.transport.limit import Limit
from tests.async_support import Gate, run
from tests.support import eventually, serving

WATCH = "watch"


@pytest.fixture(scope="module")
def one() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as one:
        yield one


@pytest.fixture
def watch(one: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(one.url, client_name=WATCH) as client:
        yield client
        client.flushall()


def connections(watch: redis.Redis) -> int:
    return sum(1 for client in watch.client_list() if client["name"] == "limited")


class Peak:
    """The most connections that a bus was seen to have."""

    def __init__(self, watch: redis.Redis) -> None:
        self.most = 0
        self._watch, self._over = watch, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.is_set():
            self.most = max(self.most, connections(self._watch))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def path_of(one: EmbeddedRedis) -> str:
    return one.url.removeprefix("unix://").partition("?")[0]


GIVEN: dict[str, Callable[[EmbeddedRedis, int], dict[str, Any]]] = {
    "client": lambda one, n: {
        "conn": redis.Redis.from_url(one.url, client_name="limited", max_connections=n)
    },
    "valkey": lambda one, n: {
        "conn": valkey.Valkey.from_url(one.url, client_name="limited", max_connections=n)
    },
    "blocking pool": lambda one, n: {
        "connection_pool": redis.BlockingConnectionPool.from_url(
            one.url, client_name="limited", max_connections=n
        )
    },
    "url": lambda one, n: {
        "url": f"{one.url}{'&' if '?' in one.url else '?'}max_connections={n}&client_name=limited"
    },
    "argument": lambda one, n: {"url": one.url, "max_connections": n, "client_name": "limited"},
}
ASYNC_GIVEN: dict[str, Callable[[EmbeddedRedis, int], dict[str, Any]]] = {
    **GIVEN,
    "asyncio client": lambda one, n: {
        "conn": aioredis.Redis.from_url(one.url, client_name="limited", max_connections=n)
    },
    "asyncio valkey": lambda one, n: {
        "conn": aiovalkey.Valkey.from_url(one.url, client_name="limited", max_connections=n)
    },
    "asyncio pool": lambda one, n: {
        "connection_pool": aioredis.BlockingConnectionPool.from_url(
            one.url, client_name="limited", max_connections=n
        )
    },
}


def square(n: int) -> int:
    return n * n


@pytest.mark.parametrize("given", GIVEN)
def test_no_more_connections_are_made_than_there_may_be(
    one: EmbeddedRedis, watch: redis.Redis, given: str
) -> None:
    with Bus("limited", url=one.url) as served:
        served.register()(square)
        limited = Bus("limited", **GIVEN[given](one, 2))
        with serving(served), limited as bus, Peak(watch) as peak, ThreadPoolExecutor(20) as pool:
            assert list(pool.map(bus.square, range(60))) == [n * n for n in range(60)]
    assert 1 <= peak.most <= 2


@pytest.mark.parametrize("given", ASYNC_GIVEN)
def test_no_more_connections_are_made_of_an_async_bus_and_its_worker(
    one: EmbeddedRedis, watch: redis.Redis, given: str
) -> None:
    async def body() -> None:
        async with AsyncBus("limited", **ASYNC_GIVEN[given](one, 4)) as bus:
            bus.register()(square)
            task = asyncio.create_task(bus.serve())
            found = await asyncio.gather(*map(bus.square, range(60)))
            assert found == [n * n for n in range(60)]
            bus.stop()
            await task

    with Peak(watch) as peak:
        run(body())
    assert 3 <= peak.most <= 4


def test_a_call_that_finds_no_connection_free_in_its_time_says_which_limit_it_was(
    one: EmbeddedRedis, watch: redis.Redis
) -> None:
    gate = Gate()
    with Bus("limited", url=one.url) as served:
        served.register("hold")(gate)
        served.register()(square)
        with serving(served), Bus("limited", url=one.url, max_connections=1) as bus:
            assert bus.get_method("square") is not None
            holder = threading.Thread(target=bus.hold.options(timeout=20), args=(1,))
            holder.start()
            assert gate.entered.wait(20)
            began = time.monotonic()
            # The holder gives its connection back at each slice of its wait, and takes it again.
            quick = bus["square"].options(timeout=0.5)
            words = r"square\(3\): .*the one connection to Redis at .*\(max_connections=1\)"
            with pytest.raises((ConnectionLost, CallTimeout), match=words):
                quick(3)
            assert time.monotonic() - began < 5
            gate.go.set()
            holder.join()
            assert bus.square(3) == 9


def test_who_waits_for_a_connection_has_it_in_turn() -> None:
    limit, order, seats = Limit(1), list[int](), list[Any]()
    first = limit.enter()
    assert first is not None

    def wait(number: int) -> None:
        again = False
        while True:
            seen = limit.changes
            seat = limit.enter() if again or not limit.is_awaited else None
            if seat is not None:
                break
            assert limit.wait(time.monotonic() + 20, seen, again=again)
            again = True
        order.append(number)
        seats.append(seat)
        seat.leave()

    threads = []
    for number in range(8):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        eventually(lambda: len(limit._waiting) == len(threads))
    first.leave()
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_a_child_process_has_as_many_connections_as_its_parent(one: EmbeddedRedis) -> None:
    import os

    with Bus("limited", url=one.url, max_connections=1) as bus:
        bus.all_methods()
        child = os.fork()
        if child == 0:
            try:
                bus.all_methods()
                bus.all_methods()
                os._exit(0)
            except BaseException:  # noqa: BLE001 - a child never returns
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        bus.all_methods()


# -- what needs more ---------------------------------------------------------------------------


async def wait(n: int) -> int:
    return n


def test_a_worker_that_needs_more_connections_is_refused_when_it_is_made(
    one: EmbeddedRedis,
) -> None:
    with Bus("limited", url=one.url, max_connections=4) as bus:
        bus.register()(square)
        words = r"max_connections=4: to serve so takes 5 connections .*4 to wait for jobs, 1 for th"
        with pytest.raises(BusError, match=words):
            bus.serve(concurrency=4)
        assert bus.serve_once() == 0
    with Bus("limited", url=one.url, max_connections=1) as bus:
        bus.register()(square)
        with pytest.raises(BusError, match="takes 2 connections"):
            bus.serve()


def test_an_async_bus_that_needs_more_connections_is_refused_when_it_is_made(
    one: EmbeddedRedis,
) -> None:
    for given in ASYNC_GIVEN.values():
        with pytest.raises(ValueError, match="max_connections=1: an AsyncBus takes 2 connections"):
            AsyncBus("limited", **given(one, 1))

    async def serve() -> None:
        async with AsyncBus("limited", url=one.url, max_connections=3) as bus:
            bus.register()(wait)
            await bus.serve()

    with pytest.raises(BusError, match=r"max_connections=3: to serve so takes 4 .*2 of asyncio"):
        run(serve())


@pytest.mark.parametrize(("count", "kind"), [(0, ValueError), (-1, ValueError), ("2", TypeError)])
def test_a_limit_that_cannot_be_is_told_when_the_bus_is_made(count: Any, kind: Any) -> None:
    for face in (Bus, AsyncBus):
        with pytest.raises(kind, match="max_connections="):
            face("limited", url="redis://localhost", max_connections=count)


# -- where Redis is ---------------------------------------------------------------------------


def test_a_bus_takes_a_unix_socket_as_redis_py_does(one: EmbeddedRedis) -> None:
    async def ask() -> list[str]:
        async with AsyncBus("socket", unix_socket_path=path_of(one), db=2) as far:
            return await far.all_methods()

    # What a URL says of a host does not count then, what it says of the rest does.
    for url in (None, "redis://nohost.invalid:1/2"):
        with Bus("socket", unix_socket_path=path_of(one), url=url) as bus:
            assert bus.all_methods() == []
            assert bus.conn.ping()
            assert path_of(one) in repr(bus)
            kept = bus.conn.connection_pool.connection_kwargs.get("db", 0)
            assert kept == (2 if url else 0)
    assert run(ask()) == []


POOLS: dict[str, Callable[[str], Any]] = {
    "redis": redis.ConnectionPool.from_url,
    "blocking": redis.BlockingConnectionPool.from_url,
    "valkey": valkey.ConnectionPool.from_url,
    "redis.asyncio": aioredis.ConnectionPool.from_url,
    "valkey.asyncio": aiovalkey.ConnectionPool.from_url,
}


@pytest.mark.parametrize("kind", POOLS)
def test_a_bus_takes_a_pool_s_connections(one: EmbeddedRedis, kind: str) -> None:
    pool = POOLS[kind](one.url.replace("db=0", "db=5"))

    async def ask() -> list[str]:
        async with AsyncBus("pool", connection_pool=pool) as far:
            far.register()(square)
            assert await far.serve_once() == 0
            return await far.all_methods()

    assert run(ask()) == ["square"]
    if "asyncio" in kind:
        with pytest.raises(TypeError, match="is for asyncio, and so for AsyncBus"):
            Bus("pool", connection_pool=pool)
        return
    with Bus("pool", connection_pool=pool) as bus:
        assert bus.all_methods() == ["square"]
        assert bus.conn.ping()
        bus.cleanup()
    with pytest.raises(TypeError, match=r"a bus that was given conn=|cannot be"):
        bus.__reduce__()


@pytest.mark.parametrize("face", [Bus, AsyncBus])
def test_what_would_not_count_beside_a_client_or_a_pool_is_a_type_error(face: Any) -> None:
    client = redis.Redis()
    for more in ({"db": 3}, {"max_connections": 2}, {"connection_pool": client.connection_pool}):
        with pytest.raises(TypeError, match=f"{next(iter(more))}= does not count beside conn="):
            face("beside", conn=client, **more)
    for more in ({"db": 3}, {"url": "redis://localhost"}):
        with pytest.raises(TypeError, match="does not count beside connection_pool="):
            face("beside", connection_pool=client.connection_pool, **more)
    with pytest.raises(TypeError, match="connection_pool=object: a pool of"):
        face("beside", connection_pool=object())
