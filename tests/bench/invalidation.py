"""Does a call that starts after an invalidation returned ever see the value from before it?

    python tests/bench/invalidation.py [--rounds N]

One command: it makes a virtual environment in a temporary folder with the python that runs it,
installs there dogpile.cache, cashews and aiocache from PyPI by name and a copy of this project,
starts a private Redis for all of them, prints a table, and removes it all.

The race, the same for all and held in place by events, with no sleep in it:

1. a call misses; its function reads the source, and is held there;
2. the source changes, and the value is invalidated; that returns;
3. the function goes on with what it read, and the call returns that;
4. another call is made. What the source says now is *fresh*, what it said before is *stale*.

Every round has a key of its own. Before it, each library shows in the same way that it does cache,
and that its invalidation works while nothing is being computed.

Settings are those that each library's own documentation recommends where more than one process
caches in one Redis; where it names an invalidation that is stronger, that one is tried too.

- dogpile.cache: the example of its Redis backend, ``distributed_lock=True`` with
  ``thread_local_lock=False``. ``invalidate(hard=True)`` is "getters do not return the old value at
  all"; it is kept in the memory of a process, and here all is one process, which favours it.
- cashews: ``@cache(ttl=...)`` as it comes, with its protection of concurrent calls in a process
  (``protected=True`` is the default), and with ``lock=True``, its lock in Redis.
- aiocache: ``@cached_stampede``, the decorator with a lock in Redis; the lease is long enough to
  outlast the run, so that the lock is held all the time.
- redis_bus: as it comes. A call, its worker and the clearing share nothing but the Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ("dogpile.cache", "cashews[redis]", "aiocache[redis]")
TTL_SECONDS = 600
PATIENCE_SECONDS = 30


@dataclass
class Held:
    """A function over a source that changes; a run of it can be held after it read the source."""

    source: str = "old"
    entered: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def read(self) -> str:
        value = self.source
        self.entered.set()
        assert self.go.wait(PATIENCE_SECONDS)
        return value

    async def read_async(self) -> str:
        value = self.source
        self.entered.set()
        # The loop must go on: the invalidation runs on it.
        assert await asyncio.to_thread(self.go.wait, PATIENCE_SECONDS)
        return value


class Sources:
    """What the cached functions read, by key."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}

    def __getitem__(self, key: str) -> Held:
        return self._held.setdefault(key, Held())


