"""The cache: answered without a worker, cleared without a race, filled by one run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from redis_bus import Bus, SerializationError
from tests.commands import sent
from tests.support import eventually, serving

CACHE = "rb:{test:}:cache:"


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture
def second(url: str) -> Iterator[Bus]:
    """A bus for a second worker of the same service."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


class Gated:
    """A function whose every run can be held open, and returns its number."""

    def __init__(self, *held: int) -> None:
        self.held = set(held)
        self.entered = [threading.Event() for _ in range(20)]
        self.go = [threading.Event() for _ in range(20)]
        self.runs = 0
        self.error: Exception | None = None
        self._lock = threading.Lock()

    def __call__(self, a: int = 0) -> str:
        with self._lock:
            number = self.runs
            self.runs += 1
        self.entered[number].set()
        if number in self.held:
            assert self.go[number].wait(20)
        if self.error is not None:
            raise self.error
        return f"run {number}"


def joins(bus: Bus, name: str = "gated") -> float:
    return bus.stats()[name]["joins"]


# -- what is cached -----------------------------------------------------------------------------


def test_a_cached_value_is_answered_with_no_worker_alive(bus: Bus, caller: Bus) -> None:
    gated = Gated()
    bus.register("gated", cache_key="{a}")(gated)
    with serving(bus):
        assert caller.gated(1) == "run 0"
    assert bus.stats()["gated"]["workers"] == 0
    assert [caller.gated(1), caller.gated(a=1), bus.gated(1)] == ["run 0"] * 3
    assert gated.runs == 1


def test_a_hit_is_one_command(bus: Bus, caller: Bus, client: redis.Redis) -> None:
    bus.register("gated", cache_key="{a}")(Gated())
    with serving(bus):
        caller.gated(1)
    with sent(client) as commands:
        caller.gated(1)
    assert commands == {"evalsha": 1, "hget": 1, "get": 1, "hincrby": 1}


def test_none_is_a_value_like_any_other(bus: Bus) -> None:
    runs: list[int] = []
    bus.register("note", cache_key="{a}")(lambda a: runs.append(a))
    with serving(bus):
        assert [bus.note(1), bus.note(1)] == [None, None]
    assert bus.note(1) is None
    assert runs == [1]
    assert bus.note.clear_cache(1) is True


def test_exceptions_are_not_cached(bus: Bus, client: redis.Redis) -> None:
    gated = Gated()
    gated.error = ValueError("not now")
    bus.register("gated", cache_key="{a}")(gated)
    with serving(bus):
        with pytest.raises(ValueError, match="not now"):
            bus.gated(1)
        assert not client.exists(CACHE + "gated:1")
        gated.error = None
        assert [bus.gated(1), bus.gated(1)] == ["run 1", "run 1"]
        # An exception neither replaces nor clears the value of another key.
        gated.error = ValueError("again")
        with pytest.raises(ValueError, match="again"):
            bus.gated(2)
        assert bus.gated(1) == "run 1"


def test_what_cannot_be_encoded_is_not_cached(bus: Bus, client: redis.Redis) -> None:
    bus.register("bad", cache_key="{a}")(lambda a: object())
    with serving(bus):
        for _ in range(2):
            with pytest.raises(SerializationError):
                bus.bad(1)
    assert not client.exists(CACHE + "bad:1")
    assert bus.stats()["bad"]["errors"] == 2


def test_a_method_without_a_cache_key_runs_every_time(bus: Bus) -> None:
    bus.register("gated")(Gated())
    with serving(bus):
        assert [bus.gated(1), bus.gated(1)] == ["run 0", "run 1"]


# -- how long -----------------------------------------------------------------------------------


