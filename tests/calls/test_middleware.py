"""Middleware: hooks around calls and runs, on both faces, and the headers that travel."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import redis_bus
from redis_bus import AsyncBus, Bus, BusError, CallTimeout, Middleware, ProtocolError, WorkerLost
from redis_bus.calls.context import MAX_BYTES, checked
from redis_bus.logs import LogCalls, LogRuns
from redis_bus.middleware import HOOKS, Call, Chain, Hooks, Run
from redis_bus.protocol import arguments as wire
from redis_bus.protocol.codec import get_serializer
from redis_bus.worker.stop_flag import StopNow
from tests.async_support import run
from tests.support import eventually, serving

Caller = Callable[..., Any]


class Notes(Middleware):
    """Notes what its hooks see, under a name."""

    def __init__(self, name: str = "", seen: list[Any] | None = None) -> None:
        self.name = name
        self.seen: list[Any] = [] if seen is None else seen

    def note(self, what: str, event: Call | Run, more: object = None) -> None:
        more = repr(more) if isinstance(more, BaseException) else more
        self.seen.append((self.name + what, str(event), more))

    def before_call(self, call: Call) -> None:
        self.note("before_call", call)

    def after_call(self, call: Call, value: object) -> None:
        self.note("after_call", call, value)

    def call_failed(self, call: Call, error: BaseException) -> None:
        self.note("call_failed", call, error)

    def before_run(self, run: Run) -> None:
        self.note("before_run", run)

    def after_run(self, run: Run, value: object) -> None:
        self.note("after_run", run, value)

    def run_failed(self, run: Run, error: BaseException) -> None:
        self.note("run_failed", run, error)


@pytest.fixture
def worker(url: str) -> Iterator[Bus]:
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture(params=["Bus", "AsyncBus"])
def caller(request: pytest.FixtureRequest, url: str) -> Iterator[tuple[Chain, Caller]]:
    """The middleware of a bus that calls, and what calls, or enqueues, a method on it."""
    if request.param == "Bus":
        with Bus("test", url=url, timeout=20) as bus:

            def call(name: str, *args: object, kind: str = "call", **kwargs: object) -> Any:
                return (bus[name] if kind == "call" else bus[name].run)(*args, **kwargs)

            yield bus.middleware, call
        return
    far = AsyncBus("test", url=url, timeout=20)

    def call_async(name: str, *args: object, kind: str = "call", **kwargs: object) -> Any:
        async def body() -> Any:
            async with far:
                return await (far[name] if kind == "call" else far[name].run)(*args, **kwargs)

        return run(body())

    yield far.middleware, call_async


# -- hooks --------------------------------------------------------------------------------------


def test_hooks_come_in_order_before_and_in_reverse_after(
    worker: Bus, caller: tuple[Chain, Caller]
) -> None:
    chain, call = caller
    seen: list[Any] = []
    for bus_chain in (chain, worker.middleware):
        bus_chain += [Notes("1 ", seen), Notes("2 ", seen)]

    @worker.register()
    def double(n: int) -> int:
        return 2 * n

    with serving(worker):
        assert call("double", 4) == 8
        eventually(lambda: len(seen) == 8)
    shown = "double(4)"
    assert seen[:4] == [
        ("1 before_call", shown, None),
        ("2 before_call", shown, None),
        ("1 before_run", shown, None),
        ("2 before_run", shown, None),
    ]
    ends = [one for one in seen if "run" in one[0]], [one for one in seen if "call" in one[0]]
    assert ends[0][2:] == [("2 after_run", shown, 8), ("1 after_run", shown, 8)]
    assert ends[1][2:] == [("2 after_call", shown, 8), ("1 after_call", shown, 8)]


def test_an_error_is_seen_by_the_hooks_of_both_sides(
    worker: Bus, caller: tuple[Chain, Caller]
) -> None:
    chain, call = caller
    theirs, ours = Notes(), Notes()
    worker.middleware.append(theirs)
    chain.append(ours)

    @worker.register()
    def fail(n: int) -> None:
        raise ValueError(n)

    with serving(worker), pytest.raises(ValueError, match="3"):
        call("fail", 3)
    assert theirs.seen == [
        ("before_run", "fail(3)", None),
        ("run_failed", "fail(3)", "ValueError(3)"),
    ]
    assert ours.seen == [
        ("before_call", "fail(3)", None),
        ("call_failed", "fail(3)", "ValueError(3)"),
    ]


def test_errors_of_the_bus_are_seen_too(worker: Bus, caller: tuple[Chain, Caller]) -> None:
    chain, call = caller
    notes = Notes()
    chain.append(notes)
    worker.register("later", timeout=0.05)(lambda: None)
    worker.all_methods()
    worker.later.run()  # publishes it; nobody serves
    with pytest.raises(CallTimeout):
        call("later")
    with pytest.raises(TypeError):
        call("later", 1)
    assert [what for what, _, _ in notes.seen] == ["before_call", "call_failed"] * 2


def test_a_call_tells_how_it_was_answered(worker: Bus, caller: tuple[Chain, Caller]) -> None:
    chain, call = caller
    seen: list[tuple[str, str]] = []

    class Status(Middleware):
        def after_call(self, call: Call, value: object) -> None:
            assert call.seconds > 0
            assert call.bus == "test"
            seen.append((call.kind, call.status))

    chain.append(Status())
    gate = threading.Event()

    @worker.register(cache_key="{n}")
    def keyed(n: int) -> int:
        gate.wait(20)
        return n

    worker.register("plain")(lambda: None)
    with serving(worker):
        first = threading.Thread(target=lambda: call("keyed", 1))
        first.start()
        eventually(lambda: worker.stats().get("keyed", {}).get("calls"))
        joined = threading.Thread(target=lambda: call("keyed", 1))
        joined.start()
        eventually(lambda: worker.stats()["keyed"]["joins"])
        gate.set()
        first.join(20)
        joined.join(20)
        call("keyed", 1)
        call("keyed", 1, kind="run")
        call("plain", kind="run")
    assert sorted(seen[:2]) == [("call", "joined"), ("call", "queued")]
    assert seen[2:] == [("call", "hit"), ("run", "hit"), ("run", "queued")]


def test_what_a_hook_before_the_call_raises_is_raised_and_nothing_is_sent(
    worker: Bus, caller: tuple[Chain, Caller]
) -> None:
    chain, call = caller
    outer, inner = Notes("outer "), Notes("inner ")

    class Refuse(Middleware):
        def before_call(self, call: Call) -> None:
            raise PermissionError(call.method)

    chain += [outer, Refuse(), inner]
    ran: list[int] = []
    worker.register("note")(ran.append)
    with serving(worker):
        for kind in ("call", "run"):
            with pytest.raises(PermissionError):
                call("note", 1, kind=kind)
    assert ran == []
    assert worker.stats()["note"]["calls"] == 0
    assert inner.seen == []
    assert [what for what, _, _ in outer.seen] == ["outer before_call", "outer call_failed"] * 2


def test_what_a_hook_before_the_run_raises_is_the_outcome(bus: Bus, worker: Bus) -> None:
    outer, inner = Notes(), Notes()

    class Refuse(Middleware):
        def before_run(self, run: Run) -> None:
            raise PermissionError(f"not {run.method}")

    worker.middleware += [outer, Refuse(), inner]
    ran: list[int] = []
    worker.register("note")(ran.append)
    with serving(worker), pytest.raises(PermissionError, match="not note") as caught:
        bus.note(1)
    assert "before_run" in str(caught.value.__cause__)
    assert ran == inner.seen == []
    assert [what for what, _, _ in outer.seen] == ["before_run", "run_failed"]


def test_what_a_later_hook_raises_is_logged_and_changes_nothing(
    worker: Bus, caller: tuple[Chain, Caller], caplog: pytest.LogCaptureFixture
) -> None:
    chain, call = caller

    class Clumsy(Middleware):
        def after_call(self, call: Call, value: object) -> None:
            raise RuntimeError("clumsy")

        after_run = call_failed = run_failed = after_call  # type: ignore[assignment]

    notes = Notes()
    chain += [notes, Clumsy()]
    worker.middleware.append(Clumsy())
    worker.register("double")(lambda n: 2 * n)
    with serving(worker):
        assert call("double", 2) == 4
        with pytest.raises(TypeError):
            call("double", None)
    said = [record for record in caplog.records if "the middleware hook" in record.message]
    assert len(said) == 4
    assert "Clumsy.after_call raised" in said[0].message
    assert all(record.exc_info for record in said)
    assert [what for what, _, _ in notes.seen] == [
        "before_call", "after_call", "before_call", "call_failed",
    ]  # fmt: skip


def test_a_run_knows_its_job_and_a_value_that_cannot_be_sent_is_a_failure(
    bus: Bus, worker: Bus
) -> None:
    runs: list[Run] = []
    notes = Notes()

    class Keep(Middleware):
        def before_run(self, run: Run) -> None:
            run.notes[self] = run.seconds
            runs.append(run)

    worker.middleware += [Keep(), notes]
    worker.register("odd")(lambda: object())
    with serving(worker):
        result = bus.odd.run()
        with pytest.raises(redis_bus.SerializationError):
            result.get()
    (seen,) = runs
    assert result.id == f":odd:{seen.job}"
    assert (seen.bus, seen.method, seen.args, seen.kwargs, seen.attempt) == (
        "test", "odd", (), {}, 1,
    )  # fmt: skip
    assert seen.waited >= 0
    assert seen.seconds >= next(iter(seen.notes.values()))
    assert [what for what, _, _ in notes.seen] == ["before_run", "run_failed"]


def test_a_function_that_is_stopped_is_a_run_that_failed(
    bus: Bus, worker: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    worker.middleware.append(notes)

    @worker.register()
    def stopped() -> None:
        raise StopNow

    with serving(worker), pytest.raises(WorkerLost):
        bus.stopped()
    assert notes.seen[1][2].startswith("WorkerLost('stopped: its worker was stopped")
    assert caplog.text == ""


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_function_runs_in_the_context_of_its_hooks(
    bus: Bus, worker: Bus, concurrency: int
) -> None:
    span: ContextVar[str] = ContextVar("span")
    ended: list[str] = []

    class Tracing(Middleware):
        def before_run(self, run: Run) -> None:
            span.set(f"span of {run}")

        def after_run(self, run: Run, value: object) -> None:
            ended.append(span.get())

    worker.middleware.append(Tracing())

    @worker.register()
    def plain(n: int) -> str:
        return span.get()

    @worker.register("awaited")
    async def awaited(n: int) -> str:
        await asyncio.sleep(0)
        return span.get()

    thread = threading.Thread(target=worker.serve, kwargs={"concurrency": concurrency})
    thread.start()
    try:
        eventually(lambda: bus.get_method("plain"))
        values = [bus.plain(1), bus.awaited(2), bus.plain(3)]
    finally:
        worker.stop()
        thread.join(20)
    assert values == ended == ["span of plain(1)", "span of awaited(2)", "span of plain(3)"]
    assert span.get(None) is None


def test_a_cancelled_call_has_failed(url: str, worker: Bus) -> None:
    notes = Notes()
    worker.register("never")(lambda: None)
    worker.never.run().cancel()

    async def body() -> None:
        async with AsyncBus("test", url=url) as far:
            far.middleware.append(notes)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(far.never(), 0.05)

    run(body())
    assert [what for what, _, _ in notes.seen] == ["before_call", "call_failed"]
    assert notes.seen[1][2].startswith("CancelledError(")


def test_the_chain_is_a_list_of_middlewares(bus: Bus) -> None:
    chain = bus.middleware
    assert [type(one) for one in chain] == [LogRuns]
    first, second = Notes(), LogCalls()
    chain.insert(0, first)
    chain.append(second)
    assert chain[0] is first
    assert chain[1:2] == [chain[1]]
    assert repr(chain).startswith("[<tests.calls.test_middleware.Notes")
    chain[1] = second
    assert list(chain) == [first, second, second]
    del chain[1:]
    assert len(chain) == 1
    for wrong in (Notes, print):
        with pytest.raises(TypeError, match=r"is no redis_bus\.Middleware"):
            chain.append(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"is no redis_bus\.Middleware"):
            chain[0] = wrong  # type: ignore[call-overload]
    assert list(chain) == [first]


async def _awaited(*args: object) -> None:
    raise PermissionError


class _Awaited:
    async def __call__(self, *args: object) -> None:
        raise PermissionError


def _generator(*args: object) -> Iterator[None]:
    yield


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_would_never_be_awaited_is_refused(name: str) -> None:
    chain = Chain([LogRuns()])
    for hook in (_awaited, _Awaited(), functools.partial(_awaited, 1), _generator):
        middleware = type("Auth", (Middleware,), {name: hook})()
        with pytest.raises(TypeError, match=rf"hook Auth\.{name} would never .* a plain function"):
            chain.append(middleware)
        with pytest.raises(TypeError, match="plain function"):
            chain[0] = middleware
        with pytest.raises(TypeError, match="plain function"):
            chain += [middleware]
    assert [type(one) for one in chain] == [LogRuns]


def test_a_hook_that_returns_a_coroutine_lets_nothing_through(
    worker: Bus, caller: tuple[Chain, Caller]
) -> None:
    chain, call = caller

    async def check() -> None:
        raise PermissionError

    class Auth(Middleware):
        def before_call(self, call: Call) -> Any:
            coroutine = check()
            coroutine.close()
            return coroutine

    chain.append(Auth())
    ran: list[int] = []
    worker.register("note")(ran.append)
    with serving(worker), pytest.raises(TypeError, match=r"Auth\.before_call would never be await"):
        call("note", 1)
    assert ran == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("befor_call", "did you mean before_call?"),
        ("run_fail", "did you mean run_failed?"),
        ("after_calls", "did you mean after_call?"),
        ("before_request", "the hooks are before_call, after_call, "),
        ("after_everything", "the hooks are before_call, after_call, "),
        ("task_failed", "the hooks are before_call, after_call, "),
    ],
)
def test_a_method_that_looks_like_a_hook_and_is_none_is_refused(name: str, hint: str) -> None:
    chain = Chain()
    for middleware in (
        type("Auth", (Middleware,), {name: lambda self, call: None})(),
        type("Auth", (Middleware,), {name: _awaited})(),
    ):
        with pytest.raises(TypeError, match=rf"Auth\.{name} is no hook") as caught:
            chain.append(middleware)
        assert hint in str(caught.value)
    assert list(chain) == []


def test_other_names_of_a_middleware_are_its_own() -> None:
    class Busy(Middleware):
        before_ms = 3  # no method
        _before_all = print

        @property
        def slow(self) -> None:
            raise AssertionError("it is not looked at")

        def record(self, event: Call) -> None:
            pass

        async def send(self) -> None:
            pass

    chain = Chain()
    chain.append(Busy())
    assert not chain.calls


def test_a_hook_may_be_set_on_the_object(bus: Bus) -> None:
    seen: list[Call] = []
    middleware = Middleware()
    middleware.before_call = seen.append  # type: ignore[method-assign]
    bus.middleware.append(middleware)
    bus.register("later")(lambda: None)
    bus.later.run()
    assert [str(call) for call in seen] == ["later()"]


def test_hooks_that_nobody_overrides_are_not_called() -> None:
    class Runs(Middleware):
        def after_run(self, run: Run, value: object) -> None:
            pass

    names = {"calls": ("before_call", "after_call", "call_failed")}
    names["runs"] = ("before_run", "after_run", "run_failed")
    assert not Hooks([Runs(), LogRuns()], *names["calls"])
    assert Hooks([Runs()], *names["runs"])
    assert not Chain([]).runs
    assert Chain([LogCalls()]).calls


# -- headers ------------------------------------------------------------------------------------


def test_headers_travel_with_a_call_and_with_what_it_calls(
    worker: Bus, url: str, caller: tuple[Chain, Caller]
) -> None:
    _, call = caller
    far = Bus("test", url=url)

    @worker.register("outer")
    def outer() -> list[dict[str, str]]:
        with redis_bus.with_headers(b="2"):
            more = far["inner"]()
        return [redis_bus.headers(), far["inner"](), far["inner"].run().get(), more]

    with serving(worker), Bus("test", url=url) as second:
        second.register("inner")(redis_bus.headers)
        with serving(second):
            with redis_bus.with_headers({"trace-parent": "00-4bf9"}, a="1"):
                values = call("outer")
            assert call("outer") == [{}, {}, {}, {"b": "2"}]
    sent = {"trace-parent": "00-4bf9", "a": "1"}
    assert values == [sent, sent, sent, {**sent, "b": "2"}]
    assert redis_bus.headers() == {}
    far.close()


@pytest.mark.parametrize("serializer", ["msgpack", "json", "pickle"])
def test_a_hook_adds_headers_and_the_other_side_reads_them(url: str, serializer: str) -> None:
    got: list[dict[str, str]] = []

    class Send(Middleware):
        def before_call(self, call: Call) -> None:
            call.headers["trace"] = f"of {call}"

    class Receive(Middleware):
        def before_run(self, run: Run) -> None:
            got.append(run.headers)

    with (
        Bus("test", url=url, serializer=serializer) as bus,
        Bus("test", url=url, serializer=serializer) as far,
    ):
        bus.middleware.append(Receive())
        far.middleware.append(Send())
        bus.register("keyed", cache_key="{n}")(lambda n: redis_bus.headers())
        with serving(bus):
            assert far.keyed(1) == {"trace": "of keyed(1)"}
            assert far.keyed(1) == {
                "trace": "of keyed(1)"
            }  # cached: headers are no part of the key
            far.keyed.run(2).get()
    assert got == [{"trace": "of keyed(1)"}, {"trace": "of keyed(2)"}]


def test_headers_hold_for_the_thread_and_the_tasks_within() -> None:
    seen: dict[str, dict[str, str]] = {}

    async def task(name: str) -> None:
        with redis_bus.with_headers(name=name):
            await asyncio.sleep(0)
            seen[name] = redis_bus.headers()

    async def body() -> None:
        with redis_bus.with_headers(of="all"):
            await asyncio.gather(task("a"), task("b"))
            seen["all"] = redis_bus.headers()

    thread = threading.Thread(target=lambda: seen.update(thread=redis_bus.headers()))
    with redis_bus.with_headers(of="main"):
        thread.start()
        thread.join(20)
    run(body())
    assert seen == {
        "a": {"of": "all", "name": "a"},
        "b": {"of": "all", "name": "b"},
        "all": {"of": "all"},
        "thread": {},
    }


def test_headers_that_cannot_travel_are_refused(bus: Bus) -> None:
    wrong: Any = 1
    refused = pytest.raises(TypeError, match="headers are text, not int: 'n': 1")
    with refused, redis_bus.with_headers(n=wrong):
        pass
    with pytest.raises(TypeError, match="headers are text, not int"):
        checked({1: "a"})  # type: ignore[dict-item]
    checked({"a": "x" * (MAX_BYTES - 1)})
    with pytest.raises(ValueError, match="headers of 8193 bytes: 8192 is the most"):
        checked({"a": "x" * MAX_BYTES})

    class Wrong(Middleware):
        def before_call(self, call: Call) -> None:
            call.headers["n"] = 1  # type: ignore[assignment]

    bus.middleware.append(Wrong())
    bus.register("note")(lambda: None)
    with pytest.raises(TypeError, match="headers are text"):
        bus.note()
    assert bus.stats() == {}


TEXT = st.text(max_size=20)


@given(
    args=st.tuples(st.integers(), TEXT),
    kwargs=st.dictionaries(TEXT, st.integers(), max_size=3),
    headers=st.dictionaries(TEXT, TEXT, max_size=4),
    serializer=st.sampled_from(["msgpack", "json", "pickle"]).map(get_serializer),
)
def test_arguments_and_headers_make_the_round_trip(
    args: Any, kwargs: dict[str, int], headers: dict[str, str], serializer: Any
) -> None:
    body = wire.encode(args, kwargs, checked(headers), serializer)
    assert wire.decode(body, serializer) == (args, kwargs, headers)


@pytest.mark.parametrize(
    "foreign",
    [[], [[]], [[], {}, {"a": 1}], [[], {}, {1: "a"}], [[], {}, []], [[], {}, {}, {}], [{}, []], 1],
)
def test_arguments_that_are_not_ours_are_refused(foreign: object) -> None:
    from redis_bus.protocol import codec

    serializer = get_serializer("msgpack")
    with pytest.raises(BusError, match="its arguments are not ours"):
        wire.decode(codec.encode(foreign, serializer), serializer)


# -- logging ------------------------------------------------------------------------------------


def test_runs_and_calls_are_logged_by_middleware(
    bus: Bus, worker: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "redis_bus")
    bus.middleware.append(LogCalls())

    @worker.register()
    def half(n: int) -> float:
        if n % 2:
            raise ValueError(n)
        return n / 2

    with serving(worker):
        assert bus.half(2) == 1
        with pytest.raises(ValueError, match="3"):
            bus.half(3)
    said = [record.getMessage() for record in caplog.records if record.name == "redis_bus.logs"]
    assert any(text.startswith("half ran for ") and "in its queue" in text for text in said)
    assert any(text.startswith("half(2) took ") and text.endswith(" ms (queued)") for text in said)
    assert any(text.startswith("half raised ValueError: 3\n") for text in said)
    assert any("in half" in text and "redis_bus/worker/runner.py" not in text for text in said)
    assert any(text.startswith("half(3) raised ValueError after ") for text in said)
    caplog.clear()
    worker.middleware.clear()
    bus.middleware.clear()
    with serving(worker), pytest.raises(ValueError, match="5"):
        bus.half(5)
    assert not [record for record in caplog.records if record.name == "redis_bus.logs"]


def test_arguments_that_a_serializer_cannot_read_are_logged_and_reach_no_hook(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        @staticmethod
        def dumps(value: object) -> bytes:
            return b"odd"

        @staticmethod
        def loads(data: bytes) -> object:
            raise RuntimeError("cannot read this")

    notes = Notes()
    with Bus("test", url=url, serializer=Odd()) as bus:
        bus.middleware.append(notes)
        bus.register("note")(lambda: None)
        with serving(bus), pytest.raises(ProtocolError, match=r"note: cannot decode .* read this"):
            bus.note()
    said = [record.getMessage() for record in caplog.records if record.name == "redis_bus.runner"]
    assert len(said) == 1
    assert said[0].startswith("note: cannot decode")
    assert [what for what, _, _ in notes.seen if "run" in what] == []


def test_headers_travel_with_the_calls_of_a_map(bus: Bus, url: str) -> None:
    bus.register("plain")(lambda n: redis_bus.headers())
    bus.register("keyed", cache_key="{n}")(lambda n: redis_bus.headers())
    sent = {"trace": "4bf9"}

    async def mapped(name: str) -> list[object]:
        async with AsyncBus("test", url=url) as far:
            return [value async for value in far[name].map([3, 4])]

    with serving(bus), redis_bus.with_headers(sent):
        for name in ("plain", "keyed"):
            assert list(bus[name].map([1, 2])) == [sent, sent]
            assert run(mapped(name)) == [sent, sent]
