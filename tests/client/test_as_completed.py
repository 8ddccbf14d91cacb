"""`as_completed`: results in the order in which they get done, told by Redis, never polled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_bus import (
    AsyncBus,
    AsyncResult,
    Bus,
    CallTimeout,
    Cancelled,
    ConnectionLost,
    JobLost,
    WorkerLost,
    as_completed,
)
from redis_bus.calls import waiting
from redis_bus.calls.steps import Steps
from redis_bus.client import completed
from redis_bus.protocol.commands import Post, Service
from tests.async_support import Gate
from tests.commands import sent
from tests.support import eventually, serving

SERVICE = Service("test", "")


def double(n: int) -> int:
    if n < 0:
        raise ValueError(n)
    return 2 * n


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def published(bus: Bus) -> Bus:
    """A bus whose methods are published; nobody serves them."""
    bus.register()(double)
    bus.register("cached", cache_key="{n}")(double)
    assert bus.get_method("double")
    assert bus.get_method("cached")
    return bus


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look around soon."""
    for name in ("FIRST_SLICE_SECONDS", "SLICE_SECONDS"):
        monkeypatch.setattr(completed, name, 0.05)


def listeners(client: redis.Redis) -> int:
    return len(client.client_list(_type="pubsub"))


def heard_of(bus: Bus, count: int) -> None:
    """Wait until somebody listens for so many jobs."""
    eventually(lambda: len(bus.conn.keys("rb:{test:}:inboxes:*")) == count)


def job_of(result: Any) -> str:
    return str(result.id.rpartition(":")[2])


# -- the order ----------------------------------------------------------------------------------


def test_every_result_comes_once_and_those_that_are_done_first(published: Bus) -> None:
    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(-2, 9), st.booleans(), st.booleans()), max_size=12))
    def check(plan: list[tuple[int, bool, bool]]) -> None:
        published.cached.clear_all_cache()
        runs: dict[str, tuple[AsyncResult, int]] = {}
        for n, is_late, is_cached in sorted(plan, key=lambda one: one[1]):
            if is_late:
                published.serve_once()
            result = (published.cached if is_cached else published.double).run(n)
            runs[result.id] = result, n
        done = {name for name, (result, _) in runs.items() if result.done()}
        values = as_completed([result for result, _ in reversed(runs.values())])
        first = [next(values).id for _ in done]
        assert set(first) == done
        published.serve_once()
        assert sorted(first + [one.id for one in values]) == sorted(runs)
        for result, n in runs.values():
            if n < 0:
                with pytest.raises(ValueError, match=str(n)):
                    result.get()
            else:
                assert result.get() == 2 * n

    check()


