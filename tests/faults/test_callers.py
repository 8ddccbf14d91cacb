"""Faults at the caller: it dies, its time is up, it sends too much, nobody is there for it."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest

from redis_bus import BusError, CallTimeout, NoWorkers, QueueFull, SerializationError
from redis_bus.protocol.codec import MAX_BYTES, MAX_DEPTH
from tests.faults.faces import ASYNCIO, BLOCKING
from tests.faults.place import BOTH, FACES, Place
from tests.faults.services import (
    HELD,
    all_late,
    begun,
    keys,
    let_go,
    queued,
    replies,
    together,
    wait_until_begun,
)

# What a caller that is refused at once may take, on a busy machine.
AT_ONCE_SECONDS = 0.9
# A caller that is a process of its own, with either face: a method, its argument, its timeout.
CALLER = {
    BLOCKING: """
        import sys, redis_bus
        bus = redis_bus.Bus("test", timeout=float(sys.argv[3]))
        print(bus[sys.argv[1]](sys.argv[2]), flush=True)
    """,
    ASYNCIO: """
        import asyncio, sys, redis_bus

        async def main():
            bus = redis_bus.AsyncBus("test", timeout=float(sys.argv[3]))
            print(await bus[sys.argv[1]](sys.argv[2]), flush=True)

        asyncio.run(main())
    """,
}
RUNNER = {
    BLOCKING: """
        import sys, redis_bus
        print(redis_bus.Bus("test")[sys.argv[1]].run(sys.argv[2]).get(60))
    """,
    ASYNCIO: """
        import asyncio, sys, redis_bus

        async def main():
            result = await redis_bus.AsyncBus("test")[sys.argv[1]].run(sys.argv[2])
            print(await result.get(60))

        asyncio.run(main())
    """,
}
# Its log is that of a program that sets up nothing: warnings and errors, on stderr.
WARNED_CALLER = {
    BLOCKING: """
        import sys, time, redis_bus
        method = redis_bus.Bus("test")[sys.argv[1]].options(timeout=3.5)
        print("calling at", time.monotonic(), "s", flush=True)
        try:
            method("1")
        except redis_bus.BusError as error:
            print(f"{type(error).__name__}: {error}")
    """,
    ASYNCIO: """
        import asyncio, sys, time, redis_bus

        async def main():
            bus = redis_bus.AsyncBus("test")
            method = (await bus.get_method(sys.argv[1])).options(timeout=3.5)
            print("calling at", time.monotonic(), "s", flush=True)
            try:
                await method("1")
            except redis_bus.BusError as error:
                print(f"{type(error).__name__}: {error}")

        asyncio.run(main())
    """,
}


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


# -- the caller is killed ---------------------------------------------------------------------


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("busy", [False, True], ids=["nobody-serves", "worker-busy"])
def test_the_queued_job_of_a_killed_caller_is_dropped_at_its_deadline(
    place: Place, busy: bool
) -> None:
    worker = place.serve(HELD)
    bus = place.bus(timeout=30)
    if busy:
        holding = place.apart(bus.held, "holding")
        wait_until_begun(place, "holding")
    else:
        worker.terminate()
        worker.wait()
    caller = place.python(CALLER[place.face], "note", "from the dead", "4")
    place.eventually(lambda: queued(place, "note"))
    deadline = place.now() + 4
    caller.kill()
    caller.wait()
    place.eventually(lambda: place.now() > deadline)
    assert queued(place, "note") == 1
    if busy:
        let_go(place)
        holding.result()
    else:
        place.serve(HELD)
    assert bus.note("after") == "after"
    assert queued(place, "note") == 0
    assert "from the dead" not in begun(place)
    place.eventually(lambda: not replies(place))


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize(("how", "expire"), [("call", 12), ("run", 2)])
def test_the_outcome_for_a_killed_caller_does_not_outlive_result_expire(
    place: Place, how: str, expire: int
) -> None:
    place.serve(HELD.replace('Bus("test"', f'Bus("test", result_expire={expire}'))
    code = CALLER if how == "call" else RUNNER
    caller = place.python(code[place.face], "held", "1", "60")
    wait_until_begun(place, 1)
    caller.kill()
    caller.wait()
    start = place.now()
    let_go(place)
    (reply,) = place.eventually(lambda: replies(place))
    assert 0 < place.client.pttl(reply) <= expire * 1000
    place.eventually(lambda: not replies(place))
    assert place.now() - start < expire + 1
    place.note(f"the outcome was gone after {place.now() - start:.1f} s")
    left = [key for key in keys(place) if b":running:" in key or b":pending" in key]
    assert left == []


@pytest.mark.brief
@pytest.mark.together(over=FACES)
def test_a_flight_goes_on_for_those_who_joined_a_caller_that_is_killed(place: Place) -> None:
    place.serve(HELD)
    leader = place.python(CALLER[place.face], "held_cached", "1", "60")
    wait_until_begun(place, 1)
    bus = place.bus(timeout=30)
    joined = [place.apart(bus.held_cached, "1") for _ in range(3)]
    place.eventually(lambda: bus.stats()["held_cached"]["joins"] == 3)
    leader.kill()
    leader.wait()
    let_go(place)
    values = {future.result() for future in joined}
    assert len(values) == 1
    assert bus.held_cached("1") in values
    assert begun(place) == ["1"]


@pytest.mark.together(over=FACES)
def test_a_queued_flight_outlives_the_deadline_of_a_killed_leader_for_those_who_joined(
    place: Place,
) -> None:
    place.serve(HELD)
    bus = place.bus(timeout=30)
    holding = place.apart(bus.held, "holding")
    wait_until_begun(place, "holding")
    leader = place.python(CALLER[place.face], "held_cached", "1", "2")
    place.eventually(lambda: queued(place, "held_cached"))
    deadline = place.now() + 2
    joined = place.apart(bus.held_cached, "1")
    place.eventually(lambda: bus.stats()["held_cached"]["joins"] == 1)
    leader.kill()
    leader.wait()
    place.eventually(lambda: place.now() > deadline)
    let_go(place, 2)
    holding.result()
    assert joined.result().startswith("1 by ")
    assert begun(place) == ["holding", "1"]


# -- the caller's time is up ------------------------------------------------------------------


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("method", ["held", "held_idempotent", "held_cached"])
def test_a_timeout_says_where_the_call_stands_and_its_late_result_is_dropped(
    place: Place, method: str
) -> None:
    place.serve(HELD)
    bus = place.bus(timeout=30)
    brief = bus[method].options(timeout=3)
    taken = place.apart(brief, "taken")
    wait_until_begun(place, "taken")
    with pytest.raises(CallTimeout) as waits:
        bus.note.options(timeout=1)("waits")
    assert "note('waits'): no reply in 1 s (queued 1 s; 1 worker alive)" in str(waits.value)
    with pytest.raises(CallTimeout) as late:
        taken.result()
    state = "no reply in 3 s (taken by a worker, not finished; 1 worker alive)"
    assert f"{method}('taken'): {state}" in str(late.value)
    for error in (waits, late):
        assert not isinstance(error.value, NoWorkers)
    let_go(place)
    assert bus.note("next") == "next"
    assert begun(place) == ["taken", "next"]
    place.eventually(lambda: not replies(place), 1)
    again = place.apart(bus[method], "again")
    wait_until_begun(place, "taken", "next", "again")
    let_go(place)
    assert again.result().startswith("again by ")


@pytest.mark.together(over=FACES)
def test_one_bus_works_on_after_many_timeouts_at_once(place: Place) -> None:
    place.serve(HELD)
    bus = place.bus(timeout=30)
    brief = bus.held.options(timeout=2)
    futures = [place.apart(brief, number) for number in range(10)]
    for future in futures:
        assert isinstance(future.exception(), CallTimeout)
    place.eventually(lambda: all_late(place, "held"))
    let_go(place)
    for number in range(100, 120):
        assert bus.note(number) == number
    assert len(begun(place)) == 21  # the one that was taken before its time was up
    place.eventually(lambda: not replies(place))


# -- the caller sends too much ----------------------------------------------------------------


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("method", ["note", "held_cached"])
@pytest.mark.parametrize(
    "value", [b"x" * MAX_BYTES, nested(MAX_DEPTH + 1)], ids=["too-large", "too-deep"]
)
def test_arguments_over_a_limit_are_refused_before_anything_is_sent(
    place: Place, method: str, value: object
) -> None:
    worker = place.serve(HELD)
    worker.terminate()
    worker.wait()
    bus = place.bus(timeout=30)
    assert bus.get_method(method)  # the registration is known
    before, counted = keys(place), commands(place)
    for send in (bus[method], bus[method].run):
        with pytest.raises(SerializationError) as error:
            send(value)
        place.note(str(error.value)[:200])
    sent = {name: n - counted.get(name, 0) for name, n in commands(place).items()}
    sent = {name: n for name, n in sent.items() if n}
    assert set(sent) <= {"cmdstat_scan", "cmdstat_info"}, sent
    assert keys(place) == before
    assert queued(place, method) == 0


def commands(place: Place) -> dict[str, int]:
    """Return how often the server ran each command."""
    return {name: about["calls"] for name, about in place.client.info("commandstats").items()}


BIG = """
    import redis_bus
    bus = redis_bus.Bus("test")

    def nested(levels):
        value = []
        for _ in range(levels - 1):
            value = [value]
        return value

    @bus.register()
    def large(size):
        return b"x" * size

    @bus.register()
    def deep(levels):
        return nested(levels)

    @bus.register()
    def echo(value):
        return value