def test_cache_expire_0_shares_flights_and_stores_nothing(
    bus: Bus, caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    gated = Gated(0)
    bus.register("gated", cache_key="{a}", cache_expire=0)(gated)
    with serving(bus):
        answers = [pool.submit(caller.gated, 1) for _ in range(5)]
        eventually(lambda: joins(bus) == 4)
        gated.go[0].set()
        assert [answer.result(20) for answer in answers] == ["run 0"] * 5
        assert not list(client.scan_iter(CACHE + "*"))
        assert caller.gated(1) == "run 1"
        assert caller.gated.clear_cache(1) is False


@pytest.mark.parametrize(("cache_expire", "longest"), [(0.5, 500), (100, 100_000), (1.5, 1500)])
def test_a_value_lives_as_long_as_cache_expire_says(
    bus: Bus, client: redis.Redis, cache_expire: float, longest: int
) -> None:
    bus.register("gated", cache_key="{a}", cache_expire=cache_expire)(Gated())
    with serving(bus):
        bus.gated(1)
    assert longest - 450 < client.pttl(CACHE + "gated:1") <= longest


def test_an_expired_value_is_computed_again(bus: Bus, client: redis.Redis) -> None:
    bus.register("gated", cache_key="{a}", cache_expire=0.05)(Gated())
    with serving(bus):
        assert bus.gated(1) == "run 0"
        eventually(lambda: not client.exists(CACHE + "gated:1"))
        assert bus.gated(1) == "run 1"


def test_cache_expire_none_keeps_values_for_ever(bus: Bus, client: redis.Redis) -> None:
    bus.register("gated", cache_key="{a}", cache_expire=None)(Gated())
    with serving(bus):
        bus.gated(1)
        assert bus.gated(1) == "run 0"
    assert client.pttl(CACHE + "gated:1") == -1


def test_without_cache_expire_the_bus_says_how_long(url: str, client: redis.Redis) -> None:
    for expire, wanted in [(None, -1), (1000, 1_000_000)]:
        with Bus("test", url=url, cache_expire=expire) as bus:
            bus.register("gated", cache_key="{a}")(Gated())
            with serving(bus):
                bus.gated(expire)
            assert wanted - 10_000 < client.pttl(f"{CACHE}gated:{expire}") <= wanted
    with Bus("default", url=url) as bus:
        bus.register("gated", cache_key="{a}")(Gated())
        with serving(bus):
            bus.gated(1)
    assert 86_390_000 < client.pttl("rb:{default:}:cache:gated:1") <= 86_400_000


# -- flights ------------------------------------------------------------------------------------


def test_concurrent_callers_of_a_missing_value_share_one_run(
    bus: Bus, caller: Bus, pool: ThreadPoolExecutor
) -> None:
    gated = Gated(0)
    bus.register("gated", cache_key="{a}")(gated)
    with serving(bus):
        first = pool.submit(caller.gated, 1)
        assert gated.entered[0].wait(20)
        others = [pool.submit(caller.gated, 1) for _ in range(49)]
        eventually(lambda: joins(bus) == 49)
        assert not any(answer.done() for answer in [first, *others])
        gated.go[0].set()
        assert {answer.result(20) for answer in [first, *others]} == {"run 0"}
    assert gated.runs == 1


def test_callers_share_a_run_that_no_worker_has_taken_yet(
    bus: Bus, caller: Bus, pool: ThreadPoolExecutor
) -> None:
    gated = Gated()
    bus.register("gated", cache_key="{a}")(gated)
    bus.serve_once()
    answers = [pool.submit(caller.gated, 1) for _ in range(10)]
    eventually(lambda: joins(bus) == 9)
    assert bus.stats()["gated"]["queued"] == 1
    with serving(bus):
        assert {answer.result(20) for answer in answers} == {"run 0"}
    assert gated.runs == 1


def test_other_keys_do_not_share_a_run(
    bus: Bus, second: Bus, caller: Bus, pool: ThreadPoolExecutor
) -> None:
    gated = Gated(0)
    for service in (bus, second):
        service.register("gated", cache_key="{a}")(gated)
    with serving(bus), serving(second):
        held = pool.submit(caller.gated, 1)
        assert gated.entered[0].wait(20)
        assert caller.gated(2) == "run 1"
        assert not held.done()
        gated.go[0].set()
        assert held.result(20) == "run 0"


def test_every_waiter_gets_exactly_one_outcome_when_the_run_fails(
    bus: Bus, caller: Bus, pool: ThreadPoolExecutor
) -> None:
    gated = Gated(0)
    gated.error = ValueError("for all")
    bus.register("gated", cache_key="{a}")(gated)
    with serving(bus):
        answers = [pool.submit(caller.gated, 1) for _ in range(30)]
        results = [caller.gated.run(1) for _ in range(3)]
        eventually(lambda: joins(bus) == 32)
        gated.go[0].set()
        for answer in answers:
            assert type(answer.exception(20)) is ValueError
        for result in results:
            with pytest.raises(ValueError, match="for all"):
                result.get()
        gated.error = None
        assert caller.gated(1) == "run 1"
    assert gated.runs == 2


# -- clearing -----------------------------------------------------------------------------------


def clear_one(method: Any) -> None:
    method.clear_cache(1)


def clear_all(method: Any) -> None:
    method.clear_all_cache()


@pytest.mark.parametrize("clear", [clear_one, clear_all])
@pytest.mark.parametrize("first_ends", ["before the new one", "after the new one"])
def test_clear_during_flight_never_stores_the_old_value(
    bus: Bus,
    second: Bus,
    caller: Bus,
    pool: ThreadPoolExecutor,
    clear: Callable[[Any], None],
    first_ends: str,
) -> None:
    gated = Gated(0, 1)
    for service in (bus, second):
        service.register("gated", cache_key="{a}")(gated)
    with serving(bus), serving(second):
        old = pool.submit(caller.gated, 1)
        assert gated.entered[0].wait(20)
        clear(caller.gated)
        new = pool.submit(caller.gated, 1)
        assert gated.entered[1].wait(20)  # it did not join: what runs began before the clear
        order: list[tuple[int, Future[Any]]] = [(0, old), (1, new)]
        for number, answer in order if first_ends == "before the new one" else order[::-1]:
            gated.go[number].set()
            assert answer.result(20) == f"run {number}"
            # Whoever calls now gets the new value, from the cache or by joining its run.
            if number == 1:
                assert caller.gated(1) == "run 1"
        assert caller.gated(1) == "run 1"
    assert caller.gated(1) == "run 1"
    assert gated.runs == 2


@pytest.mark.parametrize("clear", [clear_one, clear_all])
def test_a_value_whose_run_was_cleared_is_not_stored(
    bus: Bus, caller: Bus, pool: ThreadPoolExecutor, clear: Callable[[Any], None]
) -> None:
    gated = Gated(0)
    bus.register("gated", cache_key="{a}")(gated)
    with serving(bus):
        old = [pool.submit(caller.gated, 1) for _ in range(3)]
        eventually(lambda: joins(bus) == 2)
        assert gated.entered[0].wait(20)
        clear(caller.gated)
        gated.go[0].set()
        assert [answer.result(20) for answer in old] == ["run 0"] * 3
        assert caller.gated.clear_cache(1) is False
        assert caller.gated(1) == "run 1"


def test_clear_cache_says_whether_there_was_a_value(bus: Bus, caller: Bus) -> None:
    bus.register("gated", cache_key="{a}")(Gated())
    with serving(bus):
        assert caller.gated.clear_cache(1) is False
        caller.gated(1)
        assert caller.gated.clear_cache(2) is False
        assert caller.gated.clear_cache(a=1) is True
        assert caller.gated.clear_cache(1) is False
        assert caller.gated(1) == "run 1"


def test_clear_cache_needs_no_worker(bus: Bus, caller: Bus) -> None:
    bus.register("gated", cache_key="{a}")(Gated())
    with serving(bus):
        caller.gated(1)
    assert caller.gated.clear_cache(1) is True


def test_clearing_a_method_without_a_cache_key_is_a_type_error(bus: Bus, caller: Bus) -> None:
    bus.register("plain")(Gated())
    bus.serve_once()
    for method in (bus.plain, caller.plain):
        with pytest.raises(TypeError, match=r"^plain\(\) has no cache_key"):
            method.clear_cache(1)
        with pytest.raises(TypeError, match=r"^plain\(\) has no cache_key"):
            method.clear_all_cache()


def test_clear_all_cache_makes_all_values_vanish_in_one_step(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    numbers = iter(range(1000))
    bus.register("number", cache_key="{a}")(lambda a: next(numbers))
    bus.register("other", cache_key="{a}")(lambda a: next(numbers))
    with serving(bus):
        before = [caller.number(a) for a in range(50)]
        kept = caller.other(1)
        with sent(client) as commands:
            caller.number.clear_all_cache()
        # As many commands as for one value: the old ones stay until they expire.
        assert sum(commands.values()) < 10
        assert len(list(client.scan_iter(CACHE + "number:*"))) == 50
        assert caller.number.clear_cache(0) is False
        after = [caller.number(a) for a in range(50)]
        assert not set(before) & set(after)
        assert [caller.number(a) for a in range(50)] == after
        assert caller.other(1) == kept


# -- keys ---------------------------------------------------------------------------------------


def test_one_call_has_one_key_however_it_is_written(bus: Bus) -> None:
    gated = Gated()
    bus.register("method", cache_key="{a}/{b}/{c}")(lambda a, b=2, *, c=3: gated())
    with serving(bus):
        found = [
            *(bus.method(1), bus.method(a=1), bus.method(1, 2), bus.method(1, b=2)),
            *(bus.method(b=2, a=1), bus.method(1, c=3), bus.method(c=3, b=2, a=1)),
        ]
        assert set(found) == {"run 0"}
        assert bus.method.clear_cache(a=1, c=3) is True
    assert gated.runs == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), ("1",)),
        ((1,), (1.0,)),
        ((1,), (True,)),
        ((None,), ("None",)),
        ((b"a",), ("a",)),
        ((("x/y", "z"),), (("x", "y/z"),)),
        (("x/y", "z"), ("x", "y/z")),
        (("a", "b"), ("a/b", "")),
    ],
    ids=str,
)
def test_values_that_differ_never_share_a_key(
    bus: Bus, one: tuple[object, ...], other: tuple[object, ...]
) -> None:
    bus.register("method", cache_key="{a}/{b}")(lambda a, b=0: [a, b])
    with serving(bus):
        for _ in range(2):
            for args in (one, other):
                found: Any = bus.method(*args)
                assert (found[0], type(found[0])) == (args[0], type(args[0]))
    assert bus.stats()["method"]["hits"] == 2


