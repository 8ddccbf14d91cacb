"""Values to bytes and back, exactly: msgpack, JSON, or (asked for) pickle.

An encoded value is one tag byte, ``m`` msgpack, ``j`` JSON (UTF-8, see ``codec_json``),
``p`` pickle or ``x`` an object of the user's own, then what that format makes of it.

In msgpack, nil, booleans, integers of up to 64 bits, float 64, str (UTF-8, lone surrogates
as in WTF-8 and CESU-8), bin, array (list) and map (dict, in order, any key) are themselves.
The rest are extension types:

====  =========  ======================================================================
code  type       payload
====  =========  ======================================================================
1     tuple      a msgpack array of the items
2     set        a msgpack array of the elements, in any order
3     frozenset  a msgpack array of the elements, in any order
4     int        UTF-8 text, hexadecimal: ``-0x1f``; for over 64 bits
5     Decimal    UTF-8 text: ``1.10``, ``1E+5``, ``NaN``, ``-Infinity``
6     datetime   UTF-8 text: ISO 8601, ``[;fold=1]``, ``[;zone=Europe/Berlin | ;name=CET]``
7     date       UTF-8 text: ISO 8601
8     time       UTF-8 text: as datetime
9     timedelta  UTF-8 text: microseconds, decimal
10    UUID       UTF-8 text
====  =========  ======================================================================

Reading msgpack or JSON runs no code that the bytes choose, whatever they are.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import msgpack  # type: ignore[import-untyped]

from redis_bus.errors import ProtocolError, SerializationError
from redis_bus.protocol.codec_json import MAX_DEPTH, TEXT_FORMS, explain, from_json, sound, to_json

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "Serializer",
    "decode",
    "encode",
    "from_json",
    "get_serializer",
    "to_json",
]

MAX_BYTES = 16 * 1024 * 1024
"""Bytes that an encoded value may have, its tag included."""

_TUPLE = 1
_KINDS: dict[int, type] = {_TUPLE: tuple, 2: set, 3: frozenset}
_CODES = {kind: code for code, kind in _KINDS.items()}
_READERS = {form.code: form.read for form in TEXT_FORMS.values()}
_EXT8 = 0xC7
# The C packer recurses up to 511 levels for each extension type inside another. From this
# level on, depth is checked before packing, so that the C stack is bounded.
_CHECKED_LEVEL = 8
# The packer's own default, 256 kB, goes back to the system after each nested tuple: 5 us each.
_PACK_BUFFER_BYTES = 1024
# msgpack packs bytearray, memoryview, ExtType and Timestamp unasked; all begin with one of
# these bytes (bin and ext headers). Where none occurs, no such value can be inside.
_find_marker = re.compile(rb"[\xc4-\xc9\xd4-\xd8]").search


class Serializer(Protocol):
    """What turns values into bytes; ``loads`` returns what ``dumps`` was given."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def dumps(self, value: object) -> bytes:
        """Encode a value; raises what it likes if it cannot."""

    def loads(self, data: bytes) -> object:
        """Decode what ``dumps`` made; raises what it likes if it cannot."""


# msgpack. Its hooks are called while a pack or unpack is under way and start one of their
# own for the inside of a tuple or set. There is one hook for each level of that nesting, so
# the depth travels without shared state and nothing recurses further than MAX_DEPTH.


def _default(level: int, value: object) -> object:
    kind = type(value)
    code = _CODES.get(kind)
    if code is not None:
        if level >= MAX_DEPTH or (
            level == _CHECKED_LEVEL and not sound(value, MAX_DEPTH - _CHECKED_LEVEL)
        ):
            raise ValueError("nested too deep, or of a type that is not ours")
        return msgpack.ExtType(code, _pack(list(cast("tuple[object, ...]", value)), level + 1))
    form = TEXT_FORMS.get(kind)
    if form is None:
        raise TypeError(f"object of type '{kind.__name__}'")
    return msgpack.ExtType(form.code, form.write(value).encode("utf-8", "surrogatepass"))


