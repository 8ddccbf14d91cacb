"""Values as JSON trees, exactly, and the rules that both formats share.

None, bool, str, float, list, dict with str keys and int of up to 64 bits are plain JSON.
Everything else is an object with one key:

==============  =========================================================================
key             its value
==============  =========================================================================
``$tuple``      array of the items; ``$set`` and ``$frozenset`` likewise, in any order
``$dict``       array of ``[key, value]`` pairs, in order, for a dict that plain JSON cannot
                hold: keys that are not str, or one single key that begins with ``$``
``$bytes``      base64
``$str``        base64 of its UTF-8 (surrogates included), for text in which two lone
                surrogates stand side by side: JSON readers would join them
``$float``      ``"nan"``, ``"inf"`` or ``"-inf"``
``$int``        hexadecimal text, ``"-0x1f"``
``$decimal``    text, ``"1.10"``, ``"NaN"``, ``"-Infinity"``
``$datetime``   ISO 8601, then ``;fold=1`` if it is the second of two equal local times, then
                ``;zone=Europe/Berlin`` (the ISO part has no offset then) or ``;name=CET``
                for a fixed offset that has a name; UTC is ``+00:00``
``$date``       ISO 8601
``$time``       as ``$datetime``
``$timedelta``  microseconds, decimal text
``$uuid``       text
==============  =========================================================================

msgpack holds the same texts, from ``$int`` on, in its extension types (see ``codec``).
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Context, Decimal, InvalidOperation
from pickle import PicklingError
from typing import TYPE_CHECKING, Any
from uuid import UUID

from redis_bus.errors import ProtocolError, SerializationError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

MAX_DEPTH = 64
"""Levels of nested containers that a value may have."""

_SHOWN_CHARS = 60
_STRICT = Context(traps=[InvalidOperation])
_MICROSECOND = timedelta(microseconds=1)
_HEX = re.compile(r"-?0x[0-9a-f]+")
_MICROSECONDS = re.compile(r"-?[0-9]{1,20}")
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+/.-]{1,100}")
_MOMENT = re.compile(
    r"([^;]*?)([+-][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{6})?)?)?"
    r"(;fold=1)?(?:;zone=([^;]*)|;name=(.*))?",
    re.DOTALL,
)
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


# Text forms: what a scalar that neither format knows looks like. They raise ValueError.


@dataclass(frozen=True, slots=True)
class TextForm:
    """How a type is written as text: ``code`` is its msgpack extension, ``name`` its JSON key."""

    code: int
    name: str
    write: Callable[[Any], str]
    read: Callable[[str], object]


def _read_int(text: str) -> int:
    if not _HEX.fullmatch(text):
        raise ValueError("bad $int")
    return int(text, 16)


def _read_decimal(text: str) -> Decimal:
    try:
        # Without a context of its own, a program that does not trap InvalidOperation would
        # read garbage as NaN. The context does not round here.
        return Decimal(text, _STRICT)
    except InvalidOperation:
        raise ValueError("bad $decimal") from None


def _write_timedelta(value: timedelta) -> str:
    return str(value // _MICROSECOND)


def _read_timedelta(text: str) -> timedelta:
    if not _MICROSECONDS.fullmatch(text):
        raise ValueError("bad $timedelta")
    return timedelta(microseconds=int(text))


def _zone_key(zone: ZoneInfo) -> str:
    try:
        zone.__reduce__()  # refuses zones read from a file: their key does not find them again
    except PicklingError:
        raise ValueError("ZoneInfo that was read from a file, not by its key") from None
    if not _ZONE_KEY.fullmatch(zone.key):
        raise ValueError(f"ZoneInfo with the odd key {zone.key!r}")
    return zone.key


def _read_zone(key: str) -> ZoneInfo:
    try:
        if _ZONE_KEY.fullmatch(key):
            from zoneinfo import ZoneInfo  # few programs need it, and it looks at files

            return ZoneInfo(key)
    except (KeyError, ValueError, OSError):
        pass  # not found, not a zone file, a folder: all mean the same here
    raise ValueError(
        f"time zone {key[:_SHOWN_CHARS]!r} is not known here (the package tzdata may be missing)"
    )


def _write_moment(value: datetime | time) -> str:
    zone = value.tzinfo
    fold = ";fold=1" if value.fold else ""
    if zone is None:
        return value.isoformat() + fold
    if type(zone) is timezone:
        # The only way to tell a name that was given from the one that is made up (UTC+01:00).
        initargs: tuple[Any, ...] = zone.__getinitargs__()  # type: ignore[attr-defined]
        name = f";name={initargs[1]}" if len(initargs) > 1 else ""
        return value.isoformat() + fold + name
    from zoneinfo import ZoneInfo

    if type(zone) is ZoneInfo:
        return f"{value.replace(tzinfo=None).isoformat()}{fold};zone={_zone_key(zone)}"
    raise ValueError(f"{type(value).__name__} with a time zone of type '{type(zone).__name__}'")


def _read_offset(text: str) -> timedelta:
    # fromisoformat loses offsets of less than a second (CPython 3.11).
    size = timedelta(
        hours=int(text[1:3]),
        minutes=int(text[4:6]),
        seconds=int(text[7:9] or 0),
        microseconds=int(text[10:] or 0),
    )
    return -size if text[0] == "-" else size


def _moment_reader(kind: type[datetime] | type[time]) -> Callable[[str], object]:
    def read(text: str) -> object:
        match = _MOMENT.fullmatch(text)
        if match is None:
            raise ValueError(f"bad ${kind.__name__}")
        iso, offset, fold, key, name = match.groups()
        value = kind.fromisoformat(iso)
        if value.tzinfo or (offset and key is not None) or (name is not None and not offset):
            raise ValueError(f"bad ${kind.__name__}: one of an offset, with a name or not, or zone")
        if offset:
            zone_args = (_read_offset(offset),) if name is None else (_read_offset(offset), name)
            value = value.replace(tzinfo=timezone(*zone_args))
        if key is not None:
            value = value.replace(tzinfo=_read_zone(key))
        return value.replace(fold=1) if fold else value

    return read


TEXT_FORMS: dict[type, TextForm] = {
    int: TextForm(4, "$int", hex, _read_int),
    Decimal: TextForm(5, "$decimal", str, _read_decimal),
    datetime: TextForm(6, "$datetime", _write_moment, _moment_reader(datetime)),
    date: TextForm(7, "$date", date.isoformat, date.fromisoformat),
    time: TextForm(8, "$time", _write_moment, _moment_reader(time)),
    timedelta: TextForm(9, "$timedelta", _write_timedelta, _read_timedelta),
    UUID: TextForm(10, "$uuid", str, UUID),
}
_READERS = {form.name: form.read for form in TEXT_FORMS.values()}
_LEAVES = frozenset({type(None), bool, float, str, bytes, *TEXT_FORMS})
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


# What may be encoded at all.


def sound(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Whether a value is of our exact types all through, nested in at most ``levels`` levels."""
    kind = type(value)
    if kind in _LEAVES:
        return True
    if kind not in _CONTAINERS or levels <= 0:
        return False
    if kind is dict:
        return _all_sound(value.keys(), levels - 1) and _all_sound(value.values(), levels - 1)
    return _all_sound(value, levels - 1)


