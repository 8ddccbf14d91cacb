"""Odd keys, values of every size up to the limit, and cached bytes that somebody else wrote."""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import redis

from redis_bus import Bus, ProtocolError, RemoteError, SerializationError
from redis_bus.protocol.codec import MAX_BYTES
from redis_bus.protocol.outcome import encode_error
from tests.commands import sent
from tests.support import PATIENCE_SECONDS, serving

CACHE = "rb:{test:}:cache:"
KB = 1024
MB = 1024 * KB


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=PATIENCE_SECONDS) as bus:
        yield bus


class Counting:
    """A function that returns the number of its run, and notes what it was called with."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def __call__(self, a: object) -> int:
        self.seen.append(a)
        return len(self.seen)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, but for what workers say of the errors that their functions raise."""
    found = [r for r in caplog.records if r.levelno >= logging.WARNING]
    workers = ("redis_bus.runner", "redis_bus.logs")
    return [r.getMessage() for r in found if r.name not in workers]


# -- keys ---------------------------------------------------------------------------------------

LONG = "k" * 10 * KB
# Each with neighbours that it would meet if one of its characters meant something to somebody.
ODD: list[object] = [
    *("", " ", "  ", "\t", "\n", "\r\n", "\0", "\\", "/", "//", "'", '"', "%", "$"),
    *("{", "}", "{}", "{{}}", "{a}", "{test:}", "}{", "{0}", "{a!r}"),
    *(":", "::", "a:b", "a::b", "cache:note:1", "rb:{test:}:meta", "rb:{test:}:cache:note:*"),
    *("*", "**", "?", "[a]", "[^a]", "[a-z]", "\\*", "a*", "a?", "a"),
    *("é", "e\u0301", "ß", "SS", "日本", "\U0001f600", "\u202e", "\ufeff", "\ud800", "\udfff"),
    *("1", 1, 1.0, True, None, "None", b"1", b"", b"\xff\xfe", (), "()", [], {}, (1,), "1,"),
    *(LONG, LONG + "k", LONG[:-1] + "K", LONG.encode(), "é" * 5 * KB, "{" * 10 * KB, "*" * 10 * KB),
    *("\n" * 10 * KB, [LONG], (LONG,), {LONG: 1}),
]


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize("template", ["{a}", "x{a}*:{{{a}\n", True])
def test_odd_keys_live_side_by_side_and_are_cleared_one_by_one(
    url: str, client: redis.Redis, template: str | bool, serializer: str
) -> None:
    counting = Counting()
    with Bus("test", url=url, timeout=20, serializer=serializer) as bus:
        bus.register("note", cache_key=template)(counting)
        with serving(bus):
            numbers = [bus.note(key) for key in ODD]
            assert numbers == list(range(1, len(ODD) + 1))
            assert [bus.note(key) for key in ODD] == numbers
            assert len(list(client.scan_iter(CACHE + "note:*"))) == len(ODD)
            for left, key in zip(reversed(range(len(ODD))), ODD, strict=True):
                assert bus.note.clear_cache(key) is True
                assert bus.note.clear_cache(key) is False
                assert len(list(client.scan_iter(CACHE + "note:*"))) == left
            assert [bus.note(key) for key in ODD] == [number + len(ODD) for number in numbers]
        assert counting.seen == ODD + ODD
        for key in client.scan_iter("*", count=1000):
            assert len(key) < 400
    bus.cleanup()
    assert client.dbsize() == 0


# -- sizes --------------------------------------------------------------------------------------

# What goes on the wire besides the bytes of one value: the tag, and the headers of its format.
RESULT_EXTRA = {"msgpack": 1 + 5, "json": 1 + 2}
ARGUMENT_EXTRA = {"msgpack": 1 + 2 + 5 + 1, "json": 1 + len('[[""],{}]')}
SIZES = [0, 1, 31, 32, 255, 256, 65_535, 65_536, MB, 8 * MB]


def value_of(kind: type, size: int) -> Any:
    return b"\xdd" * size if kind is bytes else "v" * size


