"""Hooks that log connections in work on both kinds of connections, or the bus is not made."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
import valkey
import valkey.asyncio as aiovalkey

from redis_bus import AsyncBus, Bus, ConnectionLost
from redis_bus.embedded import EmbeddedRedis
from tests.async_support import run
from tests.support import serving

USER, PASSWORD, DATABASE = "joe", "s3cret", 3
ADMIN = "admin"


class Place:
    """A Redis that lets anybody in, so that a connection which did not log in would do."""

    def __init__(self, server: EmbeddedRedis) -> None:
        self.host, self.port = server.url.removeprefix("redis://").split("/")[0].split(":")
        self.admin = redis.Redis.from_url(server.url, client_name=ADMIN)
        self.admin.execute_command(
            "ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all"
        )

    def settings(self, **more: Any) -> dict[str, Any]:
        return {"host": self.host, "port": int(self.port), "db": DATABASE, **more}

    def strangers(self) -> list[str]:
        """Return the connections that are not USER's, or in another database."""
        return [
            str(one)
            for one in self.admin.client_list()
            if one["name"] != ADMIN and (one["user"], one["db"]) != (USER, str(DATABASE))
        ]

    def seen(self) -> int:
        return len(self.admin.client_list()) - 1


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with EmbeddedRedis(port=0) as server:
        place = Place(server)
        with place.admin:
            yield place


# -- hooks ------------------------------------------------------------------------------------


def plain(connection: Any) -> None:
    connection.on_connect()


async def asynchronous(connection: Any) -> None:
    await connection.on_connect()


def plain_by_hand(connection: Any) -> None:
    connection._parser.on_connect(connection)
    for command in (("AUTH", USER, PASSWORD), ("SELECT", DATABASE)):
        connection.send_command(*command)
        assert connection.read_response() in ("OK", b"OK")


async def asynchronous_by_hand(connection: Any) -> None:
    connection._parser.on_connect(connection)
    await asyncio.sleep(0)
    for command in (("AUTH", USER, PASSWORD), ("SELECT", DATABASE)):
        await connection.send_command(*command)
        assert await connection.read_response() in ("OK", b"OK")


def with_name(connection: Any, name: str) -> None:
    connection.client_name = name
    connection.on_connect()


async def with_name_async(connection: Any, name: str) -> None:
    connection.client_name = name
    await connection.on_connect()


class Hook:
    def __call__(self, connection: Any) -> None:
        connection.on_connect()

    def bound(self, connection: Any) -> None:
        connection.on_connect()

    async def bound_async(self, connection: Any) -> None:
        await connection.on_connect()


class AsyncHook:
    async def __call__(self, connection: Any) -> None:
        await connection.on_connect()


HOOKS: dict[str, Callable[..., Any]] = {
    "plain": plain,
    "async": asynchronous,
    "plain by hand": plain_by_hand,
    "async by hand": asynchronous_by_hand,
    "partial": functools.partial(with_name, name="hooked"),
    "async partial": functools.partial(with_name_async, name="hooked"),
    "bound": Hook().bound,
    "async bound": Hook().bound_async,
    "callable": Hook(),
    "async callable": AsyncHook(),
    "lambda": lambda connection: connection.on_connect() and None,
}


# -- credential providers ---------------------------------------------------------------------


class Plain:
    def get_credentials(self) -> tuple[str, str]:
        return USER, PASSWORD


class OnlyAsync:
    async def get_credentials_async(self) -> tuple[str, str]:
        await asyncio.sleep(0)
        return USER, PASSWORD


class AsyncByThePlainName:
    async def get_credentials(self) -> tuple[str, str]:
        return USER, PASSWORD


class Redis(redis.CredentialProvider):
    def get_credentials(self) -> tuple[str, str]:
        return USER, PASSWORD


class RedisOnlyAsync(redis.CredentialProvider):
    async def get_credentials_async(self) -> tuple[str, str]:
        return USER, PASSWORD


class PlainTwice(Plain):
    def get_credentials_async(self) -> tuple[str, str]:
        return USER, PASSWORD


class Valkey(valkey.CredentialProvider):
    def get_credentials(self) -> tuple[str, str]:
        return USER, PASSWORD


