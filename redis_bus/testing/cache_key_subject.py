"""What `check_cache_key` checks: a function with its cache key, how to call it, what came of it."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from string import Formatter
from typing import Any, NamedTuple, cast

from ..client.method import Method
from ..errors import SerializationError
from ..protocol.annotations import signature_of
from ..protocol.cache_key import compile_template
from ..protocol.registration import Registration
from ..protocol.target import ShownCall

Values = tuple[object, ...]  # the arguments of a call, in the order of the parameters


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a call: ``text`` for people, ``sameness`` to compare."""

    text: str
    sameness: object
    error: Exception | None = None


class Subject:
    """A function and its cache key, and how to call it with values for all its parameters."""

    def __init__(self, function: Callable[..., Any], name: str, template: str | bool) -> None:
        self.function = function
        self.name = name
        self.template = template
        self.parameters = _parameters(function)
        self.names = tuple(self.parameters)
        self.key = compile_template(template, self.names)

    def keys(self, values: Values) -> tuple[bytes, bytes]:
        """The cache key of a call, and bytes that no other call has, nor it with a dict turned.

        Raises SerializationError for a call that could not be sent.
        """
        return self.key(values), identity(values)

    def show(self, values: Values) -> str:
        """The call as it would be typed."""
        args, kwargs = self._arguments(values)
        return str(ShownCall(self.name, tuple(args), kwargs))

    def run(self, values: Values) -> Result:
        """Call the function, with copies: it may change what it is given."""
        args, kwargs = self._arguments(copy.deepcopy(values))
        try:
            value = self.function(*args, **kwargs)
            if inspect.isawaitable(value):
                value = asyncio.run(_awaited(value))
        except Exception as error:  # noqa: BLE001 - whatever it raises is a result
            text = f"raises {type(error).__name__}: {error}".rstrip(": ")
            return Result(text, ("raises", type(error)), error)
        return Result(f"returns {value!r}", ("returns", exactly(value)))

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


_WHOLE = compile_template(True, ["value"])


def identity(value: object) -> bytes:
    """Return what no other value has, nor the same with a dict in another order.

    Raises SerializationError for what cannot be sent.
    """
    return _WHOLE((value,)) + _order(value).encode("utf-8", "surrogatepass")


def _order(value: object) -> str:
    """Return the order of each dict in a value as text; '' where there is none."""
    if type(value) is dict:
        return f"{{{','.join([f'{key!r}:{_order(item)}' for key, item in value.items()])}}}"
    if type(value) in (list, tuple):
        return "".join([_order(item) for item in cast("list[object]", value)])
    return ""


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def exactly(value: object) -> object:
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
        return signature_of(function).parameters


def find_subject(function: Callable[..., Any], cache_key: str | bool | None) -> Subject:
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
    return Subject(function, name, cache_key)


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


class Field(NamedTuple):
    """A field as it stands in a template, and the literal before it."""

    name: str
    text: str
    literal: str


def fields(template: str | bool) -> list[Field]:
    found, before = [], ""
    for literal, name, spec, conversion in Formatter().parse(str(template)):
        before += literal  # '{{' comes as a piece of its own, without a field
        if name is not None:
            how = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            found.append(Field(name, f"{{{name}{how}}}", before))
            before = ""
    return found
