"""AsyncBus: the names of `Bus`, awaited; the same answers, errors and words."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_bus import (
    AsyncBus,
    AsyncResult,
    Bus,
    BusError,
    CallTimeout,
    Cancelled,
    ConnectionLost,
    DeadLetter,
    Deadlock,
    Method,
    NoWorkers,
    QueueFull,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    WorkerLost,
)
from redis_bus.client.async_dead_letters import AsyncDeadLetter
from redis_bus.client.async_method import AsyncMethod, AsyncRun
from redis_bus.protocol.deadline import Deadline
from redis_bus.transport.transport import READ_SECONDS
from tests.async_support import Gate, calling, run, until
from tests.calls import test_calls
from tests.calls.test_calls import BAD_CALLS, GOOD_CALLS
from tests.commands import sent
from tests.support import PATIENCE_SECONDS, Processes, eventually, serving, workers
from tests.test_web import LEFT, uvicorn

QUEUE = "rb:{test:}:queue:"
PENDING = "rb:{test:}:pending:"
everything: Any = test_calls.everything


class Odd(Exception):
    pass


def echo(value: Any) -> Any:
    return value


def idle(bus: Bus, *names: str) -> None:
    """Publish what is registered, with no worker alive."""
    bus.serve_once()


# -- the names ----------------------------------------------------------------------------------

AWAITED = {
    AsyncBus: {"all_methods", "get_method", "serve", "serve_once", "stats", "cleanup"},
    AsyncMethod: {"__call__", "run", "clear_cache", "clear_all_cache", "dead_letters"},
    AsyncRun: {"get", "done", "cancel"},
    AsyncDeadLetter: {"retry", "drop"},
}
# `in` cannot be awaited; `__get__` makes a method look like a routine, which is not awaited.
OTHERWISE = {"close", "__enter__", "__exit__", "__get__", "__class_getitem__"}


@pytest.mark.parametrize(
    ("sync", "ours"),
    [
        (Bus, AsyncBus),
        (Method, AsyncMethod),
        (AsyncResult, AsyncRun),
        (DeadLetter, AsyncDeadLetter),
    ],
)
def test_every_name_is_there_with_the_same_arguments(sync: type, ours: type) -> None:
    for name, theirs in vars(sync).items():
        is_private = name.startswith("_") and not name.startswith("__")
        if is_private or name in OTHERWISE or (name == "__init__" and sync is not Bus):
            continue
        if not inspect.isfunction(theirs):
            assert name.startswith("__") or hasattr(ours, name), name
            continue
        mine = inspect.getattr_static(ours, name)
        if name == "__contains__":
            assert mine is None
            continue
        assert _arguments(mine) == _arguments(theirs), name
        assert inspect.iscoroutinefunction(mine) == (name in AWAITED[ours]), name
    assert inspect.iscoroutinefunction(AsyncBus.aclose)


def _arguments(function: Any) -> list[tuple[str, object, object]]:
    def default(parameter: inspect.Parameter) -> str:
        # What stands for an argument that was not given is an object of each module.
        return re.sub("0x[0-9a-f]+", "", repr(parameter.default))

    found = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, default(one)) for one in found]


def test_the_settings_of_a_bus_are_its_attributes(url: str) -> None:
    settings: dict[str, Any] = {
        "result_expire": 1, "cache_expire": 2, "prefix": "p_", "timeout": 3, "serializer": "json",
    }  # fmt: skip
    sync, ours = Bus("test", url=url, **settings), AsyncBus("test", url=url, **settings)
    for name in vars(sync):
        if not name.startswith("_") and name not in ("conn", "middleware"):
            assert getattr(ours, name) == getattr(sync, name), name
    assert isinstance(ours.conn, redis.Redis)
    assert [type(one) for one in ours.middleware] == [type(one) for one in sync.middleware]
    assert repr(ours) == repr(sync).replace("<Bus", "<AsyncBus")


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"name": "a b"}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"url": "http://x"}, ValueError),
        ({"conn": 3}, TypeError),
        ({"nonsense": 1}, TypeError),
        ({"result_expire": 0}, ValueError),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_told_in_the_same_words(
    wrong: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as theirs:
        Bus(**wrong)
    with pytest.raises(kind) as ours:
        AsyncBus(**wrong)
    assert str(ours.value) == str(theirs.value)


def test_what_cannot_be_awaited_is_refused(url: str) -> None:
    bus: Any = AsyncBus("test", url=url)
    with pytest.raises(TypeError):
        "echo" in bus  # noqa: B015
    with pytest.raises(TypeError):
        list(bus)
    with pytest.raises(TypeError):
        bus[0]
    with pytest.raises(AttributeError):
        bus.__wrapped__  # noqa: B018
    with pytest.raises(TypeError, match="parentheses"):
        bus.register(echo)


# -- calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "kwargs"), GOOD_CALLS, ids=str)
def test_arguments_arrive_as_in_a_local_call(
    bus: Bus, url: str, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    bus.register()(everything)

    async def body() -> None:
        async with calling(url) as far:
            assert await far.everything(*args, **kwargs) == everything(*args, **kwargs)
            result = await far["everything"].run(*args, **kwargs)
            assert await result.get() == everything(*args, **kwargs)

    with serving(bus):
        run(body())


@pytest.mark.parametrize(("args", "kwargs"), BAD_CALLS, ids=str)
def test_a_wrong_call_is_a_type_error_in_pythons_words_and_is_not_sent(
    bus: Bus,
    url: str,
    client: redis.Redis,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> None:
    bus.register("everything", cache_key=True)(everything)
    bus.serve_once()
    with pytest.raises(TypeError) as local:
        everything(*args, **kwargs)

    async def body() -> None:
        async with calling(url) as far:
            assert await far.get_method("everything")
            method = far.everything
            for call in (method, method.run, method.clear_cache, method.options(timeout=1)):
                with sent(client) as commands, pytest.raises(TypeError) as remote:
                    await call(*args, **kwargs)
                assert str(remote.value) == str(local.value)
                assert commands == {"hget": 1}

    run(body())
    assert not client.exists(QUEUE + "everything")


def test_an_argument_that_cannot_be_sent_is_an_error_that_names_the_path(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            await far.get_method("echo")
            with sent(client) as commands, pytest.raises(SerializationError, match=r"value\['x'\]"):
                await far.echo({"x": object()})
            assert commands == {}

    run(body())


def raises(kind: str) -> None:
    import builtins

    raise vars(builtins).get(kind, Odd)("told")


@pytest.mark.parametrize("kind", ["ValueError", "KeyError", "TimeoutError", "OSError", "TypeError"])
def test_exceptions_of_builtin_types_are_raised_as_they_are_with_the_remote_traceback(
    bus: Bus, url: str, kind: str
) -> None:
    import builtins

    bus.register()(raises)

    async def body() -> None:
        async with calling(url) as far:
            with pytest.raises(vars(builtins)[kind], match="told") as raised:
                await far.raises(kind)
            assert isinstance(raised.value.__cause__, RemoteTraceback)
            assert "raise vars(builtins)" in str(raised.value.__cause__)
            result = await far.raises.run(kind)
            with pytest.raises(vars(builtins)[kind], match="told"):
                await result.get()

    with serving(bus):
        run(body())


def test_exceptions_of_other_types_are_remote_errors_unless_they_are_allowed(
    bus: Bus, url: str
) -> None:
    bus.register()(raises)

    async def body() -> None:
        async with calling(url) as far:
            with pytest.raises(RemoteError) as raised:
                await far.raises("Odd")
            assert raised.value.type_name.endswith("Odd")
            allowing = far.raises.options(allow=(Odd,))
            with pytest.raises(Odd, match="told"):
                await allowing("Odd")
            with pytest.raises(Odd, match="told"):
                await (await allowing.run("Odd")).get()

    with serving(bus):
        run(body())


def test_a_stop_iteration_is_what_python_makes_of_one_in_a_coroutine(bus: Bus, url: str) -> None:
    bus.register()(raises)

    async def body() -> None:
        async with calling(url) as far:
            for call in (far.raises("StopIteration"), _run_and_get(far.raises, "StopIteration")):
                with pytest.raises(RuntimeError, match="raised StopIteration") as raised:
                    await call
                assert isinstance(raised.value.__cause__, StopIteration)

    with serving(bus):
        run(body())


async def _run_and_get(method: AsyncMethod, *args: Any) -> Any:
    return await (await method.run(*args)).get()


def test_an_unknown_method_is_an_attribute_error_with_close_matches(bus: Bus, url: str) -> None:
    bus.register("math_sum")(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            with pytest.raises(AttributeError) as raised:
                await far.math_sun(1)
            with pytest.raises(AttributeError) as theirs:
                bus.math_sun  # noqa: B018
            assert str(raised.value) == str(theirs.value)
            assert await far.get_method("math_sun") is None
            for use in (far.nope.run, far.nope.clear_cache, far.nope.clear_all_cache):
                with pytest.raises(AttributeError, match=r"it has 1 other$"):
                    await use()
            assert set(far._core.methods) <= {"math_sum"}
            assert "math_sun" not in dir(far)

    run(body())


def test_a_method_looks_like_the_remote_function_once_it_was_looked_up(bus: Bus, url: str) -> None:
    @bus.register("math_sum", cache_key="{a}/{b}")
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            with pytest.raises(RuntimeError, match="await"):
                far.math_sum.cache_key  # noqa: B018
            assert await far.all_methods() == ["math_sum"]
            method = await far.get_method("math_sum")
            assert method is far.math_sum is far["math_sum"]
            assert str(inspect.signature(method)) == "(a: int, b: int = 2) -> int"
            assert (method.__name__, method.__doc__) == ("math_sum", "Add.")
            assert method.cache_key == "{a}/{b}"
            assert "math_sum" in dir(far)

    run(body())


# -- timeouts and refusals ----------------------------------------------------------------------


def test_a_timeout_says_the_call_the_budget_and_that_nobody_serves_it(bus: Bus, url: str) -> None:
    bus.register("math_sum")(lambda a, b: a + b)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            started = time.monotonic()
            with pytest.raises(NoWorkers) as error:
                await far.math_sum.options(timeout=0.3)(1, 2)
            assert 0.3 <= time.monotonic() - started < 2.3
            text = "math_sum(1, 2): no reply in 0.3 s (queued 0.3 s; 0 workers alive)"
            assert str(error.value) == text
            with pytest.raises(NoWorkers, match=r"^math_sum\(1, 2\): no worker alive serves"):
                await far.math_sum.options(fail_fast=True)(1, 2)
            result = await far.math_sum.run(1, 2)
            with pytest.raises(NoWorkers, match=r"^math_sum \(job .{16}\): no reply in 0\.1 s"):
                await result.get(timeout=0.1)

    run(body())


def test_a_timeout_with_a_live_but_busy_worker_is_not_no_workers(bus: Bus, url: str) -> None:
    gate = Gate()
    bus.register("gated")(gate)

    async def body() -> None:
        async with calling(url) as far:
            first = await far.gated.run(1)
            await until(gate.entered.is_set)
            with pytest.raises(CallTimeout) as error:
                await far.gated.options(timeout=0.2)(2)
            assert not isinstance(error.value, NoWorkers)
            assert str(error.value) == (
                "gated(2): no reply in 0.2 s (queued 0.2 s; 1 worker alive)"
            )
            gate.go.set()
            assert await first.get() == 1

    with serving(bus):
        run(body())
    assert gate.seen == [1]


@pytest.mark.parametrize("cache_key", [None, "{a}"])
def test_a_call_that_timed_out_is_not_run_however_long_it_was_on_its_way(
    bus: Bus, url: str, cache_key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    bus.register("gated", cache_key=cache_key)(gate)

    async def body() -> None:
        async with calling(url) as far:
            first = await far.gated.run(1)
            await until(gate.entered.is_set)
            with monkeypatch.context() as patch:
                # As if it had come to Redis a minute later than it was made.
                patch.setattr(Deadline, "left_ms", lambda deadline: 60_000)
                with pytest.raises(CallTimeout, match=r"\(queued 0\.1 s; 1 worker alive\)"):
                    await far.gated.options(timeout=0.1)(2)
            last = await far.gated.run(3)
            gate.go.set()
            assert [await first.get(), await last.get()] == [1, 3]

    with serving(bus):
        run(body())
    assert gate.seen == [1, 3]


def test_a_full_queue_refuses_and_leaves_nothing_of_the_refused_behind(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register("limited", max_queue=1)(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            await far.limited.run(0)
            with pytest.raises(QueueFull, match=r"^limited\(1\): 1 job waits .*max_queue"):
                await far.limited(1)
            with pytest.raises(QueueFull):
                await far.limited.run(2)
            with pytest.raises(NoWorkers):
                await far.limited.options(fail_fast=True)(3)

    run(body())
    eventually(lambda: not list(client.scan_iter("*inboxes*")))
    assert not list(client.scan_iter("*reply*"))


# -- results ------------------------------------------------------------------------------------


def test_a_run_is_read_any_number_of_times_and_by_either_kind_of_bus(bus: Bus, url: str) -> None:
    bus.register()(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            result = await far.echo.run(4)
            assert not await result.done()
            assert await asyncio.to_thread(bus.serve_once) == 1
            assert await result.done()
            assert [await result.get() for _ in range(3)] == [4, 4, 4]
            assert bus.get_async_result(result.id).get() == 4
            assert await far.get_async_result(bus.get_async_result(result.id).id).get() == 4
            with pytest.raises(BusError, match="not the id of a result"):
                far.get_async_result("x")
            assert result.id in repr(result)

    run(body())


def test_a_cancelled_run_is_not_run_and_get_raises_cancelled_for_whoever_waits(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            result = await far.echo.run(4)
            waiting = asyncio.ensure_future(far.get_async_result(result.id).get())
            await until(lambda: list(client.scan_iter("*inboxes*")))
            assert await result.cancel() is True
            assert await result.cancel() is False
            with pytest.raises(Cancelled, match="before a worker took it"):
                await waiting
            assert await asyncio.to_thread(bus.serve_once) == 0

    run(body())


def test_a_get_that_is_cancelled_does_not_withdraw_the_run(bus: Bus, url: str) -> None:
    bus.register()(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            result = await far.echo.run(4)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(result.get(), 0.1)
            await asyncio.to_thread(bus.serve_once)
            assert await result.get() == 4

    run(body())


# -- the cache ----------------------------------------------------------------------------------


def test_values_are_cached_cleared_and_cleared_all(bus: Bus, url: str) -> None:
    runs: list[int] = []

    @bus.register(cache_key="{a}")
    def counted(a: int) -> int:
        runs.append(a)
        return len(runs)

    bus.register()(echo)

    async def body() -> None:
        async with calling(url) as far:
            assert [await far.counted(1), await far.counted(1), await far.counted(2)] == [1, 1, 2]
            assert await far.counted.clear_cache(1) is True
            assert await far.counted.clear_cache(1) is False
            assert [await far.counted(1), await far.counted(2)] == [3, 2]
            await far.counted.clear_all_cache()
            assert [await far.counted(1), await far.counted(2)] == [4, 5]
            with pytest.raises(TypeError, match="no cache_key"):
                await far.echo.clear_cache(1)
            with pytest.raises(TypeError, match="no cache_key"):
                await far.echo.clear_all_cache()

    with serving(bus):
        run(body())


def test_a_stale_value_is_served_at_once_while_one_run_refreshes_it(bus: Bus, url: str) -> None:
    gate = Gate()
    bus.register("gated", cache_key="{a}", cache_expire=0.05, stale=20)(gate)

    async def body() -> None:
        async with calling(url) as far:
            gate.go.set()
            assert await far.gated("x") == "x"
            gate.go.clear()
            await until(lambda: bus.gated("x") == "x" and len(gate.seen) == 2)
            values = await asyncio.gather(*(far.gated("x") for _ in range(50)))
            assert values == ["x"] * 50
            gate.go.set()

    with serving(bus):
        run(body())
    assert len(gate.seen) <= 3


def test_cached_values_are_served_with_no_worker_alive(bus: Bus, url: str) -> None:
    bus.register(cache_key=True)(echo)

    async def first() -> None:
        async with calling(url) as far:
            assert await far.echo(1) == 1

    async def again() -> None:
        async with calling(url) as far:
            assert await far.echo.options(fail_fast=True)(1) == 1

    with serving(bus):
        run(first())
    run(again())


def test_stats_and_cleanup_are_those_of_bus(bus: Bus, url: str, client: redis.Redis) -> None:
    bus.register(cache_key=True)(echo)

    async def body() -> None:
        async with calling(url) as far:
            await far.echo(1)
            await far.echo(1)
            stats = await far.stats()
            assert (stats["echo"]["calls"], stats["echo"]["hits"]) == (2, 1)
            assert stats.keys() == bus.stats().keys()

    async def clean() -> None:
        async with calling(url) as far:
            await far.get_method("echo")
            assert await far.cleanup() > 0
            assert not client.keys("rb:*")
            with pytest.raises(AttributeError, match="nor any other yet"):
                await far.echo(1)

    with serving(bus):
        run(body())
    run(clean())


def test_dead_letters_are_listed_retried_and_dropped(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            for value in (1, 2):
                await far.echo.run(value)
                entry = client.lpop(QUEUE + "echo")
                assert isinstance(entry, bytes)
                client.rpush("rb:{test:}:dead:echo", b"1700000000000 lost w\n" + entry)
            first, second = await far.echo.dead_letters()
            assert [str(letter.call) for letter in (first, second)] == ["echo(1)", "echo(2)"]
            result = await first.retry()
            with pytest.raises(BusError, match="not there any more"):
                await first.retry()
            assert await second.drop() is True
            assert await second.drop() is False
            await asyncio.to_thread(bus.serve_once)
            assert await result.get() == 1
            assert await far.echo.dead_letters() == []

    run(body())


# -- serving ------------------------------------------------------------------------------------


def test_plain_and_async_functions_are_registered_and_served(url: str) -> None:
    async def body() -> None:
        async with calling(url, prefix="p_") as bus:

            @bus.register()
            def plain(a: int) -> int:
                return a + 1

            @bus.register("slow", cache_key="{a}")
            async def slow(a: int) -> int:
                await asyncio.sleep(0)
                return a + 2

            assert plain(1) == 2
            method = bus.register_method("operator.add", timeout=5)
            assert method is bus.p_add
            task = asyncio.create_task(bus.serve())
            assert [await bus.p_plain(1), await bus.slow(1), await bus.p_add(1, 2)] == [2, 3, 3]
            assert bus.slow.cache_key == "{a}"
            bus.stop()
            await task

    run(body())


def test_a_name_that_is_registered_again_is_what_was_registered_last(url: str) -> None:
    async def body() -> None:
        async with calling(url) as bus:
            bus.register("twice")(lambda a: a)
            assert str(inspect.signature(bus.twice)) == "(a)"
            bus.register("twice")(lambda b: b)
            assert str(inspect.signature(bus.twice)) == "(b)"

    run(body())


def test_serve_once_runs_what_waits_and_says_how_much(url: str) -> None:
    async def body() -> None:
        async with calling(url) as bus:
            bus.register()(echo)
            results = [await bus.echo.run(n) for n in range(3)]
            assert await bus.serve_once() == 3
            assert await bus.serve_once("e*") == 0
            assert [await result.get() for result in results] == [0, 1, 2]
            with pytest.raises(BusError, match="nothing to serve, no method matches 'x'"):
                await bus.serve_once("x")
            with pytest.raises(BusError, match="nothing to serve, no method matches 'x'"):
                await bus.serve("x")

    run(body())


def test_serving_that_is_cancelled_finishes_its_job_first(bus: Bus, url: str) -> None:
    gate = Gate()

    async def body() -> None:
        async with calling(url) as ours:
            ours.register("gated")(gate)
            serving_task = asyncio.create_task(ours.serve())
            call = asyncio.create_task(ours.gated(7))
            await until(gate.entered.is_set)
            serving_task.cancel()
            await asyncio.wait([serving_task], timeout=0.2)
            assert not serving_task.done()
            gate.go.set()
            with pytest.raises(asyncio.CancelledError):
                await serving_task
            assert await call == 7
            assert await asyncio.to_thread(workers, bus, "gated") == 0

    run(body())


def test_a_worker_that_cannot_reach_redis_says_so_where_serve_is_awaited() -> None:
    async def body() -> None:
        async with AsyncBus("test", url="redis://localhost:1/0") as bus:
            bus.register()(echo)
            with pytest.raises(BusError, match="no Redis at localhost:1"):
                await bus.serve()

    run(body())


def test_several_jobs_run_at_a_time_where_serve_is_told_so(url: str) -> None:
    meet = threading.Barrier(3)

    async def body() -> None:
        async with calling(url) as bus:
            here: list[object] = []

            @bus.register()
            def plain(a: int) -> int:
                meet.wait(20)
                return a

            @bus.register("slow")
            async def slow(a: int) -> int:
                here.append(a)
                while len(here) < 3:
                    await asyncio.sleep(0.01)
                return a

            task = asyncio.create_task(bus.serve(concurrency=3))
            assert await asyncio.gather(*map(bus.plain, range(3))) == [0, 1, 2]
            assert await asyncio.gather(*map(bus.slow, range(3))) == [0, 1, 2]
            bus.stop()
            await task

    run(body())


NESTED = """
    import redis_bus
    bus = redis_bus.Bus("test")
    there = redis_bus.AsyncBus("test", prefix="there_")
    @bus.register()
    async def outer(n):
        return await there.there_echo(n)
    bus.serve(concurrency=%d)
