"""Jobs of a service of ``async def`` functions alone: on one loop, taken and told in batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from redis_bus import AsyncBus, Bus
from redis_bus.calls.calls import new_job_id
from redis_bus.protocol import outcome
from redis_bus.protocol.commands import MOST_TAKEN
from redis_bus.protocol.entries import Mode
from redis_bus.transport.link import Link
from redis_bus.worker.loop_slots import LoopFetcher, LoopSlot
from redis_bus.worker.pump import Pump
from redis_bus.worker.worker import Worker
from tests.support import PATIENCE_SECONDS, eventually, workers

MANY = 4


@contextlib.contextmanager
def serving(bus: Bus, concurrency: int = MANY, **options: Any) -> Iterator[Worker]:
    """Serve in a thread of this process; give the worker, which is alive."""
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(bus.serve, concurrency=concurrency, **options)
        try:
            alive = bus._core.registrations
            eventually(lambda: served.done() or all(workers(bus, name) for name in alive))
            eventually(lambda: served.done() or bus._workers)
            yield next(iter(bus._workers))
        finally:
            bus.stop()
            served.result(PATIENCE_SECONDS)


def has_loop_slots(worker: Worker) -> bool:
    return all(isinstance(slot, LoopSlot) for slot in worker.slots)


def running(client: redis.Redis) -> int:
    """How many jobs are claimed."""
    return sum(client.hlen(key) for key in client.scan_iter("rb:{test:}:running:*"))


# -- who is served so ---------------------------------------------------------------------------


class Callable:
    async def __call__(self, a: int) -> int:
        return a


def test_services_of_async_functions_alone_run_on_the_loop(bus: Bus) -> None:
    @bus.register()
    async def first(a: int) -> int:
        return a

    bus.register("second")(Callable())
    with serving(bus) as worker:
        assert has_loop_slots(worker)
        assert (bus.first(1), bus.second(2)) == (1, 2)


def test_one_plain_function_among_them_and_each_job_has_a_thread(bus: Bus) -> None:
    @bus.register()
    async def awaited(a: int) -> int:
        return a

    bus.register("plain")(lambda a: a)
    with serving(bus) as worker:
        assert not any(isinstance(slot, LoopSlot) for slot in worker.slots)
        assert (bus.awaited(1), bus.plain(2)) == (1, 2)


def test_where_asyncio_cannot_connect_each_job_has_a_thread(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(transport: object) -> None:
        raise TypeError("conn: AsyncBus cannot connect as X does")

    monkeypatch.setattr("redis_bus.worker.worker.open_loops", refuse)

    @bus.register()
    async def awaited(a: int) -> int:
        return a

    with serving(bus) as worker:
        assert not has_loop_slots(worker)
        assert bus.awaited(1) == 1


# -- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, MANY, 10 * MANY])
def test_jobs_that_wait_are_taken_as_many_as_can_run(
    bus: Bus, client: redis.Redis, jobs: int
) -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    @bus.register()
    async def counted(a: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        return a

    results = [bus.counted.run(a) for a in range(jobs)]
    client.config_resetstat()
    with serving(bus):
        assert [result.get() for result in results] == list(range(jobs))
    assert most == min(jobs, MANY)
    assert not client.keys("*running*")


def test_more_slots_than_one_take_may_claim_all_run(bus: Bus) -> None:
    gate, inside = asyncio.Event(), 0

    @bus.register()
    async def meet() -> None:
        nonlocal inside
        inside += 1
        if inside == MOST_TAKEN + 1:
            gate.set()
        await gate.wait()

    results = [bus.meet.run() for _ in range(MOST_TAKEN + 1)]
    with serving(bus, MOST_TAKEN + 1):
        for result in results:
            result.get()


def test_a_worker_takes_no_more_than_it_can_run_now(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    """So the next job is that of another worker, which has a slot left."""
    entered, go = threading.Semaphore(0), threading.Event()

    async def first() -> str:
        entered.release()
        await asyncio.to_thread(go.wait, PATIENCE_SECONDS)
        return "first"

    async def second() -> str:
        return "second"

    with Bus("test", url=url, timeout=PATIENCE_SECONDS) as other:
        bus.register("held")(first)
        other.register("held")(second)
        results = [bus.held.run() for _ in range(MANY + 6)]
        with serving(bus):
            for _ in range(MANY):
                assert entered.acquire(timeout=PATIENCE_SECONDS)
            assert running(client) == MANY
            with serving(other):
                assert [result.get() for result in results[MANY:]] == ["second"] * 6
                go.set()
            assert [result.get() for result in results[:MANY]] == ["first"] * MANY


@pytest.mark.parametrize("jobs", [1, 3, 11])
def test_a_worker_that_may_run_so_many_jobs_takes_no_more(bus: Bus, jobs: int) -> None:
    ran: list[int] = []

    @bus.register()
    async def note(a: int) -> None:
        await asyncio.sleep(0)
        ran.append(a)

    results = [bus.note.run(a) for a in range(20)]
    bus.serve(concurrency=MANY, max_jobs=jobs)
    assert sorted(ran) == list(range(jobs))
    assert sum(result.done() for result in results) == jobs
    assert not bus.conn.keys("*running*")


def test_what_is_claimed_as_the_worker_is_told_to_stop_goes_back(
    bus: Bus, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    real = LoopFetcher.take

    def stop_first(fetcher: LoopFetcher, woken: object, taken: object) -> bool:
        if taken:
            assert running(client) == 3
            bus.stop()
        return real(fetcher, woken, taken)

    monkeypatch.setattr(LoopFetcher, "take", stop_first)

    @bus.register()
    async def note(a: int) -> None:
        ran.append(a)

    for a in range(3):
        bus.note.run(a)
    bus.serve(concurrency=MANY)
    assert ran == []
    assert (client.llen("rb:{test:}:queue:note"), running(client)) == (3, 0)


def test_bytes_that_are_no_job_are_put_away_and_the_jobs_beside_them_run(
    bus: Bus, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    @bus.register()
    async def echo(a: int) -> int:
        return a

    first = bus.echo.run(1)
    client.rpush("rb:{test:}:queue:echo", b"no job")
    second = bus.echo.run(2)
    with serving(bus):
        assert (first.get(), second.get()) == (1, 2)
        eventually(lambda: client.llen("rb:{test:}:dead:echo") == 1)
    assert "echo: a queue entry that is no job: b'no job'; it is put to the dead letters" in (
        caplog.text
    )


def test_scripts_that_redis_forgets_meanwhile_are_sent_anew(bus: Bus, client: redis.Redis) -> None:
    @bus.register()
    async def forget(a: int) -> int:
        await asyncio.to_thread(client.script_flush)
        return a

    results = [bus.forget.run(a) for a in range(5 * MANY)]
    with serving(bus):
        assert [result.get() for result in results] == list(range(5 * MANY))


@pytest.mark.parametrize("limit", [None, 7])
def test_a_connection_that_the_loop_cannot_read_is_read_in_a_thread(
    bus: Bus, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """As with TLS, where bytes may have come that are not a reply yet, or more than one."""
    monkeypatch.setattr(Link, "is_plain", False)
    monkeypatch.setattr(Pump, "run", None)
    ran: list[int] = []

    @bus.register()
    async def note(a: int) -> int:
        await asyncio.sleep(0)
        ran.append(a)
        return a

    results = [bus.note.run(a) for a in range(20)]
    if limit is None:
        with serving(bus):
            assert [result.get() for result in results] == list(range(20))
            assert bus.note(20) == 20
    else:
        bus.serve(concurrency=MANY, max_jobs=limit)
        assert sorted(ran) == list(range(limit))
    assert not client.keys("*running*")


def test_a_reply_that_nobody_asked_for_costs_the_connection_and_no_job(
    bus: Bus, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, odd = Link.read_ready, [[b"odd", b"odd", b"odd"]]

    def read_ready(link: Link) -> list[object]:
        replies = real(link)
        return [*replies, *odd.pop()] if odd and client.exists("go") else replies

    monkeypatch.setattr(Link, "read_ready", read_ready)

    @bus.register()
    async def echo(a: int) -> int:
        return a

    with serving(bus):
        assert bus.echo(1) == 1
        client.set("go", 1)
        results = [bus.echo.run(a) for a in range(20)]
        assert [result.get() for result in results] == list(range(20))
        assert odd == []


def test_a_connection_that_is_silent_for_too_long_is_given_up_and_no_job_is_lost(
    bus: Bus, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here any wait is too long; one of a live connection ends before that."""
    monkeypatch.setattr("redis_bus.worker.pump.READ_SECONDS", 0.1)
    monkeypatch.setattr("redis_bus.worker.pump.LOOK_SECONDS", 0.05)
    cuts, real = threading.Semaphore(0), Link.cut

    def cut(link: Link) -> None:
        cuts.release()
        real(link)

    monkeypatch.setattr(Link, "cut", cut)

    @bus.register()
    async def echo(a: int) -> int:
        return a

    with serving(bus):
        for a in range(3):
            assert cuts.acquire(timeout=PATIENCE_SECONDS)
            assert bus.echo(a) == a
    assert not client.keys("*running*")


