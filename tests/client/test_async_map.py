"""`map` of an `AsyncBus`: what `map` promises, as an asynchronous iterator that leaves no task."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_bus import Bus, CallTimeout, Deadlock, NoWorkers, QueueFull
from redis_bus.protocol.commands import Route
from tests.async_support import Gate, calling, run, until
from tests.client.test_map import odd, queued
from tests.support import serving


@pytest.fixture
def plain(bus: Bus) -> Iterator[Bus]:
    """A served bus with the functions of these tests, cached and not."""
    bus.register("square")(odd)
    bus.register("cached", cache_key="{n}")(odd)
    bus.register("add")(lambda a, b=0: a + b)
    with serving(bus):
        yield bus


async def outcomes(values: AsyncIterator[Any]) -> list[object]:
    """Return the values, and behind them the exception that ended them."""
    found: list[object] = []
    try:
        async for value in values:
            found.append(value)
    except ValueError as error:
        found.append(repr(error))
    return found


@pytest.mark.parametrize("name", ["square", "cached"])
def test_map_is_what_the_calls_one_by_one_are(plain: Bus, url: str, name: str) -> None:
    some = st.lists(st.one_of(st.integers(0, 9), st.integers(-2, 300)), max_size=30)

    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    @given(numbers=some, size=st.one_of(st.integers(1, 5), st.just(64)))
    def check(numbers: list[int], size: int) -> None:
        expected: list[object] = []
        for n in numbers:
            expected.append(n * n if n >= 0 else repr(ValueError(n)))
            if n < 0:
                break

        async def compare() -> None:
            async with calling(url) as bus:
                assert await outcomes(bus[name].map(numbers, buffersize=size)) == expected

        run(compare())

    check()


async def numbers(*these: int) -> AsyncIterator[int]:
    for n in these:
        await asyncio.sleep(0)
        yield n


def test_iterables_of_both_kinds_end_with_the_shortest_and_may_be_endless(
    plain: Bus, url: str
) -> None:
    async def both() -> None:
        async with calling(url) as bus:
            values = bus.add.map(numbers(1, 2, 3), itertools.count(10))
            assert await outcomes(values) == [11, 13, 15]
            assert await outcomes(bus.add.map([])) == []
            endless = bus.square.map(itertools.count())
            assert [await anext(endless) for _ in range(150)] == [n * n for n in range(150)]
            await endless.aclose()

    run(both())


def test_a_value_does_not_wait_for_the_arguments_behind_it(plain: Bus, url: str) -> None:
    async def slowly() -> None:
        go = asyncio.Event()

        async def numbers() -> AsyncIterator[int]:
            yield 1
            await go.wait()
            yield 2

        async with calling(url) as bus:
            values = bus.square.map(numbers())
            assert await anext(values) == 1
            go.set()
            assert await outcomes(values) == [4]
            go.clear()
            values = bus.square.map(numbers(), timeout=0.3)
            assert await anext(values) == 1
            with pytest.raises(
                CallTimeout, match=r"^square in map\(timeout=0.3\): no more arguments"
            ):
                await anext(values)

    run(slowly())


def test_never_more_are_in_flight_or_unread_than_was_asked_for(bus: Bus, url: str) -> None:
    gate, pulled = Gate(), itertools.count()
    bus.register("held")(gate)

    async def count() -> None:
        async with calling(url) as abus:
            values = abus.held.map(pulled, buffersize=5)
            first = asyncio.ensure_future(anext(values))
            await until(gate.entered.is_set)
            await until(lambda: len(queued(bus, "held")) == 4)
            assert next(pulled) == 5
            gate.go.set()
            assert await first == 0
            for handed_out, expected in enumerate((1, 2, 3, 4, 6, 7), 2):
                assert await anext(values) == expected
                await until(lambda: not queued(bus, "held"))
                assert len(gate.seen) <= handed_out + 5
            await values.aclose()

    with serving(bus):
        run(count())


@pytest.mark.parametrize("name", ["held", "held_cached"])
@pytest.mark.parametrize("end", ["aclose", "drop", "cancel", "timeout", "fail"])
def test_what_is_not_wanted_any_more_is_withdrawn(bus: Bus, url: str, name: str, end: str) -> None:
    gate = Gate()

    def held(n: int) -> int:
        gate(n)
        return odd(n)

    bus.register("held")(held)
    bus.register("held_cached", cache_key="{n}")(held)

    async def stop() -> None:
        async with calling(url) as abus:
            timeout = 0.5 if end == "timeout" else None
            values = abus[name].map([0, -1, *range(1, 100)], buffersize=10, timeout=timeout)
            first = asyncio.ensure_future(anext(values))
            await until(gate.entered.is_set)
            await until(lambda: len(queued(bus, name)) == 9 or first.done())
            if end == "timeout":
                with pytest.raises(
                    CallTimeout, match=r"\(0\) in map.timeout=0.5.: no reply in 0.5"
                ):
                    await first
            elif end == "cancel":
                first.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await first
            else:
                gate.go.set()
                assert await first == 0
                if end == "fail":
                    with pytest.raises(ValueError, match="-1"):
                        await anext(values)
                elif end == "aclose":
                    await values.aclose()
                else:
                    del values, first
                    gc.collect()
                    # The loop closes it, in a task of its own.
                    loop, here = asyncio.get_running_loop(), asyncio.current_task()
                    await until(lambda: asyncio.all_tasks(loop) == {here})
            await until(lambda: not queued(bus, name))
            if end in ("cancel", "timeout"):
                gate.go.set()

    with serving(bus):
        run(stop())
        if end in ("cancel", "timeout"):
            assert gate.seen == [0]
        assert len(gate.seen) <= 12


def test_an_iterator_that_nobody_began_leaves_nothing(plain: Bus, url: str) -> None:
    async def drop() -> None:
        async with calling(url) as bus:
            bus.square.map([1, 2])

    run(drop())
    assert plain.stats()["square"]["calls"] == 0


def test_errors_come_at_their_turn(plain: Bus, url: str) -> None:
    async def fail() -> None:
        async with calling(url) as bus:

            def broken() -> Iterator[int]:
                yield 2
                raise KeyError("no more")

            values = bus.square.map(broken())
            assert await anext(values) == 4
            with pytest.raises(KeyError, match="no more"):
                await anext(values)
            values = bus.square.map([3, object()])
            assert await anext(values) == 9
            with pytest.raises(TypeError, match="argument n"):
                await anext(values)
            with pytest.raises(AttributeError, match="no method 'sqare'; did you mean 'square'"):
                await anext(bus.sqare.map([1]))
            for wrong in ({"buffersize": 0}, {"timeout": -1}):
                with pytest.raises(ValueError, match=r"buffersize|timeout"):
                    bus.square.map([1], **wrong)
            with pytest.raises(TypeError, match=r"\.map\(\) must have at least one iterable$"):
                bus.square.map()
            with pytest.raises(TypeError, match="not iterable"):
                bus.square.map(1)  # type: ignore[arg-type]

    run(fail())


def test_a_cancellation_within_the_iterable_is_raised_at_its_turn(plain: Bus, url: str) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        yield 2
        other = asyncio.create_task(asyncio.Event().wait())
        other.cancel()
        yield await other

    async def read() -> None:
        async with calling(url) as bus:
            found = []
            with pytest.raises(asyncio.CancelledError):
                async for value in bus.square.map(source()):
                    found.append(value)
            assert found == [1, 4]

    run(read())


def test_nothing_more_is_begun_once_a_failure_is_known(plain: Bus, url: str) -> None:
    async def fail() -> None:
        arguments = itertools.chain([1, object()], itertools.count(5))
        async with calling(url) as bus:
            await bus.get_method("square")
            values = bus.square.map(arguments, buffersize=2)
            assert await anext(values) == 1
            with pytest.raises(TypeError, match="argument n"):
                await anext(values)
        assert next(arguments) == 5

    run(fail())


def test_options_hold_for_each_call(bus: Bus, url: str) -> None:
    bus.register("square")(odd)
    assert bus.get_method("square")

    async def call() -> None:
        async with calling(url) as abus:
            with pytest.raises(NoWorkers, match=r"^square\(7\): no worker alive serves square"):
                await anext(abus.square.options(fail_fast=True).map([7]))

    run(call())


def test_a_value_that_is_there_is_given_when_the_time_of_map_is_over(plain: Bus, url: str) -> None:
    async def slowly() -> None:
        async with calling(url) as bus:
            values = bus.square.map(range(3), timeout=0.3)
            assert await anext(values) == 0
            await asyncio.sleep(0.4)
            assert await outcomes(values) == [1, 4]

    run(slowly())


def test_a_queue_with_a_limit_is_never_given_more_than_it_takes(bus: Bus, url: str) -> None:
    bus.register("square", max_queue=3)(odd)
    bus.register("cached", max_queue=3, cache_key="{n}")(odd)

    async def call() -> None:
        async with calling(url) as abus:
            for name in ("square", "cached"):
                assert await outcomes(abus[name].map(range(50))) == [n * n for n in range(50)]

    with serving(bus):
        run(call())


def test_a_queue_that_others_filled_is_full_for_map_too(bus: Bus, url: str) -> None:
    bus.register("square", max_queue=2)(odd)
    assert bus.get_method("square")
    for _ in range(2):
        bus.square.run(1)

    async def call() -> None:
        async with calling(url) as abus:
            with pytest.raises(QueueFull, match=r"^square\(5\): 2 jobs wait for square already"):
                await anext(abus.square.map([5, 6]))

    run(call())


def test_what_a_function_raises_is_not_taken_for_a_full_queue(bus: Bus, url: str) -> None:
    ran: list[int] = []

    @bus.register()
    def full(n: int) -> None:
        ran.append(n)
        raise QueueFull("that of another method")

    async def call() -> None:
        async with calling(url) as abus:
            with pytest.raises(QueueFull, match="that of another method"):
                await anext(abus.full.map([5]))

    with serving(bus):
        run(call())
        with pytest.raises(QueueFull, match="that of another method"):
            next(bus.full.map([6]))
    assert ran == [5, 6]


def test_a_job_that_maps_its_own_only_worker_is_told_of_the_deadlock(bus: Bus, url: str) -> None:
    ran: list[int] = []
    bus.register("inner")(ran.append)

    @bus.register()
    async def outer() -> list[object]:
        async with calling(url) as abus:
            return [value async for value in abus.inner.map([1, 2])]

    with serving(bus):
        with pytest.raises(Deadlock, match=r"^inner\(1\): deadlock: the only worker"):
            bus.outer()
        assert bus.stats()["inner"]["queued"] == 0
    assert ran == []
    assert isinstance(bus.inner.target.route, Route)


def test_results_as_they_get_done_with_asyncio_s_own(plain: Bus, url: str) -> None:
    async def read() -> None:
        async with calling(url) as bus:
            runs = [await bus.square.run(n) for n in range(20)]
            found = [await one for one in asyncio.as_completed([r.get() for r in runs])]
            assert sorted(found) == [n * n for n in range(20)]
            assert sorted([await one for one in asyncio.as_completed(runs)]) == sorted(found)
            assert await runs[3] == 9

    run(read())