def digest(value: Any) -> tuple[str, int, str]:
    data = value if isinstance(value, bytes) else value.encode()
    return type(value).__name__, len(data), hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_values_from_no_byte_to_the_limit_go_there_and_back_and_are_cached(
    url: str, client: redis.Redis, serializer: str
) -> None:
    with Bus("test", url=url, timeout=PATIENCE_SECONDS, serializer=serializer) as bus:
        bus.register("repeat", cache_key=True)(
            lambda size, kind: value_of(bytes if kind == "bytes" else str, size)
        )
        bus.register("measure")(digest)
        kinds: list[type] = [str] if serializer == "json" else [str, bytes]
        largest = MAX_BYTES - RESULT_EXTRA[serializer]
        with serving(bus):
            for size in [*SIZES, largest]:
                for kind in kinds:
                    expected = value_of(kind, size)
                    for _ in range(2):
                        found = bus.repeat(size, kind.__name__)
                        assert type(found) is kind
                        assert found == expected
            hits = bus.stats()["repeat"]["hits"]
            assert hits == len(kinds) * (len(SIZES) + 1)
            longest = max(client.strlen(key) for key in client.scan_iter(CACHE + "*"))
            assert MAX_BYTES < longest < MAX_BYTES + 50  # the limit, and the line before it
            for size in [*SIZES, MAX_BYTES - ARGUMENT_EXTRA[serializer]]:
                for kind in kinds:
                    value = value_of(kind, size)
                    assert bus.measure(value) == digest(value)


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize("cache_key", [None, "{value}"])
def test_an_argument_over_the_limit_is_an_error_before_anything_is_sent(
    url: str, client: redis.Redis, serializer: str, cache_key: str | None
) -> None:
    with Bus("test", url=url, timeout=PATIENCE_SECONDS, serializer=serializer) as bus:
        bus.register("measure", cache_key=cache_key)(lambda value: len(value))
        with serving(bus):
            largest = MAX_BYTES - ARGUMENT_EXTRA[serializer]
            assert bus.measure("v" * largest) == largest
        # Without a worker, whose heartbeat would be among the commands.
        keys = set(client.scan_iter("*"))
        for call in (bus.measure, bus.measure.run):
            with sent(client) as commands, pytest.raises(SerializationError) as error:
                call("v" * (largest + 1))
            assert str(error.value) == (
                f"measure(<str of {largest + 1}>): cannot encode arguments: "
                f"{MAX_BYTES + 1} bytes, more than the limit of {MAX_BYTES} bytes"
            )
            assert not {"evalsha", "eval", "set", "rpush"} & set(commands)
        # The error names the argument where one alone is over the limit.
        with pytest.raises(SerializationError, match="cannot encode argument value: 167772"):
            bus.measure("v" * MAX_BYTES)
        assert not set(client.scan_iter("*")) - keys  # some have expired
        with serving(bus):
            assert bus.measure("v") == 1


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize("cache_key", [None, "{size}"])
def test_a_result_over_the_limit_is_an_error_at_the_caller_and_the_worker_lives_on(
    url: str, client: redis.Redis, serializer: str, cache_key: str | None
) -> None:
    with Bus("test", url=url, timeout=PATIENCE_SECONDS, serializer=serializer) as bus:
        runs: list[int] = []

        def repeat(size: int) -> str:
            runs.append(size)
            return "v" * size

        bus.register(cache_key=cache_key)(repeat)
        with serving(bus):
            largest = MAX_BYTES - RESULT_EXTRA[serializer]
            for _ in range(2):
                with pytest.raises(SerializationError) as error:
                    bus.repeat(largest + 1)
                assert str(error.value) == (
                    f"repeat({largest + 1}): cannot encode result: {MAX_BYTES + 1} bytes, "
                    f"more than the limit of {MAX_BYTES} bytes"
                )
                assert not list(client.scan_iter(CACHE + "*"))
                assert not list(client.scan_iter("*:flight:*"))
            with pytest.raises(SerializationError, match="more than the limit"):
                bus.repeat.run(10 * MB + largest).get()
            assert runs == [largest + 1, largest + 1, largest + 10 * MB]
            assert bus.repeat(1) == "v"
            assert bus.stats()["repeat"]["workers"] == 1
            assert not list(client.scan_iter("*:running:*"))


