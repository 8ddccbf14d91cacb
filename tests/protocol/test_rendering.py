"""What is published is a function of the code: no hash order and no address gets into it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import textwrap
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import redis_bus
from redis_bus import Bus
from redis_bus.protocol.registration import Registration, Settings
from redis_bus.protocol.rendering import annotation_text, int_text, value_text
from redis_bus.protocol.signature import describe, restore
from tests.support import Processes, eventually, serving

HASH_SEEDS = range(8)
PRELUDE = """
    import collections, dataclasses, decimal, enum, functools, re, typing
    from typing import Annotated, Any, Literal, Optional, Union

    class V: pass
    class Shown:
        def __repr__(self): return f"Shown({set('abcdefgh')}, {id(self)})"
    class Colour(enum.Enum): RED = {1, 2, 3}; BLUE = object()
    class Access(enum.Flag): READ = 1; WRITE = 2; RUN = 4
    class Point(typing.NamedTuple):
        x: object
        y: object = None
    @dataclasses.dataclass
    class Box:
        inside: object
        def __repr__(self): return "a box"
"""
LEAVES = st.sampled_from(
    (
        *("1", "'x'", "2.5", "None", "True", "b'y'", "10 ** 5000", "...", "range(3)", "1j"),
        *(
            "object()",
            "V()",
            "Shown()",
            "V",
            "lambda: 1",
            "print",
            "len",
            "V().__init__",
            "str.join",
        ),
        *("Colour.RED", "Colour.BLUE", "Access.READ | Access.RUN", "Access(0)", "collections"),
        *("functools.partial(print, V(), end={'a', 'b', 'c'})", "re.compile('a', re.I)"),
        *("decimal.Decimal('1.10')", "typing.Optional[V]", "Annotated[int, V()]"),
    )
)
HASHABLE = st.sampled_from(
    (
        "1",
        "'x'",
        "'y'",
        "'zz'",
        "b'y'",
        "V",
        "print",
        "Colour.RED",
        "Access.READ",
        "(1, 'a')",
        "3.5",
    )
)


def _nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, max_size=3).map(lambda items: "".join(f"{one}, " for one in items))
    elements = st.lists(HASHABLE, min_size=2, max_size=5).map(", ".join)
    return st.one_of(
        several.map(lambda items: f"[{items}]"),
        several.map(lambda items: f"({items})"),
        inner.map(lambda one: f"{{'k': {one}, 1: 2}}"),
        inner.map(lambda one: f"Point({one})"),
        inner.map(lambda one: f"Box({one})"),
        inner.map(lambda one: f"collections.deque([{one}])"),
        elements.map(lambda items: f"{{{items}}}"),
        elements.map(lambda items: f"frozenset([{items}])"),
        elements.map(lambda items: f"{{frozenset({{{items}}}): 1}}"),
    )


DEFAULTS = st.recursive(LEAVES | HASHABLE, _nested, max_leaves=5)
ANNOTATIONS = st.one_of(
    st.sampled_from(
        (
            "int",
            "V",
            "Optional[int]",
            "Union[int, V]",
            "int | None",
            "list[V]",
            "Literal[Colour.RED]",
        )
    ),
    DEFAULTS.map(lambda value: f"Annotated[int, {value}]"),
    DEFAULTS.map(lambda value: f"dict[str, Annotated[V, {value}]]"),
)


def published_in(processes: list[subprocess.Popen[str]]) -> set[str]:
    published = set()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        published.add(out)
    return published


def start(folder: Path, seed: int) -> subprocess.Popen[str]:
    """Start a process that prints what it would publish, its hash seed being this one."""
    code = "import module, redis_bus; print([m.published() for m in module.registrations])"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path(redis_bus.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@settings(max_examples=4, deadline=None)
@given(st.lists(st.tuples(DEFAULTS, ANNOTATIONS), min_size=20, max_size=40))
def test_processes_of_every_hash_seed_publish_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, parameters: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("published")
    code = textwrap.dedent(PRELUDE)
    code += "import redis_bus\nbus = redis_bus.Bus('seeds')\nregistrations = []\n"
    for number, (default, annotation) in enumerate(parameters):
        code += f"def f{number}(a: {annotation} = {default}) -> {annotation}: ...\n"
        code += f"bus.register_method(f{number}, cache_key=False)\n"
    code += textwrap.dedent("""
        class Bytes:
            def __init__(self, registration): self.of = registration
            def published(self):
                tree = self.of.descriptor
                return tree.etag, tree.shape, tree.signature, tree.doc
        registrations = [Bytes(one) for one in bus._core.registrations.values()]
    """)
    (folder / "module.py").write_text(code, encoding="utf-8")
    assert len(published_in([start(folder, seed) for seed in HASH_SEEDS])) == 1


def test_a_service_that_is_started_again_keeps_what_was_cached(processes: Processes) -> None:
    processes.write(
        "kept.py",
        """
        import redis_bus

        class Missing:
            pass

        bus = redis_bus.Bus("kept")

        @bus.register(cache_key="{a}")
        def answer(a, b=Missing(), c=frozenset("abcdefgh"), d={"x": {"y", "z", "w"}}):
            return redis_bus.headers() or id(object())
        """,
    )
    with Bus("kept", url=processes.url, timeout=20) as bus:
        for seed in (1, 2, 3):
            worker = processes.start(
                "redis-bus", "kept.bus", env=processes.environment(PYTHONHASHSEED=str(seed))
            )
            if seed == 1:
                eventually(lambda: bus.get_method("answer"))
                first = bus.answer(1)
            eventually(lambda: bus.stats()["answer"]["workers"])
            assert bus.answer(1) == first
            worker.terminate()
            worker.communicate()
            eventually(lambda: not bus.stats()["answer"]["workers"])


def test_workers_of_one_service_do_not_say_that_it_was_published_differently(
    processes: Processes,
) -> None:
    processes.write(
        "flapping.py",
        """
        import enum, redis_bus

        class Colour(enum.Enum):
            RED = object()

        bus = redis_bus.Bus("flapping")

        @bus.register(cache_key="{a}")
        def answer(a, b=object(), c=lambda: 1, d={Colour.RED, "x", "y"}):
            return a
        """,
    )
    supervisor = processes.start("redis-bus", "-w", "3", "--max-jobs", "2", "flapping.bus")
    with Bus("flapping", url=processes.url, timeout=20) as bus:
        eventually(lambda: bus.get_method("answer"))
        assert [bus.answer(n) for n in range(12)] == list(range(12))
    supervisor.terminate()
    _, log = supervisor.communicate(timeout=60)
    assert "differently" not in log


def test_one_code_publishes_one_description_of_a_union_however_it_is_written() -> None:
    import typing

    assert annotation_text(typing.Optional[int]) == annotation_text(int | None) == "int | None"  # noqa: UP045
    assert annotation_text(list[typing.Union[int, str]]) == "list[int | str]"  # noqa: UP007


def test_what_is_known_of_a_default_is_shown() -> None:
    assert value_text({3, 1, 2}) == "{1, 2, 3}"
    assert value_text(frozenset({"b", "a"})) == "frozenset({'a', 'b'})"
    assert value_text(object()) == "<object>"
    assert value_text(test_what_is_known_of_a_default_is_shown) == (
        f"<function {__name__}.test_what_is_known_of_a_default_is_shown>"
    )


def test_a_default_that_is_too_large_an_int_for_python_to_write_is_shown_and_bound() -> None:
    large = 10**5000

    def function(a: object = large, b: object = (1, [large])) -> None: ...

    signature = restore(json.loads(json.dumps(describe(function))))
    assert str(signature) == f"(a: object = {large:#x}, b: object = (1, [{large:#x}])) -> None"
    registration = Registration(function, None, "", settings_with_key())
    from redis_bus.protocol.target import Target

    target = Target(
        "bus", registration.descriptor, redis_bus.protocol.codec.get_serializer("msgpack"), None
    )
    assert target.bind() == (large, (1, [large]))


def settings_with_key() -> Settings:
    return Settings(
        cache_key=True,
        cache_expire=1,
        stale=0,
        idempotent=None,
        max_queue=None,
        timeout=None,
        durable=0,
        open_timeout=True,
        result_expire=1,
        serializer="msgpack",
    )


@given(st.integers(min_value=-(2**20000), max_value=2**20000))
def test_an_int_of_any_size_has_a_text_that_reads_back(value: int) -> None:
    assert int(int_text(value), 0) == value


def test_a_sentinel_is_shown_by_its_own_constant_name_and_not_by_its_address() -> None:
    class Sentinel:
        def __repr__(self) -> str:
            return "MISSING"

    class Changing:
        def __repr__(self) -> str:
            return f"Changing({id(self)})"

    assert value_text(Sentinel()) == "MISSING"
    assert value_text(Changing()).endswith("Changing>")


def test_everyday_values_of_the_standard_library_are_shown_as_they_are_written() -> None:
    values = [Path("/a"), Fraction(1, 2), IPv4Address("127.0.0.1"), re.compile("a", re.I)]
    assert [value_text(value) for value in values] == [
        "PosixPath('/a')",
        "Fraction(1, 2)",
        "IPv4Address('127.0.0.1')",
        "re.compile('a', 2)",
    ]


def test_an_int_of_any_size_can_be_given_and_shown_on_the_command_line(
    processes: Processes,
) -> None:
    large = 10**5000
    with Bus("large", url=processes.url, timeout=20) as bus:
        bus.register("echo")(lambda value, more=large: value)
        bus.register("keyed", "{key!s}")(lambda key: key)
        with serving(bus):
            digits = "1" + 5000 * "0"
            called = processes.run("redis-bus", "call", "large", "echo", digits)
            assert (called.stderr, called.stdout) == ("", f"{large:#x}\n")
            assert bus.keyed(large) == bus.keyed(large) == large
            assert bus.keyed.clear_cache(large)
            listed = processes.run("redis-bus", "ls", "large", "echo")
            assert f"(value, more={large:#x})" in listed.stdout


def test_what_a_class_keeps_out_of_its_repr_is_not_published() -> None:
    @dataclasses.dataclass
    class Login:
        user: str
        password: str = dataclasses.field(repr=False)

    @dataclasses.dataclass
    class Masked:
        password: str

        def __repr__(self) -> str:
            return f"Masked({'*' * len(self.password)})"

    @dataclasses.dataclass(repr=False)
    class Silent:
        password: str

    class Pair(NamedTuple):
        user: str
        password: str

        def __repr__(self) -> str:
            return f"Pair({self.user})"

    secrets = [Login("a", "hunter2"), Masked("hunter2"), Silent("hunter2"), Pair("a", "hunter2")]
    texts = [value_text(secret) for secret in secrets]
    assert texts[0].endswith("Login(user='a')")
    assert not [text for text in texts if "hunter2" in text]


def test_a_value_that_is_within_itself_or_has_very_many_parts_has_a_short_text() -> None:
    twice: list[object] = []
    twice += [twice, twice]
    assert value_text(twice) == "[..., ...]"
    wide: object = []
    for _ in range(40):
        wide = [wide, wide]
    assert value_text(wide) == "<list>"
    assert value_text({"a": twice, "b": {1: twice}}) == "{'a': [..., ...], 'b': {1: [..., ...]}}"


def test_a_repr_counts_as_constant_only_where_it_does_nothing_else() -> None:
    class Ordered:
        def __repr__(self) -> str:
            return f"{ {'a', 'b', 'c'} }"

    class Nested:
        def __repr__(self) -> str:
            return f"{(lambda: 1)}"

    assert value_text(Ordered()).endswith("Ordered>")
    assert value_text(Nested()).endswith("Nested>")
