"""Cache keys: templates such as ``'{a}/{b}'`` and their injective rendering.

How a value is written. A *token* is bare text; a *closed form* shows where it ends::

    tokens   None True False  17  -3  0x1f..  1.5  nan  2024-05-01  bob
    closed   'text'  "bytes"  [list]  (tuple)  {key:value}  <1>  <set 1,2>  <Decimal 1.10>

A str is a token if it is a plain ASCII word that is no other value's token, and only as a
field of its own; within a container, and in every other case, it is quoted. ``<1>`` is the
closed form of the token ``1``.

Why two calls with different plain fields never share a key: the key can be read back, from
left to right.

1. A closed form begins with one of ``' " [ ( { <`` and no closed form is the beginning of
   another: quoted text ends at its first quote that no backslash escapes; the others end at
   their own bracket, since what they hold is closed forms and tokens of ``[A-Za-z0-9.+-]``
   parted by ``, : space``.
2. A token is not empty, begins with none of those characters, and belongs to one value.
3. A field is written as a token only if the template goes on with a literal whose first
   character (its *stop*) the token does not hold, or ends there. So, having read all before
   the field, its first character tells which of the two it is; a token then ends at the first
   stop, or with the key. Else, as in ``'{a}{b}'``, the closed form is written.
4. The text of a field with a conversion or a format spec is left as it is, unless a plain
   field comes after it and where the text ends could not be told: then it is quoted as a str.

UTF-8 (with surrogates passed) keeps different texts different, and so does SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from string import Formatter
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID

from redis_bus.errors import SerializationError
from redis_bus.protocol.rendering import DECIMAL_INTS, decimal_text, int_text

MAX_KEY_BYTES = 256
# A template may come from the registry: it must not make its callers fill their memory.
MAX_WIDTH = 1000
MAX_DEPTH = 64
_MAX_PATH_CHARS = 200

# ASCII only: Unicode's classes differ between Python versions, and a key must not.
_is_word = re.compile(r"[A-Za-z_][A-Za-z0-9_.@+-]*").fullmatch
_TOKENS_OF_OTHERS = frozenset({"None", "True", "False", "nan", "inf"})

_NO_TOKEN = ""  # the stop of a field next to a field: '' is in every token
_END = "\0"  # the stop of a field that ends its template: in no token
_CONVERSIONS: dict[str, Callable[[object], str]] = {"s": str, "r": repr, "a": ascii}


class _Text(NamedTuple):
    """A field with a conversion or a format spec; ``is_raw``: no plain field comes after it."""

    conversion: str | None
    spec: str
    is_raw: bool


class _Step(NamedTuple):
    """One field: its place in the parts, whose value it shows, its stop, and how, if as text."""

    place: int
    argument: int
    stop: str
    text: _Text | None


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A compiled template: called with a tuple of bound values, it gives their cache key.

    ``template`` is what was compiled, ``fields`` are the parameters that the key depends on,
    each once, in the order of their first use.
    """

    template: str | bool
    fields: tuple[str, ...]
    _names: tuple[str, ...]
    _parts: tuple[str, ...]
    _steps: tuple[_Step, ...]

    def __call__(self, values: tuple[object, ...]) -> bytes:
        """The key of a call, at most ``MAX_KEY_BYTES`` bytes.

        ``values`` are the bound arguments, in the order of the names that the template was
        compiled with. A longer key, or one that would begin with ``#``, becomes ``#`` and the
        SHA-256 of it in hex.

        Raises SerializationError naming the path to a value that has no exact rendering, or
        the field that could not be formatted.
        """
        __tracebackhide__ = True
        parts = list(self._parts)
        for place, index, stop, text in self._steps:
            value = values[index]
            if text is not None:
                parts[place] = self._formatted(value, index, stop, text)
                continue
            # Small ints and words are nearly all of what keys are made of.
            if type(value) is int and -DECIMAL_INTS < value < DECIMAL_INTS:
                token = str(value)
            elif type(value) is str and _is_word(value) and value not in _TOKENS_OF_OTHERS:
                token = value
            else:
                parts[place] = self._rendered(value, index, stop)
                continue
            if stop in token:
                token = _quoted(token) if type(value) is str else f"<{token}>"
            parts[place] = token
        key = "".join(parts).encode("utf-8", "surrogatepass")
        if len(key) > MAX_KEY_BYTES or key[:1] == b"#":
            return b"#" + hashlib.sha256(key).hexdigest().encode("ascii")
        return key

    def _rendered(self, value: object, index: int, stop: str) -> str:
        """A plain field, whatever its value."""
        __tracebackhide__ = True
        try:
            form = _nested(value, 0)
        except _RefusedError as refused:
            path = self._names[index] + "".join(reversed(refused.path))
            if len(path) > _MAX_PATH_CHARS:
                path = path[:_MAX_PATH_CHARS] + "..."
            raise SerializationError(
                f"cache key {self.template!r}: cannot render {path}: {refused}"
            ) from None
        return f"<{form}>" if type(value) in _TOKENS and stop in form else form

    def _formatted(self, value: object, index: int, stop: str, how: _Text) -> str:
        """A field with a conversion or a format spec: the text that ``format`` makes of it."""
        try:
            if how.conversion is not None:
                is_int = type(value) is int  # of any size, unlike what str() takes
                convert = decimal_text if is_int else _CONVERSIONS[how.conversion]
                value = convert(value)  # type: ignore[arg-type]
            text = format(value, how.spec)
        except Exception as exc:
            raise SerializationError(
                f"cache key {self.template!r}: cannot format {self._names[index]}: "
                f"{type(exc).__name__}: {exc}"
            ) from exc
        if how.is_raw:
            return text
        # An empty text before a literal that begins with a quote would look quoted.
        return _quoted(text) if stop in text or (text + stop).startswith("'") else text