def _ext_hook(level: int, code: int, data: bytes) -> object:
    kind = _KINDS.get(code)
    if kind is not None:
        return kind(_unpack_array(data, level + 1))
    read = _READERS.get(code)
    if read is None:
        raise ValueError(f"unknown extension type {code}")
    return read(data.decode("utf-8", "surrogatepass"))


_DEFAULTS = [partial(_default, level) for level in range(MAX_DEPTH + 1)]
_EXT_HOOKS = [partial(_ext_hook, level) for level in range(MAX_DEPTH + 1)]


def _pack(value: object, level: int) -> bytes:
    packer = msgpack.Packer(
        default=_DEFAULTS[level],
        strict_types=True,
        unicode_errors="surrogatepass",
        buf_size=_PACK_BUFFER_BYTES,
    )
    return cast(bytes, packer.pack(value))


def _unpack(data: bytes, level: int) -> object:
    if level > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if b"\xdd" in data or b"\xdc" in data:
        # unpackb allocates what an array header claims, up to len(data) items, and headers
        # nest: 5 kB could claim 40 MB, 1 MB could claim 8 GB. Skipping allocates nothing
        # and fails unless the items are there.
        unpacker = msgpack.Unpacker(None, max_buffer_size=len(data))
        unpacker.feed(data)
        unpacker.skip()
    # The max_*_len of unpackb are len(data) unless given: no header can claim more.
    return msgpack.unpackb(
        data, ext_hook=_EXT_HOOKS[level], strict_map_key=False, unicode_errors="surrogatepass"
    )


def _unpack_array(data: bytes, level: int) -> list[object]:
    items = _unpack(data, level)
    if type(items) is not list:
        raise ValueError("no array inside a tuple or set")
    return items


class _Msgpack:
    __slots__ = ()
    name = "msgpack"

    def dumps(self, value: object) -> bytes:
        try:
            # Arguments are a tuple, so that one is written here: it saves a hook and a packer.
            is_tuple = type(value) is tuple
            body = _pack(list(value), 1) if is_tuple else _pack(value, 0)  # type: ignore[call-overload]
        except (ValueError, TypeError, OverflowError, RecursionError) as exc:
            raise SerializationError(explain(value) or f"cannot encode value: {exc}") from exc
        # Each level takes a byte at least, so few bytes are not nested too deep.
        if (len(body) >= MAX_DEPTH or _find_marker(body)) and not sound(value):
            raise SerializationError(explain(value) or "cannot encode value: it changed meanwhile")
        if not is_tuple:
            return body
        if len(body) < 256:
            return bytes((_EXT8, len(body), _TUPLE)) + body
        return cast(bytes, msgpack.packb(msgpack.ExtType(_TUPLE, body)))

    def loads(self, data: bytes) -> object:
        try:
            if 3 <= len(data) < 259 and data[:3] == bytes((_EXT8, len(data) - 3, _TUPLE)):
                value: object = tuple(_unpack_array(data[3:], 1))
                start = 3
            else:
                value = _unpack(data, 0)
                start = 0
        except (
            msgpack.UnpackException,
            ValueError,
            TypeError,  # an unhashable key or element
            OverflowError,
            RecursionError,
            MemoryError,
        ) as exc:
            reason = str(exc) or type(exc).__name__
            raise ProtocolError(f"cannot decode msgpack value: {reason}") from exc
        if (len(data) > MAX_DEPTH or _find_marker(data, start)) and not sound(value):
            raise ProtocolError(
                f"cannot decode msgpack value: nested deeper than {MAX_DEPTH} levels, "
                "or an extension type that is not ours"
            )
        return value


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


_JSON_ENCODER = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"))
_JSON_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class _Json:
    __slots__ = ()
    name = "json"

    def dumps(self, value: object) -> bytes:
        return _JSON_ENCODER.encode(to_json(value)).encode("ascii")

    def loads(self, data: bytes) -> object:
        try:
            tree: object = _JSON_DECODER.decode(data.decode("utf-8"))
        except (ValueError, RecursionError) as exc:
            raise ProtocolError(f"cannot decode json value: {exc}") from exc
        return from_json(tree)


class _Pickle:
    __slots__ = ()
    name = "pickle"

    def dumps(self, value: object) -> bytes:
        return pickle.dumps(value, protocol=5)

    def loads(self, data: bytes) -> object:
        return pickle.loads(data)


