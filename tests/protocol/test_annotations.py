"""Functions whose annotations name what only type checkers import are served as all others.

Each test runs a module on this Python as it is: on 3.14 and newer without the import from
``__future__`` that older ones need for such annotations.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest

from redis_bus import Bus
from redis_bus.protocol.signature import describe, restore
from redis_bus.testing import check_cache_key
from tests.support import Processes, eventually, serving, workers

HAS_LAZY = sys.version_info >= (3, 14)
HEADS = [
    pytest.param("from __future__ import annotations\n", id="future"),
    *([pytest.param("", id="lazy")] if HAS_LAZY else []),
]
MODULE = """
import functools
from typing import TYPE_CHECKING

import redis_bus

if TYPE_CHECKING:
    from nowhere import Thing

bus = redis_bus.Bus("test", prefix="far_")


@bus.register(cache_key="{a}")
def function(a: int, b: Thing | None = None, *c: list[Thing], d: "str" = "d") -> dict[str, Thing]:
    return {"a": a}


class Holder:
    def __init__(self, a: Thing = None) -> None:
        pass

    def method(self, a: Thing) -> Thing:
        return a

    async def __call__(self, a: Thing) -> Thing:
        return a


@functools.wraps(function)
def wrapper(*args, **kwargs):
    return function(*args, **kwargs)


@bus.register()
async def later(a: module.Thing) -> module.Thing:
    return a
"""
SHOWN = "(a: int, b: Thing | None = None, *c: list[Thing], d: str = 'd') -> dict[str, Thing]"
NUMBERS = itertools.count()


def load(folder: Path, text: str) -> ModuleType:
    name = f"annotated_{next(NUMBERS)}"
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_annotations_that_cannot_be_evaluated_are_shown_as_they_are_written(
    tmp_path: Path, head: str
) -> None:
    module = load(tmp_path, head + MODULE)
    found = {
        "function": module.function,
        "wrapper": module.wrapper,
        "class": module.Holder,
        "method": module.Holder().method,
        "object": module.Holder(),
        "partial": module.functools.partial(module.function, 1),
        "later": module.later,
    }
    shown = {name: str(restore(describe(function))) for name, function in found.items()}
    assert shown["function"].replace("'str'", "str") == SHOWN
    assert shown["wrapper"] == shown["function"]
    assert shown["class"].removesuffix(" -> None") == "(a: Thing = None)"
    assert shown["method"] == shown["object"] == "(a: Thing) -> Thing"
    assert shown["partial"].startswith("(b: Thing | None = None, *c: list[Thing]")
    assert shown["later"] == "(a: module.Thing) -> module.Thing"


def test_what_is_published_is_the_same_however_often_a_module_is_loaded(
    tmp_path: Path, head: str
) -> None:
    first, second = (load(tmp_path, head + MODULE) for _ in range(2))
    assert describe(first.function) == describe(second.function)
    module = load(tmp_path, head + MODULE)
    before = describe(module.function)
    with pytest.raises(Exception, match="Thing"):
        inspect.signature(module.function, eval_str=True)
    assert describe(module.function) == before


def test_annotations_that_can_be_evaluated_are_those_of_inspect(tmp_path: Path) -> None:
    module = load(
        tmp_path,
        "import collections.abc as abc, typing\n"
        "def function(a: abc.Sequence[int], b: typing.Optional[int] = None) -> int: ...\n",
    )
    # Unions are written one way on every Python.
    text = str(inspect.signature(module.function)).replace("Optional[int]", "int | None")
    assert str(restore(describe(module.function))) == text
    assert "collections.abc.Sequence[int]" in text


def test_a_function_with_annotations_for_type_checkers_is_served_and_called(
    processes: Processes, bus: Bus, head: str
) -> None:
    processes.write("service.py", head + MODULE)
    process = processes.start("redis-bus", "service.bus")
    eventually(lambda: process.poll() is not None or workers(bus, "far_later"))
    assert process.poll() is None, process.communicate()
    assert bus["far_function"](1, d="x") == {"a": 1}
    assert bus["far_later"]("it") == "it"
    assert str(inspect.signature(bus["far_function"])).replace("'str'", "str") == SHOWN


def test_a_function_with_annotations_for_type_checkers_is_registered_after_the_fact(
    tmp_path: Path, bus: Bus, head: str
) -> None:
    module = load(tmp_path, head + MODULE)
    method = bus.register_method(module.function, "again")
    with serving(bus):
        assert method(2) == {"a": 2}


def test_the_check_of_cache_keys_asks_for_strategies_of_such_annotations(
    tmp_path: Path, head: str
) -> None:
    module = load(tmp_path, head + MODULE)
    with pytest.raises(Exception, match="strateg"):
        check_cache_key(module.function, "{a}")