def _all_sound(children: Iterable[object], levels: int) -> bool:
    if _LEAVES.issuperset(map(type, children)):  # long flat lists at the speed of C
        return True
    return all(type(child) in _LEAVES or sound(child, levels) for child in children)


def explain(value: object, root: str = "value", levels: int = MAX_DEPTH) -> str | None:
    """Say why a value cannot be encoded, naming the path to the culprit; None if it can."""
    kind = type(value)
    form = TEXT_FORMS.get(kind)
    if form is not None:
        try:
            form.write(value)
        except ValueError as exc:
            return f"cannot encode {root}: {exc}"
    if kind in _LEAVES:
        return None
    if kind not in _CONTAINERS:
        return f"cannot encode {root}: object of type '{kind.__name__}'"
    if levels <= 0:
        where = root if len(root) <= _SHOWN_CHARS else root[:_SHOWN_CHARS] + "..."
        return f"cannot encode {where}: nested deeper than {MAX_DEPTH} levels, or inside itself"
    problems = (explain(child, path, levels - 1) for path, child in _children(value, root))
    return next(filter(None, problems), None)


def _children(value: Any, root: str) -> Iterator[tuple[str, object]]:
    if " " in root:  # "a key of args" so far
        root = f"({root})"
    if type(value) is dict:
        for key, child in value.items():
            yield f"a key of {root}", key
            yield f"{root}[{_show(key)}]", child
    elif type(value) in (set, frozenset):
        yield from ((f"an element of {root}", child) for child in value)
    else:
        yield from ((f"{root}[{index}]", child) for index, child in enumerate(value))