"""


@pytest.mark.together(over=FACES)
def test_a_result_over_a_limit_reaches_the_caller_as_that_and_the_worker_goes_on(
    place: Place,
) -> None:
    place.serve(BIG)
    bus = place.bus(timeout=30)
    for call in (lambda: bus.large(MAX_BYTES), lambda: bus.deep(MAX_DEPTH + 1)):
        with pytest.raises(SerializationError) as error:
            call()
        place.note(str(error.value)[:200])
        assert "result" in str(error.value)
    # What is just within them makes the trip.
    room = MAX_BYTES - 64
    assert bus.large(room) == b"x" * room
    assert len(bus.echo(b"y" * room)) == room
    assert bus.deep(MAX_DEPTH) == nested(MAX_DEPTH)


# -- nobody is there for it -------------------------------------------------------------------


@pytest.mark.together(over=FACES)
def test_a_full_queue_is_an_error_at_once_and_nothing_is_enqueued(place: Place) -> None:
    limited = """
        @bus.register(max_queue=2)
        def limited(a):
            return a
    """
    place.serve(together(HELD, limited))
    bus = place.bus(timeout=30)
    holding = place.apart(bus.held, "holding")
    wait_until_begun(place, "holding")
    waiting = [bus.limited.run(number) for number in range(2)]
    before = keys(place)
    for send in (bus.limited, bus.limited.run, bus.limited.options(timeout=None)):
        start = time.monotonic()
        with pytest.raises(QueueFull, match=r"limited\(7\): 2 jobs wait for limited already"):
            send(7)
        assert time.monotonic() - start < AT_ONCE_SECONDS
    assert queued(place, "limited") == 2
    # A caller that blocked on its reply already is answered there, which is read at once.
    assert keys(place) == before
    let_go(place)
    holding.result()
    assert [result.get() for result in waiting] == [0, 1]
    assert bus.limited(7) == 7


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("method", ["note", "held_cached"])
def test_a_call_that_nobody_serves_is_warned_of_once_and_ends_as_no_workers(
    place: Place, method: str
) -> None:
    worker = place.serve(HELD)
    worker.terminate()
    worker.wait()
    warning = f"{method}('1'): it waits, but no worker alive serves it"
    caller = place.python(WARNED_CALLER[place.face], method)
    calling = place.eventually(lambda: re.search(r"calling at (\S+) s", place.log(caller)))
    start = float(calling[1])  # on the clock that all processes of a machine share
    place.eventually(lambda: warning in place.log(caller))
    warned = time.monotonic() - start
    caller.wait()
    ended_after = time.monotonic() - start
    said = place.log(caller)
    assert said.count("no worker alive") == 1
    assert f"NoWorkers: {method}('1'): no reply in 3.5 s (queued 3.5 s; 0 workers alive)" in said
    assert 0.8 < warned < 2.5
    assert 3.3 < ended_after < 6
    place.note(f"warned after {warned:.2f} s, ended after {ended_after:.2f} s:\n{said}")


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("method", ["note", "held_cached"])
@pytest.mark.parametrize("killed", [False, True], ids=["worker-left", "worker-killed"])
def test_with_fail_fast_nobody_alive_is_an_error_at_once_and_nothing_is_enqueued(
    place: Place, method: str, killed: bool
) -> None:
    worker = place.serve(HELD)
    worker.kill() if killed else worker.terminate()
    worker.wait()
    bus = place.bus(timeout=30)
    place.eventually(lambda: not place.workers(method))  # a killed one counts until its lease ends
    before = keys(place)
    fast = bus[method].options(fail_fast=True)
    for send in (fast, fast.run):
        start = time.monotonic()
        with pytest.raises(NoWorkers, match=rf"{method}\(1\): no worker alive serves {method}"):
            send(1)
        assert time.monotonic() - start < AT_ONCE_SECONDS
    assert queued(place, method) == 0
    assert keys(place) == before


# -- what was registered changes while jobs wait ----------------------------------------------


OLD = """
    import redis_bus
    bus = redis_bus.Bus("test")

    @bus.register()
    def price(item):
        return ["old", item]

    @bus.register()
    def gone(item):
        return item
