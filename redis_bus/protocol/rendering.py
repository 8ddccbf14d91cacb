"""Values and annotations as text that depends on the code alone.

What a service publishes must be the same each time it starts: a change means a new registration,
and cached values are forgotten. A ``repr`` may have an address in it, or the order of a set, which
changes with the hash seed of the process. So the text of a value is made here: by its parts where
its type is known, else by the name of its type.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import re
import types
import typing
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, ForwardRef, NewType, ParamSpec, TypeVar
from uuid import UUID

MAX_DEPTH = 64
MAX_PARTS = 10_000
# Ints below this are written in decimal. It is far under the least limit that
# sys.set_int_max_str_digits() takes (640 digits), and hex() has no limit.
DECIMAL_INTS = 2**1024

_SCALARS = (
    *(type(None), bool, float, complex, str, bytes, bytearray, range),
    *(type(...), type(NotImplemented), Decimal, UUID, date, timedelta, timezone),
)
# By their names: few programs have them, and importing their modules takes a while.
_SCALAR_NAMES = {
    *("fractions.Fraction", "ipaddress.IPv4Address", "ipaddress.IPv6Address"),
    *("ipaddress.IPv4Network", "ipaddress.IPv6Network", "pathlib.PurePosixPath"),
    *("pathlib.PureWindowsPath", "pathlib.PosixPath", "pathlib.WindowsPath"),
}
# Of every namedtuple that has no ``__repr__`` of its own.
_NAMED_TUPLE_REPR = namedtuple("_Pair", "a b").__repr__.__code__
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
)


def value_text(value: object) -> str:
    """Return the text of a value, the same in every process that runs the same code.

    It is what ``repr`` gives for most values that can be written down. Elements of a set are in the
    order of their texts, a large int is hexadecimal, a function is its qualified name, and a value
    of another type is the name of that, ``<shop.Missing>``, unless its ``__repr__`` is a constant.
    What a class keeps out of its ``repr`` is not in the text. A value of very many parts is the
    name of its type.
    """
    return _within_bounds(_value_text, value)


def annotation_text(annotation: object) -> str:
    """Return the text of an annotation, the same in every process and on every Python.

    It is written as `inspect` writes it, but for unions, which are written ``int | None`` however
    they were made, and for values within an annotation: see `value_text`.
    """
    return _within_bounds(_annotation_text, annotation)


def shown(value: object) -> str:
    """Return the ``repr`` of a value for people; where Python refuses to write a large int, hex."""
    try:
        return repr(value)
    except ValueError:
        return value_text(value)


def int_text(value: int) -> str:
    """Return an int as text: decimal, or hexadecimal where decimal text would be very long."""
    return str(value) if -DECIMAL_INTS < value < DECIMAL_INTS else hex(value)


def decimal_text(value: int) -> str:
    """Return an int of any size as decimal digits, where Python's own limit does not matter."""
    return str(value) if -DECIMAL_INTS < value < DECIMAL_INTS else str(Decimal(value))


def parse_int(digits: str) -> int:
    """Return the int that decimal digits of any number mean. Raises ValueError for others."""
    try:
        return int(digits)
    except ValueError:
        if not digits.removeprefix("-").isdecimal():
            raise
        return int(Decimal(digits))


def qualified_name(thing: Any) -> str:
    """Return the name of a class or function with its module, unless that is builtins or typing."""
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    module = getattr(thing, "__module__", None)
    text = str(name or type(thing).__qualname__)
    return text if module in (None, "builtins", "typing") else f"{module}.{text}"


class _TooManyParts(Exception):
    """A value has more parts than a text is made of."""


