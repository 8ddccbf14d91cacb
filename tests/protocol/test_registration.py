"""Registering: any callable, by hand or by path; what is published holds for every caller."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_bus import AsyncBus, Bus, BusError, CallTimeout, Method, NoWorkers, QueueFull
from tests.support import Processes, eventually, serving, workers


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture
def other(url: str) -> Iterator[Bus]:
    """A third bus of the same name, for a second service."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that can be imported and leaves a file ``imported`` when it is."""
    name = f"on_path_{uuid.uuid4().hex}"
    text = f"""
import pathlib
pathlib.Path({str(tmp_path / "imported")!r}).touch()
answer = 42
def double(a: int) -> int:
    "Return 2a."
    return 2 * a
class Group:
    @staticmethod
    def triple(a):
        return 3 * a
"""
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def double(a: int) -> int:
    """Return 2a."""
    return 2 * a


# -- names and functions ------------------------------------------------------------------------


def test_the_function_is_returned_unchanged(bus: Bus) -> None:
    for decorate in (bus.register(), bus.register("x", cache_key="{a}"), bus.register("y")):
        assert decorate(double) is double
    assert double(2) == 4


def test_register_method_returns_the_method(bus: Bus) -> None:
    method = bus.register_method(double)
    assert isinstance(method, Method)
    with serving(bus):
        assert method(4) == 8
        assert bus.double is method


def test_the_prefix_goes_before_the_functions_name_and_not_before_a_given_one(url: str) -> None:
    bus = Bus("test", url=url, prefix="math_")
    bus.register()(double)
    bus.register("twice")(double)
    bus.register_method("os.path.join")
    bus.register_method("os.path.join", "join")
    assert bus.all_methods() == ["join", "math_double", "math_join", "twice"]
    with serving(bus):
        assert bus.math_double(1) == bus.twice(1) == 2
        assert bus.join("a", "b") == bus.math_join("a", "b") == "a/b"


def test_a_dotted_path_is_imported_when_it_is_served(
    bus: Bus, caller: Bus, module: str, tmp_path: Path
) -> None:
    bus.register_method(f"{module}.double", cache_key="{a}")
    bus.register_method(f"{module}:Group.triple")
    assert bus.all_methods() == ["double", "triple"]
    assert not (tmp_path / "imported").exists()
    with serving(bus):
        assert (tmp_path / "imported").exists()
        assert caller.double(4) == 8
        assert caller.triple(4) == 12
        assert caller.double.__doc__ == "Return 2a."


def test_a_dotted_path_is_imported_at_the_first_use(bus: Bus, module: str, tmp_path: Path) -> None:
    method = bus.register_method(f"{module}.double")
    other = bus.double
    assert not (tmp_path / "imported").exists()
    other.run(3)
    assert (tmp_path / "imported").exists()
    assert other is method
    assert other.__doc__ == "Return 2a."
    assert bus.serve_once() == 1