"""


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_worker_leaves_nothing_open_of_the_calls_of_its_jobs(
    url: str, bus: Bus, processes: Processes, concurrency: int
) -> None:
    path = processes.write("nested.py", NESTED % concurrency)
    with Bus("test", url=url, prefix="there_") as there:
        there.register()(echo)
        with serving(there):
            process = processes.start(sys.executable, "-X", "dev", "-W", "error", str(path))
            eventually(lambda: workers(bus, "outer"))
            for n in range(20):
                assert bus.outer(n) == n
            process.terminate()
            assert process.communicate(timeout=30) == ("", "")
            assert process.returncode == 0


SERVICE = """
    import asyncio, pathlib, redis_bus
    buses = [redis_bus.AsyncBus("test", prefix=prefix) for prefix in ("", "two_")]
    async def held(seconds):
        pathlib.Path("begun").touch()
        await asyncio.sleep(seconds)
        return seconds
    for bus in buses:
        bus.register()(held)
    async def main():
        await asyncio.gather(*(bus.serve() for bus in buses))
        print("served")
    asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_that_is_served_after_their_jobs(
    bus: Bus, processes: Processes, number: signal.Signals
) -> None:
    process = processes.python(SERVICE)
    eventually(lambda: workers(bus, "held") and workers(bus, "two_held"))
    result = bus.held.run(0.5)
    # What was taken and has not begun would be given back.
    eventually((processes.folder / "begun").exists)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("served\n", "", 0)
    assert result.get(1) == 0.5
    assert bus.stats()["held"]["workers"] == 0