def test_results_come_in_the_order_in_which_they_get_done(
    bus: Bus, pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    bus.register("held")(gate)
    assert bus.get_method("held")
    results = [bus.held.run(n) for n in range(5)]
    found: list[int] = []

    def read() -> None:
        found.extend(result.get() for result in as_completed(reversed(results)))

    reading = pool.submit(read)
    heard_of(bus, 5)
    with serving(bus):
        assert gate.entered.wait(20)
        assert found == []
        gate.go.set()
        reading.result(20)
    assert found == [0, 1, 2, 3, 4]


def test_what_is_done_needs_no_connection_of_its_own(published: Bus, client: redis.Redis) -> None:
    results = [published.double.run(n) for n in range(100)]
    published.serve_once()
    with sent(client) as commands:
        assert len(list(as_completed(results))) == 100
    assert commands["subscribe"] == commands["evalsha"] == 0
    assert list(as_completed([])) == []


def test_who_waits_is_told_and_does_not_ask(
    published: Bus, client: redis.Redis, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completed, "FIRST_SLICE_SECONDS", 600.0)
    results = [published.double.run(n) for n in range(100)]
    with sent(client) as commands:
        reading = pool.submit(lambda: len(list(as_completed(results))))
        heard_of(published, 100)
        published.serve_once()
        assert reading.result(20) == 100
    # It looked once, and once more when it had it told.
    assert commands["lindex"] == 200
    assert commands["subscribe"] == 1
    eventually(lambda: listeners(client) == 0)


def test_the_same_result_comes_once(published: Bus) -> None:
    first = published.double.run(1)
    again = published.get_async_result(first.id)
    published.serve_once()
    assert [one.id for one in as_completed([first, again, first])] == [first.id]


def test_runs_that_share_a_flight_are_one_result(published: Bus) -> None:
    results = [published.cached.run(1) for _ in range(3)]
    published.serve_once()
    assert [one.get() for one in as_completed(results)] == [2]


def test_what_was_cancelled_is_done(published: Bus, pool: ThreadPoolExecutor) -> None:
    result = published.double.run(1)
    reading = pool.submit(lambda: list(as_completed([result])))
    heard_of(published, 1)
    assert result.cancel()
    assert reading.result(20) == [result]
    with pytest.raises(Cancelled):
        result.get()


def test_outcomes_that_are_too_long_for_a_message(bus: Bus, pool: ThreadPoolExecutor) -> None:
    bus.register("long")(lambda: "x" * 100_000)
    assert bus.get_method("long")
    results = [bus.long.run() for _ in range(3)]
    reading = pool.submit(lambda: list(as_completed(results)))
    heard_of(bus, 3)
    bus.serve_once()
    assert reading.result(20) == results


@pytest.mark.parametrize("protocol", [2, 3])
def test_either_protocol_of_redis_will_do(
    published: Bus, url: str, pool: ThreadPoolExecutor, protocol: int
) -> None:
    with Bus("test", url=url, protocol=protocol) as caller:
        results = [caller.double.run(n) for n in range(5)]
        reading = pool.submit(lambda: [one.get() for one in as_completed(results)])
        heard_of(published, 5)
        published.serve_once()
        assert reading.result(20) == [0, 2, 4, 6, 8]


# -- what is wrong ------------------------------------------------------------------------------


def test_when_the_time_is_over_it_says_how_many_are_left(published: Bus) -> None:
    done = published.double.run(0)
    published.serve_once()
    results = [done, *(published.double.run(n) for n in range(3))]
    for timeout in (0, 0.1):
        values = as_completed(results, timeout)
        assert next(values) is done
        with pytest.raises(CallTimeout, match=r"3 \(of 4\) results unfinished in 0\S* s: ") as late:
            next(values)
        assert str(late.value).endswith(f": double (job {results[1].id[8:]}) and others")
        assert list(values) == []


def test_settings_that_cannot_be_are_said_at_once(published: Bus, url: str) -> None:
    result = published.double.run(1)
    with Bus("other", url=url) as other:
        stranger = other.get_async_result(":double:x")
        text = "results of different buses: 'other' at .*, 'test' at"
        with pytest.raises(ValueError, match=text):
            as_completed([result, stranger])
    with Bus("test", url=url) as same:
        published.serve_once()
        both = [result, same.double.run(2)]
        published.serve_once()
        assert len(list(as_completed(both))) == 2
    for wrong in (1, result.id, None):
        with pytest.raises(TypeError, match="is no AsyncResult"):
            as_completed([wrong])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="timeout"):
        as_completed([result], -1)

    async def of_asyncio() -> None:
        async with AsyncBus("test", url=url) as abus:
            run = await abus.double.run(1)
            with pytest.raises(TypeError, match="for those of an AsyncBus there is asyncio"):
                as_completed([run])  # type: ignore[list-item]

    asyncio.run(of_asyncio())


def test_a_redis_that_is_gone_is_said_in_time() -> None:
    bus = Bus("test", url="redis://localhost:1/0")
    with pytest.raises(ConnectionLost, match="no Redis at localhost:1"):
        list(as_completed([bus.get_async_result(":double:x")]))


