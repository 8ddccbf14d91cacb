"""`map`: many calls at once, their values in order, never more of them than were asked for."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_bus import (
    Bus,
    BusError,
    CallTimeout,
    ConnectionLost,
    Deadlock,
    NoWorkers,
    QueueFull,
    RemoteError,
    SerializationError,
    WorkerLost,
)
from redis_bus.calls import waiting
from redis_bus.client import fan_out
from redis_bus.protocol.commands import Post, Service
from redis_bus.transport.transport import NodeTransport
from tests.async_support import Gate
from tests.commands import sent
from tests.support import Processes, eventually, serving, workers

SERVICE = Service("test", "")
KEYS = ("queue:*", "pending:*", "reply:*", "flight:*", "inboxes:*", "running:*")


def left_over(bus: Bus) -> set[bytes]:
    """Return the keys in Redis that belong to calls."""
    return {key for kind in KEYS for key in bus.conn.keys(f"rb:{{test:}}:{kind}")}


def queued(bus: Bus, name: str) -> list[bytes]:
    """Return the jobs that wait."""
    entries: list[bytes] = bus.conn.lrange(bus[name].target.route.queue, 0, -1)
    return entries


def close(values: Iterator[Any]) -> None:
    values.close()  # type: ignore[attr-defined]


class Odd(Exception):
    pass


def odd(n: int) -> int:
    """Fail for numbers below 0."""
    if n < 0:
        raise ValueError(n)
    return n * n


@pytest.fixture
def plain(bus: Bus) -> Iterator[Bus]:
    """A served bus with the functions of these tests, cached and not."""
    bus.register("square")(odd)
    bus.register("cached", cache_key="{n}")(odd)
    bus.register("shared", cache_key="{n}", cache_expire=0)(odd)
    bus.register("again", idempotent=True)(odd)
    bus.register("add")(lambda a, b=0: a + b)
    with serving(bus):
        yield bus


# -- the values ---------------------------------------------------------------------------------


def outcomes(values: Iterator[Any]) -> list[object]:
    """Return the values, and behind them the exception that ended them."""
    found: list[object] = []
    try:
        found.extend(iter(values))
    except ValueError as error:
        found.append(repr(error))
    return found


@pytest.mark.parametrize("name", ["square", "cached", "shared", "again"])
def test_map_is_what_the_calls_one_by_one_are(plain: Bus, name: str) -> None:
    some = st.lists(st.one_of(st.integers(0, 9), st.integers(-2, 300)), max_size=30)

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(numbers=some, size=st.one_of(st.integers(1, 5), st.just(64)), clear=st.booleans())
    def check(numbers: list[int], size: int, clear: bool) -> None:
        if clear and plain[name].cache_key:
            plain[name].clear_all_cache()
        expected = outcomes(odd(n) for n in numbers)
        assert outcomes(plain[name].map(numbers, buffersize=size)) == expected

    check()


def test_several_iterables_end_with_the_shortest_and_may_be_endless(plain: Bus) -> None:
    assert list(plain.add.map([1, 2, 3], itertools.count(10))) == [11, 13, 15]
    assert list(plain.add.map([])) == []
    endless = plain.square.map(itertools.count())
    assert list(itertools.islice(endless, 200)) == [n * n for n in range(200)]


def test_hits_come_from_redis_in_a_few_writes(bus: Bus, client: redis.Redis) -> None:
    bus.register("cached", cache_key="{n}")(odd)
    with serving(bus):
        expected = list(bus.cached.map(range(100)))
    # No worker is alive now.
    with sent(client) as commands:
        assert list(bus.cached.map(range(100))) == expected
    assert commands["evalsha"] == 100
    assert commands["blmove"] == commands["lindex"] == commands["unlink"] == 0


def test_hits_and_misses_mix(plain: Bus) -> None:
    for n in range(0, 40, 3):
        plain.cached(n)
    assert list(plain.cached.map(range(40))) == [n * n for n in range(40)]
    assert plain.stats()["cached"]["hits"] == 14


def test_hits_come_where_no_time_is_given(plain: Bus) -> None:
    for n in range(5):
        plain.cached(n)
    hurried = plain.cached.options(timeout=0)
    assert list(hurried.map(range(5))) == [hurried(n) for n in range(5)]


def test_values_of_any_size_come_whole(plain: Bus) -> None:
    texts = ["x" * size for size in (0, 5000, 3_000_000, 1, 600_000, 700_000, 2)]
    assert list(plain.add.map(texts, itertools.repeat("."))) == [text + "." for text in texts]


# -- how many are in flight ---------------------------------------------------------------------


def test_the_first_window_is_sent_at_once_and_never_more_than_that(bus: Bus) -> None:
    gate, pulled = Gate(), itertools.count()
    bus.register("held")(gate)
    with serving(bus):
        values = bus.held.map(pulled, buffersize=5)
        assert gate.entered.wait(20)
        eventually(lambda: len(queued(bus, "held")) == 4)
        assert next(pulled) == 5
        gate.go.set()
        assert next(values) == 0
        for handed_out, expected in enumerate((1, 2, 3, 4, 6, 7), 2):
            assert next(values) == expected
            eventually(lambda: not queued(bus, "held"))
            assert len(gate.seen) <= handed_out + 5
        close(values)


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets how many commands each write of `map` holds."""
    writes: list[int] = []
    real = NodeTransport.exchange_each

    def counting(self: NodeTransport, *commands: Any, **kwargs: Any) -> list[Any]:
        writes.append(len(commands))
        return real(self, *commands, **kwargs)

    monkeypatch.setattr(NodeTransport, "exchange_each", counting)
    return writes