def _show(key: object) -> str:
    if type(key) in (str, bytes, bool, float, type(None)) or (
        # Longer ints may be over the interpreter's limit for decimal text.
        type(key) is int and key.bit_length() <= 128
    ):
        text = repr(key)
        return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
    return f"<{type(key).__name__}>"


# The trees.


def to_json(value: object) -> object:
    """Turn a value into what ``json.dumps`` writes without loss.

    Raises SerializationError, naming the path, for what cannot make the round trip.
    """
    if sound(value):
        try:
            return _tree(value)
        except ValueError as exc:
            raise SerializationError(explain(value) or f"cannot encode value: {exc}") from exc
    raise SerializationError(explain(value) or "cannot encode value: it changed meanwhile")


def _tree(value: Any) -> object:
    kind = type(value)
    if kind is str:
        return {"$str": _base64(_utf8(value))} if _SURROGATE_PAIR.search(value) else value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if value is None or kind is bool or (kind is int and -(2**63) <= value < 2**64):
        return value
    if kind is bytes:
        return {"$bytes": _base64(value)}
    if kind is dict:
        if all(map(_is_plain_key, value)) and not (
            len(value) == 1 and next(iter(value))[:1] == "$"
        ):
            return {key: _tree(child) for key, child in value.items()}
        return {"$dict": [[_tree(key), _tree(child)] for key, child in value.items()]}
    form = TEXT_FORMS.get(kind)
    if form is not None:
        return {form.name: form.write(value)}
    children = [_tree(child) for child in value]
    return children if kind is list else {f"${kind.__name__}": children}


def _is_plain_key(key: object) -> bool:
    return type(key) is str and not _SURROGATE_PAIR.search(key)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def from_json(tree: object) -> object:
    """Turn what ``to_json`` made, or ``json.loads`` read, back into the value.

    Raises ProtocolError for a tree that ``to_json`` does not make; nothing else.
    """
    try:
        return _value(tree, MAX_DEPTH)
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise ProtocolError(f"cannot decode json value: {exc}") from exc


def _value(tree: object, levels: int) -> object:
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if type(tree) is dict:
        if len(tree) == 1:
            ((key, body),) = tree.items()
            if type(key) is str and key.startswith("$"):
                return _tagged(key, body, levels)
        if not all(type(key) is str for key in tree):
            raise ValueError("object with a key that is not a string")
        _need_level(levels)
        return {key: _value(child, levels - 1) for key, child in tree.items()}
    return [_value(child, levels - 1) for child in _array(tree, levels)]


def _tagged(tag: str, body: object, levels: int) -> object:
    if tag == "$dict":
        pairs = [_array(pair, levels) for pair in _array(body, levels)]
        return {_value(key, levels - 1): _value(child, levels - 1) for key, child in pairs}
    if tag in ("$tuple", "$set", "$frozenset"):
        kind = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}[tag]
        return kind([_value(child, levels - 1) for child in _array(body, levels)])
    if type(body) is not str:
        raise ValueError(f"{tag[:_SHOWN_CHARS]!r} without text")
    if tag in _READERS:
        return _READERS[tag](body)
    if tag == "$float" and body in ("nan", "inf", "-inf"):
        return float(body)
    if tag == "$bytes":
        return base64.b64decode(body, validate=True)
    if tag == "$str":
        return base64.b64decode(body, validate=True).decode("utf-8", "surrogatepass")
    raise ValueError(f"unknown {tag[:_SHOWN_CHARS]!r}")


def _array(tree: object, levels: int) -> list[object]:
    if type(tree) is not list:
        raise ValueError("no array where one belongs")
    _need_level(levels)
    return tree


def _need_level(levels: int) -> None:
    if levels <= 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