@dataclass(frozen=True)
class Contender:
    """A cached function of one argument, its key, and a way to forget its value."""

    library: str
    settings: str
    invalidation: str
    call: Callable[[str], Awaitable[str]]
    invalidate: Callable[[str], Awaitable[object]]

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.library)


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """A blocking function as one that the harness can await."""

    async def call(*args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    return call


# -- the contenders ---------------------------------------------------------------------------


def dogpile(url: str, sources: Sources) -> Iterator[Contender]:
    from dogpile.cache import make_region

    arguments = {
        "url": url,
        "redis_expiration_time": 2 * TTL_SECONDS,
        "distributed_lock": True,
        "thread_local_lock": False,
    }
    region = make_region().configure(
        "dogpile.cache.redis", expiration_time=TTL_SECONDS, arguments=arguments
    )

    @region.cache_on_arguments()
    def read(key: str) -> str:
        return sources[key].read()

    settings = "distributed_lock=True"
    call = in_thread(read)
    yield Contender(
        "dogpile.cache", settings, "read.invalidate()", call, in_thread(read.invalidate)
    )
    yield Contender(
        "dogpile.cache",
        settings,
        "region.invalidate(hard=True)",
        call,
        in_thread(lambda key: region.invalidate(hard=True)),
    )


def cashews(url: str, sources: Sources) -> Iterator[Contender]:
    from cashews import Cache

    cache = Cache()
    cache.setup(url)
    for lock in (False, True):
        prefix = f"lock-{lock}"

        @cache(ttl=TTL_SECONDS, key=prefix + ":{key}", tags=["tag:{key}"], lock=lock)
        async def read(key: str) -> str:
            return await sources[key].read_async()

        async def delete(key: str, prefix: str = prefix) -> None:
            await cache.delete(f"{prefix}:{key}")

        async def delete_tags(key: str) -> None:
            await cache.delete_tags(f"tag:{key}")

        yield Contender("cashews", f"lock={lock}", "cache.delete()", read, delete)
        yield Contender("cashews", f"lock={lock}", "cache.delete_tags()", read, delete_tags)


def aiocache(url: str, sources: Sources) -> Iterator[Contender]:
    from urllib.parse import urlsplit

    from aiocache import Cache, cached_stampede

    place = urlsplit(url)
    where = {"endpoint": place.hostname, "port": place.port}
    cache = Cache(Cache.REDIS, **where)

    @cached_stampede(
        lease=2 * PATIENCE_SECONDS,
        ttl=TTL_SECONDS,
        cache=Cache.REDIS,
        key_builder=lambda function, key: f"aiocache:{key}",
        **where,
    )
    async def read(key: str) -> str:
        return await sources[key].read_async()

    async def delete(key: str) -> None:
        await cache.delete(f"aiocache:{key}")

    yield Contender("aiocache", "cached_stampede", "cache.delete()", read, delete)


def redis_bus(url: str, sources: Sources) -> Iterator[Contender]:
    import redis_bus

    service = redis_bus.Bus("bench", url=url)

    @service.register(cache_key="{key}")
    def read(key: str) -> str:
        return sources[key].read()

    thread = threading.Thread(target=service.serve, daemon=True)
    thread.start()
    with redis_bus.Bus("bench", url=url) as bus:
        method = bus_method(bus)
        call = in_thread(method)
        yield Contender("redis_bus", "", "read.clear_cache()", call, in_thread(method.clear_cache))
        yield Contender(
            "redis_bus",
            "",
            "read.clear_all_cache()",
            call,
            in_thread(lambda key: method.clear_all_cache()),
        )
    service.stop()
    thread.join()


def bus_method(bus: Any) -> Any:
    """The method, once the worker has published it."""
    while "read" not in bus.all_methods():
        pass
    return bus.read


CONTENDERS = (dogpile, cashews, aiocache, redis_bus)


# -- the race ---------------------------------------------------------------------------------


async def show_that_it_caches(contender: Contender, sources: Sources, key: str) -> None:
    """Fail where a library does not cache, or does not invalidate while nothing is computed."""
    held = sources[key]
    held.go.set()
    assert await contender.call(key) == "old"
    held.source = "new"
    assert await contender.call(key) == "old", f"{contender} does not cache"
    await contender.invalidate(key)
    assert await contender.call(key) == "new", f"{contender} does not invalidate"


async def is_stale(contender: Contender, sources: Sources, key: str) -> bool:
    held = sources[key]
    early = asyncio.ensure_future(contender.call(key))
    assert await asyncio.to_thread(held.entered.wait, PATIENCE_SECONDS)
    held.source = "new"
    await contender.invalidate(key)
    held.go.set()
    assert await early == "old", "the held call returns what it read"
    seen = await contender.call(key)
    assert seen in ("old", "new")
    return seen == "old"


async def measure(url: str, rounds: int) -> list[tuple[Contender, int]]:
    sources = Sources()
    results = []
    number = 0
    for make in CONTENDERS:
        for contender in make(url, sources):
            stale = 0
            for _ in range(rounds):
                number += 1
                await show_that_it_caches(contender, sources, f"rest-{number}")
                stale += await is_stale(contender, sources, f"race-{number}")
            results.append((contender, stale))
    return results


def report(results: list[tuple[Contender, int]], rounds: int) -> None:
    rows = [("library", "version", "settings", "invalidation", "stale", "fresh")]
    rows += [
        (
            c.library,
            c.version,
            c.settings,
            c.invalidation,
            f"{stale} of {rounds}",
            f"{rounds - stale}",
        )
        for c, stale in results
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


# -- one command ------------------------------------------------------------------------------


def run_inside(rounds: int) -> None:
    """What runs in the environment that has everybody."""
    import redis

    from redis_bus.embedded import EmbeddedRedis
    from redis_bus.transport.servers import product

    with EmbeddedRedis(port=0) as server:
        with redis.Redis.from_url(server.url) as client:
            version = " ".join(product(client.info("server")))
        python = sys.version.split()[0]
        print(f"Python {python}, redis-py {redis.__version__}, {version}\n", flush=True)
        report(asyncio.run(measure(server.url, rounds)), rounds)


def run(rounds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="redis_bus-bench-") as folder:
        place = Path(folder)
        print(f"installing {', '.join(PEERS)} and redis_bus", file=sys.stderr)
        # Installing leaves files in a tree: it is a copy.
        for name in ("redis_bus", "lua", "sample"):
            shutil.copytree(ROOT / name, place / "tree" / name)
        for name in ("setup.py", "pyproject.toml", "README.rst", "LICENSE"):
            shutil.copy(ROOT / name, place / "tree")
        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run([*pip, *PEERS, f"{place / 'tree'}[embedded]"], check=True)
            command = [python, __file__, "--inside", "--rounds", str(rounds)]
            return subprocess.run(command, cwd=place).returncode
    return 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run_inside(options.rounds)
    else:
        sys.exit(run(options.rounds))


if __name__ == "__main__":
    main()
