"""Clients of valkey-py, and hooks of both kinds, on a cluster and on servers under sentinels."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import valkey
import valkey.asyncio as aiovalkey
import valkey.asyncio.sentinel
import valkey.sentinel

from redis_bus import AsyncBus, Bus
from tests.async_support import run
from tests.cluster.support import Servers, Service
from tests.cluster_servers import Cluster
from tests.support import eventually


def valkey_client(servers: Servers, package: Any, **settings: Any) -> Any:
    if isinstance(servers, Cluster):
        return package.ValkeyCluster(host="127.0.0.1", port=servers.nodes[0].port, **settings)
    hosts = [("127.0.0.1", sentinel.port) for sentinel in servers.sentinels]
    return package.sentinel.Sentinel(hosts).master_for(servers.address.split("/")[-2], **settings)


def own(n: int) -> int:
    return n


def test_a_client_of_valkey_py_is_taken_by_a_bus(servers: Servers, service: Service) -> None:
    client = valkey_client(servers, valkey)
    with contextlib.closing(client), Bus("test", client, timeout=20) as bus:
        assert bus.conn is client
        assert bus.echo(1) == 1


@pytest.mark.parametrize("package", [valkey, aiovalkey], ids=["blocking", "asyncio"])
def test_clients_of_valkey_py_of_both_kinds_are_taken_by_an_async_bus(
    servers: Servers, service: Service, package: Any
) -> None:
    async def body() -> None:
        client = valkey_client(servers, package)
        try:
            async with AsyncBus("test", client, timeout=20) as far:
                assert await far.echo(2) == 2
                far.register("own")(own)
                assert await far.own.run(1)
                assert await far.serve_once() == 1
        finally:
            closed = client.aclose() if hasattr(client, "aclose") else client.close()
            if closed is not None:
                await closed

    run(body())


@pytest.fixture
def admin(cluster: Cluster) -> Iterator[list[redis.Redis]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(redis.Redis(port=node.port, client_name="admin"))
            for node in cluster.nodes
        ]


def plain(connection: Any) -> None:
    connection.send_command("CLIENT", "SETNAME", "hooked")
    assert connection.read_response() in (b"OK", "OK")


async def asynchronous(connection: Any) -> None:
    await connection.send_command("CLIENT", "SETNAME", "hooked")
    assert await connection.read_response() in (b"OK", "OK")


@pytest.mark.parametrize("hook", [plain, asynchronous])
def test_a_hook_of_either_kind_reaches_both_kinds_of_connections_to_a_cluster(
    cluster: Cluster, on_cluster: Service, admin: list[redis.Redis], hook: Any
) -> None:
    def hooked() -> int:
        listed = [one for client in admin for one in client.client_list()]
        return sum(1 for one in listed if one["name"] == "hooked")

    async def body() -> None:
        address = cluster.address
        async with AsyncBus("test", url=address, redis_connect_func=calling(hook)) as far:
            assert await far.echo(3) == 3
            await asyncio.to_thread(eventually, lambda: hooked() >= 2)

    run(body())
    settings = {"url": cluster.address, "redis_connect_func": calling(hook)}
    with Bus("test", **settings) as bus:
        assert bus.echo(4) == 4
        eventually(lambda: hooked() >= 1)


def calling(hook: Any) -> Any:
    """Return a hook of the same kind, which logs in first, as that of one server has to."""
    if asyncio.iscoroutinefunction(hook):

        async def connect_async(connection: Any) -> None:
            await connection.on_connect()
            await hook(connection)

        return connect_async

    def connect(connection: Any) -> None:
        connection.on_connect()
        hook(connection)

    return connect


def test_the_hook_of_a_cluster_s_client_is_called_on_both_kinds_of_connections(
    cluster: Cluster, on_cluster: Service, admin: list[redis.Redis]
) -> None:
    make: Any = redis.RedisCluster
    port = cluster.nodes[0].port

    async def body() -> None:
        with contextlib.closing(make(host="127.0.0.1", port=port, redis_connect_func=plain)) as one:
            async with AsyncBus("test", one, timeout=20) as far:
                seen = {x["id"] for a in admin for x in a.client_list() if x["name"] == "hooked"}
                assert await far.echo(5) == 5
                now = {x["id"] for a in admin for x in a.client_list() if x["name"] == "hooked"}
                assert len(now - seen) >= 2

    run(body())