def test_a_window_is_sent_in_one_write(plain: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = count_writes(monkeypatch)
    assert len(list(plain.square.map(range(100), buffersize=40))) == 100
    assert writes[:4] == [40, 20, 20, 20]


def test_outcomes_are_read_many_at_a_time_and_deleted(plain: Bus, client: redis.Redis) -> None:
    values = plain.square.map(range(60))
    eventually(lambda: len(client.keys("rb:{test:}:reply:*")) == 60)
    with sent(client) as commands:
        assert len(list(values)) == 60
    assert commands["blmove"] < 15
    assert commands["unlink"] <= 3
    assert client.keys("rb:{test:}:reply:*") == []


def test_a_queue_with_a_limit_is_never_given_more_than_it_takes(bus: Bus) -> None:
    bus.register("square", max_queue=3)(odd)
    bus.register("cached", max_queue=3, cache_key="{n}")(odd)
    with serving(bus):
        for name in ("square", "cached"):
            assert list(bus[name].map(range(50))) == [n * n for n in range(50)]
            assert bus.stats()[name]["queued"] == 0


def test_where_a_queue_is_full_no_more_is_sent_than_it_took(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus.register("square", max_queue=3)(odd)
    assert bus.get_method("square")
    writes = count_writes(monkeypatch)
    values = bus.square.map(range(50), buffersize=40)
    assert len(queued(bus, "square")) == 3
    bus.serve_once()
    assert [next(values), next(values)] == [0, 1]
    assert writes == [40, 2]
    close(values)


def test_a_queue_that_others_filled_is_full_for_map_too(bus: Bus) -> None:
    bus.register("square", max_queue=2)(odd)
    assert bus.get_method("square")
    for _ in range(2):
        bus.square.run(1)
    with pytest.raises(QueueFull, match=r"^square\(5\): 2 jobs wait for square already"):
        next(bus.square.map([5, 6]))
    assert bus.stats()["square"]["queued"] == 2


# -- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["held", "held_cached"])
@pytest.mark.parametrize("end", ["close", "drop", "fail", "interrupt", "timeout"])
def test_what_is_not_wanted_any_more_is_withdrawn(bus: Bus, name: str, end: str) -> None:
    gate = Gate()

    def held(n: int) -> int:
        gate(n)
        return odd(n)

    bus.register("held")(held)
    bus.register("held_cached", cache_key="{n}")(held)
    with serving(bus):
        timeout = 0.2 if end == "timeout" else None
        values = bus[name].map([-1, *range(1, 100)], buffersize=10, timeout=timeout)
        assert gate.entered.wait(20)
        eventually(lambda: len(queued(bus, name)) == 9)
        if end == "close":
            close(values)
        elif end == "drop":
            del values
            gc.collect()
        elif end == "timeout":
            with pytest.raises(CallTimeout, match=r"held\w*\(-1\) in map\(timeout=0.2\): no reply"):
                next(values)
        elif end == "interrupt":
            # As ^C does: it comes while the generator runs.
            with pytest.raises(KeyboardInterrupt):
                values.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
        else:
            gate.go.set()
            with pytest.raises(ValueError, match="-1"):
                next(values)
            assert list(values) == []
        if end != "fail":
            assert queued(bus, name) == []
        gate.go.set()
        eventually(lambda: not bus.stats()[name]["queued"])
        eventually(lambda: not bus.conn.keys("rb:{test:}:running:*"))
    if end != "fail":
        assert gate.seen == [-1]
    assert len(gate.seen) <= 10
    assert all(bus.conn.pttl(key) > 0 for key in left_over(bus))


def test_nothing_is_left_of_calls_that_came_to_their_end(plain: Bus) -> None:
    assert len(list(plain.square.map(range(50)))) == 50
    with pytest.raises(ValueError, match="-1"):
        list(plain.square.map([1, -1]))
    eventually(lambda: not plain.conn.keys("rb:{test:}:running:*"))
    assert left_over(plain) == set()


def test_nothing_more_is_sent_once_a_failure_is_known(plain: Bus) -> None:
    numbers = itertools.chain([1, 2, -1], itertools.count(5))
    values = plain.square.map(numbers, buffersize=4)
    eventually(lambda: len(plain.conn.keys("rb:{test:}:reply:*")) == 4)
    assert [next(values), next(values)] == [1, 4]
    with pytest.raises(ValueError, match="-1"):
        next(values)
    assert next(numbers) == 6


def test_what_a_program_leaves_unread_is_withdrawn_quietly(bus: Bus, processes: Processes) -> None:
    bus.register("square")(odd)
    assert bus.get_method("square")
    program = processes.python(
        """
        import redis_bus
        bus = redis_bus.Bus("test")
        values = bus.square.map(range(10))
        print(bus.stats()["square"]["queued"])
        """
    )
    out, err = program.communicate(timeout=30)
    assert (out, err) == ("10\n", "")
    assert queued(bus, "square") == []


def test_a_forked_process_leaves_the_calls_of_its_parent_alone(
    bus: Bus, processes: Processes
) -> None:
    bus.register("square")(odd)
    assert bus.get_method("square")
    program = processes.python(
        """
        import os, redis_bus
        bus = redis_bus.Bus("test")
        values = bus.square.map(range(10))
        child = os.fork()
        if not child:
            values.close()
            os._exit(0)
        os.waitpid(child, 0)
        print(bus.stats()["square"]["queued"], flush=True)
        os._exit(0)
        """
    )
    out, err = program.communicate(timeout=30)
    assert (out, err) == ("10\n", "")


# -- what is raised, and when -------------------------------------------------------------------


def test_what_is_wrong_with_arguments_is_raised_at_their_turn(plain: Bus) -> None:
    for wrong, kind, words in (
        (object(), SerializationError, r"argument a"),
        (..., SerializationError, r"argument a"),
    ):
        values = plain.add.map([1, wrong, 3])
        assert next(values) == 1
        with pytest.raises(kind, match=words):
            next(values)
        assert list(values) == []
    values = plain.square.map([1, 2], [3, 4])
    with pytest.raises(TypeError, match=r"^square\(\) takes 1 positional argument"):
        next(values)


def test_what_an_iterable_raises_comes_behind_the_values_before_it(plain: Bus) -> None:
    def numbers() -> Iterator[int]:
        yield from (1, 2)
        raise Odd("no more")

    values = plain.square.map(numbers())
    assert [next(values), next(values)] == [1, 4]
    with pytest.raises(Odd, match="no more"):
        next(values)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"buffersize": 0}, ValueError),
        ({"buffersize": -1}, ValueError),
        ({"buffersize": None}, TypeError),
        ({"buffersize": 1.5}, TypeError),
        ({"buffersize": True}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
)
def test_settings_that_cannot_be(plain: Bus, settings: dict[str, Any], kind: type) -> None:
    with pytest.raises(kind, match=next(iter(settings))):
        plain.square.map([1], **settings)
    with pytest.raises(TypeError, match=r"^square\.map\(\) must have at least one iterable$"):
        plain.square.map()
    with pytest.raises(TypeError, match="not iterable"):
        plain.square.map(1)  # type: ignore[arg-type]