@pytest.mark.parametrize("size", [9 * MB, MAX_BYTES + 1])
@pytest.mark.parametrize("argument", ["text", "bytes", "text and object"])
def test_an_exception_over_the_limit_reaches_the_caller_and_the_worker_lives_on(
    bus: Bus, caller: Bus, size: int, argument: str
) -> None:
    def fail() -> None:
        if argument == "text":
            raise ValueError("v" * size)
        if argument == "bytes":
            raise ValueError(b"v" * size)
        raise ValueError("v" * size, object())

    bus.register()(fail)
    with serving(bus):
        for _ in range(2):
            with pytest.raises(ValueError, match="vvvv") as error:
                caller.fail.options(timeout=10)()
            assert type(error.value) is ValueError
        assert bus.stats()["fail"]["workers"] == 1


class OwnText(str):
    """A text that is not quite a str."""


class OwnTextError(Exception):
    def __str__(self) -> str:
        return OwnText("its own text")


class RaisingArgsError(Exception):
    @property
    def args(self) -> Any:
        raise KeyError("its args")


class NumberArgsError(Exception):
    args: Any = 5


@pytest.mark.parametrize("kind", [OwnTextError, RaisingArgsError, NumberArgsError])
def test_an_exception_of_any_make_reaches_the_caller_and_the_worker_lives_on(
    bus: Bus, caller: Bus, kind: type[Exception]
) -> None:
    def fail() -> None:
        raise kind

    bus.register()(fail)
    with serving(bus):
        for _ in range(2):
            with pytest.raises(RemoteError, match=f"{kind.__name__}") as error:
                caller.fail.options(timeout=10)()
            assert error.value.type_name.endswith(kind.__name__)
        assert bus.stats()["fail"]["workers"] == 1


# -- bytes of somebody else ---------------------------------------------------------------------


class Bomb:
    """What unpickles by calling a function of this module."""

    exploded: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Bomb.exploded.append, ("bytes from Redis became code",)


# Behind the line of a live entry: what is no outcome, or never one that is cached.
GARBAGE = {
    "nothing": b"",
    "an unknown tag": b"?abc",
    "a zero byte": b"\0" * 1000,
    "text": b"cached by somebody else",
    "msgpack of nothing": b"m",
    "msgpack that ends too early": b"m\xdb\0\0\0\x05abc",
    "msgpack with more behind it": b"m\x01\x02",
    "msgpack that claims 4 G items": b"m\xdd\xff\xff\xff\xff",
    "msgpack's byte that is never used": b"m\xc1",
    "an unknown extension": b"m\xd4\x63a",
    "a date that is none": b"m\xc7\x03\x07abc",
    "an unhashable key": b"m\x81\x90\x01",
    "nested too deep": b"m" + b"\x91" * 100_000 + b"\x01",
    "json of nothing": b"j",
    "json that ends too early": b'j{"a":',
    "json that is not UTF-8": b'j"\xff"',
    "pickle": b"p" + pickle.dumps(1),
    "pickle that runs code": b"p" + pickle.dumps(Bomb()),
    "an object of somebody's own": b"xabc",
    "an error": encode_error(ValueError("from the cache")),
    "an error of ours": encode_error(ProtocolError("from the cache")),
    "an error of nothing": b"e",
    "an error that is none": b"em\x80",
    "a move": b">Zm9vYmFyYmF6cXV4",
    "1 MB": b"\xc1" * MB,
}
WITHOUT_LINE = {
    "nothing": b"",
    "a line feed": b"\n",
    "text": b"garbage",
    "an outcome alone": b"m\x01",
    "pickle alone": pickle.dumps(Bomb()),
    "half a line": b"17000000",
    "a word for a number": b"one 0\nm\x01",
    "a negative number": b"-1 0\nm\x01",
    "1 MB": b"\n" * MB,
}


def written_at(client: redis.Redis, key: str) -> tuple[bytes, bytes]:
    """The line of an entry, and its outcome."""
    entry = client.get(key)
    assert isinstance(entry, bytes)
    line, mark, found = entry.partition(b"\n")
    return line + mark, found


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize("shape", GARBAGE)
def test_a_cached_outcome_of_somebody_else_is_a_miss_logged_once_and_overwritten(
    url: str,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    shape: str,
    serializer: str,
) -> None:
    counting, key = Counting(), CACHE + "count:1"
    with (
        Bus("test", url=url, timeout=20, serializer=serializer) as bus,
        Bus("test", url=url, timeout=20) as caller,
    ):
        bus.register("count", cache_key="{a}")(counting)
        with serving(bus):
            assert caller.count(1) == 1
            line, _ = written_at(client, key)
            client.set(key, line + GARBAGE[shape], keepttl=True)
            assert [caller.count(1), caller.count(1), bus.count(1)] == [2, 2, 2]
            assert written_at(client, key)[0] == line
            assert len(warnings(caplog)) == 1
            assert "count(1): its cached value is not ours" in warnings(caplog)[0]
            assert 86_000 < client.ttl(key) <= 86_400
    assert not Bomb.exploded


