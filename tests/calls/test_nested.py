"""Calls made by a job: those that only its own worker could answer are told so, in time."""

from __future__ import annotations

import threading

import pytest

from redis_bus import Bus, CallTimeout, Deadlock
from tests.support import eventually, serving, workers


def test_a_job_that_calls_its_own_only_worker_is_told_of_the_deadlock(bus: Bus) -> None:
    ran: list[int] = []
    bus.register("inner")(ran.append)

    @bus.register()
    def outer() -> None:
        bus.inner(1)

    text = r"^inner\(1\): deadlock: the only worker alive that serves inner is busy with the"
    with serving(bus):
        with pytest.raises(Deadlock, match=text):
            bus.outer()
        assert bus.stats()["inner"]["queued"] == 0
        bus.inner(2)
    assert ran == [2]


def test_a_cached_answer_is_no_deadlock(bus: Bus) -> None:
    @bus.register(cache_key="{n}")
    def inner(n: int) -> int:
        return n + 1

    @bus.register()
    def outer(n: int) -> int:
        return bus.inner(n)

    with serving(bus):
        with pytest.raises(Deadlock):
            bus.outer(1)
        assert bus.inner(1) == 2
        assert bus.outer(1) == 2


def test_a_job_that_waits_for_itself_is_told_so_however_many_workers_there_are(
    bus: Bus, url: str
) -> None:
    def recursive(n: int) -> int:
        return bus.recursive(n)

    with Bus("test", url=url) as other:
        for one in (bus, other):
            one.register(cache_key="{n}")(recursive)
        with serving(bus), serving(other):
            eventually(lambda: workers(bus, "recursive") == 2)
            with pytest.raises(Deadlock, match="it waits for the very job that makes this call"):
                bus.recursive(1)


def test_with_a_second_worker_a_job_may_call_its_own_service(bus: Bus, url: str) -> None:
    with Bus("test", url=url) as other:
        for one in (bus, other):
            one.register("inner")(lambda: 1)
            one.register("outer")(lambda: bus.inner() + 1)
        with serving(bus), serving(other):
            eventually(lambda: workers(bus, "inner") == 2)
            assert bus.outer() == 2


def test_methods_of_other_services_may_be_called(bus: Bus, url: str) -> None:
    with Bus("test", url=url, prefix="other_") as other:
        other.register("inner")(lambda: 1)
        bus.register("outer")(lambda: bus.inner() + 1)
        with serving(bus), serving(other):
            assert bus.outer() == 2


def test_a_job_may_enqueue_for_its_own_worker_and_is_told_when_it_waits_for_that(
    bus: Bus,
) -> None:
    bus.register("inner")(lambda: 1)
    ids: list[str] = []

    @bus.register()
    def outer(wait: bool) -> None:
        result = bus.inner.run()
        ids.append(result.id)
        if wait:
            result.get(0.2)

    with serving(bus):
        bus.outer(False)
        assert bus.get_async_result(ids[0]).get() == 1
        with pytest.raises(CallTimeout, match="busy with the job that makes this call: a deadlock"):
            bus.outer(True)


def test_a_thread_of_the_same_process_is_not_the_job(bus: Bus) -> None:
    """What a worker's process does beside its jobs waits as anybody does."""
    entered, go = threading.Event(), threading.Event()

    @bus.register()
    def held() -> None:
        entered.set()
        assert go.wait(20)

    bus.register("inner")(lambda: 1)
    with serving(bus):
        running = threading.Thread(target=bus.held)
        running.start()
        assert entered.wait(20)
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(bus.inner()))
        waiting.start()
        eventually(lambda: bus.stats()["inner"]["queued"] == 1)
        go.set()
        for thread in (running, waiting):
            thread.join(20)
        assert answers == [1]
