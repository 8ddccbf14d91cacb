"""Calls: bound here, run there; errors that say what is known; no moment that loses one."""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import redis
from hypothesis import given, settings

from redis_bus import (
    Bus,
    BusError,
    CallTimeout,
    ConnectionLost,
    NoWorkers,
    ProtocolError,
    QueueFull,
    SerializationError,
)
from redis_bus.calls.waiting import Ticket, wait
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import Route, Service
from redis_bus.protocol.deadline import Deadline
from redis_bus.protocol.entries import parse_letter
from tests.commands import sent
from tests.faults.faces import AsyncFace
from tests.protocol.test_codec import exact, values
from tests.support import eventually, serving, workers

QUEUE = "rb:{test:}:queue:"


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


def echo(value: object) -> object:
    return value


# -- arguments ----------------------------------------------------------------------------------


def everything(a, /, b, c=3, *rest, d, e=5, **more):  # type: ignore[no-untyped-def]
    return [a, b, c, list(rest), d, e, more]


GOOD_CALLS = [
    ((1, 2), {"d": 4}),
    ((1,), {"b": 2, "d": 4}),
    ((1, 2, 30, 40, 50), {"d": 4, "e": 6, "z": 7}),
    ((1, 2), {"d": 4, "a": "another a"}),
    ((1, 2), {"d": 4, "timeout": 0, "fail_fast": True, "self": 1, "name": "x", "args": ()}),
]
BAD_CALLS: list[tuple[tuple[object, ...], dict[str, object]]] = [
    ((), {}),
    ((1,), {"d": 1}),
    ((1, 2), {}),
    ((), {"a": 1, "b": 2, "d": 4}),
    ((1, 2), {"b": 3, "d": 4}),
    ((1, 2, 3), {"c": 3, "d": 4}),
]


