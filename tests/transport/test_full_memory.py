"""A worker goes on where Redis takes no more: memory is full, or an outcome too large for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from redis_bus import Bus, BusError
from redis_bus.embedded import EmbeddedRedis
from tests.support import PATIENCE_SECONDS, eventually, serving


@pytest.fixture
def own(server: EmbeddedRedis) -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, of the kind in turn."""
    with EmbeddedRedis(server.executable) as own:
        yield own


@pytest.fixture
def admin(own: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own.url) as admin:
        yield admin


@pytest.fixture
def bus(own: EmbeddedRedis) -> Iterator[Bus]:
    with Bus("test", url=own.url, timeout=30) as bus:
        yield bus


def test_a_worker_whose_connection_breaks_while_memory_is_full_serves_on(
    bus: Bus, admin: redis.Redis
) -> None:
    entered, go = threading.Event(), threading.Event()

    @bus.register()
    def held(n: int) -> int:
        entered.set()
        assert go.wait(20)
        return n

    with serving(bus):
        results = [bus.held.run(n) for n in range(2)]
        assert entered.wait(20)
        admin.config_set("maxmemory", 1)
        admin.client_kill_filter(_type="normal", skipme=True)
        go.set()
        eventually(lambda: all(admin.exists(f"rb:{{test:}}:reply:{r.id[6:]}") for r in results))
        admin.config_set("maxmemory", 0)
        assert [result.get() for result in results] == [0, 1]


def refusals(admin: redis.Redis) -> int:
    """How often Redis said that it is out of memory."""
    return int(admin.info("errorstats").get("errorstat_OOM", {"count": 0})["count"])


def waits(admin: redis.Redis) -> bool:
    """Whether a caller waits as one of many, for whom the outcome stays where it is."""
    return any(client["cmd"] == "blmove" for client in admin.client_list())


CALLS = {
    "call": lambda bus, n: bus.held(n),
    "cached": lambda bus, n: bus.kept(n),
    "run": lambda bus, n: bus.held.run(n).get(),
    "map": lambda bus, n: next(iter(bus.held.map([n]))),
}


@pytest.mark.parametrize("again", [False, True], ids=["woken", "waits-anew"])
@pytest.mark.parametrize("how", CALLS)
def test_who_waits_while_memory_becomes_full_gets_the_outcome(
    bus: Bus, admin: redis.Redis, how: str, again: bool
) -> None:
    """Redis refuses to wait then; from 7.2 on also whom it had woken for the outcome."""
    go = threading.Event()

    def held(n: int) -> int:
        assert go.wait(PATIENCE_SECONDS)
        return 2 * n

    bus.register("held")(held)
    bus.register("kept", cache_key=True)(held)
    with serving(bus), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(CALLS[how], bus, 4)
        eventually(lambda: waits(admin))
        admin.config_set("maxmemory", 1)
        before = refusals(admin)
        if again:
            eventually(lambda: refusals(admin) > before)
        go.set()
        try:
            assert answer.result(PATIENCE_SECONDS) == 8
        finally:
            admin.config_set("maxmemory", 0)


def test_a_worker_that_starts_while_memory_is_full_serves_what_is_published(
    bus: Bus, admin: redis.Redis
) -> None:
    bus.register("double")(lambda n: 2 * n)
    bus.serve_once()
    result = bus.double.run(4)
    admin.config_set("maxmemory", 1)
    with serving(bus):
        eventually(lambda: admin.exists(f"rb:{{test:}}:reply:{result.id[8:]}"))
        admin.config_set("maxmemory", 0)
        assert result.get() == 8


def test_a_job_whose_flight_is_gone_is_admitted_while_memory_is_full(
    bus: Bus, admin: redis.Redis
) -> None:
    bus.register("double", cache_key="{n}")(lambda n: 2 * n)
    bus.serve_once()
    result = bus.double.run(4)
    queue = "rb:{test:}:queue:double"
    job, _, *rest = admin.lindex(queue, 0).split(b" ")
    admin.lset(queue, 0, b" ".join([job, b"2", *rest]))  # it was given away
    admin.delete("rb:{test:}:flight:double:4")
    admin.config_set("maxmemory", 1)
    with serving(bus):
        eventually(lambda: admin.exists(f"rb:{{test:}}:reply:{result.id[8:]}"))
        admin.config_set("maxmemory", 0)
        assert result.get() == 8


def test_an_outcome_that_redis_does_not_take_is_an_error_and_the_worker_serves_on(
    bus: Bus, admin: redis.Redis
) -> None:
    admin.config_set("proto-max-bulk-len", 1024 * 1024)
    bus.register("large")(lambda: b"x" * 2_000_000)
    bus.register("small")(lambda: 1)
    with serving(bus):
        with pytest.raises(BusError, match=r"Redis does not take its outcome of 20000\d\d bytes"):
            bus.large()
        assert bus.small() == 1