def test_options_hold_for_each_call(bus: Bus) -> None:
    @bus.register()
    def fail(n: int) -> None:
        raise Odd(n)

    bus.register("square")(odd)
    with serving(bus):
        with pytest.raises(Odd):
            next(bus.fail.options(allow=(Odd,)).map([1]))
        with pytest.raises(RemoteError):
            next(bus.fail.map([1]))
    with pytest.raises(NoWorkers, match=r"^square\(7\): no worker alive serves square"):
        next(bus.square.options(fail_fast=True).map([7]))
    with pytest.raises(NoWorkers, match=r"^square\(7\): no reply in 0.1 s"):
        next(bus.square.options(timeout=0.1).map([7]))
    assert queued(bus, "square") == []


def test_a_remote_stop_iteration_does_not_end_the_values(bus: Bus) -> None:
    @bus.register()
    def halt(n: int) -> None:
        raise StopIteration(n)

    with serving(bus), pytest.raises(RuntimeError) as caught:
        list(bus["halt"].map([1]))
    assert isinstance(caught.value.__cause__, StopIteration)


# -- a consumer that is slow --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["square", "cached", "shared", "again"])
def test_an_outcome_that_came_in_time_waits_for_a_slow_consumer(plain: Bus, name: str) -> None:
    values = plain[name].options(timeout=0.3).map(range(3))
    eventually(lambda: not plain.stats()[name]["queued"])
    deadline = time.monotonic() + 0.4
    eventually(lambda: time.monotonic() > deadline)
    assert list(values) == [0, 1, 4]
    if plain[name].cache_key is None:
        assert plain.stats()[name]["calls"] == 3


