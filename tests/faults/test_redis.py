"""Faults of Redis itself: it is killed, stands still, forgets, is full, or holds others' bytes."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_bus import (
    Bus,
    BusError,
    CallTimeout,
    Cancelled,
    ConnectionLost,
    JobLost,
    ProtocolError,
    SerializationError,
)
from redis_bus.calls.directory import UnknownMethod
from redis_bus.transport.transport import READ_SECONDS
from tests.faults.place import BOTH, FACES, SLOTS, Place

CODE = """
    import os, time
    import redis, redis_bus

    bus = redis_bus.Bus("test")
    client = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])

    def note(text):
        with open(os.environ["RUNS"], "a") as file:
            file.write(text + "\\n")

    @bus.register()
    def plain(a):
        note(f"plain {a}")
        return f"<{a}>"

    @bus.register(cache_key="{a}")
    def kept(a):
        note(f"kept {a}")
        return f"<{a}>"

    @bus.register(cache_key="{a}")
    def large(a):
        return f"<{a}>" * 1000

    @bus.register()
    def slow(a, seconds):
        note(f"slow {a}")
        time.sleep(seconds)
        return f"<{a}>"

    @bus.register()
    def gated(a):
        note(f"gated {a}")
        client.blpop("go", 30)
        return f"<{a}>"

    @bus.register(cache_key="{a}")
    def gated_kept(a):
        note(f"gated_kept {a}")
        client.blpop("go", 30)
        return f"<{a}>"
"""
# What a call may take past its timeout: Redis's own delay, and the question what became of it.
GRACE_SECONDS = 4.0
# In which all is as before: some heartbeats, a lease.
RECOVERY_SECONDS = 25.0


def serve(place: Place) -> Any:
    """Start a worker with all functions."""
    return place.serve(CODE, env={"RUNS": str(runs_file(place))}, args=("--log-level", "info"))


def runs_file(place: Place) -> Path:
    return place.folder / "runs"


def runs(place: Place) -> Counter[str]:
    """How often each function ran for each argument; a fault of Redis does not touch that."""
    file = runs_file(place)
    return Counter(file.read_text().splitlines()) if file.exists() else Counter()


def assert_none_ran_twice(place: Place) -> None:
    uncached = {text: n for text, n in runs(place).items() if not text.startswith("kept ")}
    assert {text: n for text, n in uncached.items() if n > 1} == {}


def told(place: Place, worker: Any) -> list[str]:
    """What a worker wrote at WARNING and above, but for its functions' own errors."""
    lines = place.log(worker).splitlines()
    return [line for line in lines if " WARNING " in line or " ERROR " in line]


@dataclass
class Calls:
    """What became of calls that were made all the time."""

    answered: list[str] = field(default_factory=list)
    errors: list[BusError] = field(default_factory=list)
    slowest: float = 0.0
    logged: list[str] = field(default_factory=list)

    def noted(self) -> str:
        kinds = Counter(type(error).__name__ for error in self.errors)
        return f"{len(self.answered)} answered, {dict(kinds)}, slowest {self.slowest:.1f} s"


@contextlib.contextmanager
def calling(place: Place, *steps: Callable[[str], object], pause: float = 0.0) -> Iterator[Calls]:
    """Take each step all the time, each in a thread, with another argument each time.

    A step raises for a wrong value, which fails the test; an error of the bus is kept.
    """
    ended, calls, numbers = threading.Event(), Calls(), itertools.count()

    def call(step: Callable[[str], object]) -> None:
        with place.logged() as messages:
            while not ended.is_set():
                a = f"a{next(numbers)}"
                begun = time.monotonic()
                try:
                    step(a)
                except BusError as error:
                    assert str(error)
                    calls.errors.append(error)
                else:
                    calls.answered.append(a)
                calls.slowest = max(calls.slowest, time.monotonic() - begun)
                ended.wait(pause)
        calls.logged += messages

    with ThreadPoolExecutor(len(steps)) as pool:
        futures = [pool.submit(call, step) for step in steps]
        try:
            yield calls
        finally:
            ended.set()
        for future in futures:
            future.result(60)
    place.note(calls.noted())


