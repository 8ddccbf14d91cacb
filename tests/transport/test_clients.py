"""Clients of valkey-py are taken as redis-py's are; those that have no Redis are refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import fakeredis
import pytest
import redis
import redis.asyncio as aioredis
import valkey
import valkey.asyncio as aiovalkey
import valkey.asyncio.sentinel
import valkey.backoff
import valkey.retry
import valkey.sentinel

from redis_bus import AsyncBus, Bus
from redis_bus.embedded import EmbeddedRedis
from tests.async_support import run
from tests.support import serving


@pytest.fixture(scope="module", params=["unix", "tcp"])
def one(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(port=0 if request.param == "tcp" else None) as one:
        yield one


def square(n: int) -> int:
    return n * n


MADE: dict[str, dict[str, Any]] = {
    "plain": {},
    "answers as text": {"decode_responses": True},
    "RESP3": {"protocol": 3},
    "with a cache": {"protocol": 3, "cache_enabled": True},
    "retries": {"retry": valkey.retry.Retry(valkey.backoff.ExponentialBackoff(), 3)},
    "retries at a timeout": {"retry_on_timeout": True},
    "retries on an error": {"retry_on_error": [valkey.exceptions.BusyLoadingError]},
    "named": {"client_name": "me", "health_check_interval": 10},
}


@pytest.mark.parametrize("made", MADE)
def test_a_client_of_valkey_py_is_taken_by_a_bus(one: EmbeddedRedis, made: str) -> None:
    with valkey.Valkey.from_url(one.url, **MADE[made]) as client, Bus("v", client) as bus:
        assert bus.conn is client
        bus.register(cache_key=True)(square)
        with serving(bus):
            assert [bus.square(3), bus.square(3)] == [9, 9]
        bus.cleanup()


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("package", [valkey, aiovalkey], ids=["blocking", "asyncio"])
def test_clients_of_valkey_py_of_both_kinds_are_taken_by_an_async_bus(
    one: EmbeddedRedis, package: Any, made: str
) -> None:
    async def body() -> None:
        client = package.Valkey.from_url(one.url, **MADE[made])
        async with AsyncBus("v", client) as far:
            assert far.conn is client
            far.register()(square)
            job = await far.square.run(3)
            assert await far.serve_once() == 1
            assert await job.get() == 9
            await far.cleanup()

    run(body())


def settings_of(client: Any) -> Any:
    return Bus("v", client)._core.transport.endpoint  # type: ignore[attr-defined]


def test_the_settings_of_a_client_of_valkey_py_are_kept() -> None:
    socket = settings_of(valkey.Valkey(unix_socket_path="/run/x", db=2, password="p"))
    assert socket.connection_class is redis.UnixDomainSocketConnection
    kept = (socket.settings["path"], socket.settings["db"], socket.settings["password"])
    assert kept == ("/run/x", 2, "p")
    secure = settings_of(valkey.Valkey("example.org", ssl=True, ssl_ca_certs="/x"))
    assert secure.connection_class is redis.SSLConnection
    assert secure.settings["ssl_ca_certs"] == "/x"
    assert settings_of(valkey.Valkey(max_connections=7)).max_connections == 7
    hook = settings_of(valkey.Valkey(valkey_connect_func=print))
    assert hook.settings["redis_connect_func"] is print
    AsyncBus("v", aiovalkey.Valkey(ssl=True))


def test_what_redis_py_has_no_twin_of_is_a_type_error_that_names_it() -> None:
    class Own(valkey.Connection): ...

    class Odd:
        __module__ = "valkey.odd"

    client = valkey.Valkey(connection_pool=valkey.ConnectionPool(Own))
    with pytest.raises(TypeError, match="connections of class Own cannot be had with redis-py"):
        Bus("v", client)
    pool = valkey.ConnectionPool()
    pool.connection_kwargs["novelty"] = Odd()
    with pytest.raises(TypeError, match="conn: novelty=Odd: redis-py has no twin of it"):
        Bus("v", valkey.Valkey(connection_pool=pool))
    pool.connection_kwargs["novelty"] = 1
    with pytest.raises(TypeError, match="unknown argument 'novelty'"):
        Bus("v", valkey.Valkey(connection_pool=pool))


def test_a_client_of_valkey_py_for_asyncio_is_refused_by_a_bus() -> None:
    with pytest.raises(TypeError, match="this Valkey is for asyncio, and so for AsyncBus"):
        Bus("v", aiovalkey.Valkey())  # type: ignore[arg-type]
    for make in (valkey.sentinel.Sentinel, aiovalkey.sentinel.Sentinel):
        sentinel: Any = make([("localhost", 1)])
        with pytest.raises(TypeError, match="conn: it leads to a replica"):
            AsyncBus("v", sentinel.slave_for("x"))
        AsyncBus("v", sentinel.master_for("x"))


def test_the_bus_never_imports_valkey_py() -> None:
    code = """
    import sys
    from redis_bus import AsyncBus, Bus
    Bus("v"), AsyncBus("v")
    print([name for name in sys.modules if name.partition(".")[0] in ("valkey", "fakeredis")])
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    shown = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert shown.stdout == "[]\n", shown.stderr


# -- what has no Redis ------------------------------------------------------------------------

FAKES: dict[str, Callable[[], Any]] = {
    "fakeredis": fakeredis.FakeRedis,
    "fakeredis, strict": fakeredis.FakeStrictRedis,
    "fakeredis, asyncio": fakeredis.FakeAsyncRedis,
    "fakeredis, valkey": fakeredis.FakeValkey,
    "fakeredis, valkey, asyncio": fakeredis.FakeAsyncValkey,
    "a pool of its connections": lambda: redis.Redis(
        connection_pool=fakeredis.FakeRedis().connection_pool
    ),
    "the same, asyncio": lambda: aioredis.Redis(
        connection_pool=fakeredis.FakeAsyncRedis().connection_pool
    ),
    "a mock": MagicMock,
    "a mock of redis-py's": lambda: MagicMock(spec=redis.Redis),
}


@pytest.mark.parametrize("fake", FAKES)
@pytest.mark.parametrize("face", [Bus, AsyncBus])
def test_a_client_without_a_redis_is_a_type_error_that_names_redis_bus_testing(
    face: Any, fake: str
) -> None:
    with pytest.raises(TypeError, match=r"no Redis behind it.*redis_bus\.testing"):
        face("fake", FAKES[fake]())


def test_a_pool_without_a_redis_is_a_type_error_that_names_redis_bus_testing() -> None:
    with pytest.raises(TypeError, match=r"redis_bus\.testing"):
        Bus("fake", connection_pool=fakeredis.FakeRedis().connection_pool)
