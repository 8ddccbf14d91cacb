"""Discovery: methods are found by name from anywhere, and look as if they were local."""

from __future__ import annotations

import inspect
import pydoc
import rlcompleter
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_bus import Bus, BusError, ConnectionLost
from tests.commands import sent
from tests.support import Processes, eventually, serving, workers

FAR = """
    import redis_bus

    bus = redis_bus.Bus("test", prefix="far_")

    @bus.register(cache_key=True)
    def add(a: int, b: int = 2, *rest: int, scale: float = 1.5) -> float:
        '''Return the sum.

        And the second paragraph.
        '''
        return (a + b + sum(rest)) * scale

    @bus.register()
    def whoami() -> str:
        return __name__

    bus.serve()
"""


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


def publish(bus: Bus) -> None:
    """Publish what is registered on a bus, as a worker that ends at once does."""
    bus.serve_once()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_dir_includes_every_remote_method_and_the_bus_itself(url: str, caller: Bus) -> None:
    for prefix in ("", "math_", "random_"):
        with Bus("test", url=url, prefix=prefix) as bus:
            bus.register("odd.name" if not prefix else None)(publish)
            bus.register()(closed_port)
            publish(bus)
    names = {
        *("odd.name", "closed_port", "math_publish", "math_closed_port"),
        *("random_publish", "random_closed_port"),
    }
    assert set(caller.all_methods()) == names
    assert caller.all_methods() == sorted(names)
    assert names < set(dir(caller))
    assert {"register", "serve", "cleanup", "stats", "all_methods"} < set(dir(caller))


def test_another_bus_sees_none_of_it(url: str, caller: Bus) -> None:
    with Bus("test2", url=url) as bus:
        bus.register()(closed_port)
        publish(bus)
    assert caller.all_methods() == []
    assert not hasattr(caller, "closed_port")


def test_methods_are_seen_where_their_code_is_not_importable(
    caller: Bus, processes: Processes
) -> None:
    processes.write("far_service.py", FAR)
    processes.start("python", "far_service.py")
    eventually(lambda: workers(caller, "far_whoami"))
    with pytest.raises(ImportError):
        __import__("far_service")
    assert {"far_add", "far_whoami"} <= set(dir(caller))
    assert caller.far_add(1) == 4.5
    assert caller.far_add(1, 2, 3, 4, scale=2) == 20
    assert caller.far_whoami() == "__main__"
    signature = inspect.signature(caller.far_add)
    assert str(signature) == "(a: int, b: int = 2, *rest: int, scale: float = 1.5) -> float"


def test_a_worker_that_starts_later_is_discovered_by_a_bus_that_is_open(
    caller: Bus, processes: Processes
) -> None:
    assert caller.all_methods() == []
    assert caller.get_method("far_add") is None
    with pytest.raises(AttributeError):
        _ = caller.far_add
    processes.write("far_service.py", FAR)
    processes.start("python", "far_service.py")
    eventually(lambda: "far_add" in dir(caller))
    assert caller.far_add(1, 1, scale=1) == 2


def test_completion_names_the_methods_of_others(bus: Bus, caller: Bus) -> None:
    bus.register("math_sum")(publish)
    bus.register("math_now")(closed_port)
    publish(bus)
    found = rlcompleter.Completer({"bus": caller}).attr_matches("bus.math_")
    assert {text.rstrip("()") for text in found} == {"bus.math_sum", "bus.math_now"}


def test_ipython_completes_names_and_shows_signature_and_doc(
    bus: Bus, processes: Processes, tmp_path: Path
) -> None:
    @bus.register("math_sum")
    def add(a: int, b: int = 2) -> int:
        """Return a + b, for the far away."""
        return a + b

    publish(bus)
    lines = """
        import redis_bus
        bus = redis_bus.Bus("test")
        from IPython.core.completer import provisionalcompleter
        with provisionalcompleter():
            print([c.text for c in get_ipython().Completer.completions("bus.math_", 9)])
        bus.math_sum?
    """
    script = processes.write("session.ipy", lines)
    command = [sys.executable, "-m", "IPython", "--colors=NoColor", str(script)]
    ran = processes.run(*command, env=processes.environment(IPYTHONDIR=str(tmp_path)))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "['math_sum']"
    assert "bus.math_sum(a: int, b: int = 2) -> int" in ran.stdout
    assert "Return a + b, for the far away." in ran.stdout