def of_kind(bus: Bus, kind: str) -> Callable[[str], object]:
    """Return a step that calls in one of the ways there are."""
    for name in ("plain", "kept"):
        bus.get_method(name)  # it is looked up before anything happens to Redis

    def plain(a: str) -> None:
        assert bus.plain(a) == f"<{a}>"

    def kept(a: str) -> None:
        key = f"{int(a[1:]) % 50}"
        assert bus.kept(key) == f"<{key}>"

    def run(a: str) -> None:
        assert bus.plain.run(a).get() == f"<{a}>"

    def run_kept(a: str) -> None:
        assert bus.kept.run(a).get() == f"<{a}>"

    def clear(a: str) -> None:
        bus.kept.clear_cache(f"{int(a[1:]) % 50}")
        if int(a[1:]) % 10 == 0:
            bus.kept.clear_all_cache()

    def look(a: str) -> None:
        assert "plain" in bus.all_methods()
        assert bus.stats()["plain"]["workers"] > 0

    steps: dict[str, Callable[[str], object]] = {
        f.__name__: f for f in (plain, kept, run, run_kept, clear, look)
    }
    return steps[kind]


ALL_KINDS = ("plain", "kept", "run", "run_kept", "clear", "look")


def works(bus: Bus, *, keys: tuple[str, ...] = ()) -> bool:
    """Whether each kind of call is answered now; a wrong answer fails the test."""
    try:
        for kind in ALL_KINDS[:-1]:
            of_kind(bus, kind)(f"a{random.getrandbits(48)}")
        for key in keys:
            assert bus.kept(key) == f"<{key}>"
        return bool(bus.stats()["plain"]["workers"])
    except (BusError, AttributeError, KeyError):  # the last two: no such method now
        return False


def passed(place: Place, seconds: float) -> None:
    """Wait until the fault has lasted for some seconds."""
    end = time.monotonic() + seconds
    place.eventually(lambda: time.monotonic() >= end, seconds + 10)


# -- it ends and comes back -----------------------------------------------------------------------


@pytest.mark.brief
@pytest.mark.together(over=BOTH)
def test_after_redis_was_killed_and_is_back_empty_all_goes_on_by_itself(place: Place) -> None:
    workers = [serve(place), serve(place)]
    bus, hasty = place.bus(timeout=15), place.bus(timeout=1)
    pool = ThreadPoolExecutor(2)
    kinds = [of_kind(bus, kind) for kind in ("plain", "kept", "run", "run_kept")]
    kinds.append(of_kind(hasty, "plain"))
    with pool, calling(place, *kinds, pause=0.01) as calls:
        waiting: list[Future[Any]] = [
            pool.submit(bus.slow, "at the kill", 5),
            pool.submit(lambda: bus.slow.run("run at the kill", 5).get()),
        ]
        place.eventually(lambda: len([r for r in runs(place) if r.startswith("slow")]) == 2)
        place.server.kill()
        place.eventually(lambda: any("no Redis at" in str(error) for error in calls.errors))
        passed(place, 2)
        place.server.start()
        place.eventually(lambda: place.workers("plain") == 2, RECOVERY_SECONDS)
        place.eventually(lambda: works(bus), RECOVERY_SECONDS)
        for future in waiting:
            with contextlib.suppress(CallTimeout, ConnectionLost, JobLost):
                assert future.result(60) in ("<at the kill>", "<run at the kill>")
        before = len(calls.answered)
        place.eventually(lambda: len(calls.answered) > before + 20)
    assert calls.slowest < 15 + GRACE_SECONDS
    assert_none_ran_twice(place)
    for worker in workers:
        assert worker.poll() is None
        assert "Redis is back" in place.log(worker)
        # It waits between its tries, longer each time; the heart tells of its own once.
        assert len(told(place, worker)) < 10