def test_the_handlers_of_signals_are_as_before_when_nothing_is_served(url: str) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    async def body() -> None:
        async with calling(url) as bus:
            bus.register()(echo)
            task = asyncio.create_task(bus.serve())
            await bus.echo(1)
            assert signal.getsignal(signal.SIGTERM) != before[0]
            bus.stop()
            await task
            found = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
            assert found == before

    run(body())


HANGING = """
    import asyncio, pathlib, sys, threading, redis_bus
    bus = redis_bus.AsyncBus("served")
    @bus.register()
    def plain():
        pathlib.Path(sys.argv[2]).touch()
        threading.Event().wait()
    @bus.register("async")
    async def waits():
        pathlib.Path(sys.argv[2]).touch()
        try:
            await asyncio.Event().wait()
        finally:
            print("cancelled", flush=True)
    async def main():
        await bus.serve(concurrency=int(sys.argv[1]))
        await bus.aclose()
        print("served")
    asyncio.run(main())
"""


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("name", ["plain", "async"])
def test_a_second_signal_stops_a_job_that_hangs(
    some: Processes, some_bus: Bus, tmp_path: Path, name: str, concurrency: int
) -> None:
    begun = tmp_path / "begun"
    process = some.python(HANGING, str(concurrency), str(begun))
    eventually(lambda: workers(some_bus, name))
    result = some_bus[name].run()
    eventually(begun.exists)
    process.send_signal(signal.SIGINT)
    # No longer offered: the first signal was taken.
    eventually(lambda: workers(some_bus, name) == 0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    with pytest.raises(WorkerLost, match="its worker was stopped while it ran"):
        result.get()
    said = "served\n" if name == "plain" else "cancelled\nserved\n"
    assert process.communicate(timeout=PATIENCE_SECONDS) == (said, "")
    assert process.returncode == 0


@pytest.fixture
def terminations() -> Iterator[list[str]]:
    """The SIGTERMs of this process, as a handler of its host takes them."""
    told: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("host"))
    yield told
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("by_loop", [False, True], ids=["by signal", "by its loop"])
def test_signals_that_the_host_handles_are_left_to_it(
    url: str, terminations: list[str], by_loop: bool
) -> None:
    told = terminations

    async def body() -> None:
        loop = asyncio.get_running_loop()
        if by_loop:
            loop.add_signal_handler(signal.SIGTERM, told.append, "host")
        async with calling(url) as bus:
            bus.register()(echo)
            task = asyncio.create_task(bus.serve())
            await bus.echo(1)
            signal.raise_signal(signal.SIGTERM)
            await until(lambda: told == ["host"])
            assert await bus.echo(2) == 2
            bus.stop()
            await task
            signal.raise_signal(signal.SIGTERM)
            await until(lambda: told == ["host"] * 2)
        loop.remove_signal_handler(signal.SIGTERM)

    run(body())


