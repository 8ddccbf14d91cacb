"""Errors: what the function raised is what the caller catches, with the remote traceback."""

from __future__ import annotations

import builtins
import errno
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import redis_bus
from redis_bus import Bus, BusError, ProtocolError, RemoteError, RemoteTraceback
from redis_bus.errors import NoWorkers, QueueFull, WorkerLost
from tests.support import Processes, eventually, serving, workers


class Refused(Exception):
    """An exception of a service's own."""


class Picky(Exception):
    """An exception whose constructor does not take its own args."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")


class Silent(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def failing(error: Callable[[], BaseException]) -> Callable[[], None]:
    def fail() -> None:
        raise error()

    return fail


@pytest.fixture
def raised(bus: Bus) -> Iterator[Callable[[Callable[[], BaseException]], BaseException]]:
    """Return what a caller gets where the function raises what is made of this."""
    makers: list[Callable[[], BaseException]] = []

    @bus.register()
    def fail() -> None:
        raise makers.pop()()

    with serving(bus):

        def call(make: Callable[[], BaseException]) -> BaseException:
            makers.append(make)
            with pytest.raises(BaseException) as error:
                bus.fail()
            return error.value

        yield call


Raised = Callable[[Callable[[], BaseException]], BaseException]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("bad", 1),
        lambda: KeyError("missing"),
        lambda: IndexError(),
        lambda: ZeroDivisionError("by zero"),
        lambda: TypeError(("a", {"b": [1]})),
        lambda: RecursionError("deep"),
        lambda: StopIteration(5),
        lambda: NotImplementedError(None),
        lambda: AssertionError(b"\xff"),
        lambda: UserWarning("careful"),
        lambda: TimeoutError("of the function's own"),
        lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
        lambda: Exception("any"),
    ],
    ids=lambda make: type(make()).__name__,
)
def test_a_builtin_exception_arrives_as_its_own_type_with_its_args(
    raised: Raised, make: Callable[[], BaseException]
) -> None:
    error, local = raised(make), make()
    assert type(error) is type(local)
    assert error.args == local.args
    assert str(error) == str(local)


def test_except_clauses_work_across_the_bus(bus: Bus) -> None:
    bus.register("as_int")(lambda text: int(text))
    bus.register("get_it")(lambda key: {"a": 1}[key])
    with serving(bus):
        with pytest.raises(LookupError) as missing:
            bus.get_it("b")
        assert missing.value.args == ("b",)
        with pytest.raises(ValueError, match="invalid literal for int"):
            bus.as_int("x")


def test_an_os_error_keeps_its_errno_and_file(raised: Raised) -> None:
    def open_nothing() -> BaseException:
        with pytest.raises(FileNotFoundError) as error:
            Path("/no/such/file").read_text(encoding="utf-8")
        return error.value

    error = raised(open_nothing)
    assert type(error) is FileNotFoundError
    assert error.errno == errno.ENOENT
    assert error.strerror == "No such file or directory"
    error = raised(lambda: OSError(errno.EACCES, "denied"))
    assert type(error) is PermissionError
    assert error.errno == errno.EACCES


def test_a_unicode_error_keeps_its_parts(raised: Raised) -> None:
    def decode() -> BaseException:
        with pytest.raises(UnicodeDecodeError) as error:
            b"ab\xff".decode("utf-8")
        return error.value

    error = raised(decode)
    assert type(error) is UnicodeDecodeError
    assert (error.object, error.start, error.end) == (b"ab\xff", 2, 3)
    assert str(error) == "'utf-8' codec can't decode byte 0xff in position 2: invalid start byte"


@pytest.mark.parametrize("allowed", [(), (Refused,)])
def test_an_exception_of_another_type_is_a_remote_error_that_says_all(
    bus: Bus, allowed: tuple[type[BaseException], ...]
) -> None:
    @bus.register()
    def refuse() -> None:
        raise LookupRefused("no", 5)

    class LookupRefused(Refused):
        pass

    with serving(bus), pytest.raises(RemoteError) as error:
        bus.refuse.options(allow=allowed)()  # the subclass is not the class that is allowed
    assert isinstance(error.value, BusError)
    assert error.value.type_name == f"{__name__}.{LookupRefused.__qualname__}"
    assert error.value.remote_args == ("no", 5)
    assert "LookupRefused" in str(error.value)
    assert "('no', 5)" in str(error.value)
    assert 'raise LookupRefused("no", 5)' in error.value.remote_traceback


def test_an_allowed_class_is_raised_as_itself(bus: Bus) -> None:
    @bus.register()
    def refuse() -> None:
        raise Refused("no", 5)

    with serving(bus):
        with pytest.raises(Refused) as error:
            bus.refuse.options(allow=(Refused, Silent))()
        assert error.value.args == ("no", 5)
        assert isinstance(error.value.__cause__, RemoteTraceback)
        with pytest.raises(RemoteError):
            bus.refuse()


def test_an_allowed_class_that_cannot_be_made_of_its_args_is_a_remote_error(bus: Bus) -> None:
    bus.register("fail")(failing(lambda: Picky(5, detail="x")))
    with serving(bus), pytest.raises(RemoteError) as error:
        bus.fail.options(allow=(Picky,))()
    assert error.value.remote_args == ("5: x",)


if sys.version_info >= (3, 11):

    def test_an_exception_group_arrives_with_what_is_in_it_as_text(raised: Raised) -> None:
        error = raised(
            lambda: builtins.ExceptionGroup("two", [ValueError("one"), Refused("other")])
        )
        assert "ValueError: one" in str(error.__cause__)
        assert "Refused: other" in str(error.__cause__)
        assert "two (2 sub-exceptions)" in str(error)


def test_the_cause_is_the_remote_traceback_with_the_whole_chain(bus: Bus) -> None:
    @bus.register()
    def fail() -> None:
        try:
            {}["nothing"]
        except KeyError as missing:
            try:
                raise ValueError("in the middle") from missing
            except ValueError:
                raise IndexError("at the end")  # noqa: B904 - the context is what is tested

    with serving(bus), pytest.raises(IndexError) as error:
        bus.fail()
    assert isinstance(error.value.__cause__, RemoteTraceback)
    text = error.value.__cause__.text
    parts = [
        *('{}["nothing"]', "KeyError: 'nothing'"),
        "The above exception was the direct cause of the following exception",
        *('raise ValueError("in the middle") from missing', "ValueError: in the middle"),
        "During handling of the above exception, another exception occurred",
        *('raise IndexError("at the end")', "IndexError: at the end"),
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places, text
    assert places == sorted(places)
    assert "redis_bus/" not in text  # the function's frames, not the worker's
    shown = "".join(traceback.format_exception(error.value))
    assert text in shown  # so Python shows it to whoever does not catch it
    assert 'raise ValueError("in the middle") from missing' in shown


def test_the_traceback_of_another_process_arrives(bus: Bus, processes: Processes) -> None:
    code = """
        import redis_bus
        bus = redis_bus.Bus("test")

        @bus.register()
        def fail():
            raise ValueError("over there")  # in the file of the service

        bus.serve()
    """
    path = processes.write("service.py", code)
    processes.start("python", "service.py")
    eventually(lambda: workers(bus, "fail"))
    with pytest.raises(ValueError, match="over there") as error:
        bus.fail()
    line = path.read_text(encoding="utf-8").split("raise")[0].count("\n") + 1
    assert f'"{path}", line {line}, in fail' in str(error.value.__cause__)
    assert 'raise ValueError("over there")  # in the file' in str(error.value.__cause__)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: ValueError("bad", object()), ValueError, "('bad', <object object at "),
        (lambda: KeyError(Refused), KeyError, "Refused"),
        (lambda: Refused("bad", object()), RemoteError, "('bad', <object object at "),
    ],
)
def test_args_that_cannot_be_encoded_arrive_as_text(
    raised: Raised, make: Callable[[], BaseException], kind: type[BaseException], text: str
) -> None:
    error = raised(make)
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize("stopping", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_function_that_ends_its_process_stops_neither_worker_nor_caller(
    bus: Bus, stopping: type[BaseException]
) -> None:
    bus.register("fail")(failing(lambda: stopping(3)))
    bus.register("well")(lambda: "well")
    with serving(bus):
        with pytest.raises(RemoteError) as error:
            bus.fail()
        assert error.value.type_name == f"builtins.{stopping.__name__}"
        assert error.value.remote_args == (3,)
        assert not isinstance(error.value, stopping)
        assert bus.well() == "well"


def test_sys_exit_in_a_real_worker_leaves_it_serving(bus: Bus, processes: Processes) -> None:
    code = """
        import os, sys, redis_bus
        bus = redis_bus.Bus("test")
        bus.register()(sys.exit)
        bus.register()(os.getpid)
        bus.serve()
    """
    worker = processes.python(code)
    eventually(lambda: workers(bus, "exit"))
    with pytest.raises(RemoteError, match="SystemExit"):
        bus["exit"](3)
    assert bus.getpid() == worker.pid


def test_an_exception_that_cannot_be_shown_arrives_all_the_same(bus: Bus) -> None:
    bus.register("fail")(failing(lambda: Silent("a", "b")))
    bus.register("well")(lambda: "well")
    with serving(bus):
        with pytest.raises(RemoteError) as error:
            bus.fail()
        assert error.value.type_name == f"{__name__}.Silent"
        assert "text cannot be shown" in str(error.value)
        with pytest.raises(Silent):
            bus.fail.options(allow=(Silent,))()
        assert bus.well() == "well"


def test_exceptions_are_not_cached(bus: Bus, client: redis.Redis) -> None:
    runs: list[int] = []

    @bus.register(cache_key="{a}")
    def fail_twice(a: int) -> int:
        runs.append(a)
        if len(runs) < 3:
            raise ValueError("not yet")
        return a

    with serving(bus):
        for _ in range(2):
            with pytest.raises(ValueError, match="not yet"):
                bus.fail_twice(1)
            assert not client.exists("rb:{test:}:cache:fail_twice:1")
        assert [bus.fail_twice(1), bus.fail_twice(1)] == [1, 1]
    assert len(runs) == 3


def test_a_remote_error_can_be_pickled(raised: Raised) -> None:
    error = raised(lambda: Refused("no", [1]))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is RemoteError
    for name in ("type_name", "remote_args", "remote_traceback", "args"):
        assert getattr(copy, name) == getattr(error, name)
    assert str(copy) == str(error)


def test_every_error_of_the_bus_is_a_bus_error() -> None:
    public = [getattr(redis_bus, name) for name in redis_bus.__all__]
    errors = [kind for kind in public if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {e.__name__ for e in errors if not issubclass(e, BusError)} == {"RemoteTraceback"}
    assert len(errors) >= 11
    for kind in (NoWorkers, QueueFull, WorkerLost, RemoteError):
        assert issubclass(kind, BusError)
    assert issubclass(redis_bus.CallTimeout, TimeoutError)
    assert issubclass(NoWorkers, redis_bus.CallTimeout)


def test_an_error_of_the_bus_raised_in_a_function_is_raised_as_itself(raised: Raised) -> None:
    assert type(raised(lambda: QueueFull("in there"))) is QueueFull
    error = raised(lambda: RemoteError("text", "their.Type", (1,), "trace"))
    assert type(error) is RemoteError
    assert "text" in str(error)


def outcome_bytes(name: str, args: list[Any]) -> bytes:
    """Return an error outcome that names a type, as anybody could write it to Redis."""
    from redis_bus.protocol import codec, outcome

    data = outcome.encode_error(ValueError(*args))
    packed = codec.get_serializer("msgpack")
    fields: Any = codec.decode(data[1:], packed)
    return data[:1] + codec.encode({**fields, "type": name}, packed)


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "builtins.eval", "builtins.exec", "builtins.print", "builtins.type"),
        *("subprocess.Popen", "antigravity.fly", "builtins.__import__", "builtins.object"),
        *("builtins.SystemExit", "builtins.KeyboardInterrupt", "builtins.BaseException"),
        *("redis_bus.errors.annotations", "redis_bus.errors.__loader__", "", ".", "os."),
        *("redis_bus.bus.Bus", "redis_bus.errors.RemoteTraceback", "builtins.ValueError.mro"),
    ],
)
def test_no_bytes_from_redis_import_or_call_anything(
    bus: Bus, client: redis.Redis, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bus.register("method")(lambda: None)
    result = bus.method.run()
    job = result.id.rpartition(":")[2]
    client.rpush(f"rb:{{test:}}:reply:{job}", outcome_bytes(name, ["echo $((6*7)) > /dev/stderr"]))
    before = set(sys.modules)
    with pytest.raises(RemoteError) as error:
        result.get()
    assert error.value.type_name == name
    assert set(sys.modules) == before
    captured = capfd.readouterr()
    assert "42" not in captured.out + captured.err


@pytest.mark.parametrize(
    "data",
    [b"", b"?", b"e", b"e\xc1", b"m\xc1", b"m", b"j{", b"emx", b"em\x80", b"em\x81\xa4type\xa1a"],
)
def test_an_outcome_that_is_not_ours_is_a_protocol_error(
    bus: Bus, client: redis.Redis, data: bytes
) -> None:
    bus.register("method")(lambda: None)
    result = bus.method.run()
    client.rpush(f"rb:{{test:}}:reply:{result.id.rpartition(':')[2]}", data)
    with pytest.raises(ProtocolError):
        result.get()


class Evil(Exception):
    """An exception that does harm when it is looked at."""

    def with_traceback(self, trace: object) -> Evil:
        raise BusError("not this one")


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize("kind", [Evil, Exits])
def test_an_exception_that_does_harm_is_an_outcome_and_its_function_runs_once(
    bus: Bus, kind: type[Exception]
) -> None:
    runs = []

    @bus.register()
    def fail() -> None:
        runs.append(1)
        raise kind

    bus.register("fine")(lambda: "fine")
    with serving(bus):
        with pytest.raises(BusError, match=r"cannot be shown"):
            bus.fail()
        assert bus.fine() == "fine"
    assert runs == [1]
