"""stats: what the bus counts of each method."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from redis_bus import Bus
from redis_bus.calls import directory
from tests.support import eventually, serving

NAMES = {"calls", "hits", "joins", "errors", "lost", "dead", "queued", "workers", "latency"}


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


def test_an_empty_bus_has_no_stats(bus: Bus) -> None:
    assert bus.stats() == {}


def test_every_method_of_every_service_is_counted_by_itself(bus: Bus, url: str) -> None:
    bus.register("mine")(lambda: 1)
    with Bus("test", url=url, prefix="other_") as other:
        other.register("theirs")(lambda: 2)
        with serving(bus), serving(other):
            bus.mine()
            for _ in range(2):
                bus.theirs()
            stats = bus.stats()
    assert list(stats) == ["mine", "theirs"]
    assert [stats[name]["calls"] for name in stats] == [1, 2]
    assert [stats[name]["workers"] for name in stats] == [1, 1]
    for counted in stats.values():
        assert set(counted) == NAMES


def test_what_nobody_called_counts_zero(bus: Bus, caller: Bus) -> None:
    bus.register("method")(lambda: 1)
    bus.serve_once()
    assert caller.stats() == {"method": dict.fromkeys(NAMES, 0)}


def test_calls_are_hits_joins_and_runs(bus: Bus, caller: Bus) -> None:
    entered, go = threading.Event(), threading.Event()

    @bus.register(cache_key="{a}")
    def gated(a: int) -> int:
        entered.set()
        assert go.wait(20)
        return a

    with serving(bus), ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(caller.gated, 1)]
        assert entered.wait(20)
        answers += [pool.submit(caller.gated, 1) for _ in range(3)]
        eventually(lambda: caller.stats()["gated"]["joins"] == 3)
        caller.gated.run(1)
        caller.gated.run(2)
        assert caller.stats()["gated"] == {
            "calls": 6,
            "hits": 0,
            "joins": 4,
            "errors": 0,
            "lost": 0,
            "dead": 0,
            "queued": 1,
            "workers": 1,
            "latency": 0,
        }
        go.set()
        assert [answer.result(20) for answer in answers] == [1] * 4
        for _ in range(5):
            caller.gated(1)
        eventually(lambda: caller.stats()["gated"]["queued"] == 0)
        stats = caller.stats()["gated"]
    assert stats["calls"] == stats["hits"] + stats["joins"] + 2
    assert [stats["hits"], stats["joins"], stats["errors"]] == [5, 4, 0]


def test_errors_are_the_runs_that_raised(bus: Bus) -> None:
    @bus.register(cache_key="{a}")
    def invert(a: int) -> float:
        return 1 / a

    with serving(bus):
        assert bus.invert(2) == 0.5
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                bus.invert(0)
        with pytest.raises(TypeError):
            bus.invert()  # wrong at the caller: nothing ran
    stats = bus.stats()["invert"]
    assert [stats["calls"], stats["errors"]] == [4, 3]


def test_queued_are_the_jobs_that_wait_now(bus: Bus) -> None:
    bus.register("method")(lambda: 1)
    for _ in range(3):
        bus.method.run()
    assert bus.stats()["method"]["queued"] == 3
    bus.serve_once()
    assert bus.stats()["method"]["queued"] == 0


def test_workers_are_those_alive_that_serve_the_method(bus: Bus, url: str) -> None:
    with Bus("test", url=url, timeout=20) as second:
        for service in (bus, second):
            service.register("both")(lambda: 1)
            service.register("one")(lambda: 1)
        assert bus.stats() == {}
        with serving(bus):
            with serving(second, "both"):
                eventually(lambda: bus.stats()["both"]["workers"] == 2)
                assert bus.stats()["one"]["workers"] == 1
            assert bus.stats()["both"]["workers"] == 1
        assert bus.stats()["both"]["workers"] == 0


def test_latency_is_the_mean_run_in_seconds(bus: Bus) -> None:
    never = threading.Event()
    bus.register("wait", cache_key="{seconds}")(lambda seconds: never.wait(seconds))
    with serving(bus):
        bus.wait(0.1)
        assert 0.1 <= bus.stats()["wait"]["latency"] < 0.5
        bus.wait(0.3)
        latency = bus.stats()["wait"]["latency"]
        assert 0.2 <= latency < 0.6
        for _ in range(20):
            bus.wait(0.3)  # a hit is no run
        assert bus.stats()["wait"]["latency"] == latency


def test_a_counter_that_is_no_number_counts_as_nothing(bus: Bus, client: redis.Redis) -> None:
    bus.register("method")(lambda: 1)
    bus.method.run()
    client.hset("rb:{test:}:stats:method", "hits", "many")
    assert bus.stats()["method"]["hits"] == 0


def test_methods_that_do_not_fit_into_one_write_are_all_counted(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "COUNTED_AT_ONCE", 2)
    names = [f"method{number}" for number in range(5)]
    for name in names:
        bus.register(name)(lambda: None)
    bus.serve_once()
    for count, name in enumerate(names):
        for _ in range(count):
            bus[name].run()
    assert [bus.stats()[name]["queued"] for name in names] == [0, 1, 2, 3, 4]
