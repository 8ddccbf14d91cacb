"""Workers that are lost amid a job: killed, or standing still for longer than their lease."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import Future
from typing import Any

import pytest

from redis_bus import WorkerLost
from tests.faults.place import BOTH, FACES, Place
from tests.faults.services import (
    HELD,
    begun,
    ended,
    let_go,
    let_go_of,
    replies,
    wait_until_begun,
)

# A worker is lost when its lease (10 s) has ended; some time more until somebody sees that.
NOTICED_SECONDS = 20.0
# The caller would wait so long; what it is told sooner is not its timeout.
TIMEOUT_SECONDS = 60.0
STANDS_SECONDS = 25.0
NOT_WANTED = "an outcome was not wanted"
MAY_RUN_AGAIN = ["held_cached", "held_idempotent"]


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def expect_worker_lost(place: Place, running: Future[Any], since: float) -> None:
    """Wait for the caller's error, and check that it came for the worker's lease."""
    error = running.exception(TIMEOUT_SECONDS)
    passed = time.monotonic() - since
    place.note(f"after {passed:.1f} s: {type(error).__name__}: {error}")
    assert isinstance(error, WorkerLost), error
    assert passed < NOTICED_SECONDS


def has_claims(place: Place) -> bool:
    """Whether any job is claimed by a worker."""
    return any(place.client.scan_iter("rb:{test:}:running:*"))


# -- killed -----------------------------------------------------------------------------------


@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("alone", [False, True], ids=["another-alive", "the-only-one"])
@pytest.mark.parametrize("how", ["call", "run", "call-without-timeout"])
def test_the_caller_of_a_killed_worker_gets_worker_lost_and_not_its_timeout(
    place: Place, alone: bool, how: str
) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=TIMEOUT_SECONDS)
    if how == "run":
        running = place.apart(bus.held.run(1).get)
    else:
        timeout = TIMEOUT_SECONDS if how == "call" else None
        running = place.apart(bus.held.options(timeout=timeout), 1)
    wait_until_begun(place, 1)
    if not alone:
        place.serve(HELD)
    start = time.monotonic()
    kill(worker)
    expect_worker_lost(place, running, start)
    # It is not run again, by nobody and never.
    if alone:
        place.serve(HELD)
    assert bus.note(2) == 2
    assert (begun(place), ended(place)) == (["1", "2"], ["2"])
    assert not has_claims(place)
    assert place.workers("held") == 1


@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("method", MAY_RUN_AGAIN)
def test_another_worker_runs_the_job_of_a_killed_one_where_it_may_run_again(
    place: Place, method: str
) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=TIMEOUT_SECONDS)
    calls = [place.apart(bus[method], 1)]
    wait_until_begun(place, 1)
    if method == "held_cached":
        calls += [place.apart(bus[method], 1) for _ in range(3)]
        place.eventually(lambda: bus.stats()[method]["joins"] == 3)
    other = place.serve(HELD)
    start = time.monotonic()
    kill(worker)
    place.eventually(lambda: len(begun(place)) == 2)
    place.note(f"run again after {time.monotonic() - start:.1f} s")
    assert time.monotonic() - start < NOTICED_SECONDS
    let_go(place)
    assert {call.result() for call in calls} == {f"1 by {other.pid}"}
    assert bus.note(2) == 2
    assert (begun(place), ended(place)) == (["1", "1", "2"], ["1", "2"])
    assert not has_claims(place)
    if method == "held_cached":
        assert bus.held_cached(1) == f"1 by {other.pid}"
        assert begun(place).count("1") == 2


@pytest.mark.brief
@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("method", MAY_RUN_AGAIN)
def test_the_job_of_the_only_worker_runs_again_once_there_is_another(
    place: Place, method: str
) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=TIMEOUT_SECONDS)
    running = place.apart(bus[method], 1)
    wait_until_begun(place, 1)
    kill(worker)
    place.eventually(lambda: not place.workers(method))
    other = place.serve(HELD)
    let_go(place)
    assert running.result() == f"1 by {other.pid}"
    assert begun(place) == ["1", "1"]


DEADLY = """
    import os, redis_bus, signal
    bus = redis_bus.Bus("test")

    @bus.register(idempotent=True)
    def deadly(a):
        bus.conn.rpush("began", a)
        os.kill(os.getpid(), signal.SIGKILL)

    @bus.register()
    def note(a):
        return a
"""


@pytest.mark.together(over=BOTH)
def test_a_job_that_kills_its_workers_stops_after_three_of_them(place: Place) -> None:
    workers = [place.serve(DEADLY) for _ in range(4)]
    bus = place.bus(timeout=2 * TIMEOUT_SECONDS)
    start = time.monotonic()
    running = place.apart(bus.deadly, 1)
    error = running.exception(2 * TIMEOUT_SECONDS)
    place.note(f"after {time.monotonic() - start:.1f} s: {type(error).__name__}: {error}")
    assert isinstance(error, WorkerLost), error
    assert begun(place) == ["1"] * 3
    assert sum(worker.poll() is None for worker in workers) == 1
    assert bus.note(2) == 2
    assert begun(place) == ["1"] * 3
    # It is kept, for a person to look at.
    (entry,) = place.client.lrange("rb:{test:}:dead:deadly", 0, -1)
    assert b"deadly" in entry


# -- standing still ---------------------------------------------------------------------------


def stand(place: Place, worker: subprocess.Popen[str]) -> float:
    """Stop a worker, and return when that was, on the server's clock."""
    place.pause(worker)
    return place.now()