def compile_template(template: str | bool, names: Sequence[str]) -> CacheKey:
    """Check a template against the parameters it may name, once for all calls.

    ``template`` is a new-style format string over the arguments, or True: all arguments, as
    if it were ``'{a},{b},...'``. ``names`` are the parameters in the order of the tuples that
    the result is called with; ``*args`` is bound as one tuple, ``**kwargs`` as one dict.
    A template without fields is a constant key.

    Raises ValueError, naming the template and the field, for an unknown or positional field,
    for attribute and index access, for fields within a format spec, an unknown conversion,
    malformed braces, and for what is neither a str nor True.
    """
    if template is True:
        source = ",".join(f"{{{name}}}" for name in names)
    elif isinstance(template, str):
        source = template
    else:
        raise ValueError(f"cache key {template!r}: must be a format string, or True")
    literals, fields = _parsed(source, template, names)
    shown = [name for name, _, _ in fields]
    plain = [i for i, (_, conversion, spec) in enumerate(fields) if not (conversion or spec)]
    parts, steps = [literals[0]], []
    for i, (name, conversion, spec) in enumerate(fields):
        following = literals[i + 1]
        stop = following[:1] or (_END if i == len(fields) - 1 else _NO_TOKEN)
        is_raw = not plain or i > plain[-1]
        text = _Text(conversion, spec, is_raw) if conversion or spec else None
        steps.append(_Step(len(parts), list(names).index(name), stop, text))
        parts += ["", following]
    return CacheKey(template, tuple(dict.fromkeys(shown)), tuple(names), tuple(parts), tuple(steps))


_Fields = list[tuple[str, str | None, str]]  # name, conversion, format spec


def _parsed(source: str, template: str | bool, names: Sequence[str]) -> tuple[list[str], _Fields]:
    """The fields of a template and the literals around them, one more than the fields."""
    known = f"the parameters are: {', '.join(names)}" if names else "there are no parameters"
    literals, fields = [""], _Fields()
    try:
        pieces = list(Formatter().parse(source))
    except ValueError as exc:
        raise ValueError(f"cache key {template!r}: {exc}; {known}") from None
    for literal, name, spec, conversion in pieces:
        literals[-1] += literal  # '{{' comes as a piece of its own, without a field
        if name is None:
            continue
        wrong = _what_is_wrong(name, spec or "", conversion, names)
        if wrong:
            raise ValueError(f"cache key {template!r}: field {name!r}: {wrong}; {known}")
        fields.append((name, conversion, spec or ""))
        literals.append("")
    return literals, fields