def test_a_handler_that_comes_while_it_serves_is_not_lost(url: str) -> None:
    told: list[str] = []

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with calling(url) as bus:
            bus.register()(echo)
            task = asyncio.create_task(bus.serve())
            await bus.echo(1)
            ours = signal.getsignal(signal.SIGINT)
            loop.add_signal_handler(signal.SIGINT, told.append, "host")
            signal.raise_signal(signal.SIGINT)
            await until(lambda: told == ["host"])
            assert await bus.echo(2) == 2
            bus.stop()
            await task
            signal.raise_signal(signal.SIGINT)
            await until(lambda: told == ["host"] * 2)
            loop.remove_signal_handler(signal.SIGINT)
            # As who keeps what was there and puts it back: by then nothing is served.
            signal.signal(signal.SIGINT, ours)

    before = signal.getsignal(signal.SIGINT)
    try:
        run(body())
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


WEB_WORKER = """
    import asyncio, contextlib, fastapi, redis_bus
    bus = redis_bus.AsyncBus("served")
    bus.register("echo")(lambda value: value)
    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with bus:
            task = asyncio.create_task(bus.serve())
            yield
            bus.stop()
            await task
    app = fastapi.FastAPI(lifespan=lifespan)
"""


def test_one_signal_ends_a_web_service_that_serves_methods_too(
    some: Processes, some_bus: Bus
) -> None:
    with uvicorn(some, code=WEB_WORKER) as web:
        eventually(lambda: workers(some_bus, "echo"))
        assert some_bus.echo(1) == 1
        printed = web.end(signal.SIGTERM)
    assert not LEFT.search(printed), printed
    assert "Application shutdown complete." in printed
    assert workers(some_bus, "echo") == 0


