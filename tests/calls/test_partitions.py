"""A service in several partitions: the same promises, and one more core for each."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import given

from redis_bus import AsyncBus, Bus, BusError, ConnectionLost, NoWorkers, QueueFull, WorkerLost
from redis_bus.client.method import Method
from redis_bus.protocol import codec
from redis_bus.protocol.commands import Post, Route, Service, partition_of
from redis_bus.protocol.descriptor import Descriptor
from redis_bus.protocol.entries import Mode
from redis_bus.protocol.target import Target
from redis_bus.transport.link import Link
from redis_bus.transport.transport import NodeTransport
from tests import async_support
from tests.calls.test_clear_race import find_violations, run_race
from tests.programs.race import BUS
from tests.support import PATIENCE_SECONDS, Processes, eventually, workers
from tests.worker.test_concurrency import Meeting, serving

# On a cluster of three nodes, three partitions of this bus are on three nodes.
NAME, N = "many", 3
Make = Callable[..., Bus]


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    """Makes buses of one name, in three partitions if nothing else is said."""
    with contextlib.ExitStack() as stack:

        def make(partitions: int = N, **settings: Any) -> Bus:
            settings = {"timeout": 20, **settings}
            return stack.enter_context(Bus(NAME, url=url, partitions=partitions, **settings))

        yield make


def routes(bus: Bus, name: str, partitions: int = N) -> list[Route]:
    return Route(Service(bus.name, bus.prefix), name, bus[name].target.etag).spread(partitions)


def queued(bus: Bus, name: str, partitions: int = N) -> list[int]:
    """How many jobs were ever queued in each partition."""
    found = (bus.conn.hget(one.stats, "queued") for one in routes(bus, name, partitions))
    return [int(count or 0) for count in found]


def waiting(bus: Bus, name: str, partitions: int = N) -> list[int]:
    return [bus.conn.llen(one.queue) for one in routes(bus, name, partitions)]


def claimed(bus: Bus) -> list[bytes]:
    """The jobs that are claimed, of all partitions."""
    return [job for key in bus.conn.scan_iter("rb:*running:*") for job in bus.conn.hkeys(key)]


def enqueue(bus: Bus, name: str, part: int, *args: object) -> None:
    """Enqueue a call in one partition, as a run."""
    target = bus[name].target
    job = f"j{part}-{'-'.join(map(str, args))}"
    body = target.encode(args, {}, {})
    command = target.routes[part].call(job, body, mode=Mode.RUN, budget_ms=0)
    assert bus._core.transport.exchange(command)[0][0] == b"queued"


# -- what a bus is told ---------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [0, -1, 1025])
def test_a_number_of_partitions_that_cannot_be_is_refused(partitions: int) -> None:
    with pytest.raises(ValueError, match=rf"partitions={partitions}: from 1 to 1024"):
        Bus(partitions=partitions)


@pytest.mark.parametrize("partitions", [True, 2.0, "2", None])
def test_partitions_are_a_whole_number(partitions: Any) -> None:
    with pytest.raises(TypeError, match=r"partitions=.* a whole number"):
        AsyncBus(partitions=partitions)


def test_a_service_in_one_partition_is_published_as_ever(make: Make, client: redis.Redis) -> None:
    bus = make(1)
    bus.register("m", cache_key="{a}")(lambda a: a)
    bus.serve_once()
    assert "partitions" not in json.loads(client.hget("rb:{many}:methods", "m") or "")
    assert client.hkeys("rb:{many:}:meta") == [b"m"]
    assert not list(client.scan_iter("*#*"))


def test_the_partitions_are_published_and_stand_in_etag_and_shape(make: Make) -> None:
    one, three = make(1), make(3)
    for bus in (one, three):
        bus.register("m", cache_key="{a}")(lambda a: a)
    published = [bus._core.registrations["m"].descriptor for bus in (one, three)]
    assert published[0].etag != published[1].etag
    assert published[0].shape != published[1].shape
    three.serve_once()
    assert make(1).m.target.descriptor == published[1]


@pytest.mark.parametrize("found", [0, 1025, -1, True, 2.5, "2", None])
def test_a_descriptor_with_other_partitions_is_not_ours(bus: Bus, found: object) -> None:
    tree = {"name": "m", "service": "", "signature": {"parameters": []}, "partitions": found}
    bus.conn.hset("rb:{test}:methods", "m", json.dumps(tree))
    with pytest.raises(BusError, match="no valid partitions"):
        bus.m()


def test_another_number_for_one_prefix_is_told_as_any_other_difference(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = make(1), make(2)
    for bus in (one, two):
        bus.register("m")(lambda a: a)
    with serving(one, 1), serving(two, 1):
        eventually(lambda: "method m was published differently by" in caplog.text)
        assert len(make(1).m.target.routes) == 2
        assert [one.m(a) for a in range(4)] == list(range(4))


# -- where calls go -------------------------------------------------------------------------------


@given(st.binary(), st.integers(1, 1024))
def test_a_key_has_one_partition(key: bytes, partitions: int) -> None:
    signature: dict[str, object] = {"parameters": []}
    descriptor = Descriptor("m", "", signature, cache_key=True, partitions=partitions)
    serializer = codec.get_serializer("msgpack")
    found = {Target("test", descriptor, serializer, 1).route_for(key).service.part for _ in "ab"}
    assert found == {partition_of(key, partitions)} <= set(range(partitions))


def test_the_partition_of_a_key_is_that_of_every_language() -> None:
    assert [partition_of(key, 1024) for key in (b"", b"1/2", b"\x00")] == [0, 856, 909]


def test_uncached_calls_are_spread_evenly(make: Make) -> None:
    bus = make()
    bus.register("m")(lambda a: a)
    with serving(bus, 1):
        assert [bus.m(a) for a in range(4 * N)] == list(range(4 * N))
    assert queued(bus, "m") == [4] * N


def test_callers_of_one_call_each_are_spread_too(make: Make) -> None:
    make().register("m")(lambda a: a)
    bus = make()
    bus.register("m")(lambda a: a)
    bus.serve_once()
    for a in range(30):
        make().m.run(a)
    assert all(queued(bus, "m"))


def test_uncached_calls_of_many_threads_are_spread_evenly(make: Make) -> None:
    bus = make()
    bus.register("m")(lambda a: a)
    bus.serve_once()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bus.m.run, range(8 * N)))
    assert waiting(bus, "m") == [8] * N


def test_cached_calls_go_by_their_key_and_every_caller_finds_the_value(make: Make) -> None:
    bus, ran = make(), Counter[int]()

    @bus.register(cache_key="{a}")
    def m(a: int) -> int:
        ran[a] += 1
        return 2 * a

    expected = Counter(partition_of(str(a).encode(), N) for a in range(20))
    with serving(bus, 1):
        for caller in (bus, make(1), make(7)):
            assert [caller.m(a) for a in range(20)] == [2 * a for a in range(20)]
    assert queued(bus, "m") == [expected[part] for part in range(N)]
    # With no worker alive.
    assert make(1).m(19) == 38
    assert set(ran.values()) == {1}


def test_async_callers_find_the_same(make: Make, url: str) -> None:
    bus = make()
    bus.register("keyed", "{a}")(lambda a: a)
    bus.register("plain")(lambda a: a)

    async def main() -> None:
        async with async_support.calling(url, name=NAME) as caller:
            assert [await caller.keyed(a) for a in range(9)] == list(range(9))
            assert [await caller.plain(a) for a in range(9)] == list(range(9))
            assert [a async for a in caller.plain.map(range(50))] == list(range(50))
            results = [await caller.plain.run(a) for a in range(9)]
            again = [caller.get_async_result(result.id) for result in results]
            assert [await result.get() for result in again] == list(range(9))
            assert await caller.keyed.clear_cache(3)
            await caller.keyed.clear_all_cache()
            assert not await caller.keyed.clear_cache(4)

    with serving(bus, 1):
        async_support.run(main())
    assert min(queued(bus, "plain")) > 3


def test_a_key_is_computed_once_for_all_who_call_at_once(make: Make) -> None:
    bus, ran, go = make(), Counter[int](), threading.Event()

    @bus.register(cache_key="{a}")
    def m(a: int) -> int:
        ran[a] += 1
        go.wait(PATIENCE_SECONDS)
        return a

    with serving(bus, N), ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(make().m, n % 4) for n in range(16)]
        eventually(lambda: bus.stats()["m"]["joins"] == 12)
        go.set()
        assert [call.result() for call in calls] == [n % 4 for n in range(16)]
    assert ran == Counter(range(4))


# -- the same promises ----------------------------------------------------------------------------


def test_clears_reach_every_partition(make: Make) -> None:
    bus, version = make(), [0]
    bus.register("m", "{a}")(lambda a: version[0])
    with serving(bus, 1):
        caller = make(1)
        assert {caller.m(a) for a in range(20)} == {0}
        version[0] = 1
        assert all(caller.m.clear_cache(a) for a in range(10))
        assert [caller.m(a) for a in range(20)] == [1] * 10 + [0] * 10
        caller.m.clear_all_cache()
        version[0] = 2
        assert not any(caller.m.clear_cache(a) for a in range(20))
        assert {caller.m(a) for a in range(20)} == {2}


def test_each_partition_has_its_share_of_max_queue(make: Make) -> None:
    bus = make()
    bus.register("m", max_queue=4)(lambda a: a)
    for a in range(6):
        bus.m.run(a)
    assert waiting(bus, "m") == [2, 2, 2]
    with pytest.raises(QueueFull, match=r"2 jobs wait for m in its partition .*max_queue=4"):
        bus.m.run(7)
    assert bus.serve_once() == 6


def test_counters_are_sums(make: Make) -> None:
    bus = make()

    @bus.register(cache_key="{a}")
    def m(a: int) -> int:
        if a == 7:
            raise ValueError(a)
        return a

    with serving(bus, 1):
        for a in [*range(7), *range(7)]:
            bus.m(a)
        with pytest.raises(ValueError, match="7"):
            bus.m(7)
    for a in range(20, 29):
        bus.m.run(a)
    found = bus.stats()["m"]
    assert found.pop("latency") > 0
    assert found == {
        "calls": 24, "hits": 7, "joins": 0, "errors": 1, "lost": 0, "dead": 0, "queued": 9,
        "workers": 0,
    }  # fmt: skip


def test_a_worker_is_counted_once(make: Make, processes: Processes) -> None:
    bus = make()
    bus.register("m")(lambda a: a)
    with serving(bus, 1):
        assert workers(bus, "m") == 1
        shown = processes.run("redis-bus", "ls", NAME).stdout
        assert "[1 worker, 0 queued, 3 partitions]" in shown
        assert "1 worker alive" in processes.run("redis-bus", "ping", NAME).stdout
    with pytest.raises(NoWorkers):
        bus.m.options(fail_fast=True)(1)


def test_results_are_found_by_their_ids(make: Make) -> None:
    bus = make(prefix="math_")
    bus.register("math_m")(lambda a: a)
    results = [bus.math_m.run(a) for a in range(N)]
    parts = sorted(result.id.split(":")[0] for result in results)
    assert parts == ["math_", "math_#1", "math_#2"]
    assert results[0].cancel()
    bus.serve_once()
    other = make(1)
    found = [other.get_async_result(result.id) for result in results[1:]]
    assert [result.get() for result in found] == [1, 2]
    assert other.get_async_result(results[0].id).done()


@pytest.mark.parametrize("label", ["#0", "#-1", "#01", "#1024", "#", "#x", "##1", "# 1"])
def test_what_names_no_partition_is_no_id(bus: Bus, label: str) -> None:
    with pytest.raises(BusError, match="not the id of a result"):
        bus.get_async_result(f"math_{label}:m:job")


def lose(bus: Bus, name: str) -> None:
    """Let a worker take one job of each partition, and die."""
    for route in routes(bus, name):
        post = Post(route.service, "dead", [route])
        taken, _ = bus._core.transport.ask(post.take([route]), route.service.lapse("dead"))
        assert taken is not None


def test_dead_letters_of_all_partitions_are_listed_and_retried(make: Make) -> None:
    bus, ran = make(), list[int]()
    bus.register("m")(ran.append)
    results = [bus.m.run(a) for a in range(N)]
    lose(bus, "m")
    with serving(bus, 1):
        for result in results:
            with pytest.raises(WorkerLost):
                result.get()
        letters = bus.m.dead_letters()
        assert sorted(letter.call for letter in letters) == [f"m({a})" for a in range(N)]
        assert [one.time for one in letters] == sorted(one.time for one in letters)
        assert bus.stats()["m"]["dead"] == bus.stats()["m"]["lost"] == N
        assert letters[0].drop()
        for letter in letters[1:]:
            letter.retry().get()
        assert bus.m.dead_letters() == []
    assert sorted(f"m({a})" for a in ran) == sorted(letter.call for letter in letters[1:])


def test_what_a_lost_worker_held_in_any_partition_runs_again(make: Make) -> None:
    bus, ran = make(), list[int]()
    bus.register("m", idempotent=True)(ran.append)
    results = [bus.m.run(a) for a in range(2 * N)]
    lose(bus, "m")
    with serving(bus, 1):
        for result in results:
            result.get()
    assert sorted(ran) == list(range(2 * N))


def test_bytes_that_are_no_job_are_buried_in_their_partition(make: Make) -> None:
    bus = make()
    bus.register("m")(lambda a: a)
    with serving(bus, 1):
        for number, route in enumerate(routes(bus, "m")):
            bus.conn.rpush(route.queue, f"foreign {number}")
            bus.conn.rpush(route.wake, 1)
        eventually(lambda: len(bus.m.dead_letters()) == N)
        assert [bus.m(a) for a in range(N)] == list(range(N))
    assert all(bus.conn.llen(route.dead) == 1 for route in routes(bus, "m"))


def test_cleanup_forgets_the_partitions_too(make: Make, client: redis.Redis) -> None:
    bus = make()
    bus.register("m", "{a}")(lambda a: a)
    for a in range(9):
        bus.m.run(a)
    bus.serve_once()
    assert bus.cleanup() > N
    assert client.keys("*") == []


# -- workers --------------------------------------------------------------------------------------


def is_full(bus: Bus, jobs: int) -> bool:
    """Whether so many jobs are claimed, and what was claimed besides has been given back."""
    return all(len(claimed(bus)) == jobs for _ in range(30))


def is_parked(bus: Bus, part: int) -> bool:
    """Whether the slots look themselves for the jobs of a partition."""
    (worker,) = bus._workers
    return worker._dispatch._is_parked(worker._fetchers[part])


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_flooded_partition_does_not_starve_the_others(make: Make, concurrency: int) -> None:
    bus, ran, go = make(), list[tuple[int, int]](), threading.Event()

    @bus.register()
    def m(part: int, a: int) -> None:
        go.wait(PATIENCE_SECONDS)
        ran.append((part, a))

    with serving(bus, concurrency):
        for a in range(50):
            enqueue(bus, "m", 1, 1, a)
        eventually(lambda: is_full(bus, concurrency))
        for a in range(3):
            enqueue(bus, "m", 2, 2, a)
        eventually(lambda: is_full(bus, concurrency))
        go.set()
        eventually(lambda: len(ran) == 53)
    others = [place for place, (part, _) in enumerate(ran) if part == 2]
    # Each has every other turn. A thread may be slow to say that it ran.
    assert max(others) <= (2 * 3 + 2 if concurrency == 1 else 35)


def test_a_partition_that_was_empty_has_its_turn_while_another_is_flooded(make: Make) -> None:
    bus, ran = make(), list[tuple[int, int]]()

    @bus.register()
    def m(part: int, a: int) -> None:
        ran.append((part, a))
        if part == 1 and a == 20:
            enqueue(bus, "m", 2, 2, 0)
            eventually(lambda: is_parked(bus, 2))

    bus.serve_once()
    for a in range(50):
        enqueue(bus, "m", 1, 1, a)
    with serving(bus, 1):
        eventually(lambda: len(ran) == 51)
    assert ran.index((1, 20)) < ran.index((2, 0)) <= ran.index((1, 20)) + N + 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_worker_holds_no_job_that_it_cannot_run_now(make: Make, concurrency: int) -> None:
    bus, go, meeting = make(), threading.Event(), Meeting(concurrency)

    @bus.register()
    def m(a: int) -> int:
        with meeting.counted():
            go.wait(PATIENCE_SECONDS)
        return a

    with serving(bus, concurrency):
        results = [bus.m.run(a) for a in range(4 * N)]
        eventually(lambda: is_full(bus, concurrency))
        assert bus.stats()["m"]["queued"] == 4 * N - concurrency
        eventually(lambda: meeting.peak == concurrency)  # what is claimed has begun
        go.set()
        assert [result.get() for result in results] == list(range(4 * N))
    assert meeting.peak == concurrency
    assert claimed(bus) == []
    # Nobody was lost with a job, or began one twice.
    assert all(int(bus.conn.hget(one.stats, "retries") or 0) == 0 for one in routes(bus, "m"))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_max_jobs_counts_those_of_all_partitions(make: Make, concurrency: int) -> None:
    bus, ran = make(), list[int]()
    bus.register("m")(ran.append)
    results = [bus.m.run(a) for a in range(4 * N)]
    bus.serve(max_jobs=5, concurrency=concurrency)
    assert len(ran) == 5 == sum(result.done() for result in results)
    assert claimed(bus) == [] and workers(bus, "m") == 0
    bus.serve(max_jobs=4 * N - 5, concurrency=concurrency)
    assert sorted(ran) == list(range(4 * N))


class Away:
    """Makes the server of one partition one that cannot be reached, while the others can."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
        self.is_on, self._tag = False, tag
        for name in ("exchange", "ask", "checkout"):
            self._patch(monkeypatch, NodeTransport, name)
        self._patch(monkeypatch, Link, "send")

    def _patch(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        real = getattr(kind, name)

        def patched(one: object, *args: Any, **kwargs: Any) -> Any:
            if self.is_on and self._tag in repr((args, kwargs)):
                raise ConnectionLost("away")
            return real(one, *args, **kwargs)

        monkeypatch.setattr(kind, name, patched)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_partition_that_cannot_be_reached_keeps_the_others_from_nothing(
    make: Make, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    bus, ran, go = make(), list[int](), threading.Event()
    away = Away(monkeypatch, "{many:#1}")

    @bus.register()
    def m(part: int, a: int) -> None:
        go.wait(PATIENCE_SECONDS)
        ran.append(part)

    with serving(bus, concurrency):
        for a in range(20):
            enqueue(bus, "m", 0, 0, a)
        eventually(lambda: is_full(bus, concurrency))
        enqueue(bus, "m", 1, 1, 0)
        eventually(lambda: is_parked(bus, 1))  # so the slots look there themselves
        away.is_on = True
        enqueue(bus, "m", 2, 2, 0)
        go.set()
        eventually(lambda: Counter(ran) == Counter({0: 20, 2: 1}))
        away.is_on = False
        eventually(lambda: Counter(ran) == Counter({0: 20, 1: 1, 2: 1}))
        away.is_on = True
    away.is_on = False
    # Who ends says so where it can.
    left = [client.exists(route.service.workers) for route in routes(bus, "m")]
    assert left == [0, 1, 0]


def test_no_thread_is_left_after_serving(make: Make) -> None:
    bus = make()
    bus.register("m")(lambda a: a)
    before = set(threading.enumerate())
    with serving(bus, 2):
        assert bus.m(1) == 1
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("redis_bus fetcher") == N
    assert set(threading.enumerate()) <= before


SERVICE = """
    import os, signal, redis_bus

    bus = redis_bus.Bus("many", partitions=3)

    @bus.register(idempotent=True)
    def held(a):
        bus.conn.rpush("entered", f"{a} {os.getpid()}")
        while not bus.conn.blpop("go", 2):
            pass
        return a

    if __name__ == "__main__":
        bus.serve()
"""


def entered(client: redis.Redis) -> list[list[int]]:
    """Which jobs began, and in which process."""
    return [list(map(int, item.split())) for item in client.lrange("entered", 0, -1)]


def test_the_first_signal_lets_the_job_finish_and_leaves_all_partitions(
    make: Make, processes: Processes, client: redis.Redis
) -> None:
    processes.write("service.py", SERVICE)
    process = processes.start("python", "service.py")
    bus = make(1)
    eventually(lambda: workers(bus, "held"))
    results = [bus.held.run(a) for a in range(N)]
    eventually(lambda: entered(client))
    process.send_signal(signal.SIGTERM)
    eventually(lambda: workers(bus, "held") == 0)
    client.rpush("go", 1)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, out + err
    assert len(entered(client)) == 1 == sum(result.done() for result in results)
    assert sum(waiting(bus, "held")) == N - 1
    assert claimed(bus) == []


def test_the_second_signal_stops_at_once_and_tells_the_caller(
    make: Make, processes: Processes, client: redis.Redis
) -> None:
    processes.write("service.py", SERVICE)
    process = processes.start("python", "service.py")
    bus = make(1)
    eventually(lambda: workers(bus, "held"))
    result = bus.held.run(1)
    eventually(lambda: entered(client))
    process.send_signal(signal.SIGTERM)
    eventually(lambda: workers(bus, "held") == 0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_SECONDS)
    with pytest.raises(WorkerLost, match="was stopped"):
        result.get()


def test_jobs_of_a_killed_child_run_again_at_once_in_all_partitions(
    make: Make, processes: Processes, client: redis.Redis
) -> None:
    processes.write("service.py", SERVICE)
    supervisor = processes.start("redis-bus", "service.bus", "-w", "1", "-c", "3")
    bus = make(1)
    eventually(lambda: workers(bus, "held"))
    results = [bus.held.run(a) for a in range(N)]
    eventually(lambda: len(entered(client)) == N)
    first = entered(client)[0][1]
    processes.run("kill", "-9", str(first))
    eventually(lambda: len(entered(client)) == 2 * N)
    client.rpush("go", *range(N))
    assert [result.get() for result in results] == list(range(N))
    assert Counter(a for a, _ in entered(client)) == Counter(dict.fromkeys(range(N), 2))
    supervisor.send_signal(signal.SIGTERM)
    supervisor.communicate(timeout=PATIENCE_SECONDS)


# -- one tag for each command ---------------------------------------------------------------------


def tags(words: list[str]) -> set[str]:
    """The hash tags of the keys of a command."""
    if words[0] == "EVALSHA":
        words = words[3 : 3 + int(words[2])]
    return {word.partition("{")[2].partition("}")[0] for word in words if word.startswith("rb:{")}


def test_no_command_has_keys_of_two_partitions(make: Make, client: redis.Redis) -> None:
    bus = make()
    bus.register("plain")(lambda a: a)
    bus.register("keyed", "{a}", stale=1)(lambda a: a)
    seen = set[str]()
    with client.monitor() as monitor:
        results = [bus.plain.run(a) for a in range(2 * N)]
        lose(bus, "plain")
        with serving(bus, 2):
            assert list(bus.plain.map(range(100))) == list(range(100))
            for a in range(9):
                assert (bus.plain(a), bus.keyed(a)) == (a, a)
                bus.keyed.clear_cache(a)
            bus.keyed.clear_all_cache()
            assert [bus.plain.run(a).get() for a in range(N)] == list(range(N))
            for letter in bus.plain.dead_letters():
                letter.retry().get()
            bus.stats()
        assert all(result.done() for result in results)
        client.echo("the end")
        while True:
            # Only what is sent: a script's own commands have the keys that it declares.
            command = monitor.next_command()
            words = command["command"].split(" ")
            if words[0] == "ECHO":
                break
            if command["client_type"] != "lua":
                assert len(tags(words)) <= 1, words
                seen |= tags(words)
    assert seen == {"many", "many:", "many:#1", "many:#2"}


# -- another number of partitions, while the service lives ----------------------------------------


def test_jobs_queued_in_a_former_partition_are_run(make: Make) -> None:
    many, few, ran = make(4), make(2), list[int]()
    for bus in (many, few):
        bus.register("m")(ran.append)
    results = [many.m.run(a) for a in range(12)]
    lose_one = routes(many, "m", 4)[3]
    assert few.serve_once() == 12
    assert sorted(ran) == list(range(12))
    assert all(result.done() for result in results)
    # Dead letters of a former partition are still listed, and counted.
    few.conn.rpush(lose_one.dead, "foreign")
    assert len(few.m.dead_letters()) == few.stats()["m"]["dead"] == 1


def test_jobs_of_a_worker_lost_in_a_former_partition_run_again(make: Make) -> None:
    many, few, ran = make(N), make(1), list[int]()
    for bus in (many, few):
        bus.register("m", idempotent=True)(ran.append)
    results = [many.m.run(a) for a in range(N)]
    lose(many, "m")
    with serving(few, 1):
        for result in results:
            result.get()
    assert sorted(ran) == list(range(N))


def test_nothing_cached_under_another_number_is_served_again(make: Make) -> None:
    version = [0]
    buses = [make(number) for number in (4, 2, 4, 1, 4)]
    caller = make(1)
    for bus in buses:
        bus.register("m", "{a}")(lambda a: version[0])
    for number, bus in enumerate(buses):
        version[0] = number
        with serving(bus, 2):
            # This caller knows the number of before.
            assert {caller.m(a) for a in range(20)} == {number}
            assert len(caller.m.target.routes) == bus.partitions
            assert all(caller.m.clear_cache(a) for a in range(20))
            assert {caller.m(a) for a in range(20)} == {number}


def test_a_clear_by_who_knows_the_former_number_reaches_the_new_partitions(make: Make) -> None:
    version, few, many = [0], make(1), make(4)
    for bus in (few, many):
        bus.register("m", "{a}")(lambda a: version[0])
    few.serve_once()
    by_key, by_all = make(1), make(1)
    for caller in (by_key, by_all):
        assert len(caller.m.target.routes) == 1
    with serving(many, 1):
        for forget in (
            lambda: [by_key.m.clear_cache(a) for a in range(9)],
            by_all.m.clear_all_cache,
        ):
            assert {many.m(a) for a in range(9)} == {version[0]}
            version[0] += 1
            forget()
            assert {many.m(a) for a in range(9)} == {version[0]}


def test_a_clear_of_all_is_made_again_where_the_number_changes_meanwhile(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, few, many = [0], make(1), make(4)
    for bus in (few, many):
        bus.register("m", "{a}")(lambda a: version[0])
    caller = make(1)
    with serving(few, 1):
        assert caller.m(1) == 0
    with serving(many, 1):
        few._core.drive(few._core.publish(list(few._core.registrations.values())))
        refreshed, done = Method.refreshed, list[int]()

        def then_publish(self: Method[..., Any]) -> Any:
            """What is published between the look at the registry and the clear."""
            newer = yield from refreshed(self)
            if not done:
                done.append(1)
                registrations = list(many._core.registrations.values())
                yield from many._core.publish(registrations)
                assert many.m(3) == 0
                version[0] = 1
            return newer

        monkeypatch.setattr(Method, "refreshed", then_publish)
        caller.m.clear_all_cache()
        assert done
        assert many.m(3) == 1


def test_what_a_publisher_left_half_way_its_callers_finish(make: Make) -> None:
    few, many = make(2), make(4)
    for bus in (few, many):
        bus.register("m", "{a}")(lambda a: a)
    with serving(many, 1):
        few.m(1)  # publishes, too
        registration = many._core.registrations["m"]
        steps = many._core.publish([registration])
        request = next(steps)
        # The descriptor and the first of the partitions, no more.
        for _ in range(3):
            request = steps.send(many._core.transport.ask(*request.commands))
        steps.close()
        assert make(1).m(3) == 3
        assert len(few.m.target.routes) == 2
        assert few.m(1) == 1
        assert len(few.m.target.routes) == 4


CHANGING = """
    import sys, redis_bus

    bus = redis_bus.Bus("many", partitions=int(sys.argv[1]))

    @bus.register()
    def once(a):
        return bus.conn.incr(f"ran:{a}")

    bus.serve(concurrency=2)
"""


def test_no_job_is_lost_or_run_twice_while_the_number_changes(
    make: Make, processes: Processes, client: redis.Redis
) -> None:
    processes.write("service.py", CHANGING)
    caller, results, stop = make(1), list[Any](), threading.Event()
    serving = processes.start("python", "service.py", "2")
    eventually(lambda: workers(caller, "once"))

    def call(number: int) -> None:
        bus = make(1)
        while not stop.is_set():
            results.append(bus.once.run(f"{number}-{len(results)}-{threading.get_ident()}"))
            assert bus.once(f"call {number} {len(results)} {threading.get_ident()}") == 1

    def has_more(enough: int) -> bool:
        return len(results) > enough

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(call, number) for number in range(3)]
        for number in (4, 2, 4):
            before, enough = serving, len(results) + 20
            serving = processes.start("python", "service.py", str(number))
            eventually(lambda: workers(caller, "once") == 2)
            eventually(functools.partial(has_more, enough))
            before.send_signal(signal.SIGTERM)
            out, err = before.communicate(timeout=PATIENCE_SECONDS)
            assert before.returncode == 0, out + err
        stop.set()
        for one in calls:
            one.result(PATIENCE_SECONDS)
    assert {result.get() for result in results} == {1}
    ran = list(client.scan_iter("ran:*", count=1000))
    assert {client.get(key) for key in ran} == {b"1"}
    assert len(caller.once.target.routes) == 4
    assert caller.stats()["once"]["calls"] == len(ran) == 2 * len(results)


def test_no_call_sees_a_value_from_before_a_clear_while_the_number_changes(
    some: Processes,
) -> None:
    assert find_violations(run_race(some, 4, partitions=[2, 4])) == []
    with redis.Redis.from_url(some.url) as client:
        assert client.hget(f"rb:{{{BUS}:}}:meta", "#") == b"4"
