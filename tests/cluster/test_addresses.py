"""What names several servers: URLs, and clients of redis-py of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis

from redis_bus import AsyncBus, Bus
from redis_bus.protocol.slots import run_of, slot_of
from redis_bus.transport.address import hide_password
from redis_bus.transport.distributed import Cluster as Nodes
from redis_bus.transport.distributed import Sentinels as Watched
from redis_bus.transport.distributed import describe_url, open_url
from tests.async_support import run
from tests.cluster.support import Servers, Service
from tests.cluster_servers import Cluster
from tests.sentinel_servers import Sentinels

# -- URLs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis+cluster://a:1,b:2", [("a", 1), ("b", 2)]),
        ("valkey+cluster://a,[::1]:2/0", [("a", 6379), ("::1", 2)]),
        ("rediss+cluster://joe:s3,cr@t@a:1,b:2?ssl_cert_reqs=none", [("a", 1), ("b", 2)]),
        ("valkeys+cluster://", [("localhost", 6379)]),
    ],
)
def test_urls_of_clusters(url: str, nodes: list[tuple[str, int]]) -> None:
    found = open_url(url, socket_keepalive=True)
    assert isinstance(found, Nodes)
    assert list(found.nodes) == nodes
    settings = found.endpoint.settings
    assert settings["socket_keepalive"] is True
    is_tls = issubclass(found.endpoint.connection_class, redis.SSLConnection)
    assert is_tls == url.startswith(("rediss", "valkeys"))
    if "joe" in url:
        assert (settings["username"], settings["password"]) == ("joe", "s3,cr@t")
        assert settings["ssl_cert_reqs"] == "none"


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_urls_of_sentinels(scheme: str) -> None:
    url = f"{scheme}+sentinel://joe:s3cret@a:1,b/main/3?client_name=me&sentinel_password=pw"
    found = open_url(url)
    assert isinstance(found, Watched)
    assert [one.node for one in found.sentinels] == [("a", 1), ("b", 26379)]
    assert [one.settings["password"] for one in found.sentinels] == ["pw", "pw"]
    settings = found.endpoint.settings
    assert (settings["username"], settings["password"]) == ("joe", "s3cret")
    assert (found.service, settings["db"], settings["client_name"]) == ("main", 3, "me")
    for endpoint in (found.endpoint, *found.sentinels):
        is_tls = issubclass(endpoint.connection_class, redis.SSLConnection)
        assert is_tls == (scheme in ("rediss", "valkeys"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+cluster://a:port,b:s3", "a port is not a number"),
        ("redis+cluster://a:1,b:0", "a port is not a number"),
        ("redis+cluster://a:1,,b:2", "nothing between two of its commas"),
        ("redis+cluster://joe:s3cret@a:1/5", "a cluster has database 0 only"),
        ("redis+cluster://a:1?tiemout=4", "there is no parameter 'tiemout'"),
        ("redis+sentinel://joe:s3cret@a:1", "it names the master: /NAME"),
        ("redis+sentinel://a:1/name/0/1", "it names the master: /NAME"),
        ("redis+sentinel://a:1/name/x", "must be the number of a database"),
        ("unix+cluster://joe:s3cret@a:1", "not a Redis URL"),
        ("redis+something://a:1", "it begins with redis://"),
    ],
)
def test_a_url_that_means_nothing_is_a_value_error_that_says_why(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"not a Redis URL: .*{words}|{words}") as error:
        Bus("test", url=url)
    assert "s3" not in str(error.value)
    assert "".join(traceback.format_exception(error.value)).count("Traceback") == 1


def test_passwords_are_not_shown() -> None:
    assert hide_password("redis+cluster://joe:pw@a:1,b:2/0") == "redis+cluster://***@a:1,b:2/0"
    assert hide_password("redis+sentinel://a:1,b:2/name/0") == "redis+sentinel://a:1,b:2/name/0"
    assert hide_password("redis+cluster://joe:secret") == "redis+cluster://joe:***"
    assert describe_url("redis+cluster://joe:pw@a:1,b:2") == "cluster a:1,b:2"
    bus = Bus("test", url="redis+sentinel://joe:pw@a:1/name?sentinel_password=pw")
    assert repr(bus) == "<Bus 'test' at sentinel service name>"


def test_servers_are_named_in_the_url_only() -> None:
    with pytest.raises(TypeError, match="the servers are named in the URL"):
        Bus("test", url="redis+cluster://a:1", host="b")
    with pytest.raises(TypeError, match="unknown argument 'tiemout'"):
        Bus("test", url="redis+sentinel://a:1/name", tiemout=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unknown argument 'tiemout'"):
        Bus("test", url="redis+cluster://a:1", tiemout=3)  # type: ignore[arg-type]


NO_IO = """
import sys
import redis, redis.sentinel
from redis_bus import AsyncBus, Bus