def test_get_method_returns_none_where_there_is_none(bus: Bus, caller: Bus) -> None:
    bus.register("math_sum")(publish)
    assert caller.get_method("math_sum") is None  # registering publishes nothing yet
    publish(bus)
    assert caller.get_method("math_sum") is not None
    assert "math_sum" in caller
    assert caller.get_method("math_su") is None
    assert "math_su" not in caller
    assert 1 not in caller


def test_get_method_forgets_what_is_gone(bus: Bus, caller: Bus) -> None:
    bus.register("math_sum")(publish)
    publish(bus)
    assert caller.math_sum is not None
    bus.cleanup()
    assert caller.get_method("math_sum") is None
    assert not hasattr(caller, "math_sum")


def test_a_name_that_does_not_exist_raises_with_the_closest_names(bus: Bus, caller: Bus) -> None:
    with pytest.raises(AttributeError, match=r"bus 'test' has no method 'math_sim', nor any"):
        _ = caller.math_sim
    for name in ("math_sum", "math_sub", "random_uuid"):
        bus.register(name)(publish)
    publish(bus)
    with pytest.raises(AttributeError, match="no method 'math_sim'") as missing_attribute:
        _ = caller.math_sim
    with pytest.raises(KeyError, match="no method 'math_sim'") as missing_key:
        caller["math_sim"]
    for error in (missing_attribute, missing_key):
        assert "did you mean" in str(error.value)
        assert "'math_sum'" in str(error.value)
        assert "'random_uuid'" not in str(error.value)
    with pytest.raises(AttributeError, match="it has 3 others"):
        _ = caller.zzzz
    assert not isinstance(missing_attribute.value, BusError)


@pytest.mark.parametrize("name", ["stats", "name", "register", "_worker", "timeout", "conn"])
def test_a_name_that_collides_with_an_attribute_is_reached_in_brackets(
    bus: Bus, caller: Bus, name: str
) -> None:
    @bus.register(name)
    def answer() -> str:
        return "the method"

    with serving(bus):
        assert bus[name]() == caller[name]() == "the method"
        assert caller.name == "test"
        assert caller.timeout == 20
        assert caller.stats()[name]["calls"] == 2
        assert callable(caller.register)


@pytest.mark.parametrize("name", ["a.b-c", "_", "x-1", "class", "A.B.C..", "f" * 200])
def test_names_that_are_no_identifiers_are_reached_in_brackets(
    bus: Bus, caller: Bus, name: str
) -> None:
    @bus.register(name)
    def answer(a: int) -> int:
        return a

    with serving(bus):
        assert caller[name](a=3) == 3
        assert caller[name].__name__ == name
        assert name in dir(caller)
        with pytest.raises(TypeError, match=f"^{name}\\(\\) missing 1 required pos.* 'a'$"):
            caller[name]()


def test_help_shows_the_callees_signature_and_docstring(bus: Bus, caller: Bus) -> None:
    @bus.register("math_sum")
    def add(a: int, b: int = 2, *, base: str = "x") -> int:
        """Return a + b.

        In full.
        """
        return a + b

    publish(bus)
    for far in (caller, bus):
        text = pydoc.render_doc(far.math_sum, renderer=pydoc.plaintext)
        assert "math_sum(a: int, b: int = 2, *, base: str = 'x') -> int" in text
        assert "Return a + b.\n" in text
        assert "    In full." in text
        assert "Raises what the function raised" not in text  # not the help of our own class


def test_the_signature_has_the_defaults_and_annotations_of_the_callee(
    bus: Bus, caller: Bus
) -> None:
    class Local:
        def __repr__(self) -> str:
            return "<local>"

    def function(
        a: int,
        /,
        b: list[int] | None = None,
        c: bytes = b"\0",
        d: float = 1e-9,
        *rest: str,
        e: tuple[int, ...] = (1, 2),
        f: Local = Local(),  # noqa: B008 - a default that only the callee has
        **more: object,
    ) -> Local:
        return f

    bus.register("function")(function)
    publish(bus)
    signature = inspect.signature(caller.function)
    assert str(signature) == (
        "(a: int, /, b: list[int] | None = None, c: bytes = b'\\x00', d: float = 1e-09, "
        "*rest: str, e: tuple[int, ...] = (1, 2), f: Local = <local>, **more: object) -> Local"
    )
    local = inspect.signature(function).parameters
    for name, parameter in signature.parameters.items():
        assert parameter.kind == local[name].kind
        if name != "f":
            assert parameter.default == local[name].default
            assert type(parameter.default) is type(local[name].default)
    assert signature.parameters["a"].annotation is int