@pytest.mark.together(appendonly="yes", appendfsync="always", over=BOTH)
def test_a_redis_that_keeps_its_log_loses_no_run_over_kills(place: Place) -> None:
    workers = [serve(place), serve(place)]
    bus = place.bus(timeout=30)
    noted: dict[str, str] = {}

    def run(a: str) -> None:
        noted[a] = bus.plain.run(a).id

    def call(a: str) -> None:
        assert bus.plain(f"call {a}") == f"<call {a}>"

    with calling(place, run, run, call, pause=0.002) as calls:
        for turn in range(3):
            before = len(calls.answered)
            place.eventually(lambda n=before + 100 + 37 * turn: len(calls.answered) > n)
            place.server.kill()
            place.server.start()
        before = len(calls.answered)
        place.eventually(lambda: len(calls.answered) > before + 100, RECOVERY_SECONDS)
    assert calls.errors
    assert calls.slowest < 30 + GRACE_SECONDS
    place.note(f"{len(noted)} runs were acknowledged")
    for a, job in noted.items():
        assert bus.get_async_result(job).get(timeout=30) == f"<{a}>"
    assert_none_ran_twice(place)
    assert runs(place).keys() >= {f"plain {a}" for a in noted}
    assert [worker.poll() for worker in workers] == [None, None]
    assert not list(place.client.scan_iter("rb:{test:}:running:*"))


@pytest.mark.together(rdbcompression="no", over=BOTH)
def test_while_redis_loads_its_data_calls_wait_and_who_has_no_time_is_told_so(
    place: Place,
) -> None:
    worker = serve(place)
    bus, hasty = place.bus(timeout=20), place.bus(timeout=0.3)
    for number in range(300):
        place.client.set(f"another's {number}", b"x" * 100_000)
    # So it loads for some seconds, and answers now and then that it does.
    place.server.options["key_load_delay"] = 10_000
    kinds = [of_kind(bus, kind) for kind in ("plain", "kept", "run", "clear", "look")]
    kinds.append(of_kind(hasty, "plain"))
    with calling(place, *kinds, pause=0.01) as calls:
        place.eventually(lambda: len(calls.answered) > 20)
        place.client.save()
        place.server.kill()
        starting = place.apart(place.server.start)
        place.eventually(lambda: any("is loading" in str(error) for error in calls.errors))
        starting.result(60)
        before = len(calls.answered)
        place.eventually(lambda: len(calls.answered) > before + 50, RECOVERY_SECONDS)
    assert calls.slowest < 20 + GRACE_SECONDS
    assert {type(error) for error in calls.errors} <= {ConnectionLost, CallTimeout, JobLost}
    assert_none_ran_twice(place)
    assert worker.poll() is None


# -- it stands still ------------------------------------------------------------------------------


@pytest.mark.together(over=BOTH)
def test_a_redis_that_stands_still_briefly_is_waited_for(place: Place) -> None:
    serve(place)
    bus = place.bus(timeout=30)
    with calling(place, *(of_kind(bus, kind) for kind in ALL_KINDS), pause=0.01) as calls:
        for seconds in (0.5, 3):
            place.server.stop_signal()
            passed(place, seconds)
            place.server.cont()
            before = len(calls.answered)
            place.eventually(lambda before=before: len(calls.answered) > before + 100)
    assert calls.errors == []
    assert_none_ran_twice(place)


@pytest.mark.together(over=BOTH)
def test_a_redis_that_stands_still_for_long_loses_no_running_job_and_runs_none_twice(
    place: Place,
) -> None:
    workers = [serve(place) for _ in range(3)]
    bus, hasty = place.bus(timeout=60), place.bus(timeout=4)
    kinds = [of_kind(hasty, kind) for kind in ("plain", "kept", "run", "run_kept")]
    with ThreadPoolExecutor(2) as pool, calling(place, *kinds, pause=0.01) as calls:
        # One ends while Redis stands still, the other after that.
        running = {a: pool.submit(bus.slow, a, s) for a, s in (("short", 6), ("long", 22))}
        place.eventually(lambda: {"slow short", "slow long"} <= runs(place).keys())
        passed(place, 2)  # their callers have begun to wait in slices
        place.server.stop_signal()
        passed(place, 15)
        place.server.cont()
        for a, future in running.items():
            assert future.result(60) == f"<{a}>"
        place.eventually(lambda: works(bus), RECOVERY_SECONDS)
        place.eventually(lambda: place.workers("plain") == 3, RECOVERY_SECONDS)
        before = len(calls.answered)
        place.eventually(lambda: len(calls.answered) > before + 20)
    assert calls.errors
    # A `run` has no timeout: it has Redis's answer, or what ends every wait for one.
    assert calls.slowest < READ_SECONDS + 4 + GRACE_SECONDS
    for error in calls.errors:
        assert "did not answer in time" in str(error) or "no reply in 4 s" in str(error)
    assert_none_ran_twice(place)
    assert [worker.poll() for worker in workers] == [None] * 3
    assert not list(place.client.scan_iter("rb:{test:}:running:*"))


