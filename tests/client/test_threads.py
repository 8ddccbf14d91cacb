"""One `Bus` for many threads: own answers, no lock while waiting, connections, closing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from redis_bus import Bus, CallTimeout
from tests.support import PATIENCE_SECONDS, eventually, serving

THREADS = 64
OURS = "many-threads"


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing and names its connections."""
    with Bus("test", url=url, timeout=PATIENCE_SECONDS, client_name=OURS) as bus:
        yield bus


def ours(client: redis.Redis) -> set[str]:
    """The ids of the caller's connections."""
    return {one["id"] for one in client.client_list() if one["name"] == OURS}


def echo(value: Any) -> Any:
    return value


def at_once(threads: int, use: Callable[[int], Any]) -> list[Any]:
    """Run something in so many threads, which begin at the same time; return what they return."""
    start = threading.Barrier(threads)

    def begin(thread: int) -> Any:
        start.wait(PATIENCE_SECONDS)
        return use(thread)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


def test_many_threads_over_one_bus_get_each_their_own_answers(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    bus.register("plain")(echo)
    bus.register("keyed", cache_key="{value}")(echo)

    @bus.register()
    def fail(value: Any) -> None:
        raise ValueError(value)

    def use(thread: int) -> list[object]:
        found: list[object] = []
        for turn in range(5):
            found += [caller.plain((thread, turn)), caller.keyed(f"{thread}.{turn}")]
            found.append(caller.keyed("one for all"))
            found.append(caller.plain.run((turn, thread)).get())
            with pytest.raises(ValueError) as error:
                caller.fail((thread, turn))
            found.append(error.value.args[0])
        return found

    with serving(bus):
        answers = at_once(THREADS, use)
        # No more of them than calls at a time, however many calls.
        assert 0 < len(ours(client)) <= THREADS
    for thread, found in enumerate(answers):
        wanted: list[object] = []
        for turn in range(5):
            own = (thread, turn)
            wanted += [own, f"{thread}.{turn}", "one for all", (turn, thread), own]
        assert found == wanted


def test_calls_that_wait_hold_nobody_back_and_their_connections_are_used_again(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    bus.register("held")(echo)
    bus.register("held_cached", cache_key=True)(echo)
    bus.register("quick")(echo)
    bus.all_methods()
    for name in ("held", "held_cached"):
        bus.get_method(name)  # published, and served later

    def blocked() -> int:
        return sum(one["name"] == OURS and "b" in one["flags"] for one in client.client_list())

    with serving(bus, "quick"), ThreadPoolExecutor(THREADS) as pool:
        assert caller.quick(0) == 0
        waiting = [
            pool.submit(caller.held_cached if n % 3 == 0 else caller.held, n)
            for n in range(THREADS - 1)
        ]
        eventually(lambda: blocked() == THREADS - 1)
        assert [caller.quick(n) for n in range(50)] == list(range(50))
        assert caller.quick.options(timeout=5).run("run").get() == "run"
        # One more for each call that waits in slices, no more.
        assert THREADS - 1 <= len(ours(client)) <= THREADS + 1
        with serving(bus, "held*"):
            assert [call.result() for call in waiting] == list(range(THREADS - 1))
            known = ours(client)
            assert list(pool.map(caller.quick, range(200))) == list(range(200))
            assert ours(client) == known


def test_a_timeout_in_one_thread_is_none_in_another(bus: Bus, caller: Bus) -> None:
    bus.register("unserved")(echo)
    bus.register("quick")(echo)
    assert bus.get_method("unserved")

    def use(thread: int) -> object:
        if thread % 2:
            return [caller.quick((thread, turn)) for turn in range(10)]
        with pytest.raises(CallTimeout, match=rf"^unserved\({thread}\): no reply in 0\.2 s"):
            caller.unserved.options(timeout=0.2)(thread)
        return None

    with serving(bus, "quick"):
        for thread, found in enumerate(at_once(16, use)):
            assert found == ([(thread, turn) for turn in range(10)] if thread % 2 else None)


def test_closing_in_another_thread_lets_calls_end_and_leaves_no_connection(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    entered, go = threading.Barrier(2), threading.Event()

    @bus.register()
    def held(a: int) -> int:
        entered.wait(PATIENCE_SECONDS)
        assert go.wait(PATIENCE_SECONDS)
        return a

    bus.register("quick")(echo)
    with serving(bus), ThreadPoolExecutor(4) as pool:
        calls: list[Future[Any]] = [pool.submit(caller.held, 1)]
        entered.wait(PATIENCE_SECONDS)
        calls += [pool.submit(caller.quick, n) for n in range(2)]
        eventually(lambda: client.llen("rb:{test:}:queue:quick") == 2)  # behind it
        caller.close()
        go.set()
        assert [call.result() for call in calls] == [1, 0, 1]
        eventually(lambda: not ours(client))
        # It can be used again, and keeps its connection again.
        assert caller.quick(3) == 3
        assert len(ours(client)) == 1
        with caller:
            assert caller.quick(4) == 4
        eventually(lambda: not ours(client))


def test_a_bus_may_be_closed_at_any_moment(bus: Bus, caller: Bus, client: redis.Redis) -> None:
    bus.register("quick")(echo)
    ended = threading.Event()
    interval = sys.getswitchinterval()

    def use(thread: int) -> int:
        if thread < 2:
            while not ended.is_set():
                caller.close()
            return 0
        try:
            for turn in range(100):
                assert caller.quick((thread, turn)) == (thread, turn)
        finally:
            ended.set()
        return 100

    with serving(bus):
        sys.setswitchinterval(1e-5)
        try:
            assert sum(at_once(6, use)) == 400
        finally:
            sys.setswitchinterval(interval)
        caller.close()
        eventually(lambda: not ours(client))


def test_closing_a_bus_that_serves_leaves_no_connection(url: str, client: redis.Redis) -> None:
    bus = Bus("test", url=url, timeout=PATIENCE_SECONDS, client_name=OURS)
    bus.register("quick")(echo)
    with serving(bus):
        assert bus.quick(1) == 1
        bus.close()
    eventually(lambda: not ours(client))