@dataclass(frozen=True, slots=True)
class _Own:
    """An object of the user's own, with the name that messages call it."""

    name: str
    dumps: Callable[[object], bytes]
    loads: Callable[[bytes], object]


_MSGPACK, _JSON, _PICKLE = _Msgpack(), _Json(), _Pickle()
_CHOICES: dict[str, Serializer] = {one.name: one for one in (_MSGPACK, _JSON, _PICKLE)}
_TAGS: dict[type, bytes] = {_Msgpack: b"m", _Json: b"j", _Pickle: b"p"}


def get_serializer(spec: str | Serializer) -> Serializer:
    """Find a serializer by its name, or take an object with ``dumps`` and ``loads``.

    Raises ValueError, naming the choices, for another name, and TypeError for another object.
    """
    if isinstance(spec, str):
        if spec not in _CHOICES:
            raise ValueError(
                f"unknown serializer {spec!r}: choose 'msgpack', 'json', 'pickle', "
                "or give an object with dumps and loads"
            )
        return _CHOICES[spec]
    if type(spec) in _TAGS or isinstance(spec, _Own):
        return spec
    dumps, loads = getattr(spec, "dumps", None), getattr(spec, "loads", None)
    if not (callable(dumps) and callable(loads)):
        raise TypeError(
            f"a serializer is 'msgpack', 'json', 'pickle' or an object with dumps and loads, "
            f"not {type(spec).__name__}"
        )
    name = getattr(spec, "name", None)
    return _Own(name if isinstance(name, str) else type(spec).__qualname__, dumps, loads)


def encode(
    value: object, serializer: Serializer, *, root: str = "value", max_bytes: int = MAX_BYTES
) -> bytes:
    """Encode a value, headed by the tag of its format.

    Messages call the value ``root``: ``cannot encode args[0]['x']: object of type 'Foo'``.

    Raises SerializationError for a value that cannot make the round trip (another type, a
    subclass, nesting over MAX_DEPTH levels) and for more than ``max_bytes`` bytes.
    """
    tag = _TAGS.get(type(serializer), b"x")
    try:
        body = serializer.dumps(value)
    except SerializationError as exc:
        if tag not in (b"m", b"j"):
            raise
        raise SerializationError(explain(value, root) or str(exc)) from exc.__cause__
    except Exception as exc:
        raise SerializationError(f"cannot encode {root} with {serializer.name}: {exc!r}") from exc
    if type(body) is not bytes:
        raise SerializationError(
            f"cannot encode {root}: {serializer.name} made {type(body).__name__}, not bytes"
        )
    if len(body) >= max_bytes:
        raise SerializationError(
            f"cannot encode {root}: {len(body) + 1} bytes, more than the limit of {max_bytes} bytes"
        )
    return tag + body


def decode(data: bytes, accept: Serializer) -> object:
    """Decode what ``encode`` made, with whichever serializer, as far as it is accepted.

    msgpack and JSON are always read; pickle, and objects of the user's own, only where
    ``accept`` is one.

    Raises SerializationError for a format that is not accepted, ProtocolError for bytes that
    ``encode`` did not make (or a time zone that this machine does not know); nothing else.
    """
    tag, body = data[:1], data[1:]
    if tag == b"m":
        return _MSGPACK.loads(body)
    if tag == b"j":
        return _JSON.loads(body)
    if tag not in (b"p", b"x"):
        raise ProtocolError(f"cannot decode {len(data)} bytes that begin with {data[:8]!r}")
    if tag != _TAGS.get(type(accept), b"x"):
        if tag == b"p":
            raise SerializationError(
                "the value was written with pickle, which this bus does not accept; open "
                "Bus(..., serializer='pickle') only on a trusted network"
            )
        raise SerializationError(
            "the value was written with a serializer object, which this bus does not accept; "
            "open Bus(..., serializer=<that object>) to read it"
        )
    try:
        return accept.loads(body)
    except Exception as exc:
        raise ProtocolError(f"cannot decode {accept.name} value: {exc!r}") from exc