# -- it forgets -----------------------------------------------------------------------------------


@pytest.mark.brief
@pytest.mark.together(over=BOTH)
def test_scripts_may_be_flushed_at_any_moment(place: Place) -> None:
    worker = serve(place)
    bus = place.bus(timeout=20)
    steps = [of_kind(bus, kind) for kind in ALL_KINDS]
    with calling(place, *steps) as calls:
        end = time.monotonic() + 6
        for turn in itertools.count():
            if time.monotonic() > end:
                break
            place.client.script_flush()
            # From none to several calls between two of them.
            passed(place, (0.001, 0.005, 0.012, 0.03)[turn % 4])
    assert calls.errors == []
    assert calls.logged == []
    assert told(place, worker) == []
    assert len(calls.answered) > 200
    assert_none_ran_twice(place)


@pytest.mark.together(over=BOTH)
def test_a_cleanup_while_workers_and_callers_live_is_got_over(place: Place) -> None:
    worker = serve(place)
    bus = place.bus(timeout=5)
    kinds = [of_kind(bus, kind) for kind in ("plain", "kept", "run", "run_kept")]
    with ThreadPoolExecutor(1) as pool, calling(place, *kinds, pause=0.01) as calls:
        for _ in range(3):
            running = pool.submit(bus.slow, f"at {random.random()}", 1)
            before = len(runs(place))
            place.eventually(lambda before=before: len(runs(place)) > before)
            assert place.bus().cleanup() > 0
            place.eventually(lambda: place.workers("plain") == 1)
            place.eventually(lambda: works(bus), RECOVERY_SECONDS)
            # Its job is forgotten, and it may look the method up before that is published again.
            with contextlib.suppress(CallTimeout, UnknownMethod):
                assert running.result(30).startswith("<at ")
    assert calls.slowest < 5 + GRACE_SECONDS
    assert_none_ran_twice(place)
    assert "publishes" in place.log(worker)
    assert worker.poll() is None


# -- it is full -----------------------------------------------------------------------------------


@pytest.mark.brief
@pytest.mark.together(over=BOTH)
def test_out_of_memory_is_told_to_callers_and_harms_no_running_job_and_no_worker(
    place: Place,
) -> None:
    worker = serve(place)
    bus = place.bus(timeout=60)
    assert bus.kept("known") == "<known>"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bus.slow, "through it", 4)
        place.eventually(lambda: "slow through it" in runs(place))
        passed(place, 2.5)  # the wait for it is in its second slice, of 5 s
        place.client.config_set("maxmemory-policy", "noeviction")
        place.client.config_set("maxmemory", 1)
        begun = time.monotonic()
        for call in (bus.plain, bus.kept, bus.plain.run, bus.kept.run):
            with pytest.raises(BusError, match=r"OOM|'maxmemory'") as error:
                call("new")
            assert not isinstance(error.value, CallTimeout)
        place.note(str(error.value))
        assert time.monotonic() - begun < 3
        assert bus.kept("known") == "<known>"  # nothing has to be written for that
        assert running.result(30) == "<through it>"
        passed(place, 16)  # more than a lease and the sweep of the next beat
        place.note(f"listed after {time.monotonic() - begun:.0f} s: {place.is_listed(worker)}")
        alive = place.workers("plain")
        place.client.config_set("maxmemory", 0)
        place.eventually(lambda: works(bus))
        assert alive == 1
    assert worker.poll() is None
    assert_none_ran_twice(place)