def test_a_value_that_is_there_is_given_when_the_time_of_map_is_over(plain: Bus) -> None:
    values = plain.square.map(range(3), timeout=0.3)
    eventually(lambda: len(plain.conn.keys("rb:{test:}:reply:*")) == 3)
    deadline = time.monotonic() + 0.4
    eventually(lambda: time.monotonic() > deadline)
    assert list(values) == [0, 1, 4]


@pytest.mark.parametrize("name", ["shared", "cached", "again"])
def test_outcomes_that_are_gone_are_made_again_where_they_may_be(
    plain: Bus, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "again":
        for constant in ("FIRST_SLICE_SECONDS", "FIRST_SEARCH_SECONDS"):
            monkeypatch.setattr(waiting, constant, 0.05)
    else:
        # They are noticed at once, where the consumer is slow; no slice is waited for.
        monkeypatch.setattr(fan_out, "OLD_SECONDS", 0.0)
        monkeypatch.setattr(fan_out.FanOut, "_await", None)
    values = plain[name].map(range(3))
    eventually(lambda: len(plain.conn.keys("rb:{test:}:reply:*")) == 3)
    plain.conn.delete(*plain.conn.keys("rb:{test:}:reply:*"))
    assert list(values) == [0, 1, 4]


# -- faults -------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first slice of a wait be short."""
    monkeypatch.setattr(fan_out, "FIRST_SLICE_SECONDS", 0.05)


def lose(bus: Bus, method: str) -> None:
    """Have a worker take the method's next job, and die."""
    post = Post(SERVICE, f"host:{method}:gone", [bus[method].target.route])
    assert bus._core.transport.exchange(post.take(post.routes))[0]
    bus._core.transport.exchange(SERVICE.lapse(post.worker))


@pytest.mark.usefixtures("quick")
def test_a_call_whose_worker_died_is_lost_or_made_again(bus: Bus) -> None:
    bus.register("square")(odd)
    bus.register("cached", cache_key="{n}")(odd)
    assert bus.get_method("square")
    assert bus.get_method("cached")
    lost, again = bus.square.map(range(3)), bus.cached.map(range(3))
    lose(bus, "square")
    lose(bus, "cached")
    with pytest.raises(WorkerLost, match=r"^square\(0\): its worker host:square:gone was lost"):
        next(lost)
    assert queued(bus, "square") == []
    # As the documents say, it is kept for people.
    assert [letter.why for letter in bus.square.dead_letters()] == ["lost"]
    with serving(bus):
        assert list(again) == [0, 1, 4]


def test_scripts_that_redis_forgot_are_loaded_and_no_job_runs_twice(
    bus: Bus, client: redis.Redis
) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    with serving(bus):
        client.script_flush()
        values = bus.note.map(range(100), buffersize=20)
        for _ in range(3):
            next(values)
            client.script_flush()
        assert list(values) == [None] * 97
    assert ran == list(range(100))


def test_only_what_was_refused_for_want_of_its_script_is_sent_again(
    bus: Bus, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may load the scripts while Redis is amid a write: what came behind has run."""
    bus.register("square")(odd)
    assert bus.get_method("square")
    assert next(bus.square.map([]), None) is None
    client.script_flush()
    transport = bus._core.transport
    route = bus.square.target.route
    call = ("EVAL", "return redis.call('RPUSH', KEYS[1], ARGV[1])", 1, "list")
    unknown = route.clear(b"key")
    replies = transport.exchange_each((*call, "a"), unknown, (*call, "b"), ("NO",), (*call, "c"))
    assert client.lrange("list", 0, -1) == [b"a", b"b", b"c"]
    assert replies[0::2] == [1, 2, 3]
    assert replies[1] == b"stale" or replies[1] == b"nothing"
    assert isinstance(replies[3], BusError)


def cut_after(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the next write arrive, and its answers be lost."""
    transport = bus._core.transport
    real = NodeTransport.checkout
    armed = [False]

    class Deaf:
        def __init__(self, link: Any) -> None:
            self._link = link

        def __getattr__(self, name: str) -> Any:
            return getattr(self._link, name)

        def read(self) -> object:
            self._link.read()
            raise redis.ConnectionError("cut")

    def checkout(self: NodeTransport, timeout: float = 1.0, place: str | None = None) -> Any:
        link = real(self, timeout, place)
        if self is transport and armed[0] and place is None:  # the others are a worker's
            armed[0] = False
            return Deaf(link)
        return link

    monkeypatch.setattr(NodeTransport, "checkout", checkout)
    return lambda: armed.__setitem__(0, True)


@pytest.mark.parametrize("name", ["note", "note_again", "note_cached"])
def test_a_call_that_may_be_lost_is_not_sent_again_unless_it_may_run_twice(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    bus.register("note_again", idempotent=True)(ran.append)
    bus.register("note_cached", cache_key=True)(lambda n: ran.append(n))
    with serving(bus):
        assert bus.get_method(name)
        cut = cut_after(bus, monkeypatch)
        cut()
        values = bus[name].map(range(5))
        if name == "note":
            text = r"^note\(0\): .*it is unknown whether it ran, so it is not sent again"
            with pytest.raises(ConnectionLost, match=text):
                next(values)
        else:
            assert list(values) == [None] * 5
    assert len(ran) == len(set(ran)) or name == "note_again"


def test_what_was_lost_on_its_way_is_withdrawn(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.register("note")(odd)
    assert bus.get_method("note")
    cut_after(bus, monkeypatch)()
    values = bus.note.map(range(5))
    assert len(queued(bus, "note")) == 5
    with pytest.raises(ConnectionLost):
        next(values)
    assert queued(bus, "note") == []


def test_a_redis_that_cannot_be_reached_is_said_at_the_first_turn() -> None:
    bus = Bus("test", url="redis://localhost:1/0")
    method = bus.register_method(odd, "square")
    values = method.map([1, 2])
    with pytest.raises(ConnectionLost, match=r"^square\(1\): no Redis at localhost:1"):
        next(values)


def test_a_registration_that_changed_is_learnt(bus: Bus, url: str) -> None:
    bus.register("square")(odd)
    bus.get_method("square")
    with Bus("test", url=url) as other:
        assert other.get_method("square")
        bus.register("square", cache_key="{n}")(lambda n, more=1: n + more)
        with serving(bus):
            assert list(other.square.map(range(100), buffersize=8)) == list(range(1, 101))


def test_a_cached_value_that_cannot_be_read_is_forgotten(
    plain: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    plain.cached(3)
    (key,) = plain.conn.keys("rb:{test:}:cache:cached:3")
    head, _, _ = plain.conn.get(key).partition(b"\n")
    plain.conn.set(key, head + b"\nm\xc1")
    with caplog.at_level(logging.WARNING, "redis_bus"):
        assert list(plain.cached.map([3, 4])) == [9, 16]
    assert any("is not ours, and is forgotten" in text for text in caplog.messages)


# -- made by a job ------------------------------------------------------------------------------


def test_a_job_that_maps_its_own_only_worker_is_told_of_the_deadlock(bus: Bus) -> None:
    ran: list[int] = []
    bus.register("inner")(ran.append)
    bus.register("kept", cache_key="{n}")(odd)

    @bus.register()
    def outer(name: str) -> list[object]:
        return list(bus[name].map([1, 2]))

    with serving(bus):
        for name in ("inner", "kept"):
            with pytest.raises(Deadlock, match=rf"^{name}\(1\): deadlock: the only worker"):
                bus.outer(name)
            assert bus.stats()[name]["queued"] == 0
        assert [bus.kept(1), bus.kept(2)] == [1, 4]
        assert bus.outer("kept") == [1, 4]
    assert ran == []


def test_a_job_that_maps_to_itself_is_told_so(bus: Bus, url: str) -> None:
    def recursive(n: int) -> list[object]:
        return list(bus.recursive.map([n]))

    with Bus("test", url=url) as other:
        for one in (bus, other):
            one.register(cache_key="{n}")(recursive)
        with serving(bus), serving(other):
            eventually(lambda: workers(bus, "recursive") == 2)
            with pytest.raises(Deadlock, match="it waits for the very job that makes this call"):
                bus.recursive(1)


def test_a_job_may_map_and_its_calls_end_with_its_own_time(bus: Bus, url: str) -> None:
    entered = threading.Event()

    def outer(wait: bool) -> list[object]:
        if wait:
            entered.set()
            return list(bus.never.map([1]))
        return list(bus.inner.map(range(5)))

    bus.register("never")(odd)
    assert bus.get_method("never")
    with Bus("test", url=url) as other, Bus("test", url=url, prefix="x_") as third:
        other.register("outer")(outer)
        third.register("unused")(odd)
        with Bus("test", url=url) as inner_bus:
            inner_bus.register("inner")(odd)
            with serving(other), serving(inner_bus):
                assert bus.outer(False) == [0, 1, 4, 9, 16]
                with pytest.raises(CallTimeout):
                    bus.outer.options(timeout=0.3)(True)
                assert entered.is_set()
                eventually(lambda: queued(bus, "never") == [])