class _Path:
    """Where in a value its text is being made: what it is within, and how many parts there were."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.parts = 0


def _within_bounds(write: Callable[[Any, _Path], str], value: object) -> str:
    try:
        return write(value, _Path())
    except _TooManyParts:
        return f"<{qualified_name(type(value))}>"


# -- values -----------------------------------------------------------------------------------


def _value_text(value: object, path: _Path) -> str:
    kind = type(value)
    path.parts += 1
    if path.parts > MAX_PARTS or len(path.open) > MAX_DEPTH:
        raise _TooManyParts
    if kind is int:
        return int_text(typing.cast(int, value))
    if kind in _SCALARS or _public_name(kind) in _SCALAR_NAMES:
        return repr(value)
    if kind in (datetime, time) and _has_known_zone(typing.cast("datetime | time", value)):
        return repr(value)
    if isinstance(value, type) and not isinstance(value, types.GenericAlias):
        return f"<class '{qualified_name(value)}'>"
    if isinstance(value, _FUNCTIONS):
        return f"<function {qualified_name(value)}>"
    if id(value) in path.open:
        return "..."
    path.open.add(id(value))
    try:
        return _composed_text(value, path)
    finally:
        path.open.discard(id(value))


def _composed_text(value: Any, path: _Path) -> str:
    """Return the text of a value that has parts."""
    kind = type(value)
    written = _WRITERS.get(kind)
    if written is not None:
        return written(value, path)
    if isinstance(value, enum.Enum):
        return _enum_text(value, path)
    if typing.get_origin(value) is not None or kind in _TYPE_FORMS:
        return _annotation_text(value, path)
    if _has_made_repr(kind):
        shown = {
            one.name: getattr(value, one.name, ...) for one in dataclasses.fields(value) if one.repr
        }
        return f"{kind.__qualname__}({_named(shown, path)})"
    if getattr(kind.__repr__, "__code__", None) is _NAMED_TUPLE_REPR:
        shown = dict(zip(kind._fields, value, strict=False))
        return f"{kind.__qualname__}({_named(shown, path)})"
    return _constant_repr(value) or f"<{qualified_name(kind)}>"


def _has_made_repr(kind: type) -> bool:
    """Whether a class is a dataclass whose ``__repr__`` was made for it."""
    if not dataclasses.is_dataclass(kind):
        return False
    code = getattr(inspect.unwrap(kind.__repr__), "__code__", None)
    return getattr(code, "co_filename", None) == "<string>"


def _public_name(kind: type) -> str:
    # In some Pythons pathlib is a package, and its classes are of a module within.
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def _has_known_zone(value: datetime | time) -> bool:
    zone = value.tzinfo
    return zone is None or type(zone) is timezone or type(zone).__module__ == "zoneinfo"


def _constant(self: object) -> str:
    return "constant"


def _constant_repr(value: object) -> str | None:
    """Return the text of a class's own ``__repr__`` that does nothing but return a constant."""
    code = getattr(type(value).__repr__, "__code__", None)
    if code is None or code.co_code != _constant.__code__.co_code:
        return None
    texts = [one for one in code.co_consts if isinstance(one, str)]
    return texts[0] if len(texts) == 1 else None


def _enum_text(value: enum.Enum, path: _Path) -> str:
    name = type(value).__qualname__
    if isinstance(value, enum.Flag):
        # Of several flags, Pythons differ in the name that they make of them.
        members = [
            f"{name}.{member}"
            for member, flag in type(value).__members__.items()
            if flag.value and flag.value & (flag.value - 1) == 0 and flag in value
        ]
        return " | ".join(members) or f"{name}({_value_text(value.value, path)})"
    return f"{name}.{value.name}"


def _items(values: Iterable[object], path: _Path) -> str:
    return ", ".join([_value_text(value, path) for value in values])


def _sorted(values: Iterable[object], path: _Path) -> str:
    return ", ".join(sorted([_value_text(value, path) for value in values]))


def _pairs(values: dict[object, object], path: _Path) -> str:
    items = values.items()
    return ", ".join(
        [f"{_value_text(key, path)}: {_value_text(value, path)}" for key, value in items]
    )


def _named(values: dict[str, object], path: _Path) -> str:
    return ", ".join([f"{name}={_value_text(value, path)}" for name, value in values.items()])


def _tuple(value: tuple[object, ...], path: _Path) -> str:
    return f"({_items(value, path)}{',' if len(value) == 1 else ''})"