@pytest.mark.parametrize(("args", "kwargs"), GOOD_CALLS, ids=str)
def test_arguments_arrive_as_in_a_local_call(
    bus: Bus, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    bus.register()(everything)
    with serving(bus):
        assert bus.everything(*args, **kwargs) == everything(*args, **kwargs)


@pytest.mark.parametrize(("args", "kwargs"), BAD_CALLS, ids=str)
def test_a_wrong_call_is_a_type_error_in_pythons_words_and_is_not_sent(
    bus: Bus,
    caller: Bus,
    client: redis.Redis,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> None:
    bus.register("everything", cache_key=True)(everything)
    bus.serve_once()
    with pytest.raises(TypeError) as local:
        everything(*args, **kwargs)
    far: Any = caller.everything
    for method in (far, far.run, far.clear_cache, far.options(timeout=1)):
        with sent(client) as commands, pytest.raises(TypeError) as remote:
            method(*args, **kwargs)
        assert str(remote.value) == str(local.value)
        # It looks whether the method was registered anew; the call itself is not sent.
        assert commands == {"hget": 1}
    assert not client.exists(QUEUE + "everything")


@pytest.mark.parametrize(
    ("args", "kwargs"), [((1, 2), {}), ((), {"z": 1}), ((), {"a": 1, "z": 1})], ids=str
)
def test_too_many_and_unknown_arguments_are_type_errors_in_pythons_words(
    bus: Bus, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    def method(a: int = 1) -> None: ...

    method.__qualname__ = "method"
    bus.register()(method)
    with pytest.raises(TypeError) as local:
        method(*args, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(TypeError) as remote:
        bus.method(*args, **kwargs)
    assert str(remote.value) == str(local.value)


def test_keywords_named_like_options_go_to_the_function(bus: Bus) -> None:
    names = [
        *("self", "name", "timeout", "fail_fast", "allow", "args", "kwargs", "options"),
        *("bus", "source", "method", "target", "deadline", "has_timeout"),
    ]
    wanted = {name: f"value of {name}" for name in names}

    @bus.register()
    def as_kwargs(**kwargs: object) -> object:
        return kwargs

    @bus.register(cache_key="{self}/{timeout}/{name}")
    def by_name(self: str, timeout: str, fail_fast: str, name: str) -> object:
        return [self, timeout, fail_fast, name]

    with serving(bus):
        assert bus.as_kwargs(**wanted) == wanted
        assert bus.as_kwargs.run(**wanted).get() == wanted
        assert bus.by_name(self=1, timeout=2, fail_fast=3, name=4) == [1, 2, 3, 4]
        assert bus.by_name.clear_cache(self=1, timeout=2, fail_fast=3, name=4) is True


# -- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_every_value_comes_back_from_a_call_as_it_went(url: str, serializer: str) -> None:
    with Bus("test", url=url, serializer=serializer) as bus:
        seen: list[object] = []

        @bus.register()
        def remember(value: object) -> object:
            seen.append(value)
            return value

        with serving(bus):

            @settings(max_examples=150)
            @given(value=values)
            def check(value: object) -> None:
                assert exact(bus.remember(value)) == exact(value)
                assert exact(seen.pop()) == exact(value)

            check()


def test_an_argument_that_cannot_be_sent_is_an_error_that_names_the_path(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    bus.register("math_sum")(lambda a, *args, k=1, **more: None)
    bus.serve_once()
    far = caller.math_sum
    bad = object()
    for args, kwargs, path in [
        ((bad,), {}, "a"),
        (({"x": [1, bad]},), {}, "a['x'][1]"),
        ((1, 2, (bad,)), {}, "args[1][0]"),
        ((1,), {"k": bad}, "k"),
        ((1,), {"z": [bad]}, "more['z'][0]"),
    ]:
        for call in (far, far.run):
            with sent(client) as commands, pytest.raises(SerializationError) as error:
                call(*args, **kwargs)
            assert re.match(r"math_sum\(.*\): ", str(error.value))
            assert f"cannot encode argument {path}: object of type 'object'" in str(error.value)
            assert isinstance(error.value, TypeError)
            assert commands == {}


def test_a_result_that_cannot_be_encoded_reaches_the_caller_and_the_worker_lives_on(
    bus: Bus,
) -> None:
    bus.register("bad")(lambda: {"x": [object()]})
    bus.register("bad_keyed", cache_key=True)(lambda: object())
    bus.register()(echo)
    with serving(bus):
        with pytest.raises(SerializationError, match=r"^bad\(\): cannot encode result\['x'\]\[0\]"):
            bus.bad()
        with pytest.raises(SerializationError, match="result"):
            bus.bad_keyed()
        with pytest.raises(SerializationError, match="result"):
            bus.bad.run().get()
        assert bus.echo(1) == 1
    assert bus.stats()["bad"]["errors"] == 2


# -- timeouts and refusals ----------------------------------------------------------------------


def test_a_timeout_says_the_call_the_budget_and_that_nobody_serves_it(
    bus: Bus, caller: Bus
) -> None:
    bus.register("math_sum")(lambda a, b: a + b)
    bus.serve_once()
    started = time.monotonic()
    with pytest.raises(NoWorkers) as error:
        caller.math_sum.options(timeout=0.3)(1, 2)
    assert time.monotonic() - started >= 0.3
    text = "math_sum(1, 2): no reply in 0.3 s (queued 0.3 s; 0 workers alive)"
    assert str(error.value) == text
    for kind in (CallTimeout, TimeoutError, BusError):
        assert isinstance(error.value, kind)


@pytest.mark.parametrize(
    ("budget", "shown"), [(0.05, "0.05"), (12.5, "12.5"), (120, "120"), (3600, "3600")]
)
def test_a_timeout_shows_its_budget_as_people_write_it(budget: float, shown: str) -> None:
    service = Service("test", "")
    route = Route(service, "math_sum", "", max_queue=None, keep_ms=1)
    deadline = Deadline(budget)
    deadline.start -= budget
    deadline.end = deadline.start
    steps = wait(Ticket(route, "job", 1, "math_sum(1)"), deadline)
    next(steps)  # it looks once more for the outcome
    steps.send([None])  # then asks who may have claimed it
    steps.send([[b"host:1:worker"]])  # then for the state: one alive, five jobs wait, ours too
    with pytest.raises(CallTimeout) as error:
        steps.send([[1, 5, b"queued"]])
    text = f"math_sum(1): no reply in {shown} s (queued {shown} s; 1 worker alive)"
    assert str(error.value) == text


def test_a_timeout_with_a_live_but_busy_worker_is_not_no_workers(bus: Bus, caller: Bus) -> None:
    taken, go = threading.Event(), threading.Event()

    @bus.register()
    def busy(a: int) -> int:
        taken.set()
        assert go.wait(20)
        return a

    with serving(bus):
        first = caller.busy.run(1)
        assert taken.wait(20)
        with pytest.raises(CallTimeout) as queued:
            caller.busy.options(timeout=0.2)(a=2)
        with pytest.raises(CallTimeout) as running:
            first.get(timeout=0.2)
        go.set()
        assert first.get() == 1
    assert str(queued.value) == "busy(a=2): no reply in 0.2 s (queued 0.2 s; 1 worker alive)"
    assert "1 worker alive" in str(running.value)
    assert not isinstance(queued.value, NoWorkers)
    assert not isinstance(running.value, NoWorkers)


def test_a_timeout_of_a_job_that_runs_says_that_it_was_taken(bus: Bus) -> None:
    go = threading.Event()
    bus.register("slow")(lambda: go.wait(20))
    with serving(bus):
        with pytest.raises(CallTimeout, match=r"\(taken by a worker, not finished; 1 worker alive"):
            bus.slow.options(timeout=0.3)()
        go.set()


def test_a_job_whose_caller_gave_up_is_not_run(bus: Bus) -> None:
    ran: list[int] = []
    bus.register("method")(ran.append)
    bus.serve_once()
    with pytest.raises(NoWorkers):
        bus.method.options(timeout=0.5)(1)
    bus.method.run(2)
    with serving(bus):
        bus.method(3)
    assert ran == [2, 3]


def test_a_call_that_waits_longer_than_a_slice_is_answered(bus: Bus) -> None:
    """The caller changes its way to wait after a second; no outcome falls between the two."""
    for keyed in (None, True):
        go = threading.Event()
        bus.register(f"slow_{keyed}", cache_key=keyed)(lambda go=None: [go])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(bus[f"slow_{keyed}"])
            go.wait(1.3)
            with serving(bus):
                assert answer.result(20) == [None]


def test_options_returns_another_method_and_leaves_the_first_as_it_was(bus: Bus) -> None:
    @bus.register("math_sum", cache_key="{a}")
    def add(a: int) -> int:
        """Return a."""
        return a

    first = bus.math_sum
    short = first.options(timeout=0.1)
    fast = short.options(fail_fast=True)
    assert short is not first
    assert bus.math_sum is first
    assert short.__name__ == first.__name__
    assert short.__doc__ == first.__doc__
    assert short.__signature__ == first.__signature__
    assert short.cache_key == first.cache_key
    bus.serve_once()
    with pytest.raises(NoWorkers, match=r"no reply in 0\.1 s"):
        short(1)
    with pytest.raises(NoWorkers, match="no worker alive serves"):
        fast(2)
    with pytest.raises(NoWorkers, match=r"no reply in 0\.1 s"):
        short(3)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(first, 4)
        eventually(lambda: bus.stats()["math_sum"]["queued"] >= 1)
        with serving(bus):
            assert answer.result(20) == 4


def test_options_without_a_limit_wait_for_ever(bus: Bus) -> None:
    bus.register("method", timeout=0.1)(lambda: 1)
    bus.serve_once()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(bus.method.options(timeout=None))
        eventually(lambda: bus.stats()["method"]["queued"] == 1)
        with pytest.raises(NoWorkers):
            bus.method()
        assert not answer.done()
        with serving(bus):
            assert answer.result(20) == 1


@pytest.mark.parametrize("cache_key", [None, True])
def test_fail_fast_raises_at_once_and_enqueues_nothing(
    bus: Bus, caller: Bus, client: redis.Redis, cache_key: bool | None
) -> None:
    bus.register("method", cache_key=cache_key)(echo)
    bus.serve_once()
    fast = caller.method.options(fail_fast=True)
    for call in (fast, fast.run):
        with pytest.raises(NoWorkers, match=r"^method\(1\): no worker alive serves method$"):
            call(1)
    assert not client.exists(QUEUE + "method")
    assert not list(client.scan_iter("*flight*"))
    with serving(bus):
        assert fast(1) == 1


def test_fail_fast_is_answered_from_the_cache_with_no_worker_alive(bus: Bus) -> None:
    bus.register("method", cache_key=True)(echo)
    with serving(bus):
        bus.method(1)
    assert bus.method.options(fail_fast=True)(1) == 1


@pytest.mark.parametrize("cache_key", [None, True])
def test_a_full_queue_refuses_and_nothing_is_enqueued(
    bus: Bus, caller: Bus, client: redis.Redis, cache_key: bool | None
) -> None:
    bus.register("method", cache_key=cache_key, max_queue=2)(echo)
    bus.serve_once()
    results = [caller.method.run(i) for i in range(2)]
    for call in (caller.method, caller.method.run):
        with pytest.raises(QueueFull, match=r"^method\(5\): 2 jobs wait for method"):
            call(5)
    assert client.llen(QUEUE + "method") == 2
    with serving(bus):
        assert [result.get() for result in results] == [0, 1]
        assert caller.method(5) == 5


# -- nested calls -------------------------------------------------------------------------------


def test_a_nested_call_inherits_what_is_left_of_its_callers_deadline(bus: Bus, url: str) -> None:
    errors: list[CallTimeout] = []
    go = threading.Event()
    with Bus("test", url=url, prefix="inner_") as inner:
        inner.register("nobody_serves", timeout=60)(lambda: None)
        inner.serve_once()

    @bus.register()
    def outer() -> None:
        go.wait(0.2)  # so much of the time is used up
        with pytest.raises(CallTimeout) as error:
            bus.nobody_serves()
        errors.append(error.value)
        go.wait(20)

    with serving(bus):
        with pytest.raises(CallTimeout, match=r"^outer\(\): no reply in 0\.6 s"):
            bus.outer.options(timeout=0.6)()
        eventually(lambda: errors)
        go.set()
    found = re.match(r"nobody_serves\(\): no reply in (\S+) s \(queued", str(errors[0]))
    assert found, errors
    assert 0.1 < float(found[1]) <= 0.4


def test_a_nested_call_keeps_its_own_shorter_time(bus: Bus, url: str) -> None:
    with Bus("test", url=url, prefix="inner_") as inner:
        inner.register("nobody_serves")(lambda: None)
        inner.serve_once()
    bus.register("outer")(lambda: bus.nobody_serves.options(timeout=0.2)())
    with serving(bus), pytest.raises(NoWorkers, match=r"^nobody_serves\(\): no reply in 0\.2 s"):
        bus.outer()


def test_nested_calls_between_services_are_answered(bus: Bus, url: str) -> None:
    with Bus("test", url=url, prefix="inner_") as inner:
        inner.register("double")(lambda a: 2 * a)
        bus.register("outer")(lambda a: bus.double(a) + 1)
        with serving(inner), serving(bus):
            assert bus.outer(5) == 11
            assert bus.outer.options(timeout=None)(5) == 11


def test_the_deadline_of_one_job_is_not_the_next_ones(bus: Bus, url: str) -> None:
    with Bus("test", url=url, prefix="inner_", timeout=0.1) as inner:
        inner.register("nobody_serves", timeout=0.3)(lambda: None)
        inner.serve_once()
    bus.register("outer")(lambda: bus.nobody_serves())
    with serving(bus):
        with pytest.raises(CallTimeout):
            bus.outer.options(timeout=0.05)()
        with pytest.raises(NoWorkers, match=r"^nobody_serves\(\): no reply in 0\.3 s"):
            bus.outer.options(timeout=20)()
    with pytest.raises(NoWorkers, match=r"no reply in 0\.3 s"):
        bus.nobody_serves()


# -- flushes ------------------------------------------------------------------------------------


def test_flushed_scripts_are_not_noticed(bus: Bus, caller: Bus, client: redis.Redis) -> None:
    """Flushed before calls, while a job runs, and while the worker waits for its next."""

    @bus.register()
    def flush(a: int, *, inside: bool) -> int:
        if inside:
            client.script_flush()
        return a

    @bus.register(cache_key="{a}")
    def flush_keyed(a: int) -> int:
        client.script_flush()
        return a

    with serving(bus):
        for turn in range(40):
            client.script_flush()
            assert caller.flush(turn, inside=False) == turn
            client.script_flush()
            assert caller.flush_keyed(turn) == turn
            client.script_flush()
            assert caller.flush_keyed(turn) == turn
            client.script_flush()
            assert caller.flush_keyed.clear_cache(turn) is True
            # More jobs wait while the scripts vanish: both finish and take are unknown then.
            results = [caller.flush.run(n, inside=True) for n in range(3)]
            assert [result.get() for result in results] == [0, 1, 2]
            assert caller.flush(turn, inside=True) == turn
        client.script_flush()
        wake = "rb:{test:}:wake:flush"
        client.rpush(wake, 1)  # the worker that waits wakes, and its take is not known
        eventually(lambda: not client.exists(wake))
        assert caller.flush(1, inside=False) == 1
    stats = bus.stats()
    assert stats["flush"]["calls"] == 40 * 5 + 1
    assert stats["flush_keyed"]["calls"] == 80
    assert stats["flush_keyed"]["hits"] == 40
    assert stats["flush_keyed"]["errors"] == stats["flush"]["errors"] == 0


def test_scripts_flushed_all_the_time_lose_no_call(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    bus.register()(echo)
    end = threading.Event()

    def flush() -> None:
        while not end.wait(0.002):
            client.script_flush()

    with serving(bus), ThreadPoolExecutor(1) as pool:
        flushing = pool.submit(flush)
        try:
            for turn in range(300):
                assert caller.echo(turn) == turn
        finally:
            end.set()
        flushing.result()


# -- foreign bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        b"garbage",
        b"",
        b"\xff\x00\n",
        b"job 1 1 0 0 etag wait 0 99 m\nshort",
        b"job 1 1 0 0 etag none 0 - m\nbody",
        b'{"json": 1}',
    ],
)
def test_a_queue_entry_that_is_not_ours_goes_to_the_dead_letters_and_the_worker_goes_on(
    bus: Bus, client: redis.Redis, entry: bytes
) -> None:
    bus.register()(echo)
    client.rpush(QUEUE + "echo", entry, b"another")
    with serving(bus):
        assert bus.echo(1) == 1
    letters = client.lrange("rb:{test:}:dead:echo", 0, -1)
    assert [parse_letter(letter).entry for letter in letters] == [entry, b"another"]
    assert not list(client.scan_iter("*running*"))


def test_a_job_whose_arguments_are_not_ours_is_an_error_for_its_caller(
    bus: Bus, client: redis.Redis
) -> None:
    bus.register()(echo)
    result = bus.echo.run(1)
    entry = client.lpop(QUEUE + "echo")
    assert isinstance(entry, bytes)
    head, _, _ = entry.partition(b"\n")
    client.rpush(QUEUE + "echo", head + b"\nmjunk \xc1")
    with serving(bus):
        with pytest.raises(ProtocolError):
            result.get()
        assert bus.echo(2) == 2


def test_a_descriptor_that_is_not_ours_harms_its_method_only(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    bus.register()(echo)
    with serving(bus):
        client.hset("rb:{test}:methods", "broken", b"\xff not JSON")
        client.hset("rb:{test}:methods", "other", b'{"name": "another"}')
        assert caller.echo(1) == 1
        assert caller.all_methods() == ["broken", "echo", "other"]
        assert set(caller.stats()) == {"echo"}
        for name in ("broken", "other"):
            with pytest.raises(ProtocolError, match=name):
                caller[name]
        dir(caller)


# -- serializers --------------------------------------------------------------------------------


def test_the_json_serializer_puts_json_on_the_wire(
    url: str, caller: Bus, client: redis.Redis
) -> None:
    with Bus("test", url=url, serializer="json") as service:
        service.register("method")(lambda a, b: [a, b])
        service.serve_once()
        result = caller.method.run({"x": [1, "é"]}, b=(1,))  # the caller says msgpack
        [entry] = client.lrange(QUEUE + "method", 0, -1)
        assert b'"x":[1,' in entry
        with serving(service):
            assert result.get() == [{"x": [1, "é"]}, (1,)]
            assert caller.method({1, 2}, b=None) == [{1, 2}, None]


def test_pickle_is_refused_unless_the_caller_opted_in(url: str, caller: Bus) -> None:
    with (
        Bus("test", url=url, serializer="pickle") as service,
        Bus("test", url=url, serializer="pickle") as trusting,
    ):
        service.register()(echo)
        with serving(service):
            assert trusting.echo(1 + 2j) == 1 + 2j  # which msgpack cannot
            with pytest.raises(BusError, match="'pickle', which this bus does not accept"):
                caller.echo(1)
            result = trusting.echo.run(range(3))
            assert result.get() == range(3)
            with pytest.raises(SerializationError, match="written with pickle, which this bus"):
                caller.get_async_result(result.id).get()


def test_an_unknown_serializer_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="yaml"):
        Bus("test", serializer="yaml")


# -- connections --------------------------------------------------------------------------------


def closed(name: str) -> str:
    return f"unix:///nowhere/{name}.sock"


def test_a_given_client_counts_before_url_and_environment(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_BUS_URL", closed("environment"))
    bus = Bus("test", client, url=closed("url"))
    assert bus.conn is client
    bus.register()(echo)
    with serving(bus):
        assert bus.echo(1) == 1


def test_url_counts_before_redis_bus_url_and_that_before_redis_url(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", closed("redis_url"))
    monkeypatch.setenv("REDIS_BUS_URL", closed("redis_bus_url"))
    assert Bus("test", url=url).all_methods() == []
    assert "redis_bus_url" in repr(Bus("test"))
    monkeypatch.setenv("REDIS_BUS_URL", url)
    assert Bus("test").all_methods() == []
    monkeypatch.delenv("REDIS_BUS_URL")
    assert "redis_url" in repr(Bus("test"))
    monkeypatch.setenv("REDIS_URL", url)
    assert Bus("test").all_methods() == []
    monkeypatch.delenv("REDIS_URL")
    assert repr(Bus("test")) == "<Bus 'test' at localhost:6379>"


def test_a_client_that_decodes_responses_works(url: str) -> None:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        bus = Bus("test", client)
        bus.register()(echo)
        bus.register("keyed", cache_key=True)(lambda a: a)
        with serving(bus):
            assert bus.echo(b"\xff") == b"\xff"
            assert [bus.keyed("é"), bus.keyed("é")] == ["é", "é"]
            assert bus.echo.run("x").get() == "x"
            assert bus.stats()["keyed"]["hits"] == 1
        assert bus.cleanup() > 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_of_redis_work(url: str, protocol: int) -> None:
    with Bus("test", url=url, protocol=protocol) as bus:
        bus.register(cache_key=True)(echo)
        with serving(bus):
            assert [bus.echo(1), bus.echo(1), bus.echo.run(2).get()] == [1, 1, 2]
            assert bus.echo.clear_cache(1) is True
            assert bus.stats()["echo"]["hits"] == 1


def test_unix_sockets_and_tcp_work(server: EmbeddedRedis, url: str) -> None:
    assert url.startswith("unix://")
    with EmbeddedRedis(server.executable, port=0) as other:
        addresses = [url, other.url, other.url.replace("redis://", "valkey://")]
        for address in addresses:
            with Bus("test", url=address) as bus:
                bus.register()(echo)
                with serving(bus):
                    assert bus.echo(address) == address
        host, _, port = other.url.removeprefix("redis://").partition("/")[0].partition(":")
        with Bus("test", redis.Redis(host=host, port=int(port), db=3)) as bus:
            bus.register()(echo)
            with serving(bus):
                assert bus.echo(1) == 1
            assert bus.conn.exists("rb:{test}:methods")


@pytest.mark.parametrize(
    "address", ["localhost:6379", "http://localhost", "", "redis://localhost:port/0", "redis:"]
)
def test_a_url_that_means_nothing_is_a_value_error(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_BUS_URL", "http://user:secret@host")
    with pytest.raises(ValueError, match="not a Redis URL") as error:
        Bus("test", url=address)
    assert "secret" not in str(error.value)


def test_a_bus_is_a_context_and_can_be_used_after_it_was_closed(
    url: str, client: redis.Redis
) -> None:
    def connections() -> int:
        return int(client.info("clients")["connected_clients"])

    before = connections()
    with Bus("test", url=url) as bus:
        bus.register()(echo)
        with serving(bus):
            assert bus.echo(1) == 1
            assert connections() > before
    # Fewer where one of another test was about to be closed.
    eventually(lambda: connections() <= before)
    with serving(bus):
        assert bus.echo(2) == 2
    bus.close()
    bus.close()
    assert bus.all_methods() == ["echo"]
    bus.close()
    eventually(lambda: connections() <= before)


def test_a_connection_that_was_cut_while_idle_is_not_noticed(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    with serving(bus), Bus("test", url=url, client_name="caller") as caller:
        assert caller.echo(1) == 1
        eventually(lambda: idle_seconds(client, "caller") >= 2)
        cut(client, "caller")
        assert caller.echo(2) == 2


def idle_seconds(client: redis.Redis, name: str) -> int:
    """For how long the connections of that name were not used, the shortest."""
    return min(int(c["idle"]) for c in client.client_list() if c["name"] == name)


def cut(client: redis.Redis, name: str) -> None:
    """Cut the connections of that name, and check that there are some."""
    found = [int(c["id"]) for c in client.client_list() if c["name"] == name]
    assert found
    for number in found:
        client.client_kill_filter(_id=str(number))


def is_blocked(client: redis.Redis, name: str) -> bool:
    """Whether a connection of that name waits for a list."""
    return any(c["name"] == name and "b" in c["flags"] for c in client.client_list())


def test_a_call_of_a_cached_method_survives_a_cut_connection(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    ran: list[int] = []

    @bus.register(cache_key=True)
    def keyed(a: int) -> int:
        ran.append(a)
        return a

    bus.serve_once()
    with Bus("test", url=url, client_name="caller") as caller, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(caller.keyed, 1)
        eventually(lambda: is_blocked(client, "caller"))
        cut(client, "caller")
        with serving(bus):
            assert answer.result(20) == 1
    assert ran == [1]


def test_a_cut_connection_of_an_uncached_call_says_that_it_may_have_run(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    """It is not sent again, so it runs at most once."""
    ran: list[int] = []
    bus.register("method")(ran.append)
    bus.serve_once()
    with Bus("test", url=url, client_name="caller") as caller, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(caller.method, 1)
        eventually(lambda: is_blocked(client, "caller"))
        cut(client, "caller")
        with pytest.raises(ConnectionLost, match=r"^method\(1\): .*unknown whether it ran"):
            answer.result(20)
    assert bus.serve_once() == 1
    assert ran == [1]


@pytest.mark.parametrize("face", [partial(Bus, "test"), AsyncFace], ids=["Bus", "AsyncBus"])
def test_a_call_that_was_sent_before_redis_went_away_says_so(
    face: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a call says that was never sent would be a lie; what may run twice has no doubt."""
    for name in (
        "calls.calls",
        "client.direct",
        "client.async_direct",
        "calls.waiting",
        "client.fan_out",
    ):
        module = importlib.import_module(f"redis_bus.{name}")
        monkeypatch.setattr(module, "FIRST_SLICE_SECONDS", 0.05)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedRedis())
        bus = stack.enter_context(Bus("test", url=server.url))
        caller = face(url=server.url, timeout=1)
        stack.callback(caller.close)
        pool = stack.enter_context(ThreadPoolExecutor(4))
        for name in ("once", "again"):
            bus.register(name, idempotent=name == "again")(echo)
        bus.serve_once()
        result = caller.once.run(0)
        work = [partial(caller.once, 1), partial(caller.again, 2), partial(result.get, 1)]
        if face is not AsyncFace:
            work.append(lambda: list(caller.once.map([3])))
        answers = [pool.submit(one) for one in work]
        eventually(lambda: caplog.text.count("it waits, but no worker") == len(work))
        nowhere = f"no Redis at {server.url.removeprefix('unix://')} (No such file or directory)"
        server.stop()
        errors = [answer.exception(20) for answer in answers]
        with pytest.raises(ConnectionLost, match="start one, or say where it is"):
            caller.once(4)
    sent, doubt = "; it was sent before that", ", and it is unknown whether it ran"
    ends = [f"{sent}{doubt}", sent, f"{sent}{doubt}", f"{sent}{doubt}"]
    shown = ["once(1)", "again(2)", f"once (job {result.id[6:]})", "once(3)"]
    for error, name, end in zip(errors, shown, ends, strict=False):
        assert type(error) is ConnectionLost
        assert str(error) == f"{name}: {nowhere}{end}"


def test_a_bus_method_is_a_plain_callable(bus: Bus) -> None:
    bus.register()(echo)
    with serving(bus):
        method: Callable[[object], object] = bus.echo
        assert list(map(method, range(5))) == list(range(5))


def test_a_worker_is_seen_by_stats_while_it_serves_only(bus: Bus) -> None:
    bus.register()(echo)
    with serving(bus):
        assert workers(bus, "echo") == 1
    assert workers(bus, "echo") == 0
