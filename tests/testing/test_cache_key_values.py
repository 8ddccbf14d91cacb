"""`check_cache_key` tries values of every parameter, also where its type does not say which."""

from __future__ import annotations

import collections.abc
import typing
from typing import Annotated, Any, Literal, Optional, TypedDict

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redis_bus.testing import CacheKeyError, check_cache_key
from redis_bus.testing.cache_key_types import of_type


class Options(TypedDict):
    tags: list  # type: ignore[type-arg]


ANNOTATIONS = [
    *(list, dict, set, frozenset, tuple, typing.List, typing.Dict, typing.Set, typing.Tuple),  # noqa: UP006
    *(typing.Sequence, collections.abc.Mapping, typing.Iterable, collections.abc.Sequence),
    *(dict[str, list], dict[str, Any], list[list], tuple[list, ...], tuple[int, list]),  # type: ignore[type-arg]
    *(Optional[list], list | None, Annotated[list, "any"], Options, list[Any], object, Any),  # type: ignore[type-arg]  # noqa: UP045
    *(typing.Mapping[str, list], collections.abc.Iterable[Any]),  # type: ignore[type-arg]
]
DEFAULTS: list[object] = [(), {}, [], set(), frozenset(), "", 0, (1,), {"a": []}]


NESTED = st.recursive(
    st.sampled_from([list, dict, set, tuple, frozenset]),
    lambda inner: st.one_of(
        inner.map(lambda one: list[one]),  # type: ignore[valid-type]
        inner.map(lambda one: tuple[one, ...]),  # type: ignore[valid-type]
        inner.map(lambda one: dict[str, one]),  # type: ignore[valid-type]
        inner.map(lambda one: one | None),
    ),
    max_leaves=3,
)


def is_filled(value: Any) -> bool:
    """Whether a plain value stands somewhere in it: an element, or a key of a bare dict."""
    if isinstance(value, dict):
        return any(map(is_filled, value.values())) or not all(isinstance(key, str) for key in value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(is_filled, value))
    return value is not None


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
def test_a_forgotten_argument_of_any_type_is_found(annotation: Any) -> None:
    def function(a, b):  # type: ignore[no-untyped-def]
        return sorted(map(repr, b)) if isinstance(b, (set, frozenset)) else repr(b)

    function.__annotations__ = {"a": int, "b": annotation}
    with pytest.raises(CacheKeyError, match="b is not in the cache key"):
        check_cache_key(function, "{a}")


@pytest.mark.parametrize("default", DEFAULTS, ids=repr)
def test_a_forgotten_argument_is_found_by_the_type_of_its_default(default: Any) -> None:
    def function(a: int, b=default):  # type: ignore[no-untyped-def]
        return repr(b)

    with pytest.raises(CacheKeyError, match="b is not in the cache key"):
        check_cache_key(function, "{a}")


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
def test_a_key_that_has_all_arguments_passes_for_any_type(annotation: Any) -> None:
    def function(a):  # type: ignore[no-untyped-def]
        return a

    function.__annotations__ = {"a": annotation}
    check_cache_key(function, True, settings=settings(max_examples=40))


@settings(
    suppress_health_check=[hypothesis.HealthCheck.nested_given], deadline=None, max_examples=25
)
@given(NESTED)
def test_bare_containers_within_containers_are_filled(annotation: Any) -> None:
    few = settings(database=None, max_examples=5000)
    hypothesis.find(of_type(annotation), is_filled, settings=few)


@pytest.mark.parametrize("strategy", [st.builds(list), st.integers(3, 3), st.text(max_size=0)])
def test_a_check_that_tried_one_value_of_a_parameter_says_so_and_fails(strategy: Any) -> None:
    def function(a: int, b: Any) -> int:
        return a

    with pytest.raises(
        CacheKeyError, match=r"one value of 'b' was tried.* b=hypothesis.strategies"
    ):
        check_cache_key(function, "{a}", settings=settings(max_examples=40), b=strategy)


def test_one_value_is_enough_where_there_is_no_other() -> None:
    def function(a: int, b: Literal["x"], c: None, d: str = "EUR") -> int:
        return a

    check_cache_key(function, "{a}", d=st.just("EUR"))


def test_a_function_that_depends_on_the_order_of_a_dict_is_found() -> None:
    def first(options: dict[str, int]) -> str:
        return next(iter(options), "")

    with pytest.raises(CacheKeyError, match="depends on the order of a dict in options") as raised:
        check_cache_key(first, "{options}")
    assert len(set(raised.value.results)) == 2

    def nested(a: list[dict[str, int]]) -> list[str]:
        return [key for one in a for key in one]

    with pytest.raises(CacheKeyError, match="depends on the order of a dict in a"):
        check_cache_key(nested, "{a}")


def test_a_function_that_sorts_a_dict_or_returns_it_passes() -> None:
    def ordered(options: dict[str, int]) -> list[str]:
        return sorted(options)

    def same(options: dict[str, int]) -> dict[str, int]:
        return options

    check_cache_key(ordered, "{options}")
    check_cache_key(same, "{options}")
