"""A call's first write, made directly: what comes of it that is not the value is as of any call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis

from redis_bus import Bus, BusError, CallTimeout, NoWorkers, QueueFull
from tests.commands import sent
from tests.faults.faces import AsyncFace
from tests.support import PATIENCE_SECONDS, eventually, serving, workers

FACES = {"Bus": partial(Bus, "test"), "AsyncBus": AsyncFace}


def echo(a: object) -> object:
    return a


def fail(kind: str) -> None:
    raise {"ValueError": ValueError, "StopIteration": StopIteration}[kind]("it failed")


@pytest.fixture
def service(bus: Bus) -> Bus:
    bus.register()(echo)
    bus.register()(fail)
    bus.register("cached", cache_key="{a}")(echo)
    bus.register("limited", max_queue=1)(echo)
    return bus


@pytest.fixture(params=sorted(FACES))
def warm(request: pytest.FixtureRequest, service: Bus, url: str) -> Iterator[Any]:
    """A caller who has called each method, so that it has connections and knows them all."""
    caller: Any = FACES[request.param](url=url, timeout=PATIENCE_SECONDS)
    with contextlib.closing(caller):
        with serving(service):
            for name in ("echo", "cached", "limited"):
                assert caller[name](0) == 0
            with pytest.raises(ValueError, match="it failed"):
                caller.fail("ValueError")
        yield caller


@pytest.mark.parametrize("name", ["echo", "cached"])
@pytest.mark.parametrize("value", [None, 1, "x" * 10_000, [[], {}]])
def test_a_value_is_returned_whatever_it_is(
    warm: Any, service: Bus, client: redis.Redis, name: str, value: object
) -> None:
    with serving(service):
        for _ in range(2):  # with so much time, an outcome would be kept for longer than we wait
            assert warm[name].options(timeout=300)(value) == value
    # Of jobs whose outcome only their caller reads, and which are told on an inbox.
    eventually(lambda: not client.keys("*:reply:*.*"))


def test_one_script_is_sent_for_a_hit(warm: Any, client: redis.Redis) -> None:
    with sent(client) as commands:
        assert warm.cached(0) == 0
    assert (commands["evalsha"], commands["get"], commands["blpop"]) == (1, 1, 0)


@pytest.mark.parametrize("kind", [ValueError, StopIteration])
def test_what_the_function_raises_is_raised(
    warm: Any, service: Bus, kind: type[Exception], request: pytest.FixtureRequest
) -> None:
    # No coroutine can raise that.
    raised = RuntimeError if kind is StopIteration and "Async" in request.node.name else kind
    with serving(service), pytest.raises(raised, match=r"it failed|raised StopIteration"):
        warm.fail(kind.__name__)


@pytest.mark.parametrize("name", ["echo", "cached"])
def test_a_call_that_nobody_serves_is_refused_or_runs_out_of_time(warm: Any, name: str) -> None:
    with pytest.raises(NoWorkers, match=rf"^{name}\(5\): no worker alive serves {name}$"):
        warm[name].options(fail_fast=True)(5)
    with pytest.raises(CallTimeout, match=rf"^{name}\(5\): no reply in 0\.2 s "):
        warm[name].options(timeout=0.2)(5)
    with pytest.raises(BusError, match=rf"^{name}\(5\): "):
        warm[name].options(timeout=0)(5)


def test_a_full_queue_refuses_the_next(warm: Any, service: Bus) -> None:
    service.limited.run(1)
    with pytest.raises(QueueFull, match=r"^limited\(2\): 1 job waits for limited already"):
        warm.limited(2)


@pytest.mark.parametrize("name", ["echo", "cached"])
def test_arguments_that_do_not_fit_are_a_type_error(warm: Any, name: str) -> None:
    with pytest.raises(TypeError, match=r"takes 1 positional argument but 2 were given"):
        warm[name](1, 2)
    with pytest.raises(
        TypeError, match=r"cannot (encode argument|render) a: object of type 'object'"
    ):
        warm[name](object())


@pytest.mark.parametrize("name", ["echo", "cached"])
def test_a_method_that_was_registered_anew_is_called_as_it_is_now(
    warm: Any, url: str, name: str
) -> None:
    options = {"cache_key": "{a}"} if name == "cached" else {}
    with Bus("test", url=url, timeout=PATIENCE_SECONDS) as other:
        other.register(name, **options)(lambda a, more=1: [a, more])  # type: ignore[arg-type]
        with serving(other):
            assert warm[name](1) == [1, 1]
            if name == "echo":
                assert warm.echo(1, 2) == [1, 2]


@pytest.mark.parametrize("name", ["echo", "cached"])
def test_scripts_that_were_flushed_are_loaded_again(
    warm: Any, service: Bus, client: redis.Redis, name: str
) -> None:
    with serving(service):
        for a in range(3):
            client.script_flush()
            assert warm[name](a) == a


@pytest.mark.parametrize("entry", [b"not ours", b"GENERATION 0\nmalformed", b"GENERATION 0\nm\xc1"])
def test_bytes_that_are_no_value_are_not_served(
    warm: Any, service: Bus, client: redis.Redis, entry: bytes
) -> None:
    [key] = client.keys("*cache:cached:0")
    generation = client.get(key).split(b" ")[0]  # type: ignore[union-attr]
    client.set(key, entry.replace(b"GENERATION", generation))
    with serving(service):
        assert warm.cached(0) == 0
        assert warm.cached(0) == 0


def test_who_joined_a_flight_gets_its_value(
    warm: Any, service: Bus, url: str, client: redis.Redis
) -> None:
    result = service.cached.run(7)
    calls: list[Callable[[], object]] = [partial(warm.cached, 7), result.get]
    assert client.keys("*flight:cached:7")
    with serving(service):
        eventually(lambda: workers(service, "cached"))
        assert [call() for call in calls] == [7, 7]