@pytest.mark.together(over=BOTH)
def test_evictions_cost_an_error_at_the_worst_and_leave_no_key_stuck(place: Place) -> None:
    workers = [serve(place), serve(place)]
    bus = place.bus(timeout=4)

    def large(a: str) -> None:
        key = f"{random.randrange(3000)}"
        assert bus.large(key) == f"<{key}>" * 1000

    kinds = [of_kind(bus, kind) for kind in ("plain", "kept", "run", "run_kept")]
    for name in ("plain", "kept", "large"):  # the registry may be evicted before they are called
        assert bus.get_method(name)
    used = place.client.info("memory")["used_memory"]
    place.client.config_set("maxmemory-policy", "allkeys-lru")
    place.client.config_set("maxmemory", used + 600_000)
    with calling(place, large, large, *kinds) as calls:
        passed(place, 8)
    evicted = place.client.info("stats")["evicted_keys"]
    place.note(f"{evicted} keys were evicted")
    assert evicted > 100
    assert calls.slowest < 4 + GRACE_SECONDS
    place.client.config_set("maxmemory", 0)
    keys = tuple(str(number) for number in range(50))
    place.eventually(lambda: works(bus, keys=keys), RECOVERY_SECONDS)
    place.eventually(lambda: place.workers("plain") == 2)
    assert_none_ran_twice(place)
    assert [worker.poll() for worker in workers] == [None, None]


KEYS = {
    "methods": "rb:{test}:methods",
    **{kind: f"rb:{{test:}}:{kind}" for kind in ("meta", "workers", "swept")},
    **{
        kind: f"rb:{{test:}}:{kind}:*"
        for kind in (
            *("queue", "wake", "pending", "serving", "running"),
            *("reply", "cache", "flight", "stats"),
        )
    },
}
# A flight that nobody flies ends with its budget and a lease.
BUDGET_SECONDS = 5.0
FLIGHT_SECONDS = BUDGET_SECONDS + 10.0


def delete(place: Place, kind: str) -> int:
    """Delete the keys of a kind, as an eviction does; returns how many there were."""
    keys = list(place.client.scan_iter(KEYS[kind], count=1000))
    return int(place.client.delete(*keys)) if keys else 0


def settle(place: Place, futures: dict[str, Future[Any]]) -> None:
    """See that each call has its value or an error of the bus in time; nothing else."""
    for a, future in futures.items():
        try:
            assert future.result(BUDGET_SECONDS + GRACE_SECONDS) == f"<{a}>"
        except BusError as error:
            assert str(error)
            place.note(f"{a}: {type(error).__name__}: {error}")
        else:
            place.note(f"{a}: its value")


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("kind", KEYS)
def test_whatever_key_is_evicted_at_a_bad_moment_calls_end_and_the_next_work(
    place: Place, kind: str
) -> None:
    serve(place)
    bus = place.bus(timeout=BUDGET_SECONDS)
    client = place.client
    ways: dict[str, Callable[[str], Any]] = {
        "call": bus.gated,
        "kept": bus.gated_kept,
        "run": lambda a: bus.gated.options(timeout=BUDGET_SECONDS).run(a).get(),
        "run kept": lambda a: bus.gated_kept.options(timeout=BUDGET_SECONDS).run(a).get(),
    }

    def open_gate() -> None:
        client.rpush("go", *range(50))

    def close_gate() -> None:
        client.delete("go")

    def has_run(a: str) -> bool:
        return any(line.endswith(f" {a}") for line in runs(place))

    def queued() -> int:
        return int(sum(client.llen(f"rb:{{test:}}:queue:{m}") for m in ("gated", "gated_kept")))

    def recovered(*keys: str) -> None:
        open_gate()
        place.eventually(lambda: works(bus), RECOVERY_SECONDS)

        def all_answered() -> bool:
            try:
                return all(bus.gated_kept(key) == f"<{key}>" for key in keys)
            except BusError:
                return False

        place.eventually(all_answered, FLIGHT_SECONDS + RECOVERY_SECONDS)
        close_gate()

    deleted = 0
    with ThreadPoolExecutor(8) as pool:
        # Queued: the worker is held by a job before.
        held = pool.submit(bus.gated.options(timeout=60), "before")
        place.eventually(lambda: has_run("before"))
        waiting = {f"queued {way}": pool.submit(ways[way], f"queued {way}") for way in ways}
        place.eventually(lambda: queued() == 4)
        deleted += delete(place, kind)
        open_gate()
        settle(place, waiting)
        recovered("queued kept", "queued run kept")
        with contextlib.suppress(BusError):
            assert held.result(70 if kind == "running" else 30) == "<before>"
        # Running: one after the other.
        for way, call in ways.items():
            a = f"running {way}"
            running = {a: pool.submit(call, a)}
            place.eventually(lambda a=a: has_run(a))
            deleted += delete(place, kind)
            open_gate()
            settle(place, running)
            recovered(a)
        # Finished: what is left of it is an outcome, or a cached value.
        open_gate()
        result = bus.gated.run("finished run")
        place.eventually(result.done)
        assert bus.gated_kept("finished kept") == "<finished kept>"
        deleted += delete(place, kind)
        settle(
            place,
            {
                "finished run": pool.submit(result.get),
                "finished kept": pool.submit(bus.gated_kept, "finished kept"),
            },
        )
        recovered("finished kept")
    assert deleted, "there was nothing to delete at any of these moments"
    uncached = [text for text in runs(place) if text.startswith(("plain ", "gated "))]
    assert {text: runs(place)[text] for text in uncached if runs(place)[text] > 1} == {}