def test_a_caller_never_imports_what_is_registered_elsewhere(
    bus: Bus, processes: Processes, module: str, tmp_path: Path
) -> None:
    bus.register_method(f"{module}.double")
    with serving(bus):
        (tmp_path / "imported").unlink()
        code = """
            import redis_bus, sys
            print(redis_bus.Bus("test").double(4), any("on_path" in name for name in sys.modules))
        """
        out, err = processes.python(code).communicate(timeout=30)
    assert (out, err) == ("8 False\n", "")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module.function", "No module named 'no_such_module'"),
        ("os.path.no_such_function", "no 'no_such_function'"),
        ("os:path.no_such_function", "no 'no_such_function'"),
        ("os.no_such_module.function", "No module named 'os.no_such_module'"),
        ("os.sep", "not a function, but str"),
        ("nothing", "not module.attr"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error_that_names_it(
    bus: Bus, path: str, reason: str
) -> None:
    bus.register_method(path, "method")
    for use in (bus.method, bus.serve_once, bus.serve):
        with pytest.raises(BusError, match=reason) as error:
            use()
        assert repr(path) in str(error.value)


@pytest.mark.parametrize(
    "function",
    [lambda a: a, functools.partial(double, a=1), type("Callable", (), {"__call__": double})()],
    ids=["lambda", "partial", "object"],
)
def test_a_callable_without_a_name_needs_one_given(
    bus: Bus, function: Callable[..., object]
) -> None:
    with pytest.raises(ValueError, match="name="):
        bus.register()(function)
    with pytest.raises(ValueError, match="name="):
        bus.register_method(function)
    assert bus.all_methods() == []


def test_nameless_callables_work_under_a_given_name(bus: Bus) -> None:
    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        def __call__(self, a: int) -> int:
            return self.base + a

    bus.register("by_lambda")(lambda a, b=2: [a, b])
    bus.register("by_partial")(functools.partial(divmod_, b=3))
    bus.register("by_object")(Adder(10))
    with serving(bus):
        assert bus.by_lambda(1) == [1, 2]
        assert bus.by_partial(7) == (2, 1)
        assert bus.by_partial(7, b=2) == (3, 1)
        assert bus.by_object(5) == 15


def divmod_(a: int, b: int) -> tuple[int, int]:
    return divmod(a, b)


def test_bound_methods_static_methods_and_class_methods_work(bus: Bus) -> None:
    class Calculator:
        base = 1

        def __init__(self) -> None:
            self.base = 100

        def add(self, a: int) -> int:
            """Return base + a."""
            return self.base + a

        @staticmethod
        def square(a: int) -> int:
            return a * a

        @classmethod
        def class_add(cls, a: int) -> int:
            return cls.base + a

    for function in (Calculator().add, Calculator.square, Calculator.class_add):
        bus.register()(function)
    with serving(bus):
        assert bus.add(1) == 101
        assert bus.square(5) == 25
        assert bus.class_add(1) == 2
        assert bus.add.__doc__ == "Return base + a."


def test_async_functions_can_be_registered(bus: Bus) -> None:
    loops = []

    @bus.register()
    async def double_later(a: int) -> int:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return 2 * a

    @bus.register()
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    with serving(bus):
        assert bus.double_later(2) == 4
        with pytest.raises(ValueError, match="later"):
            bus.fails()
        assert bus.double_later(3) == 6
    assert loops[0] is loops[1]  # so that what a function keeps on its loop stays usable
    assert loops[0].is_closed()


def test_a_script_that_ends_in_serve_is_a_service(caller: Bus, processes: Processes) -> None:
    code = """
        import redis_bus

        bus = redis_bus.Bus("test")
        calls = 0

        @bus.register()
        def count(step: int = 1) -> int:
            "Return how often this was called."
            global calls
            calls += step
            return calls

        class Group:
            @bus.register()
            @staticmethod
            def name():
                return __name__

        bus.serve()
    """
    processes.write("service.py", code)
    processes.start("python", "service.py")
    eventually(lambda: workers(caller, "count"))
    assert [caller.count(), caller.count(step=3)] == [1, 4]
    assert caller["name"]() == "__main__"
    assert caller.count.__doc__ == "Return how often this was called."


def test_a_worker_runs_only_what_its_own_process_registered(
    bus: Bus, other: Bus, client: redis.Redis
) -> None:
    """What stands in Redis names functions, but never makes a worker run one."""
    ran: list[str] = []
    bus.register("mine")(lambda: ran.append("mine"))
    other.register("theirs")(lambda: ran.append("theirs"))
    other.register("os.abort")(lambda: ran.append("os.abort"))
    waiting = [other.theirs.run(), other["os.abort"].run()]
    with serving(bus):
        assert bus.mine() is None
        with pytest.raises(NoWorkers):
            bus["theirs"].options(timeout=0.2)()
        bus.mine()
    assert ran == ["mine", "mine"]
    assert client.llen("rb:{test:}:queue:os.abort") == 1
    assert other.serve_once() >= 2
    assert [result.get() for result in waiting] == [None, None]


# -- what cannot be registered ------------------------------------------------------------------


def test_register_without_parentheses_is_a_clear_error(bus: Bus) -> None:
    with pytest.raises(TypeError, match=r"@bus\.register\(\) with its parentheses"):
        bus.register(double)  # type: ignore[arg-type]
    assert bus.all_methods() == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cache_key": "{a}", "cache_expire": -1}, "cache_expire=-1"),
        ({"cache_key": "{a}", "cache_expire": float("nan")}, "cache_expire=nan"),
        ({"cache_key": "{a}", "stale": -0.5}, "stale=-0.5"),
        ({"timeout": -1}, "timeout=-1"),
        ({"max_queue": -1}, "max_queue=-1"),
        ({"stale": 1}, "stale= needs a cache_key"),
        ({"cache_key": 5}, "cache_key=5"),
        ({"cache_key": "{b}"}, "'b'"),
        ({"cache_key": "{a.b}"}, "{a.b}"),
        ({"cache_key": "{a[0]}"}, "{a[0]}"),
        ({"cache_key": "{a.__class__!r}"}, "{a.__class__!r}"),
        ({"cache_key": "{a"}, "{a"),
        ({"cache_key": "{}"}, "{}"),
        ({"cache_key": "{0}"}, "{0}"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_a_value_error_that_names_them(
    bus: Bus, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError) as error:
        bus.register(**settings)(double)
    assert named in str(error.value)
    with pytest.raises(ValueError):
        bus.register_method(double, **settings)
    assert bus.all_methods() == []


def test_a_builtin_without_a_signature_is_a_value_error(bus: Bus) -> None:
    with pytest.raises(ValueError, match="signature"):
        bus.register_method(max)


# -- what is published holds --------------------------------------------------------------------


def test_the_published_timeout_holds_for_a_caller_whose_bus_says_otherwise(
    bus: Bus, url: str
) -> None:
    bus.register("short", timeout=0.2)(double)
    bus.register("of_the_bus")(double)
    bus.get_method("short")
    with Bus("test", url=url, timeout=0.2) as service, Bus("test", url=url, timeout=99) as caller:
        service.register("of_the_service")(double)
        service.get_method("of_the_service")
        for name in ("short", "of_the_service"):
            with pytest.raises(CallTimeout, match=r"no reply in 0\.2 s"):
                caller[name](1)


def test_a_callers_timeout_counts_where_the_registration_left_it_open(url: str) -> None:
    with Bus("test", url=url) as service, Bus("test", url=url, timeout=0.2) as caller:
        service.register()(double)
        service.get_method("double")
        with pytest.raises(CallTimeout, match=r"no reply in 0\.2 s"):
            caller.double(1)


@pytest.mark.parametrize("where", ["bus", "method"])
def test_the_published_cache_expire_holds_for_a_caller_whose_bus_says_otherwise(
    url: str, client: redis.Redis, where: str
) -> None:
    of_bus = {"cache_expire": 500} if where == "bus" else {}
    of_method: dict[str, Any] = {"cache_expire": 500} if where == "method" else {}
    with Bus("test", url=url, **of_bus) as service, Bus("test", url=url, cache_expire=1) as caller:
        service.register(cache_key="{a}", **of_method)(double)
        with serving(service):
            caller.double(1)
    assert 490_000 < client.pttl("rb:{test:}:cache:double:1") <= 500_000


def test_the_published_limit_of_a_queue_holds_for_every_caller(bus: Bus, caller: Bus) -> None:
    bus.register(max_queue=1)(double)
    bus.get_method("double")
    caller.double.run(1)
    with pytest.raises(QueueFull):
        caller.double.run(2)


def test_a_new_signature_is_picked_up_by_running_callers_on_their_next_call(
    bus: Bus, caller: Bus, other: Bus
) -> None:
    bus.register("method")(lambda a, b=1: ["old", a, b])
    method = caller.get_method
    with serving(bus):
        held = caller.method
        assert held(1) == ["old", 1, 1]
    other.register("method")(lambda a, b=2: ["new", a, b])
    with serving(other):
        assert held(1) == ["new", 1, 2]
        assert method("method") is held
    assert str(held.__signature__) == "(a, b=2)"


def test_a_call_that_fits_only_the_new_signature_is_picked_up_too(
    bus: Bus, caller: Bus, other: Bus
) -> None:
    bus.register("method")(lambda a: a)
    with serving(bus):
        held = caller.method
        assert held(1) == 1
    other.register("method")(lambda a, b, *, c: [a, b, c])
    with serving(other):
        assert held(1, 2, c=3) == [1, 2, 3]
        with pytest.raises(TypeError, match=r"^method\(\) missing 1 required positional"):
            held(1)


def test_a_new_cache_key_is_picked_up_by_running_callers_on_their_next_call(
    bus: Bus, caller: Bus, other: Bus, client: redis.Redis
) -> None:
    bus.register("method", cache_key="{a}")(divmod_)
    with serving(bus):
        held = caller.method
        assert held(7, 2) == (3, 1)
        assert held(7, 3) == (3, 1)  # the first value: the key says so
    other.register("method", cache_key="{a}/{b}")(divmod_)
    with serving(other):
        assert held(7, 3) == (2, 1)
        assert held(7, 2) == (3, 1)
    assert client.exists("rb:{test:}:cache:method:7/3", "rb:{test:}:cache:method:7/2") == 2
    assert held.cache_key == "{a}/{b}"
    # The way back: values cached under the first registration have another meaning by now.
    bus.register("method", cache_key="{a}")(lambda a, b: "again")
    with serving(bus):
        assert held(7, 3) == "again"


def test_a_running_caller_follows_a_method_that_moves_to_another_service(
    bus: Bus, caller: Bus, url: str
) -> None:
    bus.register("method")(lambda: "here")
    with serving(bus):
        held = caller.method
        assert held() == "here"
    with Bus("test", url=url, prefix="elsewhere_") as elsewhere:
        elsewhere.register("method")(lambda: "there")
        with serving(elsewhere):
            assert held() == "there"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_of_two_services_that_publish_one_name_the_last_wins_and_both_warn(
    bus: Bus, caller: Bus, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def first() -> str:
        return "first"

    def second(a: int = 1) -> str:
        return "second"

    bus.register("method")(first)
    with serving(bus), Bus("test", url=url, prefix="other_") as other:
        assert caller.method() == "first"
        other.register("method")(second)
        with serving(other):
            eventually(lambda: caller.method() == "second")  # it is published by then
            assert {caller.method() for _ in range(20)} == {"second"}
            mine = eventually(
                lambda: [t for t in warnings_of(caplog) if "callers follow that one" in t]
            )
            assert len(mine) == 1
            assert "method method is published differently by" in mine[0]
            assert "second in process" in mine[0]
    theirs = [t for t in warnings_of(caplog) if "replaces it" in t]
    assert len(theirs) == 1
    assert "first in process" in theirs[0]
    assert "second in process" in theirs[0]


def test_where_both_have_one_prefix_each_call_is_answered_or_names_the_mismatch(
    bus: Bus, caller: Bus, other: Bus
) -> None:
    bus.register("method")(lambda: "first")
    other.register("method")(lambda a=1: "second")
    answers = set()
    with serving(bus), serving(other):
        eventually(lambda: (m := caller.get_method("method")) and "a=1" in repr(m))
        while answers != {"second", "mismatch"}:
            try:
                answers.add(caller.method(2))
            except BusError as error:
                assert "another registration of method" in str(error)
                assert repr(bus) not in str(error)
                answers.add("mismatch")


def test_publishing_the_same_again_warns_nobody(
    bus: Bus, other: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    for service in (bus, other):
        service.register(cache_key="{a}")(double)
    with serving(bus), serving(other):
        assert bus.double(1) == 2
    assert warnings_of(caplog) == []


def test_a_worker_publishes_again_after_a_cleanup(bus: Bus, caller: Bus) -> None:
    bus.register(cache_key="{a}")(double)
    with serving(bus):
        assert caller.double(1) == 2
        caller.cleanup()
        assert caller.all_methods() == []
        eventually(lambda: "double" in caller.all_methods())
        eventually(lambda: workers(caller, "double") == 1)
        assert caller.double(1) == 2


def test_a_call_through_the_registering_bus_publishes_again_after_a_cleanup(
    bus: Bus, caller: Bus
) -> None:
    done = threading.Event()
    bus.register("method")(done.set)
    bus.method.run()
    caller.cleanup()
    bus.method.run()
    assert bus.serve_once() == 1
    assert done.is_set()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"timeout": "5"}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"cache_expire": -5}, ValueError),
        ({"cache_expire": True}, TypeError),
        ({"result_expire": None}, ValueError),
        ({"result_expire": 0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": float("inf")}, ValueError),
    ],
)
def test_a_bus_refuses_settings_that_cannot_be_and_names_them(
    url: str, settings: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=f"^{next(iter(settings))}="):
        Bus("test", url=url, **settings)


@pytest.mark.parametrize("argument", ["name", "prefix", "url"])
@pytest.mark.parametrize("kind", [Bus, AsyncBus])
def test_a_text_of_another_type_is_named(kind: type, argument: str) -> None:
    for wrong in (5, b"shop"):
        with pytest.raises(
            TypeError, match=rf"^{argument}={wrong!r}: a str, not {type(wrong).__name__}$"
        ):
            kind(**{argument: wrong})


@pytest.mark.parametrize("timeout", ["x", -1, float("nan")])
def test_options_refuse_a_timeout_that_cannot_be(bus: Bus, timeout: Any) -> None:
    bus.register("method")(double)
    with pytest.raises((TypeError, ValueError), match=r"^timeout="):
        bus.method.options(timeout=timeout)


def test_a_call_whose_time_is_up_says_whose_time_that_was(bus: Bus) -> None:
    bus.register("method")(double)
    with pytest.raises(CallTimeout, match=r"^method\(1\): not sent, no time is left \(timeout 0 s"):
        bus.method.options(timeout=0)(1)


@pytest.mark.parametrize("kind", [Bus, AsyncBus])
def test_register_and_register_method_take_the_same_settings_on_either_bus(kind: type) -> None:
    by_hand = inspect.signature(Bus.register_method).parameters.values()
    decorating = inspect.signature(kind.register).parameters.values()
    assert list(inspect.signature(kind.register_method).parameters.values()) == list(by_hand)
    assert list(decorating) == [one for one in by_hand if one.name != "function"]
    assert "cache_expire: 'float | None' = <bus>" in str(inspect.signature(kind.register))
