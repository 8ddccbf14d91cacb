"""The hooks of middleware around the calls of a blocking `map`."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import redis_bus
from redis_bus import Bus, BusError, CallTimeout, ConnectionLost, Middleware, QueueFull
from redis_bus.calls.mapped_call import MappedCall
from redis_bus.client import fan_out
from redis_bus.middleware import Call
from redis_bus.transport.transport import NodeTransport
from tests.support import Processes, eventually, serving

THING = object()


class Story(Middleware):
    """Notes what its hooks are told of each call."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[object, ...]]] = {}

    def before_call(self, call: Call) -> None:
        assert str(call) not in self.calls
        self.calls[str(call)] = [(call.kind, call.status)]

    def after_call(self, call: Call, value: object) -> None:
        self.calls[str(call)].append((call.status, value))

    def call_failed(self, call: Call, error: BaseException) -> None:
        self.calls[str(call)].append((call.status, f"{type(error).__name__}: {error}"))

    def ends(self) -> list[object]:
        """Return what each call ended with; each did so once."""
        assert {name: len(told) for name, told in self.calls.items()} == dict.fromkeys(
            self.calls, 2
        )
        return [told[1][1] for told in self.calls.values()]


def never_came(*names: str) -> list[object]:
    return [f"Cancelled: {name}: its map ended before its turn" for name in names]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def positive(n: int) -> int:
    if n < 0:
        raise ValueError(n)
    return n


@pytest.fixture
def worker(url: str) -> Iterator[Bus]:
    """A bus with `positive`, cached and not; it knows the value for 1, and is not served yet."""
    with Bus("test", url=url, timeout=20) as bus:
        bus.register("plain")(positive)
        bus.register("keyed", cache_key="{n}")(positive)
        with serving(bus):
            assert bus.keyed(1) == 1
        yield bus