def test_its_connection_is_closed_whatever_ends_it(
    published: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    results = [published.double.run(n) for n in range(3)]
    values = as_completed(results)
    first = pool.submit(next, values)
    heard_of(published, 3)
    assert listeners(client) == 1
    with serving(published):
        first.result(20)
    values.close()  # type: ignore[attr-defined]
    eventually(lambda: listeners(client) == 0)
    assert all(client.pttl(key) > 0 for key in client.keys("rb:{test:}:inboxes:*"))


# -- faults -------------------------------------------------------------------------------------


def test_an_outcome_that_is_another_job_s_is_waited_for_there(
    published: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    leader, moved, told = (published.double.run(n) for n in range(3))
    client.rpush(SERVICE.reply(job_of(moved)), ">" + job_of(leader))
    reading = pool.submit(lambda: [one.id for one in as_completed([moved, told])])
    heard_of(published, 2)
    (inbox,) = client.smembers(SERVICE.inboxes(job_of(told)))
    client.rpush(SERVICE.reply(job_of(told)), ">" + job_of(leader))
    client.publish(inbox, f"{job_of(told)} >{job_of(leader)}")
    published.serve_once()
    assert sorted(reading.result(20)) == sorted([moved.id, told.id])


def test_outcomes_that_are_said_to_be_another_s_for_ever_end(
    published: Bus, client: redis.Redis
) -> None:
    one, other = published.double.run(1), published.double.run(2)
    client.rpush(SERVICE.reply(job_of(one)), ">" + job_of(other))
    client.rpush(SERVICE.reply(job_of(other)), ">" + job_of(one))
    assert len(list(as_completed([one, other]))) == 2


@pytest.mark.usefixtures("quick")
def test_what_was_not_told_is_found_with_the_next_slice(
    published: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    result = published.double.run(1)
    reading = pool.submit(lambda: list(as_completed([result])))
    heard_of(published, 1)
    client.rpush(SERVICE.reply(job_of(result)), b"m\x02")  # and nobody is told
    assert reading.result(20) == [result]


def test_a_connection_that_breaks_is_made_again(
    published: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    results = [published.double.run(n) for n in range(3)]
    reading = pool.submit(lambda: list(as_completed(results)))
    for _ in range(2):
        heard_of(published, 3)
        (channel,) = client.pubsub_channels("rb:inbox:*")
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        eventually(lambda gone=channel: client.pubsub_channels("rb:inbox:*") not in ([], [gone]))
    published.serve_once()
    assert reading.result(20) == results


def lose(bus: Bus, method: str) -> None:
    """Have a worker take the method's next job, and die."""
    post = Post(SERVICE, f"host:{method}:gone", [bus[method].target.route])
    assert bus._core.transport.exchange(post.take(post.routes))[0]
    bus._core.transport.exchange(SERVICE.lapse(post.worker))


@pytest.mark.usefixtures("quick")
def test_a_lost_worker_is_noticed_where_nobody_else_is_left(published: Bus) -> None:
    result = published.double.run(1)
    lose(published, "double")
    assert list(as_completed([result])) == [result]
    with pytest.raises(WorkerLost):
        result.get()


@pytest.mark.usefixtures("quick")
def test_a_job_that_redis_lost_counts_as_done(
    published: Bus, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, kept = published.double.run(1), published.cached.run(2)
    client.delete("rb:{test:}:queue:double")
    values = as_completed([lost, kept])
    assert next(values) is lost
    published.serve_once()
    assert list(values) == [kept]
    for name in ("FIRST_SLICE_SECONDS", "FIRST_SEARCH_SECONDS"):
        monkeypatch.setattr(waiting, name, 0.05)
    with pytest.raises(JobLost):
        lost.get()


@pytest.mark.usefixtures("quick")
def test_a_job_that_is_nowhere_for_a_moment_is_not_given_up(
    published: Bus, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    result = published.double.run(1)
    queue = published.double.target.route.queue
    entry = client.lpop(queue)
    missed: list[set[str]] = []
    real = completed._search

    def search(results: dict[str, AsyncResult]) -> Steps[set[str]]:
        missed.append((yield from real(results)))
        if len(missed) == 1:
            client.rpush(queue, entry)
        return missed[-1]

    monkeypatch.setattr(completed, "_search", search)
    reading = pool.submit(lambda: [one.get() for one in as_completed([result])])
    eventually(lambda: len(missed) >= 3)
    assert missed[0] == {job_of(result)}
    assert not any(missed[1:])
    assert not reading.done()
    published.serve_once()
    assert reading.result(20) == [2]


def test_scripts_that_redis_forgot_are_loaded(
    published: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    results = [published.double.run(n) for n in range(3)]
    client.script_flush()
    reading = pool.submit(lambda: list(as_completed(results)))
    heard_of(published, 3)
    published.serve_once()
    assert reading.result(20) == results


def test_a_job_that_waits_ends_with_its_own_time(bus: Bus, url: str) -> None:
    bus.register()(double)
    assert bus.get_method("double")
    caught: list[BaseException] = []
    over = threading.Event()
    with Bus("test", url=url, prefix="x_") as other:

        @other.register()
        def outer() -> None:
            try:
                list(as_completed([bus.double.run(1)]))
            except CallTimeout as error:
                caught.append(error)
            over.set()

        with serving(other):
            with pytest.raises(CallTimeout):
                bus.x_outer.options(timeout=0.3)()
            assert over.wait(20)
    assert "1 (of 1) results unfinished" in str(caught[0])
