"""The search behind `redis_bus.testing.check_cache_key`; Hypothesis is imported here alone.

Hypothesis draws a few values for each parameter. From them calls are made that are near each other,
and their keys compared, which costs no call of the function. Only calls that differ and share a key
are made, each once for the whole search, so that Hypothesis can shrink what it found.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import itertools
import math
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from inspect import Parameter
from string import Formatter
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException, NoSuchExample
from hypothesis.strategies import SearchStrategy

from .cache_key import compile_template
from .cache_key_error import CacheKeyError
from .errors import SerializationError
from .method import Method
from .registration import Registration
from .target import ShownCall

MAX_EXAMPLES = 500
CALLED_TWICE = 100  # examples of calls that are made twice, before the search for pairs
NEAR_VALUES = 3  # of those drawn have others made near them
DRAWN_VALUES = 4  # for each parameter in an example

Values = tuple[object, ...]  # the arguments of a call, in the order of the parameters


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
    subject = _find_subject(function, cache_key)
    given = _find_strategies(subject, strategies)
    search = _Search(subject, [repr(strategy) for strategy in given])
    few = hypothesis.settings(settings, max_examples=min(CALLED_TWICE, settings.max_examples))
    _find(st.tuples(*given), search.is_no_function, few)
    search.raise_what_single_calls_show()
    pools = st.tuples(*(st.lists(s, min_size=1, max_size=DRAWN_VALUES) for s in given))
    found = _find(pools, search.has_pair, settings)
    if found is not None:
        search.raise_pair(found)


def _find(
    strategy: SearchStrategy[Any], condition: Callable[[Any], bool], settings: hypothesis.settings
) -> Any:
    """Return the simplest example for which the condition holds; None where none is found."""
    try:
        return hypothesis.find(strategy, condition, settings=settings)
    except NoSuchExample:
        return None


# -- what is checked --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of a call: ``text`` for people, ``sameness`` to compare."""

    text: str
    sameness: object
    error: Exception | None = None


class _Subject:
    """A function and its cache key, and how to call it with values for all its parameters."""

    def __init__(self, function: Callable[..., Any], name: str, template: str | bool) -> None:
        self.function = function
        self.name = name
        self.template = template
        self.parameters = _parameters(function)
        self.names = tuple(self.parameters)
        self.key = compile_template(template, self.names)
        self.identity = compile_template(True, self.names)

    def keys(self, values: Values) -> tuple[bytes, bytes]:
        """The cache key of a call, and bytes that no other call has.

        Raises SerializationError for a call that could not be sent.
        """
        return self.key(values), self.identity(values)

    def show(self, values: Values) -> str:
        """The call as it would be typed."""
        args, kwargs = self._arguments(values)
        return str(ShownCall(self.name, tuple(args), kwargs))

    def run(self, values: Values) -> _Result:
        """Call the function, with copies: it may change what it is given."""
        args, kwargs = self._arguments(copy.deepcopy(values))
        try:
            value = self.function(*args, **kwargs)
            if inspect.isawaitable(value):
                value = asyncio.run(_awaited(value))
        except Exception as error:  # noqa: BLE001 - whatever it raises is a result
            text = f"raises {type(error).__name__}: {error}".rstrip(": ")
            return _Result(text, ("raises", type(error)), error)
        return _Result(f"returns {value!r}", ("returns", _exactly(value)))

    def _arguments(self, values: Values) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter, value in zip(self.parameters.values(), values, strict=True):
            match parameter.kind, value:
                case Parameter.VAR_POSITIONAL, tuple(more):
                    args += more
                case Parameter.VAR_KEYWORD, dict(named):
                    kwargs |= named
                case Parameter.KEYWORD_ONLY, _:
                    kwargs[parameter.name] = value
                case _:
                    args.append(value)
        return args, kwargs


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _exactly(value: object) -> object:
    """What is equal for equal values of equal types: 1, 1.0 and True differ, nan does not."""
    try:
        return compile_template(True, ["result"])((value,))
    except SerializationError:
        return type(value), value