def _what_is_wrong(
    name: str, spec: str, conversion: str | None, names: Sequence[str]
) -> str | None:
    """Why a field is refused, or None."""
    if "." in name or "[" in name:
        access = "attribute" if "." in name else "index"
        return (
            f"{access} access is refused: a template is read from the registry and must not be code"
        )
    if name == "" or name.isdigit():
        return "positional fields are refused: name a parameter"
    if name not in names:
        return "no such parameter"
    if "{" in spec or "}" in spec:
        return "fields within a format spec are refused"
    if any(int(digits) > MAX_WIDTH for digits in re.findall(r"\d+", spec)):
        return f"a width or precision over {MAX_WIDTH} is refused"
    if conversion is not None and conversion not in _CONVERSIONS:
        return f"unknown conversion {conversion!r}: there are s, r and a"
    return None


class _RefusedError(Exception):
    """A value without an exact rendering; ``path`` leads to it, innermost step first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


def _nested(value: object, depth: int) -> str:
    """A value as it stands within a container: a closed form, or a token that is no str."""
    kind = type(value)  # exact: a subclass may mean more than its base shows
    token = _TOKENS.get(kind)
    if token is not None:
        return token(value)
    closed = _CLOSED.get(kind)
    if closed is not None:
        return closed(value)
    container = _CONTAINERS.get(kind)
    if container is None:
        raise _RefusedError(f"object of type {kind.__qualname__!r}")
    if depth >= MAX_DEPTH:
        raise _RefusedError(f"nested deeper than {MAX_DEPTH} levels, or within itself")
    return container(value, depth + 1)


def _at(step: str, value: object, depth: int) -> str:
    """A member of a container; ``step`` is how the path to it goes on."""
    try:
        return _nested(value, depth)
    except _RefusedError as refused:
        refused.path.append(step)
        raise


def _sequence(values: Iterable[object], depth: int) -> str:
    return ",".join([_at(f"[{i}]", value, depth) for i, value in enumerate(values)])


def _unordered(values: Iterable[object], depth: int) -> str:
    return ",".join(sorted([_at("{...}", value, depth) for value in values]))


def _mapping(values: dict[object, object], depth: int) -> str:
    items = []
    for key, value in values.items():
        shown = _at(".keys()[...]", key, depth)
        items.append(f"{shown}:{_at(f'[{shown}]', value, depth)}")
    return "{" + ",".join(sorted(items)) + "}"


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def _moment(value: datetime | time) -> str:
    """Date and time with all that tells two apart: fold, and the zone, not only its offset."""
    zone = value.tzinfo
    fold = " fold" if value.fold else ""
    name = ""
    if type(zone) is timezone:
        # The offset is in isoformat(). A name of its own does not count for ==, but shows.
        if zone.tzname(None) != timezone(zone.utcoffset(None)).tzname(None):
            name = " " + _quoted(zone.tzname(None))
    elif zone is not None and (key := _zone_key(zone)) is not None:
        name = " " + _quoted(key)
        value = value.replace(tzinfo=None)
    elif zone is not None:
        refused = _RefusedError(f"object of type {type(zone).__qualname__!r}")
        refused.path.append(".tzinfo")
        raise refused
    return f"<{type(value).__name__} {value.isoformat()}{fold}{name}>"


def _zone_key(zone: tzinfo) -> str | None:
    """Return the name by which a zone is found; None where it has none."""
    from zoneinfo import ZoneInfo  # few programs need it, and it looks at files

    return zone.key if type(zone) is ZoneInfo else None


# Any: the key of each table is the exact type of what its function takes.
_TOKENS: dict[type, Callable[[Any], str]] = {
    NoneType: str,
    bool: str,
    int: int_text,
    float: repr,
    date: date.isoformat,
}
_CLOSED: dict[type, Callable[[Any], str]] = {
    str: _quoted,
    bytes: lambda value: _quoted(value.decode("latin-1"), '"'),
    datetime: _moment,
    time: _moment,
    timedelta: lambda value: f"<timedelta {value.days} {value.seconds} {value.microseconds}>",
    # upper(): the letters' case follows the decimal context of the moment.
    Decimal: lambda value: f"<Decimal {str(value).upper()}>",
    UUID: lambda value: f"<UUID {value}>",
}
_CONTAINERS: dict[type, Callable[[Any, int], str]] = {
    list: lambda value, depth: f"[{_sequence(value, depth)}]",
    tuple: lambda value, depth: f"({_sequence(value, depth)})",
    dict: _mapping,
    set: lambda value, depth: f"<set {_unordered(value, depth)}>",
    frozenset: lambda value, depth: f"<frozenset {_unordered(value, depth)}>",
}