def test_cache_key_true_keys_on_all_arguments(bus: Bus) -> None:
    gated = Gated()
    bus.register("method", cache_key=True)(lambda a, *args, b=1, **kwargs: gated())
    with serving(bus):
        calls: list[tuple[tuple[object, ...], dict[str, object]]] = [
            ((1,), {}),
            ((1, 2), {}),
            ((1,), {"b": 2}),
            ((1,), {"z": 2}),
            ((1, (2,)), {}),
            ((1, 2, 3), {}),
        ]
        first = [bus.method(*args, **kwargs) for args, kwargs in calls]
        assert len(set(first)) == len(calls)
        assert [bus.method(*args, **kwargs) for args, kwargs in calls] == first
        assert bus.method(a=1, b=1) == first[0]
        assert bus.method.clear_cache(1, z=2) is True


def test_var_arguments_are_fields_by_their_names(bus: Bus) -> None:
    gated = Gated()
    bus.register("method", cache_key="{rest}/{more}")(lambda a, *rest, **more: gated())
    with serving(bus):
        found = [bus.method(1, 2, 3, x=1), bus.method(9, 2, 3, x=1)]
        assert found == ["run 0", "run 0"]  # a is not in the key
        assert bus.method(1, 2, x=1) == "run 1"
        assert bus.method(1, 2, 3, x=2) == "run 2"
        assert bus.method(1, (2, 3), x=1) == "run 3"