@pytest.fixture
def far(url: str, worker: Bus) -> Iterator[Bus]:
    """Another bus, which calls them."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture
def story(far: Bus) -> Story:
    far.middleware.append(story := Story())
    return story


# -- what is told -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "statuses"),
    [
        ("plain", [(1, 2, -3)], ["queued", "queued", "queued"]),
        ("keyed", [(1, 2, -3)], ["hit", "queued", "queued"]),
        ("plain", [(1, THING)], ["queued", ""]),
        ("keyed", [(1, THING)], ["hit", ""]),
        ("keyed", [(1,), (2,)], [""]),
    ],
)
def test_each_call_is_told_of_as_a_single_one_is(
    far: Bus, worker: Bus, name: str, arguments: list[tuple[Any, ...]], statuses: list[str]
) -> None:
    def told_of(calls: Callable[[], object]) -> dict[str, list[tuple[object, ...]]]:
        far.middleware[1:] = [story := Story()]
        worker.keyed.clear_cache(2)
        with contextlib.suppress(BusError, TypeError, ValueError):
            calls()
        return story.calls

    method = far[name]
    with serving(worker):
        one_by_one = told_of(lambda: [method(*args) for args in zip(*arguments, strict=True)])
        assert told_of(lambda: list(method.map(*arguments))) == one_by_one
    assert [told[1][0] for told in one_by_one.values()] == statuses


def test_hits_and_refusals_are_told_of_where_nobody_serves(far: Bus, story: Story) -> None:
    with pytest.raises(redis_bus.NoWorkers):
        list(far.keyed.options(fail_fast=True).map([1, 2]))
    error = "NoWorkers: keyed(2): no worker alive serves keyed"
    assert story.calls == {
        "keyed(1)": [("call", ""), ("hit", 1)],
        "keyed(2)": [("call", ""), ("no_workers", error)],
    }


def test_hooks_come_when_a_call_is_sent_and_at_its_turn(far: Bus, worker: Bus) -> None:
    told: list[str] = []

    class Teller(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        def before_call(self, call: Call) -> None:
            told.append(f"before {call.args[0]} {self.name}")

        def after_call(self, call: Call, value: object) -> None:
            told.append(f"after {call.args[0]} {self.name}")

    def seen(*expected: str) -> bool:
        found = told.copy()
        told.clear()
        return found == list(expected)

    far.middleware += [Teller("outer"), Teller("inner")]
    with serving(worker):
        values = far.plain.map([5, 6, 7], buffersize=2)
        assert seen("before 5 outer", "before 5 inner", "before 6 outer", "before 6 inner")
        assert next(values) == 5
        assert seen("after 5 inner", "after 5 outer", "before 7 outer", "before 7 inner")
        assert list(values) == [6, 7]
        assert seen("after 6 inner", "after 6 outer", "after 7 inner", "after 7 outer")


def test_a_call_lasts_from_when_it_is_sent_until_its_turn(far: Bus) -> None:
    seconds: list[float] = []

    class Clock(Middleware):
        def after_call(self, call: Call, value: object) -> None:
            seconds.append(call.seconds)

    far.middleware.append(Clock())
    begun = time.perf_counter()
    values = far.keyed.map([1])
    sent = time.perf_counter()
    eventually(lambda: time.perf_counter() > sent + 0.01)
    turn = time.perf_counter()
    assert list(values) == [1]
    assert turn - sent <= seconds[0] <= time.perf_counter() - begun


def test_what_an_iterable_raises_is_no_call(far: Bus, story: Story) -> None:
    values = far.keyed.map(1 // n for n in (1, 0))
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert story.ends() == [1]


# -- calls whose turn never comes ---------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "drop", "interrupt", "fail", "timeout"])
def test_calls_whose_turn_never_comes_have_failed_once(
    far: Bus, worker: Bus, story: Story, end: str
) -> None:
    timeout = 0.1 if end == "timeout" else None
    values: Any = far.keyed.map([1, -2, 3, 4, 5, 6], buffersize=5, timeout=timeout)
    assert next(values) == 1
    second = never_came("keyed(-2)")
    if end == "close":
        values.close()
    elif end == "drop":
        del values
        gc.collect()
    elif end == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            values.throw(KeyboardInterrupt)
    else:
        if end == "fail":
            worker.serve_once()
        with pytest.raises((ValueError, CallTimeout)) as caught:
            next(values)
        second = [f"{caught.typename}: {caught.value}"]
    assert story.ends() == [1, *second, *never_came("keyed(3)", "keyed(4)", "keyed(5)")]


def test_what_kept_a_call_from_being_sent_is_told_where_its_turn_never_comes(
    far: Bus, story: Story
) -> None:
    values: Any = far.plain.map([1, THING])
    values.close()
    first, second = story.ends()
    assert [first] == never_came("plain(1)")
    assert str(second).startswith("SerializationError: plain(<object object")


def test_a_wait_that_is_interrupted_has_failed_of_that(
    far: Bus, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = far.plain.map([1, 2])
    monkeypatch.setattr(fan_out.FanOut, "_await", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(values)
    assert story.ends() == ["KeyboardInterrupt: ", *never_came("plain(2)")]


def test_hooks_are_told_where_the_withdrawal_is_interrupted(
    far: Bus, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: Any = far.plain.map([1, 2])
    monkeypatch.setattr(NodeTransport, "exchange_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        values.close()
    assert story.ends() == never_came("plain(1)", "plain(2)")


@pytest.mark.usefixtures("worker")
def test_a_forked_process_is_told_nothing_of_the_calls_of_its_parent(processes: Processes) -> None:
    program = processes.python(
        """
        import os, redis_bus
        class Count(redis_bus.Middleware):
            failed = 0
            def call_failed(self, call, error):
                self.failed += 1
        count = Count()
        bus = redis_bus.Bus("test")
        bus.middleware.append(count)
        values = bus.plain.map(range(3))
        child = os.fork()
        values.close()
        if not child:
            os._exit(count.failed)
        print(count.failed, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert program.communicate(timeout=30) == ("3 0\n", "")


# -- hooks that raise ---------------------------------------------------------------------------


def test_what_a_hook_before_raises_comes_at_the_turn_of_its_call(far: Bus, worker: Bus) -> None:
    class Refuse(Middleware):
        def before_call(self, call: Call) -> None:
            if call.args == (2,):
                raise PermissionError(call.method)

    outer, inner = Story(), Story()
    far.middleware += [outer, Refuse(), inner]
    with serving(worker):
        values = far.plain.map([1, 2, 3])
        assert next(values) == 1
        with pytest.raises(PermissionError, match="plain"):
            next(values)
        assert list(values) == []
    assert worker.stats()["plain"]["calls"] == 1
    assert outer.ends() == [1, "PermissionError: plain"]
    assert inner.ends() == [1]


def test_what_a_hook_before_raised_is_told_once_where_the_turn_never_comes(far: Bus) -> None:
    class Refuse(Middleware):
        def before_call(self, call: Call) -> None:
            raise PermissionError(call.method)

    outer = Story()
    far.middleware += [outer, Refuse()]
    values: Any = far.plain.map([1, 2])
    values.close()
    assert outer.ends() == ["PermissionError: plain"]


def test_a_map_goes_on_with_the_hooks_that_it_began_with(far: Bus, story: Story) -> None:
    values: Any = far.keyed.map([1, 2])
    far.middleware[:] = [late := Story()]
    assert next(values) == 1
    values.close()
    assert story.ends() == [1, *never_came("keyed(2)")]
    assert late.calls == {}


def test_what_a_later_hook_raises_is_logged_and_does_not_end_it(
    far: Bus, story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy(Middleware):
        def after_call(self, call: Call, value: object) -> None:
            raise RuntimeError("clumsy")

        call_failed = after_call  # type: ignore[assignment]

    far.middleware.append(Clumsy())
    values: Any = far.keyed.map([1, 2, 3])
    assert next(values) == 1
    values.close()
    assert story.ends() == [1, *never_came("keyed(2)", "keyed(3)")]
    assert sum("the middleware hook" in text for text in caplog.messages) == 3


def test_headers_that_cannot_travel_are_refused_at_the_turn(far: Bus, story: Story) -> None:
    class Wrong(Middleware):
        def before_call(self, call: Call) -> None:
            call.headers["n"] = 1  # type: ignore[assignment]

    far.middleware.append(Wrong())
    with pytest.raises(TypeError, match="headers are text"):
        next(far.plain.map([1, 2]))
    assert story.ends() == ["TypeError: headers are text, not int: 'n': 1"]


# -- calls that are made again: their hooks are called once, their headers taken along each time --


class Send(Middleware):
    def before_call(self, call: Call) -> None:
        call.headers["call"] = str(call)


def told(n: int) -> str:
    return redis_bus.headers()["call"]


TOLD = ["told(0)", "told(1)", "told(2)"]


@pytest.fixture
def again(far: Bus, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that are made at their turn, as plain ones."""
    made: list[str] = []
    real = fan_out.FanOut._call_now

    def call_now(self: fan_out.FanOut, one: MappedCall) -> object:
        made.append(str(one.shown))
        return real(self, one)

    monkeypatch.setattr(fan_out.FanOut, "_call_now", call_now)
    far.middleware.append(Send())
    return made


def publish(worker: Bus, *, cached: bool = False, **settings: Any) -> None:
    """Publish `told`, and have its values in the cache."""
    worker.register("told", **settings)(told)
    with serving(worker):
        for n, text in enumerate(TOLD if cached else ()):
            with redis_bus.with_headers(call=text):
                assert worker.told(n) == text


def test_a_call_that_a_full_queue_refused_is_sent_again(
    far: Bus, worker: Bus, story: Story, again: list[str]
) -> None:
    publish(worker, max_queue=1)
    values = far.told.map(range(3))
    assert len(story.calls) == 3
    with serving(worker):
        assert list(values) == TOLD
    assert story.ends() == TOLD


def test_a_call_that_never_found_room_has_failed(
    far: Bus, worker: Bus, story: Story, again: list[str]
) -> None:
    publish(worker, max_queue=1)
    worker.told.run(9)
    with pytest.raises(QueueFull):
        next(far.told.map([1, 2]))
    error = "QueueFull: told(1): 1 job waits for told already (max_queue)"
    assert story.ends() == [error, *never_came("told(2)")]
    assert again == ["told(1)"]


def test_a_call_of_another_registration_is_sent_again(
    far: Bus, worker: Bus, story: Story, again: list[str]
) -> None:
    publish(worker)
    assert far.get_method("told")
    publish(worker, cache_key="{n}")
    with serving(worker):
        assert list(far.told.map(range(3))) == TOLD
    assert story.ends() == TOLD
    assert again == []


def test_a_hit_that_cannot_be_read_is_called(
    far: Bus, worker: Bus, story: Story, again: list[str]
) -> None:
    publish(worker, cached=True, cache_key="{n}")
    (key,) = worker.conn.keys("rb:{test:}:cache:told:1")
    head, _, _ = worker.conn.get(key).partition(b"\n")
    worker.conn.set(key, head + b"\nm\xc1")
    with serving(worker):
        assert list(far.told.map(range(3))) == TOLD
    assert story.ends() == TOLD
    assert again == ["told(1)"]


def test_a_call_whose_outcome_is_gone_is_called(
    far: Bus, worker: Bus, story: Story, again: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fan_out, "OLD_SECONDS", 0.0)
    publish(worker, cache_key="{n}", cache_expire=0)

    def outcomes() -> list[bytes]:
        return worker.conn.keys("rb:{test:}:reply:*")  # type: ignore[no-any-return]

    worker.conn.delete(*outcomes())
    with serving(worker):
        values = far.told.map(range(3))
        eventually(lambda: len(outcomes()) == 3)
        worker.conn.delete(*outcomes())
        assert list(values) == TOLD
    assert story.ends() == again == TOLD


def test_a_call_without_time_is_called(
    far: Bus, worker: Bus, story: Story, again: list[str]
) -> None:
    publish(worker, cached=True, cache_key="{n}")
    assert list(far.told.options(timeout=0).map(range(3))) == TOLD
    assert story.ends() == again == TOLD


def test_a_call_that_reaches_no_redis_has_failed() -> None:
    bus = Bus("test", url="redis://localhost:1/0")
    bus.middleware.append(story := Story())
    method = bus.register_method(told, "told")
    with pytest.raises(ConnectionLost):
        next(method.map([1, 2]))
    error, *others = story.ends()
    assert str(error).startswith("ConnectionLost: told(1): no Redis at localhost:1")
    assert others == never_came("told(2)")