# -- it holds bytes of others ---------------------------------------------------------------------

GARBAGE = (b"", b"garbage", b"\xff\xfe\0", b"a b c d", b"1 2 3\n", b"x" * 100_000)


def lines_with(place: Place, worker: Any, word: str) -> int:
    return sum(word in line for line in told(place, worker))


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("data", GARBAGE)
def test_foreign_meta_is_replaced_and_calls_are_answered(place: Place, data: bytes) -> None:
    serve(place)
    bus = place.bus(timeout=20)
    for method in ("plain", "kept"):
        assert bus[method]("before") == "<before>"
        place.client.hset("rb:{test:}:meta", method, data)
        assert bus[method]("after") == "<after>"
        place.client.hset("rb:{test:}:meta", method, data)
        assert bus[method].run("run").get() == "<run>"
    place.client.hset("rb:{test:}:meta", "kept", data)
    bus.kept.clear_cache("after")
    place.client.hset("rb:{test:}:meta", "kept", data)
    bus.kept.clear_all_cache()
    assert works(bus)


@pytest.mark.together(over=FACES)
def test_foreign_bytes_in_a_flight_are_overwritten(place: Place) -> None:
    serve(place)
    bus = place.bus(timeout=20)
    for number, data in enumerate(GARBAGE):
        key = f"key{number}"
        place.client.set(f"rb:{{test:}}:flight:kept:{key}", data)
        assert bus.kept(key) == f"<{key}>"
        place.client.set(f"rb:{{test:}}:flight:kept:{key}", data)
        assert bus.kept.clear_cache(key) is True
        place.client.set(f"rb:{{test:}}:flight:kept:{key}", data)
        assert bus.kept.run(key).get() == f"<{key}>"
    assert not list(place.client.scan_iter("rb:{test:}:flight:*"))


@pytest.mark.together(over=BOTH)
def test_foreign_bytes_in_a_flight_whose_job_runs_do_not_hold_its_callers(place: Place) -> None:
    serve(place)
    bus = place.bus(timeout=30)
    with ThreadPoolExecutor(1) as pool:
        for number, data in enumerate(GARBAGE):
            key = f"key{number}"
            answer = pool.submit(bus.gated_kept, key)
            place.eventually(lambda key=key: f"gated_kept {key}" in runs(place))
            place.client.set(f"rb:{{test:}}:flight:gated_kept:{key}", data)
            place.client.rpush("go", 1, 2, 3)
            assert answer.result(40) == f"<{key}>"
            assert bus.gated_kept(key) == f"<{key}>"
            place.client.delete("go")