def _parameters(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters, their annotations evaluated where that is possible."""
    try:
        return inspect.signature(function, eval_str=True).parameters
    except Exception:  # noqa: BLE001 - annotations are code; those that fail need a strategy
        return inspect.signature(function).parameters


def _find_subject(function: Callable[..., Any], cache_key: str | bool | None) -> _Subject:
    if isinstance(function, Method):
        registration = function._core.registrations.get(function.__name__)
        if registration is None:
            raise TypeError(
                f"{function.__name__} is not registered in this process, and a call over the bus "
                f"may be answered from the cache: give the function itself"
            )
        keys = {registration.settings.cache_key}
        name = registration.name
        function = registration.function
    else:
        keys = _registered_keys(function) if cache_key is None else set()
        name = getattr(function, "__name__", None) or type(function).__name__
    if cache_key is None:
        keys -= {None, False}
        if len(keys) > 1:
            shown = " and ".join(sorted(map(repr, keys)))
            raise TypeError(f"{name} is registered with the cache keys {shown}: give one of them")
        cache_key = next(iter(keys), None)
    if cache_key is None or cache_key is False:
        raise TypeError(f"{name} is not registered with a cache_key: give the one to check")
    return _Subject(function, name, cache_key)


def _registered_keys(function: Callable[..., Any]) -> set[str | bool | None]:
    """The cache keys under which this process registered a function.

    A registration knows its function and not the other way round, so all of them are asked.
    """
    gc.collect()  # those of buses that are gone do not count
    return {
        item.settings.cache_key
        for item in gc.get_objects()
        if type(item) is Registration and not item.needs_import and item.function == function
    }


# -- values -----------------------------------------------------------------------------------

_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def _find_strategies(
    subject: _Subject, given: Mapping[str, SearchStrategy[Any]]
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
    subject: _Subject, parameter: Parameter, given: Mapping[str, SearchStrategy[Any]]
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
    if annotation in (object, Any):
        return _PLAIN
    strategy: SearchStrategy[Any]
    if annotation is not Parameter.empty:
        strategy = st.from_type(annotation)
    elif default is not Parameter.empty and default is not None:
        strategy = st.just(default) | st.from_type(type(default))
    else:
        return None
    try:
        strategy.validate()
    except HypothesisException:
        return None
    return strategy


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


def _calls(
    pools: Sequence[Sequence[object]], strategies: Sequence[str], joints: Sequence[_Joint]
) -> Iterator[Values]:
    """Calls that differ in one argument, and some that differ in more."""
    first = tuple(pool[0] for pool in pools)
    yield first
    for i, (pool, strategy) in enumerate(zip(pools, strategies, strict=True)):
        for value in (*pool[1:], *_near(pool, strategy)):
            yield _with(first, i, value)
    for turn in range(1, DRAWN_VALUES):
        yield tuple(pool[turn % len(pool)] for pool in pools)
    for left, right, literal in joints:
        match first[left], first[right]:
            case str(a), str(b) if all(_has_every_text(strategies[i]) for i in (left, right)):
                # ('x/y', 'y') and ('x', 'y/y')
                yield _with(first, left, a + literal + b)
                yield _with(first, right, b + literal + b)


def _with(values: Values, index: int, value: object) -> Values:
    return (*values[:index], value, *values[index + 1 :])


# -- the search -------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """Two calls that share a key, and what came of each."""

    key: bytes
    calls: tuple[Values, Values]
    results: tuple[_Result, _Result]


class _Search:
    """What is known of a subject so far."""

    def __init__(self, subject: _Subject, strategies: list[str]) -> None:
        self._subject = subject
        self._strategies = strategies
        self._joints = _joints(subject)
        self._results: dict[bytes, _Result] = {}
        self._unsendable: tuple[Values, SerializationError] | None = None
        self._raised: tuple[Values, Exception] | None = None
        self._called = self._returned = 0
        self._unequal: tuple[Values, _Result, _Result] | None = None

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

    def _pairs(self, pools: Sequence[Sequence[object]]) -> Iterator[_Pair]:
        seen: dict[bytes, dict[bytes, Values]] = {}
        for values in _calls(pools, self._strategies, self._joints):
            try:
                key, identity = self._subject.keys(values)
            except SerializationError:
                continue
            others = seen.setdefault(key, {})
            if identity in others:
                continue
            for other_identity, other in others.items():
                before = self._result(other_identity, other)
                after = self._result(identity, values)
                if before.sameness != after.sameness:
                    yield _Pair(key, (other, values), (before, after))
            others[identity] = values

    def _result(self, identity: bytes, values: Values) -> _Result:
        if identity not in self._results:
            self._results[identity] = self._subject.run(values)
        return self._results[identity]

    def _raise_unequal(self, values: Values, before: _Result, after: _Result) -> None:
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


def _reason(subject: _Subject, first: Values, second: Values) -> str:
    """Why two calls that differ share a key, as far as their arguments tell."""
    differing = [
        name
        for name, a, b in zip(subject.names, first, second, strict=True)
        if _exactly(a) != _exactly(b)
    ]
    forgotten = [name for name in differing if name not in subject.key.fields]
    if forgotten:
        is_are = "are" if len(forgotten) > 1 else "is"
        return f"{' and '.join(forgotten)} {is_are} not in the cache key: an argument forgotten?"
    fields = [field for field in _fields(subject.template) if field.name in differing]
    for field in fields:
        one = compile_template(field.text, subject.names)
        if one(first) != one(second):
            texts = " and ".join(field.text for field in fields)
            return f"{texts} run together: where one ends and the next begins cannot be told"
    field = fields[0]
    place = subject.names.index(field.name)
    written = _shown_key(compile_template(field.text, subject.names)(first))
    return (
        f"{field.text} writes {first[place]!r} and {second[place]!r} alike, as {written}; "
        f"{{{field.name}}} keeps them apart"
    )


class _Field(NamedTuple):
    """A field as it stands in a template, and the literal before it."""

    name: str
    text: str
    literal: str


def _fields(template: str | bool) -> list[_Field]:
    found, before = [], ""
    for literal, name, spec, conversion in Formatter().parse(str(template)):
        before += literal  # '{{' comes as a piece of its own, without a field
        if name is not None:
            how = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            found.append(_Field(name, f"{{{name}{how}}}", before))
            before = ""
    return found


class _Joint(NamedTuple):
    """Two parameters that follow each other in a template, and the literal between them."""

    left: int
    right: int
    literal: str


def _joints(subject: _Subject) -> list[_Joint]:
    return [
        _Joint(subject.names.index(a.name), subject.names.index(b.name), b.literal)
        for a, b in itertools.pairwise(_fields(subject.template))
        if a.name != b.name
    ]