# Older versions of redis-py have none.
_Streaming: Any = getattr(redis.credentials, "StreamingCredentialProvider", object)


class Streaming(_Streaming):  # type: ignore[misc]
    def get_credentials(self) -> tuple[str, str]:
        return USER, PASSWORD

    async def get_credentials_async(self) -> tuple[str, str]:
        return USER, PASSWORD

    def on_next(self, callback: Callable[[Any], None]) -> None: ...

    def on_error(self, callback: Callable[[Exception], None]) -> None: ...

    def is_streaming(self) -> bool:
        return True


PROVIDERS = {
    "plain": Plain,
    "only async": OnlyAsync,
    "async by the plain name": AsyncByThePlainName,
    "redis-py's": Redis,
    "redis-py's, only async": RedisOnlyAsync,
    "plain twice": PlainTwice,
    "valkey-py's": Valkey,
    "user and password": lambda: redis.UsernamePasswordCredentialProvider(USER, PASSWORD),
    "valkey-py's user": lambda: valkey.UsernamePasswordCredentialProvider(USER, PASSWORD),
    "streaming": Streaming,
}

BLOCKING: dict[str, tuple[Callable[..., Any], str]] = {
    "redis": (redis.Redis, "redis_connect_func"),
    "valkey": (valkey.Valkey, "valkey_connect_func"),
    "url": (lambda **settings: None, "redis_connect_func"),
}
EITHER: dict[str, tuple[Callable[..., Any], str]] = {
    **BLOCKING,
    "redis.asyncio": (aioredis.Redis, "redis_connect_func"),
    "valkey.asyncio": (aiovalkey.Valkey, "valkey_connect_func"),
}


