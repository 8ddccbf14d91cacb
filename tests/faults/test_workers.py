"""Faults at the worker: it is told to stop, it is killed, it stands still, it is of another age."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import Future
from typing import Any

import pytest

from redis_bus import Bus, BusError, CallTimeout, WorkerLost
from tests.faults.place import BOTH, SLOTS, Place
from tests.faults.services import (
    HELD,
    begun,
    ended,
    let_go,
    queued,
    wait_until_begun,
)

LEASE_SECONDS = 10
# What ends by itself at once is over by then, on a busy machine.
SOON_SECONDS = 5.0
SIGNALS = [signal.SIGTERM, signal.SIGINT]


def is_member(place: Place, process: subprocess.Popen[str]) -> bool:
    """Whether a worker stands in the list at all, whatever its lease."""
    return place.lease(process) > 0.0


# -- told to stop -----------------------------------------------------------------------------


@pytest.mark.brief
@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_lets_the_running_job_finish_and_leaves_the_queued_to_another_worker(
    place: Place, number: signal.Signals
) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=60)
    running = keep_busy(place, bus)
    waiting = [bus.held.run(2), bus.held.run(3)]
    calling = place.apart(bus.note, 4)
    place.eventually(lambda: queued(place, "note"))
    worker.send_signal(number)
    # It has seen the signal, and runs on: a job that it could take is not taken.
    with pytest.raises(CallTimeout):
        bus.note.options(timeout=3)(5)
    assert worker.poll() is None and not any(call.done() for call in running.values())
    let_go(place, len(running))
    for name, call in running.items():
        assert call.result() == f"{name} by {worker.pid}"
    assert worker.wait(SOON_SECONDS) == 0
    assert not is_member(place, worker)
    assert place.workers("held") == place.workers("note") == 0
    assert (queued(place, "held"), sorted(begun(place))) == (2, sorted(running))
    other = place.serve(HELD)
    let_go(place, 2)
    assert [result.get() for result in waiting] == [f"{a} by {other.pid}" for a in (2, 3)]
    assert calling.result() == 4
    assert sorted(ended(place)) == sorted(["2", "3", "4", *running])


def keep_busy(place: Place, bus: Bus, method: str = "held") -> dict[str, Future[Any]]:
    """Give the only worker as many jobs as it runs at a time, and wait until it runs them."""
    running = {f"held {n}": place.apart(bus[method], f"held {n}") for n in range(place.slots)}
    place.eventually(lambda: set(begun(place)) == set(running))
    return running


@pytest.mark.together(over=SLOTS)
def test_a_signal_amid_a_job_of_several_lets_the_worker_take_no_other(place: Place) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=60)
    running = place.apart(bus.held, 1)
    wait_until_begun(place, 1)
    worker.send_signal(signal.SIGTERM)
    place.eventually(lambda: place.workers("note") == 0)
    with pytest.raises(CallTimeout):
        bus.note.options(timeout=2)(2)
    let_go(place)
    assert running.result() == f"1 by {worker.pid}"
    assert worker.wait(SOON_SECONDS) == 0
    assert begun(place) == ["1"]


@pytest.mark.together(over=SLOTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_an_idle_worker_leaves_the_list_at_once_when_a_signal_ends_it(
    place: Place, number: signal.Signals
) -> None:
    workers = [place.serve(HELD) for _ in range(2)]
    start = time.monotonic()
    workers[0].send_signal(number)
    assert workers[0].wait(SOON_SECONDS) == 0
    place.note(f"ended after {time.monotonic() - start:.2f} s")
    assert not is_member(place, workers[0])
    assert place.workers("held") == 1
    assert place.bus(timeout=30).note(1) == 1


@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("number", SIGNALS)
def test_the_shutdown_timeout_bounds_the_running_job(place: Place, number: signal.Signals) -> None:
    worker = place.serve(HELD, args=("--shutdown-timeout", "2"))
    bus = place.bus(timeout=60)
    running = place.apart(bus.held, 1)
    wait_until_begun(place, 1)
    start = time.monotonic()
    worker.send_signal(number)
    error = running.exception(30)
    passed = time.monotonic() - start
    assert isinstance(error, WorkerLost), error
    assert 1.9 < passed < 2 + SOON_SECONDS
    assert worker.wait(SOON_SECONDS) == 0
    assert not is_member(place, worker)
    assert ended(place) == []
    place.note(f"after {passed:.2f} s: {error}")


@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("method", ["held", "held_cached"])
def test_a_second_signal_ends_a_worker_now_and_the_caller_gets_worker_lost(
    place: Place, method: str, second: signal.Signals
) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=60)
    running = keep_busy(place, bus, method)
    waiting = bus.note.run(2)
    start = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    # Two signals that are pending at once are one, where they have the same number.
    place.eventually(lambda: not pending(worker))
    worker.send_signal(second)
    for call in running.values():
        error = call.exception(30)
        assert isinstance(error, WorkerLost), error
    assert worker.wait(SOON_SECONDS) == 0
    passed = time.monotonic() - start
    assert passed < SOON_SECONDS
    assert not is_member(place, worker)
    assert (ended(place), waiting.done()) == ([], False)
    place.note(f"after {passed:.2f} s: {error}")
    place.serve(HELD)
    assert waiting.get() == 2
    # It was lost, and is not stored: the next call runs it.
    again = place.apart(bus[method], "held 0")
    place.eventually(lambda: begun(place).count("held 0") == 2)
    let_go(place)
    assert again.result().startswith("held 0 by ")


def pending(process: subprocess.Popen[str]) -> bool:
    """Whether a signal waits to be seen by a process."""
    with open(f"/proc/{process.pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return bool(int(fields["ShdPnd"], 16) | int(fields["SigPnd"], 16))


# -- workers of two ages ----------------------------------------------------------------------


OLD = """
    import redis_bus
    bus = redis_bus.Bus("test")

    @bus.register()
    def price(item, discount=0):
        return ["old", item, discount]