@pytest.mark.together(over=SLOTS)
def test_foreign_claims_of_a_worker_are_told_of_and_do_not_hold_it(place: Place) -> None:
    worker = serve(place)
    bus = place.bus(timeout=20)
    running = f"rb:{{test:}}:running:{worker_id(place)}"
    for number, data in enumerate(GARBAGE):
        place.client.hset(running, f"job{number}", data)
    assert works(bus)
    # A worker looks at its claims when it comes back from a lost connection.
    end_connections(place)
    place.eventually(lambda: lines_with(place, worker, "no job") >= len(GARBAGE))
    place.eventually(lambda: works(bus))
    assert lines_with(place, worker, "no job") == len(GARBAGE)
    assert not place.client.exists(running)
    assert worker.poll() is None


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("data", [*GARBAGE, b"-", b"k", b"kkey", b"k\xff"])
def test_foreign_bytes_in_pending_stop_neither_job_nor_cancel(place: Place, data: bytes) -> None:
    serve(place)
    bus = place.bus(timeout=20)
    for method in ("plain", "kept"):
        pending = f"rb:{{test:}}:pending:{method}"
        bus.gated.run(f"before {method}")
        place.eventually(lambda m=method: f"gated before {m}" in runs(place))
        results = [bus[method].run(f"{method} {number}") for number in range(2)]
        for result in results:
            assert place.client.hset(pending, job_of(result.id), data) == 0
        cancelled = results[1].cancel()
        assert place.client.hset(pending, "no such job", data) == 1
        assert bus.get_async_result(f":{method}:no-such-job").cancel() is False
        place.client.rpush("go", 1)
        for number, result in enumerate(results):
            try:
                assert result.get(timeout=3) == f"<{method} {number}>"
            except BusError as error:
                # It says that the job was cancelled, or the bytes said so, which nobody answers.
                expected = Cancelled if cancelled and number == 1 else CallTimeout
                assert isinstance(error, expected)
                assert expected is Cancelled or data == b"-"
        place.client.hdel(pending, "no such job")
        assert works(bus)
        assert not place.client.exists(pending)


@pytest.mark.together(over=BOTH)
def test_a_foreign_reply_is_an_error_for_who_waits_for_it_and_for_nobody_else(
    place: Place,
) -> None:
    worker = serve(place)
    bus = place.bus(timeout=20)
    with ThreadPoolExecutor(2) as pool:
        for number, data in enumerate(GARBAGE):
            result = bus.gated.run(number)
            got = pool.submit(result.get)
            place.eventually(lambda number=number: f"gated {number}" in runs(place))
            place.client.lpush(f"rb:{{test:}}:reply:{job_of(result.id)}", data)
            with pytest.raises((ProtocolError, SerializationError)):
                got.result(30)
            place.client.rpush("go", 1)
            held = f"rb:{{test:}}:running:{worker_id(place)}"
            # Else the next one could be let go in its place.
            place.eventually(lambda held=held: not place.client.hkeys(held))
            called = pool.submit(bus.gated, f"call {number}")
            place.eventually(lambda number=number: f"gated call {number}" in runs(place))
            (job,) = place.client.hkeys(held)
            place.client.lpush(b"rb:{test:}:reply:" + job, data)
            with pytest.raises((ProtocolError, SerializationError)):
                called.result(30)
            place.client.rpush("go", 1)
            assert works(bus)
    assert told(place, worker) == []
    assert worker.poll() is None


@pytest.mark.together(over=SLOTS)
def test_a_wake_list_of_others_bytes_wakes_and_is_forgotten(place: Place) -> None:
    serve(place)
    bus = place.bus(timeout=20)
    place.client.rpush("rb:{test:}:wake:plain", *GARBAGE)
    place.eventually(lambda: not place.client.exists("rb:{test:}:wake:plain"))
    assert works(bus)


@pytest.mark.together(over=BOTH)
@pytest.mark.parametrize("kind", ["queue:plain", "wake:plain", "serving:plain", "stats:plain"])
def test_a_key_of_another_type_harms_its_method_only_and_is_not_told_of_for_ever(
    place: Place, kind: str
) -> None:
    worker = serve(place)
    bus = place.bus(timeout=5)
    assert works(bus)
    place.client.delete(f"rb:{{test:}}:{kind}")
    place.client.set(f"rb:{{test:}}:{kind}", "of another type")
    passed(place, 4)
    for a in range(5):
        assert bus.kept(f"other {a}") == f"<other {a}>"
    with contextlib.suppress(BusError):
        assert bus.plain("a") == "<a>"
    place.note(f"{len(told(place, worker))} lines")
    assert len(told(place, worker)) < 10
    place.client.delete(f"rb:{{test:}}:{kind}")
    place.eventually(lambda: works(bus), RECOVERY_SECONDS)
    assert worker.poll() is None


def worker_id(place: Place) -> str:
    (worker,) = place.client.zrange("rb:{test:}:workers", 0, -1)
    return worker.decode()


def job_of(result: str) -> str:
    return result.rpartition(":")[2]


def end_connections(place: Place) -> None:
    """End all connections but the one that this is said over."""
    with contextlib.suppress(redis.RedisError):
        place.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