"""
NEW = """
    import redis_bus
    bus = redis_bus.Bus("test")

    @bus.register()
    def price(item, currency):
        return ["new", item, currency]
"""


@pytest.mark.together(over=FACES)
def test_jobs_of_a_method_that_is_no_longer_served_end_in_an_error_that_says_so(
    place: Place,
) -> None:
    worker = place.serve(OLD)
    worker.terminate()
    worker.wait()
    bus = place.bus(timeout=30)
    waiting = bus.gone.run("a")
    place.serve(NEW)
    assert bus.price("a", "EUR") == ["new", "a", "EUR"]
    with pytest.raises(NoWorkers, match=r"gone.*0 workers alive") as error:
        waiting.get(timeout=2)
    place.note(str(error.value))
    with pytest.raises(NoWorkers, match=r"gone\('b'\): no reply in 1 s \(queued 1 s; 0 workers"):
        bus.gone.options(timeout=1)("b")
    # Who serves it again serves those who wait still.
    place.serve(OLD, pattern="gone")
    assert waiting.get() == "a"


@pytest.mark.together(over=BOTH)
def test_jobs_made_for_other_parameters_end_in_an_error_at_the_caller_that_names_the_mismatch(
    place: Place,
) -> None:
    worker = place.serve(OLD)
    worker.terminate()
    worker.wait()
    bus = place.bus(timeout=30)
    waiting = [bus.price.run("a"), bus.price.run(item="b")]
    calling = place.apart(bus.price, "c")
    place.eventually(lambda: queued(place, "price") == 3)
    new = place.serve(NEW)
    errors = [calling.exception()]
    for result in waiting:
        with pytest.raises(BusError) as caught:
            result.get(timeout=20)
        errors.append(caught.value)
    for error in errors:
        assert type(error) is BusError, error
        assert "another registration of method price" in str(error)
        assert "missing 1 required positional argument: 'currency'" in str(error)
    place.note(str(errors[0]))
    assert "another registration of method price" in place.log(new)
    assert bus.price("a", "EUR") == ["new", "a", "EUR"]


@pytest.mark.together(over=FACES)
def test_a_timeout_bounds_connecting_and_waiting_together(place: Place) -> None:
    place.serve(HELD)
    bus = place.bus()
    assert place.workers("held") == 1  # connected
    server, seconds = place.server, 6
    timers = [
        threading.Timer(when, act)
        for when, act in [
            (1.0, server.stop_signal),  # amid a slice: the connection counts as lost in the end
            (seconds - 0.1, server.cont),
            (seconds + 0.2, server.stop_signal),
            (seconds + 20, server.cont),
        ]
    ]
    start = time.monotonic()
    for timer in timers:
        timer.start()
    try:
        with pytest.raises(BusError):
            bus.held.options(timeout=seconds)(1)
        took = time.monotonic() - start
    finally:
        for timer in timers:
            timer.cancel()
        server.cont()
    place.note(f"{took:.1f} s of {seconds}")
    assert took < seconds + 8