"""
NEW = """
    import redis_bus
    bus = redis_bus.Bus("test")

    @bus.register()
    def price(item, currency):
        return ["new", item, currency]
"""


@pytest.mark.together
@pytest.mark.parametrize("last", ["new", "old"])
def test_with_workers_of_two_ages_each_call_is_answered_or_told_of_the_mismatch(
    place: Place, last: str
) -> None:
    for code in (OLD, NEW) if last == "new" else (NEW, OLD):
        place.serve(code)
    bus = place.bus(timeout=20)
    answered, refused = [], []
    for number in range(100):
        keyword = {"currency": "EUR"} if last == "new" else {"discount": 5}
        try:
            answered.append(bus.price(number, **keyword))
        except BusError as mismatch:
            refused.append(mismatch)
    for value in answered:
        assert (value[0], value[2]) == (last, "EUR" if last == "new" else 5)
    for error in refused:
        assert type(error) is BusError, error
        assert "another registration of method price" in str(error)
        assert "currency" in str(error) or "discount" in str(error)
    assert len(answered) + len(refused) == 100
    assert answered and refused  # both workers had their part, else this shows nothing
    place.note(f"{len(answered)} answered, {len(refused)} refused: {refused[0]}")


@pytest.mark.together
def test_arguments_that_fit_both_ages_are_answered_by_both(place: Place) -> None:
    for code in (OLD, NEW):
        place.serve(code)
    bus = place.bus(timeout=20)
    values = [bus.price(number, 7) for number in range(100)]
    assert [value[1:] for value in values] == [[number, 7] for number in range(100)]
    assert {value[0] for value in values} == {"old", "new"}


# -- clocks that differ -----------------------------------------------------------------------


# Imported by Python before anything else: the clock of a host that is wrong by so many seconds.
CLOCK = """
    import os, time
    wrong = float(os.environ["CLOCK_WRONG_BY"])
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + wrong
    time.time_ns = lambda: real_time_ns() + int(wrong * 1e9)