# -- what functions do to their task --------------------------------------------------------------


def test_a_function_that_cancels_its_own_task_has_its_outcome_told(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    @bus.register()
    async def cancels(a: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return a

    @bus.register()
    async def fails() -> None:
        await cancels(1)
        raise ValueError("by itself")

    with serving(bus):
        for a in range(2 * MANY):
            assert bus.cancels(a) == a
            with pytest.raises(ValueError, match="by itself"):
                bus.fails()
    assert "not wanted" not in caplog.text


def test_an_exception_that_cannot_be_shown_has_an_outcome(bus: Bus) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    @bus.register()
    async def fails() -> None:
        raise Odd

    with serving(bus):
        for _ in range(2 * MANY):
            with pytest.raises(Exception, match="cannot be shown"):
                bus.fails()


def test_arguments_that_cannot_be_read_have_an_outcome(bus: Bus, url: str) -> None:
    @bus.register()
    async def echo(a: int) -> int:
        return a

    with serving(bus), Bus("test", url=url, timeout=PATIENCE_SECONDS) as caller:
        route = caller.echo.target.route
        job = new_job_id()
        command = route.call(job, b"\xc1", mode=Mode.CALL, budget_ms=20_000)
        caller._core.transport.exchange(command)
        found = eventually(lambda: caller._core.transport.ask(route.service.look(job))[0])
        assert outcome.is_error(found)
        assert caller.echo(1) == 1


# -- the other side -------------------------------------------------------------------------------


def test_calls_of_an_async_bus_in_any_number_are_each_answered(bus: Bus, url: str) -> None:
    @bus.register(cache_key="{a}")
    async def cached(a: int) -> int:
        await asyncio.sleep(0)
        return a

    @bus.register()
    async def echo(a: int) -> int:
        return a

    async def body() -> None:
        async with AsyncBus("test", url=url, timeout=PATIENCE_SECONDS) as far:
            calls = [method(a) for a in range(300) for method in (far.echo, far.cached)]
            assert await asyncio.gather(*calls) == [a for a in range(300) for _ in range(2)]

    with serving(bus):
        asyncio.run(body())


def test_it_says_nothing_where_all_is_well(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    @bus.register()
    async def echo(a: int) -> int:
        return a

    with serving(bus):
        assert list(bus.echo.map(range(100))) == list(range(100))
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
