"""What is used of redis-py's insides is in two modules, and can be missing."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio as aioredis

import redis_bus
from redis_bus import AsyncBus, Bus, ConnectionLost, as_completed
from redis_bus.embedded import EmbeddedRedis
from redis_bus.transport import async_wire, wire
from redis_bus.transport.async_wire import PublicWire
from redis_bus.transport.public_link import PublicLink
from tests.async_support import calling, run
from tests.support import serving

PACKAGE = Path(redis_bus.__file__).parent
WIRES = {"wire.py", "async_wire.py"}
# Of objects whose insides somebody could use: connections, parsers, pools, clients, Sentinel's.
CLASSES = (
    redis.Redis,
    redis.Connection,
    redis.SSLConnection,
    redis.UnixDomainSocketConnection,
    redis.ConnectionPool,
    redis.sentinel.Sentinel,
    redis.cluster.NodesManager,
    aioredis.Connection,
    aioredis.SSLConnection,
    aioredis.UnixDomainSocketConnection,
    aioredis.ConnectionPool,
)


def insides() -> set[str]:
    """Return the names of what redis-py's objects have for themselves."""
    found: set[str] = set()
    for one in CLASSES:
        found.update(name for name in dir(one) if not name.startswith("__"))
        for base in one.__mro__:
            if "__init__" in vars(base):
                try:
                    source = inspect.getsource(base)
                except (OSError, TypeError):
                    continue
                found.update(
                    node.attr
                    for node in ast.walk(ast.parse(source.lstrip() if source[0] == " " else source))
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                )
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def used_of_others(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield the attributes with an underscore that are taken of other objects than ``self``."""
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    }
    own |= {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not of_self and not node.attr.startswith("__") and node.attr not in own:
                yield node


def test_two_modules_alone_know_of_the_insides_of_redis_py() -> None:
    theirs, found = insides(), []
    assert {"_sock", "_parser", "_reader", "_writer"} <= theirs
    for module in sorted(PACKAGE.rglob("*.py")):
        if module.name in WIRES:
            continue
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in used_of_others(tree):
            if node.attr in theirs:
                found.append(f"{module.name}:{node.lineno} {ast.unparse(node)}")
        for node in ast.walk(tree):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [one.name for one in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            found += [
                f"{module.name}:{name}" for name in names if name.startswith(("redis._", "valkey"))
            ]
    assert found == []


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have redis-py's connections without what is used of their insides."""
    for name in ("SOCKET", "PARSER"):
        monkeypatch.setattr(wire, name, f"_no_{name.lower()}")
    for name in ("READER", "WRITER"):
        monkeypatch.setattr(async_wire, name, f"_no_{name.lower()}")


@pytest.fixture(scope="module", params=["unix", "tcp"])
def one(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(port=0 if request.param == "tcp" else None) as one:
        yield one


def square(n: int) -> int:
    if n < 0:
        raise ValueError("negative")
    return n * n


async def cube(n: int) -> int:
    return n**3


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_bus_works_without_the_insides(one: EmbeddedRedis, protocol: int) -> None:
    with Bus("insides", url=one.url, protocol=protocol) as bus:
        link = bus._core.transport.checkout()
        assert type(link) is PublicLink
        bus._core.transport.checkin(link)
        bus.register(cache_key=True)(square)
        bus.register()(cube)
        with serving(bus):
            assert [bus.square(3), bus.square(3), bus.cube(3)] == [9, 9, 27]
            assert bus.square.clear_cache(3)
            with pytest.raises(ValueError, match="negative"):
                bus.square(-1)
            results = [bus.cube.run(n) for n in range(10)]
            assert sorted(r.get() for r in as_completed(results)) == [n**3 for n in range(10)]
            assert list(bus.square.map(range(20))) == [n * n for n in range(20)]
        bus._core.transport.ask(("SCRIPT", "FLUSH"))
        assert bus.square(3) == 9  # the script is loaded anew, and the value is cached
        assert bus.cleanup() > 0


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("protocol", [2, 3])
def test_an_async_bus_works_without_the_insides(one: EmbeddedRedis, protocol: int) -> None:
    async def body() -> None:
        async with calling(one.url, name="insides", protocol=protocol) as far:
            far.register(cache_key=True)(square)
            far.register()(cube)
            task = asyncio.create_task(far.serve(concurrency=3))
            assert await far.cube(3) == 27
            found = await asyncio.gather(*map(far.cube, range(100)))
            assert found == [n**3 for n in range(100)]
            assert [await far.square(3), await far.square(3)] == [9, 9]
            link = far._core.loops.here()._link  # type: ignore[attr-defined]
            assert type(link._wire) is PublicWire
            with pytest.raises(ValueError, match="negative"):
                await far.square(-1)
            far.stop()
            await task
            await far.cleanup()

    run(body())


@pytest.mark.usefixtures("missing")
def test_a_redis_that_goes_away_is_noticed_without_the_insides() -> None:
    with EmbeddedRedis() as server:
        bus = Bus("insides", url=server.url)
        assert bus.all_methods() == []

        async def ask() -> None:
            async with AsyncBus("insides", url=server.url) as far:
                assert await far.all_methods() == []
                await asyncio.to_thread(server.stop)
                with pytest.raises(ConnectionLost):
                    await far.all_methods()

        run(ask())
        with pytest.raises(ConnectionLost):
            bus.all_methods()
        bus.close()


@pytest.mark.parametrize(
    "text",
    [
        "ERR unknown command",
        "NOSCRIPT No matching script",
        "MOVED 866 127.0.0.1:7001",
        "ASK 866 127.0.0.1:7001",
        "OOM command not allowed",
        "LOADING Redis is loading",
        "READONLY You can't write against a read only replica.",
        "NOPERM this user has no permissions",
        "WRONGTYPE Operation against a key",
        "MASTERDOWN Link with MASTER is down",
        "UNBLOCKED client unblocked via CLIENT UNBLOCK",
        "NOREPLICAS Not enough good replicas",
    ],
)
def test_an_error_reply_means_what_it_means_to_redis_py(text: str) -> None:
    theirs = wire.error_maker(redis.Connection())(text)
    ours = wire.make_error(text)
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)
