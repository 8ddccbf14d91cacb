"""Values of a type for `check_cache_key`: those of Hypothesis, but with something in containers.

Of a bare ``list`` Hypothesis makes empty ones alone, for it cannot know what is in them. A
forgotten argument would then never show.
"""

from __future__ import annotations

import collections.abc as abc
import types
import typing
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Strategy = SearchStrategy[Any]
MOST_ITEMS = 4

_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def of_type(annotation: Any) -> Strategy:
    """Return a strategy for the values of an annotation; the elements of bare containers are plain.

    What is wrong with an annotation is said when the strategy is validated.
    """
    if annotation in (object, Any):
        return _PLAIN
    if annotation is None:
        return st.none()
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(of_type, args))
    if origin is typing.Annotated:
        # What is noted of a type is for Hypothesis, unless the type has something to be filled in.
        return of_type(args[0]) if _is_bare_within(args[0]) else st.from_type(annotation)
    if typing.is_typeddict(annotation):
        return _typed_dict(annotation)
    kind = annotation if origin is None else origin
    make = _CONTAINERS.get(kind) if isinstance(kind, type) else None
    return st.from_type(annotation) if make is None else make(args)


def _is_bare_within(annotation: Any) -> bool:
    """Whether a container is in an annotation that does not say of what."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return annotation in (object, Any) or annotation in _CONTAINERS
    is_bare = not args and origin in _CONTAINERS
    return is_bare or any(_is_bare_within(one) for one in args if not isinstance(one, list))


def _items(args: tuple[Any, ...]) -> Strategy:
    return of_type(args[0]) if args else _PLAIN


def _lists(args: tuple[Any, ...]) -> Strategy:
    return st.lists(_items(args), max_size=MOST_ITEMS)


def _sets(args: tuple[Any, ...]) -> Strategy:
    return st.sets(_items(args), max_size=MOST_ITEMS)


def _frozensets(args: tuple[Any, ...]) -> Strategy:
    return st.frozensets(_items(args), max_size=MOST_ITEMS)


def _tuples(args: tuple[Any, ...]) -> Strategy:
    if args in ((), ((),)):
        return st.lists(_PLAIN, max_size=MOST_ITEMS).map(tuple) if not args else st.just(())
    if len(args) == 2 and args[1] is ...:
        return _lists(args).map(tuple)
    return st.tuples(*map(of_type, args))


def _dicts(args: tuple[Any, ...]) -> Strategy:
    keys, values = map(of_type, args) if len(args) == 2 else (_PLAIN, _PLAIN)
    return st.dictionaries(keys, values, max_size=MOST_ITEMS)


def _typed_dict(annotation: Any) -> Strategy:
    hints = typing.get_type_hints(annotation)
    optional = {name: of_type(hints[name]) for name in annotation.__optional_keys__}
    required = {name: of_type(hints[name]) for name in annotation.__required_keys__}
    return st.fixed_dictionaries(required, optional=optional)


_CONTAINERS: dict[type, Callable[[tuple[Any, ...]], Strategy]] = {
    list: _lists,
    abc.Sequence: _lists,
    abc.MutableSequence: _lists,
    abc.Iterable: _lists,
    abc.Collection: _lists,
    abc.Container: _lists,
    abc.Reversible: _lists,
    set: _sets,
    abc.Set: _sets,
    abc.MutableSet: _sets,
    frozenset: _frozensets,
    tuple: _tuples,
    dict: _dicts,
    abc.Mapping: _dicts,
    abc.MutableMapping: _dicts,
}
