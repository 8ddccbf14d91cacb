"""The values that `check_cache_key` tries: drawn by Hypothesis, and others near them."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from inspect import Parameter
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.strategies import SearchStrategy

from .cache_key_subject import Subject, Values, fields
from .cache_key_types import of_type

NEAR_VALUES = 3  # of those drawn have others made near them
DRAWN_VALUES = 4  # for each parameter in an example


def find_strategies(
    subject: Subject, given: Mapping[str, SearchStrategy[Any]]
) -> list[SearchStrategy[Any]]:
    """A strategy for each parameter. Raises TypeError, saying which to give."""
    for name, strategy in given.items():
        if name not in subject.parameters:
            known = ", ".join(subject.names) or "none"
            raise TypeError(f"{subject.name} has no parameter {name!r}; it has {known}")
        if not isinstance(strategy, SearchStrategy):
            raise TypeError(f"{name}={strategy!r}: a Hypothesis strategy is needed")
    return [_strategy(subject, parameter, given) for parameter in subject.parameters.values()]


def _strategy(
    subject: Subject, parameter: Parameter, given: Mapping[str, SearchStrategy[Any]]
) -> SearchStrategy[Any]:
    strategy = given.get(parameter.name)
    own = strategy is not None
    if strategy is None:
        strategy = _inferred(parameter)
    if strategy is None:
        raise TypeError(
            f"{subject.name}: no values for {parameter.name!r}, as its annotation or default does "
            f"not say of which type it is; give a strategy, "
            f"{parameter.name}=hypothesis.strategies.…"
        )
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return (strategy if own else st.lists(strategy, max_size=3)).map(tuple)
    if parameter.kind is Parameter.VAR_KEYWORD and not own:
        names = st.text("abcdefgh", min_size=1, max_size=3)
        return st.dictionaries(names.filter(lambda n: n not in subject.names), strategy, max_size=3)
    return strategy


def _inferred(parameter: Parameter) -> SearchStrategy[Any] | None:
    annotation, default = parameter.annotation, parameter.default
    strategy: SearchStrategy[Any]
    if annotation is not Parameter.empty:
        strategy = of_type(annotation)
    elif default is not Parameter.empty and default is not None:
        strategy = st.just(default) | of_type(type(default))
    else:
        return None
    try:
        strategy.validate()
    except HypothesisException:
        return None
    return strategy


# One that was given as such, or of a type that has no other.
is_only_value = re.compile(r"(just|none|sampled_from)\(").match


def is_one_value(strategy: SearchStrategy[Any]) -> bool:
    """Whether a strategy says that there is one value, or which few there are."""
    return is_only_value(repr(strategy)) is not None


_has_every_text = re.compile(r"\btext\(\)(?!\.)").search
_has_all_between = re.compile(
    # Not where a .map or .filter follows, nor floats of another width or times of other zones.
    r"(integers|floats|dates|datetimes|text)\((?!.*(\)\.|width=|timezones=)).*\)"
).fullmatch

# How far from a value its near ones are, at most.
_STEPS: dict[type, list[Any]] = {
    int: [1, 10, 1000],
    float: [10.0**-k for k in (0, 1, 2, 3, 5, 8, 12)],
    date: [timedelta(days=n) for n in (1, 10, 100)],
    datetime: [timedelta(microseconds=10**k) for k in (0, 3, 6, 9, 11)],
}


def _near(drawn: Sequence[object], strategy: str) -> Iterator[object]:
    """Values near those drawn, which the strategy gives too, as its ``repr`` shows.

    All between two values of ``floats(…)``, ``integers(…)``, ``dates(…)`` and ``datetimes(…)`` is
    theirs; a beginning of one and the rest of another text is a ``text(…)``. The text of a value is
    one of ``text()``. What the strategy does to its values after that, with ``.map``, rules out.
    """
    if _has_all_between(strategy):
        for a, b in itertools.permutations(drawn[:NEAR_VALUES], 2):
            yield from _crossed(a, b) if isinstance(a, str) else _between(a, b)
    if _has_every_text(strategy):
        yield from (str(value) for value in drawn if type(value) in (bool, int, float, type(None)))
    if re.search(r"\bfloats\(\)(?!\.)", strategy):
        # From 2 ** 53 on, not every int has a float that is equal.
        yield from (float(v) for v in drawn if type(v) is int and abs(v) < 2**53)


def _between(low: Any, high: Any) -> Iterator[object]:
    if type(low) is float and not (math.isfinite(low) and math.isfinite(high)):
        return
    # Dates with and without a zone do not compare.
    with contextlib.suppress(TypeError, OverflowError):
        if low < high:
            yield from (min(low + step, high) for step in _STEPS.get(type(low), []))


def _crossed(first: str, second: Any) -> Iterator[str]:
    """Texts of no more and no fewer characters than both have, and of the same ones."""
    for length in {len(first), len(first) // 2, len(first) - 1}:
        if length > 0:
            yield first[:length] + second[length:]


def calls(
    pools: Sequence[Sequence[object]], strategies: Sequence[str], joints: Sequence[Joint]
) -> Iterator[Values]:
    """Calls that differ in one argument, and some that differ in more."""
    first = tuple(pool[0] for pool in pools)
    yield first
    for i, (pool, strategy) in enumerate(zip(pools, strategies, strict=True)):
        for value in (*pool[1:], *_near(pool, strategy)):
            yield _with(first, i, value)
        if (turned := _turned(pool[0])) is not pool[0]:
            yield _with(first, i, turned)
    for turn in range(1, DRAWN_VALUES):
        yield tuple(pool[turn % len(pool)] for pool in pools)
    for left, right, literal in joints:
        match first[left], first[right]:
            case str(a), str(b) if all(_has_every_text(strategies[i]) for i in (left, right)):
                # ('x/y', 'y') and ('x', 'y/y')
                yield _with(first, left, a + literal + b)
                yield _with(first, right, b + literal + b)


def _turned(value: Any) -> Any:
    """Return a value with each dict in it in the other order; itself where that makes none."""
    if type(value) in (list, tuple):
        items = [_turned(item) for item in value]
        is_same = all(a is b for a, b in zip(items, value, strict=True))
        return value if is_same else type(value)(items)
    if type(value) is not dict:
        return value
    turned = {key: _turned(item) for key, item in reversed(value.items())}
    is_same = len(value) < 2 and all(turned[key] is item for key, item in value.items())
    return value if is_same else turned


def _with(values: Values, index: int, value: object) -> Values:
    return (*values[:index], value, *values[index + 1 :])


class Joint(NamedTuple):
    """Two parameters that follow each other in a template, and the literal between them."""

    left: int
    right: int
    literal: str


def joints(subject: Subject) -> list[Joint]:
    return [
        Joint(subject.names.index(a.name), subject.names.index(b.name), b.literal)
        for a, b in itertools.pairwise(fields(subject.template))
        if a.name != b.name
    ]
