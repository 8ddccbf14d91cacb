"""The search behind `redis_bus.testing.check_cache_key`.

Hypothesis draws a few values for each parameter. From them calls are made that are near each other,
and their keys compared, which costs no call of the function. Only calls that differ and share a key
are made, each once for the whole search, so that Hypothesis can shrink what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

from ..errors import SerializationError
from ..protocol.cache_key import compile_template
from .cache_key_error import CacheKeyError
from .cache_key_subject import Result, Subject, Values, exactly, fields, find_subject, identity
from .cache_key_values import DRAWN_VALUES, calls, find_strategies, is_one_value, joints

MAX_EXAMPLES = 500
CALLED_TWICE = 100  # examples of calls that are made twice, before the search for pairs


def check(
    function: Callable[..., Any],
    cache_key: str | bool | None,
    settings: hypothesis.settings | None,
    strategies: Mapping[str, SearchStrategy[Any]],
) -> None:
    """See `redis_bus.testing.check_cache_key`."""
    __tracebackhide__ = True
    if settings is None:
        settings = hypothesis.settings(max_examples=MAX_EXAMPLES, derandomize=True)
    settings = hypothesis.settings(settings, deadline=None, database=None)
    subject = find_subject(function, cache_key)
    given = find_strategies(subject, strategies)
    search = _Search(subject, [repr(strategy) for strategy in given])
    few = hypothesis.settings(settings, max_examples=min(CALLED_TWICE, settings.max_examples))
    _find(st.tuples(*given), search.is_no_function, few)
    search.raise_what_single_calls_show()
    pools = st.tuples(*(st.lists(s, min_size=1, max_size=DRAWN_VALUES) for s in given))
    found = _find(pools, search.has_pair, settings)
    if found is not None:
        search.raise_pair(found)
    search.raise_for_want_of_values(given)


def _find(
    strategy: SearchStrategy[Any], condition: Callable[[Any], bool], settings: hypothesis.settings
) -> Any:
    """Return the simplest example for which the condition holds; None where none is found."""
    try:
        return hypothesis.find(strategy, condition, settings=settings)
    except NoSuchExample:
        return None


class _Pair(NamedTuple):
    """Two calls that share a key, and what came of each."""

    key: bytes
    calls: tuple[Values, Values]
    results: tuple[Result, Result]


class _Search:
    """What is known of a subject so far."""

    def __init__(self, subject: Subject, strategies: list[str]) -> None:
        self._subject = subject
        self._strategies = strategies
        self._joints = joints(subject)
        self._results: dict[bytes, Result] = {}
        self._unsendable: tuple[Values, SerializationError] | None = None
        self._raised: tuple[Values, Exception] | None = None
        self._called = self._returned = 0
        # Of each parameter the values that were tried, until they are two.
        self._tried: list[set[bytes]] = [set() for _ in strategies]
        self._unequal: tuple[Values, Result, Result] | None = None

    def is_no_function(self, values: Values) -> bool:
        """Make a call twice, and note whether it gave two results.

        Says False in any case: nothing can be shrunk where a repetition shows something else.
        """
        if self._unequal is not None:
            return False
        try:
            self._subject.keys(values)
        except SerializationError as error:
            self._unsendable = self._unsendable or (values, error)
            return False
        before, after = self._subject.run(values), self._subject.run(values)
        self._called += 1
        if before.sameness != after.sameness:
            self._unequal = values, before, after
        if before.error is None:
            self._returned += 1
        else:
            self._raised = self._raised or (values, before.error)
        return False

    def raise_what_single_calls_show(self) -> None:
        """Raise CacheKeyError where a call gave two results, or no call any."""
        __tracebackhide__ = True
        if self._unequal is not None:
            self._raise_unequal(*self._unequal)
        if not self._called and self._unsendable is not None:
            self._raise_failing("has a cache key", *self._unsendable)
        if not self._returned and self._raised is not None:
            self._raise_failing("returns", *self._raised)

    def has_pair(self, pools: Sequence[Sequence[object]]) -> bool:
        """Whether two of the calls made of these values share a key and differ in their results."""
        return next(self._pairs(pools), None) is not None

    def raise_pair(self, pools: Sequence[Sequence[object]]) -> None:
        """Raise CacheKeyError with the simplest pair among the calls made of these values."""
        __tracebackhide__ = True
        pair = min(self._pairs(pools), key=lambda pair: len(f"{pair.calls}"))
        for values, before in zip(pair.calls, pair.results, strict=True):
            again = self._subject.run(values)
            if again.sameness != before.sameness:
                self._raise_unequal(values, before, again)
        shown = tuple(self._subject.show(values) for values in pair.calls)
        results = tuple(result.text for result in pair.results)
        reason = _reason(self._subject, *pair.calls)
        raise CacheKeyError(
            f"cache_key {self._subject.template!r} of {self._subject.name}: two calls share the "
            f"key {_shown_key(pair.key)} and differ\n{_table(shown, results)}\n{reason}",
            shown,
            pair.key,
            results,
            reason,
        )

    def raise_for_want_of_values(self, strategies: Sequence[SearchStrategy[Any]]) -> None:
        """Raise CacheKeyError where one value of a parameter was tried: nothing was shown of it."""
        __tracebackhide__ = True
        names = self._subject.names
        for name, tried, strategy in zip(names, self._tried, strategies, strict=True):
            if len(tried) == 1 and not is_one_value(strategy):
                reason = f"one value of {name!r} was tried, which shows nothing: give a strategy"
                raise CacheKeyError(
                    f"cache_key {self._subject.template!r} of {self._subject.name}: {reason} for "
                    f"others, {name}=hypothesis.strategies.…, or hypothesis.strategies.just(…) "
                    f"where there are none",
                    (),
                    b"",
                    (),
                    reason,
                )

    def _note(self, values: Values) -> None:
        for tried, value in zip(self._tried, values, strict=True):
            if len(tried) < 2:
                tried.add(identity(value))

    def _pairs(self, pools: Sequence[Sequence[object]]) -> Iterator[_Pair]:
        seen: dict[bytes, dict[bytes, Values]] = {}
        for values in calls(pools, self._strategies, self._joints):
            try:
                key, identity = self._subject.keys(values)
            except SerializationError:
                continue
            self._note(values)
            others = seen.setdefault(key, {})
            if identity in others:
                continue
            for other_identity, other in others.items():
                before = self._result(other_identity, other)
                after = self._result(identity, values)
                if before.sameness != after.sameness:
                    yield _Pair(key, (other, values), (before, after))
            others[identity] = values

    def _result(self, identity: bytes, values: Values) -> Result:
        if identity not in self._results:
            self._results[identity] = self._subject.run(values)
        return self._results[identity]

    def _raise_unequal(self, values: Values, before: Result, after: Result) -> None:
        __tracebackhide__ = True
        shown = self._subject.show(values)
        reason = (
            "it is not a function of its arguments: it reads something else too, such as the "
            "clock, random numbers or what an earlier call left behind"
        )
        raise CacheKeyError(
            f"cache_key {self._subject.template!r} of {self._subject.name}: the same call gives "
            f"two results\n{_table((shown, shown), (before.text, after.text))}\n{reason}",
            (shown, shown),
            self._subject.key(values),
            (before.text, after.text),
            reason,
        )

    def _raise_failing(self, what: str, values: Values, error: Exception) -> None:
        __tracebackhide__ = True
        shown = self._subject.show(values)
        text = f"{type(error).__name__}: {error}"
        reason = f"no call that was tried {what}: give strategies for values that fit"
        raise CacheKeyError(
            f"cache_key {self._subject.template!r} of {self._subject.name}: {reason}\n"
            f"{_table((shown,), (text,))}",
            (shown,),
            b"",
            (text,),
            reason,
        ) from error


def _table(calls: Sequence[str], results: Sequence[str]) -> str:
    width = max(map(len, calls))
    return "\n".join(
        f"    {call:{width}}  {result}" for call, result in zip(calls, results, strict=True)
    )


def _shown_key(key: bytes) -> str:
    return repr(key.decode("utf-8", "surrogatepass"))


def _reason(subject: Subject, first: Values, second: Values) -> str:
    """Why two calls that differ share a key, as far as their arguments tell."""
    differing = [
        name
        for name, a, b in zip(subject.names, first, second, strict=True)
        if exactly(a) != exactly(b)
    ]
    forgotten = [name for name in differing if name not in subject.key.fields]
    if forgotten:
        is_are = "are" if len(forgotten) > 1 else "is"
        return f"{' and '.join(forgotten)} {is_are} not in the cache key: an argument forgotten?"
    if not differing:
        # They are one call but for the order of a dict, on which no key depends.
        pairs = zip(subject.names, first, second, strict=True)
        turned = " and ".join(name for name, a, b in pairs if identity(a) != identity(b))
        return (
            f"it depends on the order of a dict in {turned}, which is not part of a cache key: "
            f"sort what is read of it"
        )
    written = [field for field in fields(subject.template) if field.name in differing]
    for field in written:
        one = compile_template(field.text, subject.names)
        if one(first) != one(second):
            texts = " and ".join(field.text for field in written)
            return f"{texts} run together: where one ends and the next begins cannot be told"
    field = written[0]
    place = subject.names.index(field.name)
    text = _shown_key(compile_template(field.text, subject.names)(first))
    return (
        f"{field.text} writes {first[place]!r} and {second[place]!r} alike, as {text}; "
        f"{{{field.name}}} keeps them apart"
    )