def arguments(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a bus is made of: a client of that kind, or the settings themselves."""
    if kind == "url":
        return {"url": "redis://localhost", **settings}
    return {"conn": EITHER[kind][0](**settings)}


def square(n: int) -> int:
    return n * n


async def cube(n: int) -> int:
    return n**3


def check_blocking(place: Place, given: dict[str, Any]) -> None:
    with Bus("hooks", **given) as bus:
        bus.register(cache_key=True)(square)
        with serving(bus):
            assert bus.square(3) == 9
            assert bus.square(3) == 9
            assert place.seen() >= 2
            assert place.strangers() == []
        bus.cleanup()


def check_asyncio(place: Place, given: dict[str, Any]) -> None:
    async def body() -> None:
        async with AsyncBus("hooks", timeout=20, **given) as far:
            far.register()(cube)
            task = asyncio.create_task(far.serve(concurrency=2))
            assert await far.cube(3) == 27
            assert place.seen() >= 3
            assert await asyncio.to_thread(place.strangers) == []
            far.stop()
            await task
            await far.cleanup()

    run(body())


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", BLOCKING)
def test_a_hook_of_any_kind_logs_in_the_connections_of_a_bus(
    place: Place, kind: str, hook: str
) -> None:
    login = {"username": USER, "password": PASSWORD, BLOCKING[kind][1]: HOOKS[hook]}
    check_blocking(place, arguments(kind, place.settings(**login)))


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", EITHER)
def test_a_hook_of_any_kind_logs_in_both_kinds_of_connections_of_an_async_bus(
    place: Place, kind: str, hook: str
) -> None:
    login = {"username": USER, "password": PASSWORD, EITHER[kind][1]: HOOKS[hook]}
    check_asyncio(place, arguments(kind, place.settings(**login)))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", BLOCKING)
def test_a_credential_provider_of_any_kind_logs_in_the_connections_of_a_bus(
    place: Place, kind: str, provider: str
) -> None:
    given = place.settings(credential_provider=PROVIDERS[provider]())
    check_blocking(place, arguments(kind, given))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", EITHER)
def test_a_credential_provider_of_any_kind_logs_in_both_kinds_of_connections(
    place: Place, kind: str, provider: str
) -> None:
    given = place.settings(credential_provider=PROVIDERS[provider]())
    check_asyncio(place, arguments(kind, given))


@pytest.mark.parametrize("hook", ["plain", "async"])
def test_a_hook_is_called_beside_a_running_loop_too(place: Place, hook: str) -> None:
    login = {"username": USER, "password": PASSWORD, "redis_connect_func": HOOKS[hook]}

    async def body() -> None:
        with Bus("hooks", conn=redis.Redis(**place.settings(**login))) as bus:
            assert bus.all_methods() == []
            assert place.strangers() == []

    run(body())


def test_the_client_of_a_bus_that_was_made_of_a_url_logs_in_by_an_async_hook(place: Place) -> None:
    login = {"username": USER, "password": PASSWORD, "redis_connect_func": asynchronous}
    with Bus("hooks", url="redis://localhost", **place.settings(**login)) as bus:
        assert bus.conn.execute_command("ACL", "WHOAMI") == USER.encode()


# -- what is never used -----------------------------------------------------------------------


def forgets_all(connection: Any) -> None: ...


async def forgets_all_async(connection: Any) -> None: ...


def forgets_database(connection: Any) -> None:
    connection._parser.on_connect(connection)
    connection.send_command("AUTH", USER, PASSWORD)
    connection.read_response()


async def forgets_to_await(connection: Any) -> None:
    connection.on_connect().close()


FORGETFUL: dict[str, tuple[Callable[..., Any], str]] = {
    "all": (forgets_all, "forgets_all did not log in and did not select database 3"),
    "all, async": (forgets_all_async, "did not log in and did not select database 3"),
    "database": (forgets_database, "forgets_database did not select database 3"),
    "to await": (forgets_to_await, "did not log in and did not select database 3"),
    "to be async": (lambda connection: asynchronous(connection), "define it with async def"),
}


@pytest.mark.parametrize("name", FORGETFUL)
@pytest.mark.parametrize("face", ["Bus", "AsyncBus"])
def test_a_connection_that_a_hook_left_without_user_or_database_is_never_used(
    place: Place, face: str, name: str
) -> None:
    hook, words = FORGETFUL[name]
    settings = place.settings(username=USER, password=PASSWORD, redis_connect_func=hook)

    async def ask() -> None:
        async with AsyncBus("hooks", conn=aioredis.Redis(**settings)) as far:
            await far.all_methods()

    with pytest.raises(ConnectionLost, match=words):
        if face == "AsyncBus":
            run(ask())
        else:
            Bus("hooks", conn=redis.Redis(**settings)).all_methods()


def generator(connection: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"redis_connect_func": "login"}, "redis_connect_func='login': a function of a connection"),
        ({"redis_connect_func": generator}, "generator: a function, plain or async"),
        ({"credential_provider": object()}, "object has neither get_credentials"),
        ({"credential_provider": redis.CredentialProvider()}, "has neither get_credentials"),
        ({"credential_provider": valkey.CredentialProvider()}, "has neither get_credentials"),
    ],
)
@pytest.mark.parametrize("made", [redis.Redis, aioredis.Redis, None])
def test_a_hook_that_cannot_be_had_is_a_type_error_when_the_bus_is_made(
    made: Callable[..., Any] | None, settings: dict[str, Any], words: str
) -> None:
    given = settings if made is None else {"conn": made(**settings)}
    with pytest.raises(TypeError, match=re.escape(words)):
        AsyncBus("hooks", **given)
    if made is not aioredis.Redis:
        with pytest.raises(TypeError, match=re.escape(words)):
            Bus("hooks", **given)


def test_a_class_of_connections_of_ones_own_is_not_taken_for_another_by_an_async_bus() -> None:
    class Blocking(redis.Connection): ...

    class Asyncio(aioredis.Connection): ...

    pool = redis.ConnectionPool(Blocking)
    Bus("hooks", conn=redis.Redis(connection_pool=pool))
    with pytest.raises(TypeError, match="AsyncBus cannot connect as Blocking does"):
        AsyncBus("hooks", conn=redis.Redis(connection_pool=pool))
    other = aioredis.ConnectionPool(Asyncio)
    with pytest.raises(TypeError, match="AsyncBus cannot connect as Asyncio does"):
        AsyncBus("hooks", conn=aioredis.Redis(connection_pool=other))