# -- nested calls -------------------------------------------------------------------------------


def test_a_job_calls_on_with_what_is_left_of_its_own_time(bus: Bus, url: str) -> None:
    gate = Gate()
    inner = AsyncBus("test", url=url)

    @bus.register()
    async def outer() -> str:
        async with inner:
            try:
                await inner.two_gated.options(timeout=20)(1)
            except CallTimeout as error:
                return str(error)
        return "no timeout"

    async def body() -> None:
        async with calling(url) as far:
            result = await far.outer.run()
            await until(gate.entered.is_set)
            gate.go.set()
            assert await result.get() == "no timeout"
            gate.go.clear()
            started = time.monotonic()
            try:
                said = await far.outer.options(timeout=0.5)()
            except CallTimeout as error:
                said = str(error)
            # Both calls end at one moment, and the inner one may be told in time.
            assert "no reply in" in said
            await until(lambda: bus.stats()["outer"]["latency"] and len(gate.seen) == 2)
            assert time.monotonic() - started < 5
            gate.go.set()

    with Bus("test", url=url, prefix="two_") as other:
        other.register("two_gated")(gate)
        with serving(bus), serving(other):
            run(body())
            eventually(lambda: bus.stats()["outer"]["latency"])


def test_a_job_that_calls_its_own_only_worker_is_told_of_the_deadlock(bus: Bus, url: str) -> None:
    bus.register("inner")(echo)
    nested = AsyncBus("test", url=url)

    @bus.register()
    async def outer() -> Any:
        async with nested:
            return await nested.inner(1)

    async def body() -> None:
        async with calling(url) as far:
            with pytest.raises(Deadlock, match=r"^inner\(1\): deadlock: the only worker"):
                await far.outer()
            assert await far.inner(2) == 2

    with serving(bus):
        run(body())