def _partial(value: functools.partial[Any], path: _Path) -> str:
    given = [
        _value_text(value.func, path),
        *(_value_text(one, path) for one in value.args),
        *(f"{name}={_value_text(one, path)}" for name, one in value.keywords.items()),
    ]
    return f"functools.partial({', '.join(given)})"


def _pattern(value: re.Pattern[Any], path: _Path) -> str:
    flags = value.flags & ~re.UNICODE.value
    return f"re.compile({value.pattern!r}{f', {flags}' if flags else ''})"


def _slice(value: slice, path: _Path) -> str:
    return f"slice({_items((value.start, value.stop, value.step), path)})"


_WRITERS: dict[type, Callable[[Any, _Path], str]] = {
    list: lambda value, path: f"[{_items(value, path)}]",
    tuple: _tuple,
    dict: lambda value, path: f"{{{_pairs(value, path)}}}",
    set: lambda value, path: f"{{{_sorted(value, path)}}}" if value else "set()",
    frozenset: lambda value, path: (
        f"frozenset({{{_sorted(value, path)}}})" if value else "frozenset()"
    ),
    deque: lambda value, path: f"deque([{_items(value, path)}])",
    OrderedDict: lambda value, path: f"OrderedDict({{{_pairs(value, path)}}})",
    Counter: lambda value, path: f"Counter({{{_pairs(value, path)}}})",
    defaultdict: lambda value, path: (
        f"defaultdict({_value_text(value.default_factory, path)}, {{{_pairs(value, path)}}})"
    ),
    types.MappingProxyType: lambda value, path: f"mappingproxy({{{_pairs(value, path)}}})",
    types.ModuleType: lambda value, path: f"<module {value.__name__}>",
    functools.partial: _partial,
    re.Pattern: _pattern,
    slice: _slice,
}


# -- annotations ------------------------------------------------------------------------------

_TYPE_FORMS = (TypeVar, ParamSpec, NewType, ForwardRef)
_UNIONS = (typing.Union, types.UnionType)


def _annotation_text(annotation: object, path: _Path) -> str:
    path.parts += 1
    if path.parts > MAX_PARTS or len(path.open) > MAX_DEPTH:
        raise _TooManyParts
    if isinstance(annotation, str):
        return annotation
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is ...:
        return "..."
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, list):  # the parameters of a Callable
        return f"[{', '.join(_annotation_text(one, path) for one in annotation)}]"
    origin = typing.get_origin(annotation)
    if origin is None:
        return _bare_annotation_text(annotation, path)
    return _generic_text(annotation, origin, path)


def _bare_annotation_text(annotation: object, path: _Path) -> str:
    """Return the text of an annotation that has no parameters."""
    if isinstance(annotation, type):
        return qualified_name(annotation)
    if isinstance(annotation, _TYPE_FORMS) or type(annotation).__module__ == "typing":
        return inspect.formatannotation(annotation)
    return _value_text(annotation, path)


def _generic_text(annotation: Any, origin: Any, path: _Path) -> str:
    args = typing.get_args(annotation)
    if origin in _UNIONS:
        return " | ".join([_annotation_text(one, path) for one in args])
    if origin is typing.Annotated:
        kind, *notes = args
        texts = [_annotation_text(kind, path), *(_value_text(one, path) for one in notes)]
        return f"Annotated[{', '.join(texts)}]"
    if origin is typing.Literal:
        return f"Literal[{_items(args, path)}]"
    if not args:  # List, Tuple[()]
        return inspect.formatannotation(annotation)
    return f"{_origin_text(annotation, origin)}[{_arguments_text(annotation, args, path)}]"


def _origin_text(annotation: Any, origin: Any) -> str:
    """Return the name before the brackets, such as ``List``, ``list`` or ``shop.Box``."""
    if type(annotation).__module__ == "typing":
        name = getattr(annotation, "_name", None)
        if name:  # of one of typing's own, such as List
            return str(name)
    return qualified_name(origin)


def _arguments_text(annotation: Any, args: tuple[Any, ...], path: _Path) -> str:
    if args == ((),):  # Tuple[()], before Python 3.11
        return "()"
    return ", ".join([_annotation_text(one, path) for one in args])