@pytest.mark.parametrize("shape", WITHOUT_LINE)
def test_cached_bytes_without_our_line_are_a_miss_and_overwritten(
    bus: Bus, caller: Bus, client: redis.Redis, shape: str
) -> None:
    counting, key = Counting(), CACHE + "count:1"
    bus.register("count", cache_key="{a}")(counting)
    with serving(bus):
        client.set(key, WITHOUT_LINE[shape])  # without a TTL, too
        assert [caller.count(1), caller.count(1)] == [1, 1]
        assert 86_000 < client.ttl(key) <= 86_400
        client.set(key, WITHOUT_LINE[shape])
        result = caller.count.run(1)
        assert [result.get(), caller.count(1)] == [2, 2]
    assert not Bomb.exploded


@pytest.mark.parametrize("step", [-1, 1])
def test_an_entry_of_another_generation_is_a_miss_and_nothing_to_log(
    bus: Bus, caller: Bus, client: redis.Redis, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    counting, key = Counting(), CACHE + "count:1"
    bus.register("count", cache_key="{a}")(counting)
    with serving(bus):
        assert caller.count(1) == 1
        line, found = written_at(client, key)
        other = b"%d 0\n" % (int(line.split()[0]) + step)
        for data in (other + found, other + b"garbage"):
            client.set(key, data)
            number = len(counting.seen) + 1
            assert [caller.count(1), caller.count(1)] == [number, number]
            assert written_at(client, key)[0] == line
    assert warnings(caplog) == []  # as after every clear_all_cache


def test_a_garbage_outcome_raises_in_none_of_many_callers_that_find_it_at_once(
    bus: Bus, caller: Bus, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    callers, rounds = 16, 20
    counting, key = Counting(), CACHE + "count:1"
    bus.register("count", cache_key="{a}")(counting)
    start = threading.Barrier(callers)

    def call() -> int:
        start.wait(20)
        return int(caller.count(1))

    with serving(bus), ThreadPoolExecutor(callers) as pool:
        assert caller.count(1) == 1
        line, _ = written_at(client, key)
        for _ in range(rounds):
            before = len(counting.seen)
            client.set(key, line + b"m\xc1", keepttl=True)
            answers = [pool.submit(call) for _ in range(callers)]
            found = {answer.result(20) for answer in answers}
            # Each who found it cleared it, so there may be a run for each, and none that is older.
            assert before < min(found) <= max(found) <= before + callers
            assert caller.count(1) == len(counting.seen)
    assert rounds <= len(warnings(caplog)) <= rounds * callers


def test_a_stale_entry_with_a_garbage_outcome_is_a_miss(
    bus: Bus, caller: Bus, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    counting, key = Counting(), CACHE + "count:1"
    bus.register("count", cache_key="{a}", cache_expire=1000, stale=1000)(counting)
    with serving(bus):
        assert caller.count(1) == 1
        generation = written_at(client, key)[0].split()[0]
        client.set(key, generation + b" 1\nm\xc1", keepttl=True)
        assert caller.count(1) in (2, 3)  # its refresh may run before the call that follows
        assert caller.count(1) in (2, 3)
    assert len(warnings(caplog)) <= 1  # none where its refresh has overwritten it


@pytest.mark.parametrize("kind", [ProtocolError, SerializationError])
def test_an_error_of_the_bus_that_a_cached_method_raises_is_no_garbage(
    bus: Bus, caller: Bus, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    runs: list[int] = []

    def fail(a: int) -> None:
        runs.append(a)
        raise kind("of a call that this function made")

    bus.register(cache_key="{a}")(fail)
    with serving(bus):
        with pytest.raises(kind, match="of a call that this function made"):
            caller.fail(1)
        assert runs == [1]
    assert warnings(caplog) == []