# -- many in flight -----------------------------------------------------------------------------


def connections(client: redis.Redis, name: str) -> list[dict[str, str]]:
    return [one for one in client.client_list() if one["name"] == name]


def test_thousands_of_calls_are_in_flight_over_two_connections(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    bus.serve_once()
    count = 5000

    async def body() -> None:
        async with calling(url, client_name="ours", timeout=60) as far:
            calls = [asyncio.create_task(far.echo(n)) for n in range(count)]
            await until(lambda: client.llen(QUEUE + "echo") == count)
            assert len(connections(client, "ours")) <= 3
            with serving(bus):
                assert await asyncio.gather(*calls) == list(range(count))
            assert len(connections(client, "ours")) <= 3
        await until(lambda: not connections(client, "ours"))

    run(body())


def test_a_stampede_runs_once(bus: Bus, url: str, client: redis.Redis) -> None:
    gate = Gate()
    bus.register("gated", cache_key="{a}")(gate)

    async def body() -> None:
        async with calling(url) as far:
            calls = [asyncio.create_task(far.gated(1)) for _ in range(1000)]
            await until(lambda: bus.stats().get("gated", {}).get("joins") == 999)
            gate.go.set()
            assert await asyncio.gather(*calls) == [1] * 1000

    with serving(bus):
        run(body())
    assert gate.seen == [1]


@pytest.mark.parametrize("first", ["sync", "async"])
def test_a_flight_is_shared_between_both_kinds_of_bus(bus: Bus, url: str, first: str) -> None:
    gate = Gate()
    bus.register("gated", cache_key="{a}")(gate)

    async def body() -> None:
        async with calling(url) as far:
            ways: list[Callable[[], Any]] = [
                lambda: asyncio.create_task(asyncio.to_thread(bus.gated, 1)),
                lambda: asyncio.create_task(far.gated(1)),
            ]
            if first == "async":
                ways.reverse()
            calls = [ways[0]()]
            await until(gate.entered.is_set)
            calls += [ways[1]() for _ in range(3)] + [ways[0]()]
            await until(lambda: bus.stats()["gated"]["joins"] == 4)
            gate.go.set()
            assert await asyncio.gather(*calls) == [1] * 5

    with serving(bus):
        run(body())
    assert gate.seen == [1]


def test_large_values_come_by_the_reply_list(bus: Bus, url: str) -> None:
    bus.register()(echo)
    bus.register("cached", cache_key=True)(echo)

    async def body() -> None:
        async with calling(url) as far:
            for size in (4000, 4090, 4096, 4100, 1_000_000):
                value = b"x" * size
                assert await far.echo(value) == value
            values = [bytes([n]) * 1_000_000 for n in range(20)]
            assert await asyncio.gather(*map(far.echo, values)) == values
            calls = [far.cached(values[0]) for _ in range(3)]
            assert await asyncio.gather(*calls) == [values[0]] * 3
            assert await far.cached(values[0]) == values[0]

    with serving(bus):
        run(body())


# -- cancellation -------------------------------------------------------------------------------


def nothing_is_left(client: redis.Redis, method: str) -> None:
    """Fail where a job waits, or where what may be left of one has no expiry."""
    assert not client.exists(QUEUE + method)
    assert not client.exists(PENDING + method)
    for pattern in ("*reply:*", "*inboxes:*", "*flight:*"):
        for key in client.scan_iter(pattern):
            assert client.pttl(key) != -1, key


@pytest.mark.parametrize("cache_key", [None, "{value}"])
def test_a_cancelled_call_that_nobody_took_never_runs(
    bus: Bus, url: str, client: redis.Redis, cache_key: str | None
) -> None:
    ran: list[int] = []
    bus.register("note", cache_key=cache_key)(lambda value: ran.append(value))
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            calls = [asyncio.create_task(far.note(n)) for n in range(100)]
            await until(lambda: client.llen(QUEUE + "note") == 100)
            for call in calls[:50]:
                call.cancel()
            done = await asyncio.gather(*calls[:50], return_exceptions=True)
            assert {type(one) for one in done} == {asyncio.CancelledError}
            await until(lambda: client.llen(QUEUE + "note") == 50)
            with serving(bus):
                await asyncio.gather(*calls[50:])

    run(body())
    assert sorted(ran) == list(range(50, 100))
    nothing_is_left(client, "note")


def test_a_cancelled_call_that_was_taken_runs_to_its_end_and_its_outcome_is_dropped(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    gate = Gate()
    bus.register("gated")(gate)

    async def body() -> None:
        async with calling(url) as far:
            call = asyncio.create_task(far.gated(1))
            await until(gate.entered.is_set)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            gate.go.set()
            assert await far.gated(2) == 2

    with serving(bus):
        run(body())
    assert gate.seen == [1, 2]
    assert bus.stats()["gated"]["errors"] == 0
    nothing_is_left(client, "gated")


@pytest.mark.parametrize("which", [0, 1])
def test_of_two_calls_that_share_a_key_one_may_be_cancelled(
    bus: Bus, url: str, client: redis.Redis, which: int
) -> None:
    runs: list[int] = []

    @bus.register(cache_key="{a}")
    def shared(a: int) -> int:
        runs.append(a)
        return a

    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            calls = [asyncio.create_task(far.shared(1)) for _ in range(2)]
            await until(lambda: bus.stats()["shared"]["joins"] == 1)
            calls[which].cancel()
            with pytest.raises(asyncio.CancelledError):
                await calls[which]
            with serving(bus):
                assert await calls[1 - which] == 1

    run(body())
    assert runs == [1]
    nothing_is_left(client, "shared")


def test_wait_for_and_timeout_withdraw_the_call(bus: Bus, url: str, client: redis.Redis) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(far.note(1), 0.1)
            if hasattr(asyncio, "timeout"):
                with pytest.raises(asyncio.TimeoutError):
                    async with asyncio.timeout(0.1):
                        await far.note(2)
            # Long enough for the call to look around between two waits.
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(far.note(3), 1.5)
            await until(lambda: not client.exists(QUEUE + "note", PENDING + "note"))
            assert await asyncio.to_thread(bus.serve_once) == 0

    run(body())
    assert ran == []
    nothing_is_left(client, "note")


def test_a_call_that_is_cancelled_as_its_bus_closes_is_withdrawn(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    bus.serve_once()

    async def call() -> None:
        async with AsyncBus("test", url=url) as far:
            await far.note(1)

    async def body() -> None:
        task = asyncio.create_task(call())
        await until(lambda: client.llen(QUEUE + "note") == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(body())
    eventually(lambda: not client.exists(QUEUE + "note", PENDING + "note"))
    bus.serve_once()
    assert ran == []


def test_a_withdrawal_survives_scripts_that_are_flushed(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            call = asyncio.create_task(far.echo(1))
            await until(lambda: client.llen(QUEUE + "echo") == 1)
            client.script_flush()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: not client.exists(QUEUE + "echo", PENDING + "echo"))

    run(body())


@pytest.mark.parametrize("noticed", [True, False])
def test_a_call_that_is_cancelled_while_its_connection_is_cut_is_withdrawn(
    bus: Bus, url: str, client: redis.Redis, noticed: bool
) -> None:
    bus.register()(echo)
    bus.serve_once()

    async def body() -> None:
        async with calling(url, client_name="ours") as far:
            transport = far._core.loops.here()
            calls = [asyncio.create_task(far.echo(n)) for n in range(3)]
            await until(lambda: client.llen(QUEUE + "echo") == 3)
            link = transport._link
            assert link is not None
            for one in client.client_list():
                if one["name"] == "ours" and one["sub"] == "0":
                    client.client_kill_filter(_id=one["id"])
            if noticed:
                await until(lambda: link.is_closed)
            assert link.is_closed == noticed
            for call in calls[:2]:
                call.cancel()
            await asyncio.wait(calls[:2])
            await until(lambda: client.llen(QUEUE + "echo") == 1)
            await until(lambda: transport._shared == {})
            # With the bus, there is nobody left who would send it.
            client.client_kill_filter(_type="normal", skipme=True)
            calls[2].cancel()
            await asyncio.wait(calls[2:])

    run(body())


def test_calls_cancelled_before_there_is_a_connection_leave_nothing(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)

    async def body() -> None:
        for turns in range(12):
            async with calling(url) as far:
                calls = [asyncio.create_task(far.echo(n)) for n in range(5)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for call in calls[:3]:
                    call.cancel()
                done = await asyncio.gather(*calls, return_exceptions=True)
                assert done[3:] == [3, 4]
                assert {type(one) for one in done[:3]} <= {asyncio.CancelledError, int}

    with serving(bus):
        run(body())
    nothing_is_left(client, "echo")


def test_calls_cancelled_at_any_moment_leave_nothing(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    bus.register("cached", cache_key="{value}", cache_expire=0)(echo)

    async def cancel_after(call: asyncio.Task[Any], turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()

    async def body() -> None:
        async with calling(url) as far:
            await far.echo(0)
            for n in range(300):
                method = far.echo if n % 2 else far.cached
                call = asyncio.create_task(method(n))
                await cancel_after(call, n % 40)
                done = (await asyncio.gather(call, return_exceptions=True))[0]
                assert done == n or isinstance(done, asyncio.CancelledError)
            assert await far.echo(1) == 1

    with serving(bus):
        run(body())
        eventually(lambda: not client.exists(QUEUE + "echo", PENDING + "echo"))
        eventually(lambda: not client.exists(QUEUE + "cached", PENDING + "cached"))
    nothing_is_left(client, "cached")


@pytest.mark.parametrize("has_options", [False, True])
def test_a_first_call_looks_its_method_up_no_longer_than_it_may_take(
    bus: Bus, url: str, client: redis.Redis, has_options: bool
) -> None:
    bus.register()(echo)
    bus.serve_once()
    server = client.info("server")["process_id"]

    async def body() -> None:
        async with calling(url, timeout=60 if has_options else 0.2) as far:
            call = far.echo.options(timeout=0.2) if has_options else far.echo
            os.kill(server, signal.SIGSTOP)
            try:
                began = time.monotonic()
                with pytest.raises(ConnectionLost, match="echo: "):
                    await call(1)
                assert time.monotonic() - began < READ_SECONDS
            finally:
                os.kill(server, signal.SIGCONT)

    run(body())