def let_it_finish_late(place: Place, worker: subprocess.Popen[str], since: float) -> None:
    """Wake a stopped worker, let its run end, and check that nobody wants its outcome."""
    place.eventually(lambda: place.now() > since + STANDS_SECONDS)
    place.resume(worker)
    let_go_of(place, worker)
    place.eventually(lambda: NOT_WANTED in place.log(worker))


def expect_to_serve_on(
    place: Place, worker: subprocess.Popen[str], others: list[subprocess.Popen[str]]
) -> None:
    """Check that a worker that was lost for a while is listed, and takes jobs."""
    place.eventually(lambda: place.is_listed(worker))
    for other in others:
        other.terminate()
        assert other.wait(10) == 0
    bus = place.bus(timeout=20)
    assert bus.note("after") == "after"
    running = place.apart(bus.held, "after")
    let_go_of(place, worker)
    assert running.result() == f"after by {worker.pid}"


def expect_no_second_reply(place: Place) -> None:
    for reply in replies(place):
        assert place.client.llen(reply) <= 1


@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("alone", [False, True], ids=["another-alive", "the-only-one"])
def test_the_caller_of_a_worker_that_stands_still_gets_worker_lost_and_its_late_outcome_is_fenced(
    place: Place, alone: bool
) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=TIMEOUT_SECONDS)
    running = place.apart(bus.held, 1)
    wait_until_begun(place, 1)
    others = [] if alone else [place.serve(HELD)]
    start = time.monotonic()
    since = stand(place, worker)
    expect_worker_lost(place, running, start)
    place.eventually(lambda: not replies(place), 60)  # kept for who may be cut off
    let_it_finish_late(place, worker, since)
    assert replies(place) == []
    assert begun(place) == ["1"]
    expect_to_serve_on(place, worker, others)


@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("method", MAY_RUN_AGAIN)
@pytest.mark.parametrize("cleared", [False, True], ids=["kept", "cleared"])
def test_a_worker_that_stands_still_is_replaced_and_what_it_finds_late_is_not_stored(
    place: Place, method: str, cleared: bool
) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=TIMEOUT_SECONDS)
    running = place.apart(bus[method], 1)
    wait_until_begun(place, 1)
    other = place.serve(HELD)
    start = time.monotonic()
    since = stand(place, worker)
    place.eventually(lambda: len(begun(place)) == 2)
    place.note(f"run again after {time.monotonic() - start:.1f} s")
    let_go_of(place, other)
    assert running.result() == f"1 by {other.pid}"
    if cleared and method == "held_cached":
        assert bus.held_cached.clear_cache(1)
    let_it_finish_late(place, worker, since)
    expect_no_second_reply(place)
    assert begun(place) == ["1", "1"]
    if method == "held_cached":
        stored = list(place.client.scan_iter("rb:{test:}:cache:*"))
        assert len(stored) == (0 if cleared else 1)
        if not cleared:
            assert bus.held_cached(1) == f"1 by {other.pid}"
    assert bus.stats()[method]["errors"] == 0
    expect_to_serve_on(place, worker, [other])


# Python's lock is held all the time, so that the worker's heart does not beat either.
HOGGED = """
    import ctypes, os, redis_bus
    bus = redis_bus.Bus("test")

    def hog(a):
        if bus.conn.rpush("began", a) == 1:
            ctypes.PyDLL(None).sleep(SECONDS)
        bus.conn.rpush("ended", a)
        return f"{a} by {os.getpid()}"

    @bus.register()
    def hogged(a):
        return hog(a)

    @bus.register(cache_key=True)
    def hogged_cached(a):
        return hog(a)

    @bus.register()
    def pid():
        return os.getpid()
""".replace("SECONDS", "20")


@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("method", ["hogged", "hogged_cached"])
def test_a_worker_whose_function_holds_the_interpreter_is_lost_for_that_time_only(
    place: Place, method: str
) -> None:
    worker = place.serve(HOGGED)
    bus = place.bus(timeout=TIMEOUT_SECONDS)
    start = time.monotonic()
    running = place.apart(bus[method], 1)
    wait_until_begun(place, 1)
    other = place.serve(HOGGED)
    if method == "hogged":
        expect_worker_lost(place, running, start)
        runs = ["1"]
    else:
        assert running.result() == f"1 by {other.pid}"
        place.note(f"answered by the other after {time.monotonic() - start:.1f} s")
        runs = ["1", "1"]
    place.eventually(lambda: NOT_WANTED in place.log(worker))
    assert time.monotonic() - start > 19  # so what was seen before was not its own end
    expect_no_second_reply(place)
    assert (begun(place), ended(place)) == (runs, runs)
    if method == "hogged_cached":
        assert bus.hogged_cached(1) == f"1 by {other.pid}"
    place.eventually(lambda: place.is_listed(worker))
    other.terminate()
    assert other.wait(10) == 0
    assert bus.pid() == worker.pid