"""
TIMED = """
    import time, redis_bus
    bus = redis_bus.Bus("test")

    @bus.register(cache_key=True, cache_expire=1.5)
    def cached(a):
        return bus.conn.incr("cached")

    @bus.register(cache_key=True, cache_expire=1, stale=60)
    def refreshed(a):
        return bus.conn.incr("refreshed")

    @bus.register()
    def clock():
        return time.time()

    @bus.register()
    def held(a):
        while not bus.conn.blpop("go", 2):
            pass
        return a

    @bus.register()
    def outer():
        # What is left of the caller's time is inherited.
        start = time.monotonic()
        try:
            bus.unserved()
        except redis_bus.CallTimeout:
            return time.monotonic() - start

    @bus.register()
    def unserved():
        pass
"""
# Looks at all that has to do with time, and prints what it saw: the same, whatever the clocks say.
TIMED_CALLER = """
    import json, sys, time, redis_bus
    bus = redis_bus.Bus("test", timeout=30)
    seen = {}

    def after(condition, seconds=20):
        start = time.monotonic()
        while not condition():
            assert time.monotonic() < start + seconds
            time.sleep(0.01)
        return time.monotonic() - start

    seen["skew"] = round((bus.clock() - time.time()) / 60)
    seen["cached"] = [bus.cached(1), bus.cached(1)]
    seen["cached for"] = 1 < after(lambda: bus.cached(1) == 2)
    seen["lives"] = [0 < bus.conn.pttl("rb:{test:}:cache:cached:1") <= 1500]
    seen["refreshed"] = bus.refreshed(1)
    # It is served stale, and replaced behind the caller's back, once.
    seen["stale for"] = 0.5 < after(lambda: bus.refreshed(1) == 2)
    seen["lives"].append(50_000 < bus.conn.pttl("rb:{test:}:cache:refreshed:1") <= 61_000)
    start = time.monotonic()
    try:
        bus.held.options(timeout=2)(1)
    except redis_bus.CallTimeout as error:
        seen["timeout"] = str(error)
        seen["timed out in time"] = 1.9 < time.monotonic() - start < 10
    # Queued behind it: dropped at its deadline, or run, as it was asked for.
    dropped = bus.cached.options(timeout=0.5).run(2)
    kept = bus.cached.options(timeout=60).run(3)
    after(lambda: time.monotonic() > start + 4)
    bus.conn.rpush("go", 1)
    seen["kept"] = kept.get()
    try:
        seen["dropped"] = dropped.get(1)
    except redis_bus.CallTimeout:
        seen["dropped"] = "dropped"
    seen["left"] = 1 < bus.outer.options(timeout=3).run().get(20) < 10
    seen["workers"] = bus.stats()["cached"]["workers"]
    print(json.dumps(seen))
"""


@pytest.mark.together
def test_wrong_clocks_of_hosts_change_nothing(place: Place) -> None:
    place.processes.write("clock/sitecustomize.py", CLOCK)

    def wrong_by(minutes: float) -> dict[str, str]:
        folders = [str(place.folder / "clock"), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(folder for folder in folders if folder)
        return {"CLOCK_WRONG_BY": str(minutes * 60), "PYTHONPATH": path}

    seen = []
    for worker_wrong, caller_wrong in ((0, 0), (-7, 9), (9, -7)):
        place.client.flushall()
        worker = place.serve(TIMED, pattern="[!u]*", env=wrong_by(worker_wrong))
        publish_unserved(place)
        place.eventually(lambda: "unserved" in place.bus())
        assert place.now() < place.lease(worker) <= place.now() + LEASE_SECONDS
        caller = place.python(TIMED_CALLER, env=wrong_by(caller_wrong))
        assert caller.wait(60) == 0, place.log(caller)
        found = json.loads(place.log(caller).splitlines()[-1])
        assert found.pop("skew") == worker_wrong - caller_wrong
        seen.append(found)
        place.note(f"worker {worker_wrong:+} min, caller {caller_wrong:+} min: {found}")
        worker.terminate()
        worker.wait()
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["cached"] == [1, 1] and seen[0]["refreshed"] == 1
    for what in ("cached for", "stale for", "timed out in time", "left"):
        assert seen[0][what]
    assert seen[0]["lives"] == [True, True]
    assert seen[0]["dropped"] == "dropped"


def publish_unserved(place: Place) -> None:
    """Publish a method, and serve it no more."""
    worker = place.serve(TIMED, pattern="unserved")
    worker.terminate()
    worker.wait()