def test_a_field_the_key_leaves_out_does_not_count(bus: Bus) -> None:
    bus.register("gated", cache_key="static")(Gated())
    with serving(bus):
        assert [bus.gated(1), bus.gated(2)] == ["run 0", "run 0"]


ODD = ["", "é", "日本\U0001f600", "{a}", "}{", "{test:}", "a\nb", "\0", ":", "*", "a b", "\ud800"]


@pytest.mark.parametrize("value", [*ODD, "x" * 10_000, "é" * 5_000], ids=lambda v: ascii(v[:8]))
@pytest.mark.parametrize("template", ["{a}", "{a!s}", "é{a!r}\n{{}}"])
def test_odd_keys_are_keys_like_any_other(
    bus: Bus, client: redis.Redis, template: str, value: str
) -> None:
    runs: list[object] = []
    bus.register("note", cache_key=template)(lambda a: runs.append(a))
    with serving(bus):
        bus.note(value)
        bus.note(value)
        bus.note(value + "!")
        assert runs == [value, value + "!"]
        assert bus.note.clear_cache(value) is True
        assert bus.note.clear_cache(value) is False
        for key in client.scan_iter("*"):
            assert len(key) < 400
    bus.cleanup()
    assert client.dbsize() == 0


def test_foreign_bytes_at_a_cache_key_count_as_a_miss_and_are_overwritten(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    gated = Gated()
    bus.register("gated", cache_key="{a}")(gated)
    with serving(bus):
        assert caller.gated(1) == "run 0"
        ours = client.get(CACHE + "gated:1")
        assert isinstance(ours, bytes)
        head = ours.partition(b"\n")[0] + b"\n"
        foreign = [b"", b"garbage", b"0 0\nm\xa1x", head, head + b"?", head + b"m\xc1", head + b"e"]
        for number, data in enumerate(foreign, start=1):
            client.set(CACHE + "gated:1", data)
            assert caller.gated(1) == f"run {number}"
            assert caller.gated(1) == f"run {number}"
            assert client.get(CACHE + "gated:1") != data


# -- stale --------------------------------------------------------------------------------------


def test_a_stale_value_is_served_at_once_while_exactly_one_run_refreshes_it(
    bus: Bus, caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    gated = Gated(1)
    bus.register("gated", cache_key="{a}", cache_expire=0.2, stale=1000)(gated)
    with serving(bus):
        assert caller.gated(1) == "run 0"
        assert client.pttl(CACHE + "gated:1") > 1_000_000
        eventually(lambda: client.pttl(CACHE + "gated:1") < 1_000_000)
        # Past its expiry now, with a worker that is held in the refresh of the first caller.
        answers = [pool.submit(caller.gated, 1) for _ in range(20)]
        assert {answer.result(20) for answer in answers} == {"run 0"}
        assert gated.entered[1].wait(20)
        assert caller.gated(1) == "run 0"
        gated.go[1].set()
        eventually(lambda: client.pttl(CACHE + "gated:1") > 1_000_000)
        assert caller.gated(1) in ("run 1", "run 2")  # where it is slow here: stale once more
    assert joins(bus) == 0
    assert gated.runs <= 3


def test_a_stale_value_is_served_with_no_worker_alive(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    bus.register("gated", cache_key="{a}", cache_expire=0.05, stale=1000)(Gated())
    with serving(bus):
        caller.gated(1)
    eventually(lambda: client.pttl(CACHE + "gated:1") < 1_000_000)
    fast = caller.gated.options(fail_fast=True)
    assert [caller.gated(1), fast(1), caller.gated.run(1).get()] == ["run 0"] * 3
    assert bus.stats()["gated"]["queued"] == 1


def test_a_refresh_that_fails_leaves_the_stale_value(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    gated = Gated()
    bus.register("gated", cache_key="{a}", cache_expire=0.05, stale=1000)(gated)
    with serving(bus):
        assert caller.gated(1) == "run 0"
        gated.error = ValueError("not now")
        eventually(lambda: client.pttl(CACHE + "gated:1") < 1_000_000)
        assert caller.gated(1) == "run 0"
        eventually(lambda: bus.stats()["gated"]["errors"] >= 1)
        assert caller.gated(1) == "run 0"


def test_a_clear_during_a_refresh_holds(
    bus: Bus, second: Bus, caller: Bus, client: redis.Redis
) -> None:
    gated = Gated(1)
    for service in (bus, second):
        service.register("gated", cache_key="{a}", cache_expire=0.05, stale=1000)(gated)
    with serving(bus), serving(second):
        caller.gated(1)
        eventually(lambda: client.pttl(CACHE + "gated:1") < 1_000_000)
        assert caller.gated(1) == "run 0"
        assert gated.entered[1].wait(20)
        assert caller.gated.clear_cache(1) is True
        gated.held.clear()
        assert caller.gated(1) == "run 2"
        gated.go[1].set()
        eventually(lambda: not list(client.scan_iter("*running*")))
        assert caller.gated(1) != "run 1"


def test_a_call_whose_keys_are_lost_is_made_again(
    bus: Bus, caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    """As Redis does where its memory is full and it may evict."""
    bus.register("double", cache_key="{a}")(lambda a: 2 * a)
    bus.double.run(0)  # publishes it
    bus.serve_once()
    answer = pool.submit(caller.double, 2)
    eventually(lambda: client.exists("rb:{test:}:flight:double:2"))
    client.delete("rb:{test:}:flight:double:2", "rb:{test:}:queue:double", "rb:{test:}:wake:double")
    with serving(bus):
        assert answer.result(20) == 4


def test_a_call_whose_outcome_is_lost_is_answered_from_the_cache(
    bus: Bus, caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    bus.register("double", cache_key="{a}")(lambda a: 2 * a)
    bus.double.run(0)  # publishes it
    bus.serve_once()
    answer = pool.submit(caller.double, 2)
    eventually(lambda: client.exists("rb:{test:}:flight:double:2"))
    # What `finish` does, for a caller that hears nothing of it.
    value = client.get("rb:{test:}:cache:double:0").partition(b"\n")[0] + b"\nm\x04"
    with client.pipeline() as pipeline:
        pipeline.set("rb:{test:}:cache:double:2", value)
        pipeline.delete("rb:{test:}:flight:double:2", "rb:{test:}:queue:double")
        pipeline.execute()
    assert answer.result(20) == 4


@pytest.mark.parametrize("idempotent", [None, False])
def test_a_call_whose_flight_was_cleared_waits_for_its_job_and_is_not_made_again(
    bus: Bus, client: redis.Redis, idempotent: bool | None
) -> None:
    def searches() -> int:
        return int(client.info("commandstats").get("cmdstat_hexists", {}).get("calls", 0))

    entered: list[int] = []

    @bus.register(cache_key="{n}", idempotent=idempotent)
    def slow(n: int) -> int:
        entered.append(n)
        # Until its caller has looked for the job twice, and found it with this worker.
        eventually(lambda: searches() >= 2)
        return 2 * n

    client.config_resetstat()
    with serving(bus), ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(bus.slow, 1)]
        eventually(lambda: entered)
        answers.append(pool.submit(bus.slow, 1))
        eventually(lambda: bus.stats()["slow"]["joins"] == 1)
        bus.slow.clear_cache(1)
        assert [answer.result(20) for answer in answers] == [2, 2]
    assert entered == [1]