Bus("warm", url="redis://localhost")
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") else None)
for url in ("redis+cluster://nohost.invalid:1,b:2", "rediss+sentinel://nohost.invalid:1/name/0"):
    Bus("a", url=url, client_name="x")
    AsyncBus("b", url=url, socket_timeout=1)
print(seen)
"""


def test_making_a_bus_does_no_io() -> None:
    shown = subprocess.run([sys.executable, "-c", NO_IO], capture_output=True, text=True)
    assert shown.stdout == "[]\n", shown.stderr


# -- clients ----------------------------------------------------------------------------------


@contextlib.contextmanager
def blocking_client(servers: Servers) -> Iterator[Any]:
    client: Any = servers.client()
    try:
        yield client
    finally:
        client.close()


def async_client(servers: Servers) -> Any:
    if isinstance(servers, Cluster):
        make: Any = aioredis.RedisCluster
        return make(host="127.0.0.1", port=servers.nodes[0].port)
    hosts = [("127.0.0.1", sentinel.port) for sentinel in servers.sentinels]
    sentinel: Any = aioredis.sentinel.Sentinel
    return sentinel(hosts).master_for(servers.address.split("/")[-2])


def test_a_client_of_redis_py_is_taken_by_a_bus(servers: Servers, service: Service) -> None:
    with blocking_client(servers) as client, Bus("test", client, timeout=20) as bus:
        assert bus.conn is client
        assert bus.echo(1) == 1


@pytest.mark.parametrize("is_async", [True, False])
def test_clients_of_both_kinds_are_taken_by_an_async_bus(
    servers: Servers, service: Service, is_async: bool
) -> None:
    async def body() -> None:
        with contextlib.ExitStack() as stack:
            if is_async:
                client = async_client(servers)
            else:
                client = stack.enter_context(blocking_client(servers))
            async with AsyncBus("test", client, timeout=20) as bus:
                assert bus.conn is client
                assert await bus.echo(1) == 1
            if is_async:
                await client.aclose()

    run(body())


def test_a_client_for_asyncio_is_not_for_a_bus(servers: Servers) -> None:
    async def body() -> None:
        client = async_client(servers)
        with pytest.raises(TypeError, match="is for asyncio, and so for AsyncBus; Bus needs"):
            Bus("test", client)
        await client.aclose()

    asyncio.run(body())


def test_a_bus_has_a_client_of_its_own_for_a_url(servers: Servers) -> None:
    with Bus("test", url=servers.address) as bus:
        assert bus.conn.set("key", "value")
        assert bus.conn.get("key") == b"value"
        bus.conn.close()


def test_a_replica_is_refused(sentinels: Sentinels) -> None:
    manager: Any = redis.sentinel.Sentinel([("127.0.0.1", 1)])
    with pytest.raises(TypeError, match="conn: it leads to a replica"):
        Bus("test", manager.slave_for("main"))


# -- slots ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "slot"), [("123456789", 12739), ("{123456789}x", 12739), ("x{123456789}{a}", 12739)]
)
def test_the_slot_of_a_key_is_the_one_of_its_tag(key: str, slot: int) -> None:
    assert slot_of(key) == slot_of(key.encode()) == slot
    assert slot_of("{}123") != slot_of("{}124")


def test_commands_without_a_key_go_with_those_around_them() -> None:
    a, b = ("GET", "{a}"), ("EVALSHA", "sha", 1, "{b}", "arg")
    ping = ("PING",)
    assert run_of([ping, a, ping, b], None) == (slot_of("{a}"), 3)
    assert run_of([b, a], None) == (slot_of("{b}"), 1)
    assert run_of([ping, ("EVALSHA", "sha", 0)], "{c}") == (slot_of("{c}"), 2)
    assert run_of([ping, a], "{c}") == (slot_of("{c}"), 1)
    assert run_of([a, ping], "{c}") == (slot_of("{a}"), 2)
    assert run_of([ping], None) == (None, 1)
