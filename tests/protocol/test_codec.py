"""The codec's promises: exact round trips, errors that name the path, no bytes that hurt."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import pickle
import struct
import sys
import tracemalloc
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from decimal import Decimal, localcontext
from enum import IntEnum
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from redis_bus.errors import ProtocolError, SerializationError
from redis_bus.protocol.codec import (
    MAX_BYTES,
    MAX_DEPTH,
    Serializer,
    decode,
    encode,
    from_json,
    get_serializer,
    to_json,
)

MSGPACK = get_serializer("msgpack")
JSON = get_serializer("json")
PICKLE = get_serializer("pickle")
UTC = dt.timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")
formats = pytest.mark.parametrize("serializer", [MSGPACK, JSON], ids=["msgpack", "json"])
quick = settings(deadline=None)


def exact(value: Any) -> object:
    """Something that is equal for two values only if they are the same in type and value."""
    kind = type(value)
    if kind in (list, tuple):
        return kind.__name__, [exact(child) for child in value]
    if kind in (set, frozenset):
        return kind.__name__, sorted((exact(child) for child in value), key=repr)
    if kind is dict:
        return "dict", [(exact(key), exact(child)) for key, child in value.items()]
    if kind is float:
        return "float", "nan" if math.isnan(value) else struct.pack("d", value)
    if kind is Decimal:
        return "Decimal", str(value.as_tuple())
    if kind in (dt.datetime, dt.time):
        zone = value.tzinfo
        # A ZoneInfo by identity; a timezone by its repr, which shows offset and given name.
        zone_id = id(zone) if type(zone) is ZoneInfo else repr(zone)
        return kind.__name__, value.replace(tzinfo=None).isoformat(), value.fold, zone_id
    return kind.__name__, value


def assert_survives(value: object, serializer: Serializer) -> None:
    result = decode(encode(value, serializer), MSGPACK)
    assert exact(result) == exact(value)


text = st.text(st.characters() | st.characters(categories=["Cs"]))
fixed_zones = st.builds(
    dt.timezone,
    st.timedeltas(dt.timedelta(hours=-23, minutes=-59), dt.timedelta(hours=23, minutes=59)),
) | st.builds(dt.timezone, st.sampled_from([dt.timedelta(0), dt.timedelta(hours=-5)]), text)
zones = st.none() | st.just(UTC) | fixed_zones | st.timezones()


def with_zone(moment: Any, zone: Any, fold: int) -> Any:
    return moment.replace(tzinfo=zone, fold=fold)


datetimes = st.builds(with_zone, st.datetimes(), zones, st.integers(0, 1))
times = st.builds(with_zone, st.times(), zones, st.integers(0, 1))
hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]),
    st.floats(),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, 5e-324]),
    text,
    st.sampled_from(["$tuple", "$", "\ud83d\ude00", "\ude00\ud83d", "😀"]),
    st.binary(),
    datetimes,
    times,
    st.dates(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.sampled_from([Decimal(text) for text in ("-0", "0E+9", "1.10", "NaN", "-NaN12", "1E-99")]),
    st.uuids(),
)
scalars = hashable_scalars | st.sampled_from([Decimal("sNaN"), Decimal("-sNaN7")])
keys = st.recursive(
    hashable_scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    scalars | keys,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.sets(keys, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(text | st.just("$tuple"), inner, max_size=3),
    ),
    max_leaves=20,
)


@formats
@settings(deadline=None, max_examples=300)
@given(value=values)
def test_every_value_comes_back_as_it_went(serializer: Serializer, value: object) -> None:
    assert_survives(value, serializer)


@formats
@pytest.mark.parametrize(
    "value",
    [
        ([1, 2], {}),
        {1: "int", "1": "str", 1.5: "float", None: "none", b"1": "bytes", (1, "1"): "tuple"},
        {frozenset({1, (2, 3)}): [set(), frozenset(), (), [], {}]},
        {"$tuple": [1]},
        {"$": 1},
        {"$dict": {"$dict": 1}},
        {"$a": 1, "$b": 2},
        {"\ud83d\ude00": "\ud83d\ude00", "😀": "😀", "\udfff": "\ud800"},
        (1 << 20_000, -(1 << 20_000), 2**64, -(2**63) - 1),
        [-0.0, math.nan, math.inf, -math.inf],
        [Decimal("sNaN"), Decimal("NaN123"), Decimal("-0.00"), Decimal("1E+400000")],
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN),
        dt.datetime(2024, 10, 27, 2, 30, fold=0, tzinfo=BERLIN),
        dt.datetime(1, 1, 1, tzinfo=ZoneInfo("Pacific/Apia")),
        dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(microseconds=-1))),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "UTC")),
        dt.datetime(2024, 1, 1, fold=1, tzinfo=dt.timezone(dt.timedelta(hours=1), ";fold=1\n")),
        dt.time(2, 30, fold=1, tzinfo=BERLIN),
        [dt.timedelta.min, dt.timedelta.max, dt.timedelta.resolution],
        {UUID(int=0): dt.date.min},
        tuple(range(1000)),
        (b"x" * 300,),
        ("x" * 253,),
        list(range(70_000)),
        {"s": {(("a",),): ({(1,)},)}},
    ],
    ids=lambda value: repr(value)[:40] if type(value) is not tuple else "tuple",
)
def test_the_odd_corners_come_back_as_they_went(serializer: Serializer, value: object) -> None:
    assert_survives(value, serializer)


@formats
def test_utc_and_zones_come_back_as_the_same_objects(serializer: Serializer) -> None:
    moments = [dt.datetime(2024, 1, 1, tzinfo=UTC), dt.datetime(2024, 1, 1, tzinfo=BERLIN)]
    result: Any = decode(encode(moments, serializer), MSGPACK)
    assert result[0].tzinfo is UTC
    assert result[1].tzinfo is BERLIN


@formats
def test_ints_over_the_digit_limit_survive(serializer: Serializer) -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert_survives({7**9000: [-(7**9000)]}, serializer)
    finally:
        sys.set_int_max_str_digits(before)


@formats
def test_the_decimal_context_of_the_program_does_not_matter(serializer: Serializer) -> None:
    with localcontext() as context:
        context.prec = 2
        context.capitals = 0
        context.clear_traps()
        assert_survives(Decimal("1.23456789E+50"), serializer)
        with pytest.raises(ProtocolError):
            from_json({"$decimal": "garbage"})


def test_plain_values_are_plain_json() -> None:
    value = {"a": [1, -2.5, None, True, "x"], "$b": {}}
    assert to_json(value) == value
    assert encode(value, JSON) == b'j{"a":[1,-2.5,null,true,"x"],"$b":{}}'
    assert to_json((1, b"\0")) == {"$tuple": [1, {"$bytes": "AA=="}]}
    assert to_json({"$tuple": 1}) == {"$dict": [["$tuple", 1]]}


@quick
@given(value=values)
def test_json_trees_survive_json_itself(value: object) -> None:
    assert exact(from_json(json.loads(json.dumps(to_json(value))))) == exact(value)


# What cannot be encoded.


class Foo:
    pass


class Text(str):
    pass


class Moment(dt.datetime):
    pass


class Number(IntEnum):
    ONE = 1


Point = namedtuple("Point", "x y")

FOREIGN: list[object] = [
    Foo(),
    Foo,
    object(),
    len,
    1j,
    Text("x"),
    Moment(2024, 1, 1),
    Number.ONE,
    Point(1, 2),
    OrderedDict(a=1),
    defaultdict(list),
    bytearray(b"x"),
    memoryview(b"x"),
    range(3),
    msgpack.ExtType(1, b"\x90"),
    msgpack.Timestamp(1, 2),
]
WRAPPERS: list[tuple[Callable[[object], object], str]] = [
    (lambda value: value, "args"),
    (lambda value: [0, value], "args[1]"),
    (lambda value: ([{"x": [1, 2, value]}],), "args[0][0]['x'][2]"),
    (lambda value: ((((value,),),),), "args[0][0][0][0]"),
    (lambda value: {1: {b"k": value}, "1": {}}, "args[1][b'k']"),
    (lambda value: {(1, 2): value}, "args[<tuple>]"),
    (lambda value: [list(range(100)), {"y" * 99: value}], "args[1]['" + "y" * 59 + "...]"),
]


@formats
@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("wrap", "path"), WRAPPERS, ids=[path[:30] for _, path in WRAPPERS])
def test_other_types_and_subclasses_are_refused_by_path(
    serializer: Serializer, foreign: object, wrap: Callable[[object], object], path: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        encode(wrap(foreign), serializer, root="args")
    assert str(caught.value) == f"cannot encode {path}: object of type '{type(foreign).__name__}'"


@formats
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({Foo(): 1}, "cannot encode a key of value: object of type 'Foo'"),
        ([{Text("x"): 1}], "cannot encode a key of value[0]: object of type 'Text'"),
        ({(1, Number.ONE)}, "cannot encode (an element of value)[1]: object of type 'Number'"),
        ([frozenset({Foo})], "cannot encode an element of value[0]: object of type 'type'"),
    ],
    ids=["key", "str key", "in an element", "element"],
)
def test_bad_keys_and_elements_are_named(
    serializer: Serializer, value: object, message: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        encode(value, serializer)
    assert str(caught.value) == message


class OwnZone(dt.tzinfo):
    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=1)

    def dst(self, _: dt.datetime | None) -> None:
        return None

    def tzname(self, _: dt.datetime | None) -> str:
        return "own"


def keyless_zone(key: str | None) -> ZoneInfo:
    # The smallest version 1 zone file: one type, UTC.
    data = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + bytes(6) + b"UTC\0"
    return ZoneInfo.from_file(io.BytesIO(data), key=key)


@formats
@pytest.mark.parametrize(
    ("zone", "reason"),
    [
        (keyless_zone(None), "ZoneInfo that was read from a file, not by its key"),
        (keyless_zone("Europe/Berlin"), "ZoneInfo that was read from a file, not by its key"),
        (OwnZone(), "datetime with a time zone of type 'OwnZone'"),
    ],
    ids=["keyless", "keyed file", "own"],
)
def test_zones_that_could_not_be_found_again_are_refused(
    serializer: Serializer, zone: dt.tzinfo, reason: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        encode([dt.datetime(2024, 1, 1, tzinfo=zone)], serializer, root="kwargs['t']")
    assert str(caught.value) == f"cannot encode kwargs['t'][0]: {reason}"


# Limits.


def nest(wrap: Callable[[Any], object], levels: int) -> object:
    value: object = wrap(None)
    for _ in range(levels - 1):
        value = wrap(value)
    return value


NESTS: dict[str, Callable[[Any], object]] = {
    "list": lambda value: [value],
    "tuple": lambda value: (value,),
    "frozenset": lambda value: frozenset([value]),
    "dict": lambda value: {"a": value},
    "key": lambda value: {(value,): 1} if value is None else (value,),
    "odd dict": lambda value: {1: value},
}
nests = pytest.mark.parametrize("wrap", NESTS.values(), ids=NESTS.keys())


@formats
@nests
def test_nesting_up_to_the_limit_survives(
    serializer: Serializer, wrap: Callable[[Any], object]
) -> None:
    assert_survives(nest(wrap, MAX_DEPTH - 1), serializer)
    if wrap is not NESTS["key"]:  # whose innermost is two levels
        assert_survives(nest(wrap, MAX_DEPTH), serializer)


@formats
@nests
@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 200, 5000])
def test_nesting_over_the_limit_is_refused(
    serializer: Serializer, wrap: Callable[[Any], object], levels: int
) -> None:
    with pytest.raises(SerializationError, match="nested deeper than 64 levels, or inside itself"):
        encode(nest(wrap, levels), serializer)


@formats
def test_long_lists_inside_nested_tuples_do_not_exhaust_the_stack(serializer: Serializer) -> None:
    def wrap(value: Any) -> object:
        for _ in range(490):
            value = [value]
        return (value,)

    with pytest.raises(SerializationError, match="nested deeper"):
        encode(nest(wrap, 60), serializer)


@formats
def test_cycles_are_refused(serializer: Serializer) -> None:
    items: list[object] = []
    items.append(items)
    table: dict[str, object] = {}
    table["x"] = (table, 1)
    for value in (items, table, (items,), [table] * 3):
        with pytest.raises(SerializationError, match="nested deeper than 64 levels, or inside"):
            encode(value, serializer)


def test_the_depth_message_shortens_the_path() -> None:
    with pytest.raises(SerializationError) as caught:
        encode(nest(NESTS["list"], 65), MSGPACK, root="args")
    path = ("args" + "[0]" * 64)[:60]
    assert str(caught.value) == (
        f"cannot encode {path}...: nested deeper than 64 levels, or inside itself"
    )


@formats
def test_size_over_the_limit_is_refused_with_both_sizes(serializer: Serializer) -> None:
    size = len(encode(["x" * 100], serializer))
    encode(["x" * 100], serializer, max_bytes=size)
    with pytest.raises(SerializationError) as caught:
        encode(["x" * 100], serializer, root="result", max_bytes=size - 1)
    assert str(caught.value) == (
        f"cannot encode result: {size} bytes, more than the limit of {size - 1} bytes"
    )
    with pytest.raises(SerializationError, match="limit of 16777216 bytes"):
        encode("x" * MAX_BYTES, serializer)


# Bytes that are not ours.


def decodes_or_says_so(data: bytes) -> None:
    try:
        value = decode(data, MSGPACK)
    except (ProtocolError, SerializationError):
        return
    for serializer in (MSGPACK, JSON):  # whatever is let in is one of our values
        assert_survives(value, serializer)


TAGS = ["$tuple", "$set", "$frozenset", "$dict", "$bytes", "$str", "$float", "$int"]
TAGS += ["$decimal", "$datetime", "$date", "$time", "$timedelta", "$uuid", "$x"]
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(text, inner, max_size=2),
        st.dictionaries(
            st.sampled_from(TAGS),
            inner | text | st.lists(st.lists(inner, min_size=2, max_size=2)),
            min_size=1,
            max_size=1,
        ),
    ),
)
ext_payloads = st.one_of(
    st.binary(),
    text.map(lambda word: word.encode("utf-8", "surrogatepass")),
    st.from_regex(r"[0-9T:+.-]{0,30}(;fold=1)?(;(zone|name)=.{0,9})?").map(
        lambda word: word.encode("utf-8", "surrogatepass")
    ),
    json_like.map(lambda tree: msgpack.packb(tree, unicode_errors="surrogatepass", default=str)),
)


@settings(deadline=None, max_examples=500)
@given(tag=st.sampled_from([b"", b"m", b"j", b"p", b"x"]), data=st.binary())
@example(tag=b"m", data=b"")
@example(tag=b"j", data=b"")
def test_no_bytes_raise_anything_but_our_errors(tag: bytes, data: bytes) -> None:
    decodes_or_says_so(tag + data)


@settings(deadline=None, max_examples=300)
@given(code=st.integers(0, 12), data=ext_payloads)
def test_no_extension_raises_anything_but_our_errors(code: int, data: bytes) -> None:
    decodes_or_says_so(b"m" + msgpack.packb([msgpack.ExtType(code, data)]))


@settings(deadline=None, max_examples=300)
@given(tree=json_like)
def test_no_json_raises_anything_but_our_errors(tree: object) -> None:
    decodes_or_says_so(b"j" + json.dumps(tree).encode())


@formats
@settings(deadline=None, max_examples=300)
@given(value=values, data=st.data())
def test_damaged_bytes_raise_nothing_but_our_errors(
    serializer: Serializer, value: object, data: st.DataObject
) -> None:
    good = encode(value, serializer)
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[at] ^= data.draw(st.integers(1, 255))
    decodes_or_says_so(bytes(flipped))
    decodes_or_says_so(good[:at] + good[at + 1 :])


@settings(deadline=None)
@given(value=values, data=st.data())
def test_truncated_and_continued_msgpack_is_refused(value: object, data: st.DataObject) -> None:
    good = encode(value, MSGPACK)
    for bad in (good[: data.draw(st.integers(0, len(good) - 1))], good + b"\xc0", good + good[1:]):
        with pytest.raises(ProtocolError):
            decode(bad, MSGPACK)


def test_a_tuple_with_256_bytes_after_it_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode(encode(([1, 2], {}), MSGPACK) + b"\xc0" * 256, MSGPACK)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?1",
        b"m",
        b"m\xc1",
        b"m\xa1\xff",
        b"m\x81\x90\xc0",  # a list as a key
        b"m\xd4\x63\x00",  # an unknown extension
        b"m\xd6\xff\x00\x00\x00\x00",  # msgpack's own timestamp
        b"m\xc7\x02\x01\xc0\xc0",
        b"m\xd4\x01\x80",  # a tuple of a dict
        b"m\xdd\xff\xff\xff\xff",
        b"m\xdf\xff\xff\xff\xff",
        b"m\xc6\xff\xff\xff\xff",
        b"m\xdb\xff\xff\xff\xff",
        b"m\xc9\xff\xff\xff\xff\x01",
        b"m\xd5\x01" + b"\x91\x91",
        b"m" + b"\x91" * 64 + b"\x90",
        b"m" + b"\x91" * 100_000,
        b"m" + b"\x81\xc0" * 900 + b"\xc0",
        b"j",
        b"j\xff",
        b"jNaN",
        b"j1 1",
        b"j" + b"9" * 5000,
        b"j" + b"[" * 64 + b"[]" + b"]" * 64,
        b"j" + b"[" * 100_000,
        b"j" + b'{"$tuple":[' * 65 + b"]}" * 65,
        b'j{"$set":[[]]}',
        b'j{"$set":[{"$decimal":"sNaN"}]}',
        b'j{"$what":1}',
        b'j{"$dict":[[1]]}',
        b'j{"$dict":{}}',
        b'j{"$float":"1"}',
        b'j{"$int":"12"}',
        b'j{"$bytes":"\xc3\xa4"}',
        b'j{"$timedelta":"99999999999999999999"}',
        b'j{"$decimal":"x"}',
        b'j{"$time":"00:00;name=x"}',
        b'j{"$datetime":"2024-01-01T00:00:00+00:00;zone=Europe/Berlin"}',
        b'j{"$datetime":"2024-01-01T00:00:00Z"}',
        b'j{"$datetime":"2024-01-01T00:00:00+24:00"}',
        b'j{"$datetime":"2024-01-01T00:00:00;zone=../../../etc/passwd"}',
        b'j{"$datetime":"2024-01-01T00:00:00;zone=Europe"}',
        b'j{"$datetime":"2024-01-01T00:00:00;zone="}',
    ],
    ids=lambda data: repr(data)[:40],
)
def test_bytes_that_are_not_ours_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data, PICKLE)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 1000])
def test_extensions_nested_too_deep_are_a_protocol_error(levels: int) -> None:
    data = b"\x90"
    for _ in range(levels):
        data = b"\x91" + struct.pack(">BIb", 0xC9, len(data), 1) + data
    with pytest.raises(ProtocolError, match="deeper than 64"):
        decode(b"m" + data[1:], MSGPACK)


def test_nested_array_headers_do_not_claim_memory() -> None:
    data = b"m" + b"\xdd\x00\x10\x00\x00" * 1000 + bytes(2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(data, MSGPACK)
        assert tracemalloc.get_traced_memory()[1] < 2**25  # 8 GB were claimed
    finally:
        tracemalloc.stop()


@formats
def test_an_unknown_zone_is_named(serializer: Serializer) -> None:
    good = encode(dt.datetime(2024, 1, 1, tzinfo=BERLIN), serializer)
    with pytest.raises(ProtocolError) as caught:
        decode(good.replace(b"Europe/Berlin", b"Europe/Nowher"), serializer)
    assert str(caught.value) == (
        f"cannot decode {serializer.name} value: time zone 'Europe/Nowher' is not known here "
        "(the package tzdata may be missing)"
    )


# Pickle, and objects of the user's own.


class Upper:
    """A serializer for text alone, with a name."""

    name = "upper"

    def dumps(self, value: object) -> bytes:
        assert isinstance(value, str)
        return value.upper().encode()

    def loads(self, data: bytes) -> object:
        return data.decode()


class Lossy:
    """Without a name, with a dumps that returns no bytes and a loads that fails."""

    def dumps(self, value: object) -> Any:
        return str(value)

    def loads(self, data: bytes) -> object:
        raise LookupError("lost")


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("the bytes were executed",)


def test_pickle_is_refused_unless_accepted() -> None:
    data = encode(Bomb(), PICKLE)
    own = get_serializer(Upper())
    for accept in (MSGPACK, JSON, own):
        with pytest.raises(SerializationError) as caught:
            decode(data, accept)
        assert str(caught.value) == (
            "the value was written with pickle, which this bus does not accept; open "
            "Bus(..., serializer='pickle') only on a trusted network"
        )


def test_pickle_carries_any_type_where_accepted() -> None:
    value = [Point(1, 2), {Text("x"): Number.ONE}, bytearray(b"x")]
    result: Any = decode(encode(value, PICKLE), PICKLE)
    assert result == value
    assert type(result[0]) is Point


def test_pickle_errors_are_ours() -> None:
    with pytest.raises(SerializationError, match=r"cannot encode args with pickle: "):
        encode(lambda: None, PICKLE, root="args")
    for data in (b"p", b"pgarbage", encode(1, PICKLE)[:-1], b"p" + pickle.dumps(Foo)[:-9] + b"."):
        with pytest.raises(ProtocolError, match="cannot decode pickle value"):
            decode(data, PICKLE)


@pytest.mark.parametrize("accept", [MSGPACK, JSON, PICKLE], ids=lambda one: one.name)
def test_msgpack_and_json_are_always_accepted(accept: Serializer) -> None:
    assert decode(encode((1, "x"), MSGPACK), accept) == (1, "x")
    assert decode(encode((1, "x"), JSON), accept) == (1, "x")


def test_own_objects_are_used_and_accepted_only_where_given() -> None:
    own = get_serializer(Upper())
    data = encode("abc", own)
    assert data == b"xABC"
    assert decode(data, own) == "ABC"
    assert decode(data, Upper()) == "ABC"
    for accept in (MSGPACK, JSON, PICKLE):
        with pytest.raises(SerializationError, match="written with a serializer object"):
            decode(data, accept)


def test_own_objects_that_fail_raise_our_errors() -> None:
    lossy = get_serializer(cast(Any, Lossy()))
    with pytest.raises(SerializationError, match="cannot encode args: Lossy made str, not bytes"):
        encode(1, lossy, root="args")
    with pytest.raises(SerializationError, match="cannot encode args with upper: AssertionError"):
        encode(1, get_serializer(Upper()), root="args")
    with pytest.raises(ProtocolError, match=r"cannot decode Lossy value: LookupError\('lost'\)"):
        decode(b"x", lossy)


def test_serializers_are_found_by_name_or_taken_as_objects() -> None:
    assert [get_serializer(name).name for name in ("msgpack", "json", "pickle")] == [
        "msgpack",
        "json",
        "pickle",
    ]
    assert get_serializer(Upper()).name == "upper"
    assert get_serializer(cast(Any, Lossy())).name == "Lossy"
    own = get_serializer(Upper())
    assert get_serializer(own) is own
    assert get_serializer(MSGPACK) is MSGPACK
    with pytest.raises(ValueError, match="'yaml': choose 'msgpack', 'json', 'pickle'"):
        get_serializer("yaml")
    for bad in (None, 3, object()):
        with pytest.raises(TypeError, match="object with dumps and loads, not "):
            get_serializer(bad)  # type: ignore[arg-type]


def test_to_json_names_the_path() -> None:
    with pytest.raises(SerializationError, match=r"cannot encode value\['a'\]\[0\]: object of"):
        to_json({"a": [Foo()]})


@pytest.mark.parametrize("tree", [{1: 2}, (1,), b"x", Foo(), {"$tuple": (1,)}, {"$int": 3}])
def test_from_json_takes_only_json_trees(tree: object) -> None:
    with pytest.raises(ProtocolError, match="cannot decode json value"):
        from_json(tree)