def test_a_default_that_cannot_be_sent_is_applied_by_the_callee(bus: Bus, caller: Bus) -> None:
    default = object()

    @bus.register()
    def is_default(a: int, b: object = default) -> bool:
        return b is default

    with serving(bus):
        assert caller.is_default(1) is True
        assert caller.is_default(1, 2) is False


def test_a_method_has_the_name_doc_and_cache_key_of_its_callee(bus: Bus, caller: Bus) -> None:
    @bus.register("math_sum", cache_key="{a}/{b}")
    def add(a: int, b: int) -> int:
        """Return a + b."""
        return a + b

    bus.register("bare")(lambda: None)
    bus.register("whole", cache_key=True)(add)
    publish(bus)
    for far in (caller, bus):
        assert far.math_sum.__name__ == "math_sum"
        assert far.math_sum.__doc__ == "Return a + b."
        assert far.math_sum.cache_key == "{a}/{b}"
        assert far.bare.__doc__ is None
        assert far.bare.cache_key is None
        assert far.whole.cache_key is True
        assert repr(far.math_sum) == "<method math_sum(a: int, b: int) -> int of bus 'test'>"


def test_names_that_consoles_ask_for_send_nothing(caller: Bus, client: redis.Redis) -> None:
    caller.all_methods()  # connected by now
    names = (
        *("__wrapped__", "__iter__", "__len__", "__fspath__", "__array__", "__no_such__"),
        *("_repr_html_", "_repr_mimebundle_", "_repr_pretty_", "_ipython_display_"),
        *("_ipython_canary_method_should_not_exist_", "_ipython_key_completions_"),
    )
    with sent(client) as commands:
        assert [name for name in names if hasattr(caller, name)] == []
        repr(caller)
    assert commands == {}


BAD = ["", "a b", "a*", "a?", "[ab]", "{a}", "a:b", "a/b", "é", "a\n", "a\\", "\0", "a}b"]


@pytest.mark.parametrize("name", BAD)
def test_a_bus_name_of_other_characters_is_a_value_error_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="bus name"):
        Bus(name, url=f"redis://localhost:{closed_port()}")


@pytest.mark.parametrize("prefix", [*BAD[1:], "1a", ".a", "-a"])
def test_a_prefix_of_other_characters_is_a_value_error_at_once(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        Bus("test", prefix=prefix, url=f"redis://localhost:{closed_port()}")


@pytest.mark.parametrize("name", [*BAD, "1a", ".a", "-a"])
def test_a_method_name_of_other_characters_is_a_value_error_at_once(name: str) -> None:
    bus = Bus("test", url=f"redis://localhost:{closed_port()}")
    with pytest.raises(ValueError, match="method name"):
        bus.register(name)(publish)
    with pytest.raises(ValueError, match="method name"):
        bus.register_method(publish, name)


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "9", "-", ".", "_"])
def test_a_bus_name_of_the_allowed_characters_works(url: str, name: str) -> None:
    with Bus(name, url=url) as bus:
        bus.register("method")(closed_port)
        publish(bus)
        assert bus.all_methods() == ["method"]


def test_making_a_bus_and_registering_do_no_io() -> None:
    bus = Bus("test", url=f"redis://localhost:{closed_port()}", prefix="p_")

    @bus.register(cache_key="{a}")
    def double(a: int) -> int:
        """Return 2a."""
        return 2 * a

    method: Any = bus.register_method(closed_port, "other")
    assert double(2) == 4
    assert str(inspect.signature(bus.p_double)) == "(a: int) -> int"
    assert bus.p_double.__doc__ == "Return 2a."
    assert bus.p_double.cache_key == "{a}"
    assert bus.other is method
    assert "p_double" in dir(bus)  # completion does not fail for want of a Redis


def test_a_redis_that_is_not_there_is_a_connection_lost_that_names_the_address() -> None:
    port = closed_port()
    bus = Bus("test", url=f"redis://user:secret@localhost:{port}")
    bus.register("method")(closed_port)
    for use in (bus.method, bus.all_methods, bus.stats, bus.cleanup, bus.serve, bus.serve_once):
        with pytest.raises(ConnectionLost, match=f"localhost:{port}") as lost:
            use()
        assert isinstance(lost.value, (BusError, ConnectionError))
        assert "secret" not in str(lost.value)
    assert "secret" not in repr(bus)
