"""Cache keys: different arguments never share one, and everyday ones can be read."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import struct
from collections import Counter, OrderedDict
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redis_bus.errors import SerializationError
from redis_bus.protocol.cache_key import MAX_KEY_BYTES, compile_template

NAMES = ("a", "b", "c")


def key(template: str | bool, *values: object, names: tuple[str, ...] = NAMES) -> bytes:
    return compile_template(template, names)(values)


def exact(value: Any) -> object:
    """Something hashable that is equal for two values if and only if they are the same."""
    name = type(value).__name__
    if isinstance(value, float):
        return name, "nan" if value != value else struct.pack(">d", value)
    if isinstance(value, (list, tuple)):
        return name, tuple(exact(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return name, frozenset(Counter(exact(item) for item in value).items())
    if isinstance(value, dict):
        items = Counter((exact(k), exact(v)) for k, v in value.items())
        return name, frozenset(items.items())
    if isinstance(value, (datetime, time)):
        zone = value.tzinfo
        zone_is: tuple[object, ...] = (type(zone).__name__, str(zone))
        if isinstance(zone, timezone):
            zone_is += (zone.utcoffset(None), zone.tzname(None))
        return name, value.replace(tzinfo=None, fold=0), value.fold, zone_is
    if isinstance(value, Decimal):
        return name, value.as_tuple()
    return name, value


# What is dangerous: quotes, brackets, separators, digits, and the words of other values.
FRAGMENTS = [*"/'\"\\1x,<>()[]{}:#-. \0", "None", "'/'", "','", "\\'", "<1>", "nan", "é"]
spiky = st.lists(st.sampled_from(FRAGMENTS), max_size=4).map("".join)
anything_in_text = st.text(st.characters(exclude_categories=()), max_size=8)
zones = st.one_of(
    st.none(),
    st.sampled_from([timezone.utc, ZoneInfo("UTC"), ZoneInfo("Europe/Paris")]),
    st.sampled_from([timezone(timedelta(hours=1)), timezone(timedelta(hours=1), "CET")]),
)
folds = st.sampled_from([0, 1])
datetimes = st.one_of(
    st.datetimes(timezones=zones),
    st.builds(
        datetime, st.just(2024), st.just(10), st.just(27), st.just(2), fold=folds, tzinfo=zones
    ),
)
hashable_leaves = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, "", "1", "1.0", b"1", b""]),
    st.sampled_from(["None", "True", "nan", "inf", "2024-10-27", float("nan"), float("inf")]),
    st.integers(-20, 20),
    st.integers(),
    st.floats(),
    spiky,
    spiky.map(lambda s: s.encode("utf-8")),
    anything_in_text,
    st.binary(max_size=4),
    datetimes,
    st.dates(date(2024, 10, 26), date(2024, 10, 28)),
    st.times(timezones=zones),
    st.timedeltas(),
    st.decimals(),
    st.sampled_from([Decimal("1"), Decimal("1.0"), Decimal("sNaN5")]),
    st.uuids(),
)


def hashable_containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    safe = inner.filter(is_hashable)
    return st.lists(inner, max_size=3).map(tuple) | st.frozensets(safe, max_size=3)


def is_hashable(value: object) -> bool:
    try:  # Decimal('sNaN') alone says no
        hash(value)
    except TypeError:
        return False
    return True


hashables = st.recursive(hashable_leaves, hashable_containers, max_leaves=4)
keys_of_dicts = hashables.filter(is_hashable)
values = st.recursive(
    hashables,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys_of_dicts, inner, max_size=3)
        | st.sets(keys_of_dicts, max_size=3)
    ),
    max_leaves=5,
)

literals = spiky.map(lambda text: text.replace("{", "{{").replace("}", "}}"))
plain_fields = st.sampled_from(["{a}", "{b}", "{c}"])
text_fields = st.sampled_from(["{a!s}", "{b!r}", "{c!a}", "{a!s:>5}", "{b!s:1}", "{c!s:.1}"])
plain_templates = st.lists(literals | plain_fields, max_size=6).map("".join)
mixed_templates = st.lists(literals | plain_fields | text_fields, max_size=6).map("".join)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Two argument tuples that are likely to be alike."""
    pool = draw(st.lists(st.one_of(spiky, values), min_size=1, max_size=3))
    one = st.one_of(st.sampled_from(pool), st.sampled_from(pool), values)
    first, second = draw(st.tuples(one, one, one)), draw(st.tuples(one, one, one))
    move = draw(st.booleans())
    if move and isinstance(first[0], str) and isinstance(first[1], str):
        both = first[0] + first[1]  # the same characters, cut elsewhere
        cut = draw(st.integers(0, len(both)))
        second = (both[:cut], both[cut:], first[2])
    return first, second


def picked(names: list[str], call: tuple[object, ...]) -> list[object]:
    return [exact(call[NAMES.index(name)]) for name in names]


@settings(deadline=None)
@given(plain_templates, pairs())
def test_keys_are_equal_if_and_only_if_the_fields_are(
    template: str, pair: tuple[tuple[object, ...], tuple[object, ...]]
) -> None:
    compiled = compile_template(template, NAMES)
    first, second = pair
    used = list(compiled.fields)
    assert (compiled(first) == compiled(second)) == (picked(used, first) == picked(used, second))


@settings(deadline=None)
@given(mixed_templates, pairs())
def test_plain_fields_stay_apart_whatever_the_text_fields_next_to_them_hold(
    template: str, pair: tuple[tuple[object, ...], tuple[object, ...]]
) -> None:
    compiled = compile_template(template, NAMES)
    used = [name for name in NAMES if f"{{{name}}}" in template.replace("{{", "")]
    first, second = pair
    if picked(used, first) != picked(used, second):
        assert compiled(first) != compiled(second)


@settings(deadline=None)
@given(pairs())
def test_true_keys_on_all_arguments(
    pair: tuple[tuple[object, ...], tuple[object, ...]],
) -> None:
    compiled = compile_template(True, NAMES)
    first, second = pair
    assert compiled.fields == NAMES
    assert (compiled(first) == compiled(second)) == (exact(first) == exact(second))


@settings(deadline=None)
@given(plain_templates, st.tuples(values, values, values))
def test_a_copy_of_the_arguments_has_the_same_bounded_key(
    template: str, call: tuple[object, ...]
) -> None:
    made = key(template, *call)
    assert made == key(template, *pickle.loads(pickle.dumps(call)))
    assert len(made) <= MAX_KEY_BYTES
    assert made[:1] != b"#" or len(made) == 65


ALPHABET = "/'\"\\1x,<>-#\0"
SMALL_VALUES: list[object] = [
    *("".join(chars) for n in range(3) for chars in itertools.product(ALPHABET, repeat=n)),
    *(None, True, False, 0, 1, 11, 111, -1, 1.0, 1.1, -1.0, float("nan"), b"", b"1", b"x", b"'"),
    *("None", "True", "nan", "inf", "1.0", "<1>", "'1'", "'/'", "(1)", "[]"),
    *([], (), {}, set(), frozenset(), [1], (1,), {1}, {1: 1}, ["1"], [[]], [1, 1], ["1,1"]),
]


PLAIN_TEMPLATES = [
    r"{a}{b}",
    r"{a}/{b}",
    r"{a}1{b}",
    r"{a}x{b}",
    r"{a}'{b}",
    r"{a}\{b}",
    r"{a}<{b}",
    r"{a}>{b}",
    r"{a}-{b}",
    r"{a}.{b}",
    r"{a},{b}",
    r"'{a}'{b}'",
    r"1{a}1{b}1",
    r"{{{a}}}{b}{{",
    r"#{a}{b}",
    r"{a}e{b}N",
    r"x{a}x1{b}x",
    r"{a}/'{b}",
]


@pytest.mark.parametrize("template", [*PLAIN_TEMPLATES, '{a}"{b}', "{a}\0{b}\0", "{a} {b}"])
def test_no_two_of_all_pairs_of_small_values_share_a_key(template: str) -> None:
    compiled = compile_template(template, NAMES)
    calls = list(itertools.product(SMALL_VALUES, repeat=2))
    assert len({compiled(call) for call in calls}) == len(calls)


MIXED_TEMPLATES = [
    r"{a!s}{b}",
    r"{a!s}/{b}",
    r"{a!s}'{b}",
    r"{b}{a!s}",
    r"{b}1{a!s}",
    r"{a!s}1{b}",
    r"{a!s}\{b}x",
    r"{b}{a!s}{b}{a!r}",
    r"{a!s:>2}{b}{a!s}",
    r"'{a!s}'{b}",
    r"{a!s}{a!r}x{b}",
]


@pytest.mark.parametrize("template", MIXED_TEMPLATES)
def test_text_fields_never_hide_which_plain_value_is_meant(template: str) -> None:
    compiled = compile_template(template, NAMES)
    seen: dict[bytes, object] = {}
    for call in itertools.product(SMALL_VALUES, repeat=2):
        plain = exact(call[1])
        assert seen.setdefault(compiled(call), plain) == plain


@pytest.mark.parametrize(
    ("template", "call", "expected"),
    [
        ("{a}/{b}", (1, 2), b"1/2"),
        ("{a}/{b}", ("bob", 7), b"bob/7"),
        ("{a}/{b}", (-1, 2.5), b"-1/2.5"),
        ("{a}-{b}", (1, 2), b"1-2"),
        ("{a}-{b}", (-1, 2), b"<-1>-2"),
        ("{a}.{b}", (1.5, 2), b"<1.5>.2"),
        ("{b}/{a}/{b}", (1, 2), b"2/1/2"),
        ("user:{a}", (5,), b"user:5"),
        ("user:{a}", ("bob@example.com",), b"user:bob@example.com"),
        ("{a}", (None,), b"None"),
        ("{a}", ("None",), b"'None'"),
        ("{a}", (True,), b"True"),
        ("{a}", ("1",), b"'1'"),
        ("{a}", ("",), b"''"),
        ("{a}", ("it's",), b"'it\\'s'"),
        ("{a}", ("Zoë",), "'Zoë'".encode()),
        ("{a}", ("a\nb*[?",), b"'a\nb*[?'"),
        ("{a}", ("{x}",), b"'{x}'"),
        ("{a}", (b"x/y",), b'"x/y"'),
        ("{a}/{b}", ("x/y", "z"), b"'x/y'/z"),
        ("{a}/{b}", ("x", "y/z"), b"x/'y/z'"),
        ("{a}{b}", (1, 2), b"<1>2"),
        ("{a}{b}", ("x", "y"), b"'x'y"),
        ("{{{a}}}", (1,), b"{1}"),
        ("{a}", ([1, "x", None],), b"[1,'x',None]"),
        ("{a}", ((1,),), b"(1)"),
        ("{a}", ({"y": 1, "x": [2]},), b"{'x':[2],'y':1}"),
        ("{a}", ({3, 1},), b"<set 1,3>"),
        ("{a}", (date(2024, 5, 1),), b"2024-05-01"),
        ("{a}", (datetime(2024, 5, 1),), b"<datetime 2024-05-01T00:00:00>"),
        (
            "{a}",
            (datetime(2024, 5, 1, fold=1, tzinfo=ZoneInfo("Europe/Paris")),),
            b"<datetime 2024-05-01T00:00:00 fold 'Europe/Paris'>",
        ),
        ("{a}", (time(1, 2, tzinfo=timezone.utc),), b"<time 01:02:00+00:00>"),
        ("{a}", (timedelta(days=-1, seconds=2),), b"<timedelta -1 2 0>"),
        ("{a}", (Decimal("1.10"),), b"<Decimal 1.10>"),
        ("{a}", (UUID(int=1),), b"<UUID 00000000-0000-0000-0000-000000000001>"),
        (True, (1, "x", ()), b"1,x,()"),
        ("", (), b""),
        ("all", (), b"all"),
    ],
)
def test_everyday_keys_can_be_read(
    template: str | bool, call: tuple[object, ...], expected: bytes
) -> None:
    assert key(template, *call) == expected


def test_true_on_a_method_with_args_and_kwargs_and_on_one_without() -> None:
    names = ("a", "args", "kwargs")
    assert key(True, 1, (2, "x"), {"k": 3}, names=names) == b"1,(2,'x'),{'k':3}"
    assert key(True, names=()) == b""


def test_equal_dicts_and_sets_have_one_key_whatever_their_order() -> None:
    assert key("{a}", {"x": 1, "y": 2}) == key("{a}", {"y": 2, "x": 1})
    one, other_way = {0, 2**61 - 1}, {2**61 - 1, 0}  # of one hash: kept in order of arrival
    assert list(one) != list(other_way)
    assert key("{a}", one) == key("{a}", other_way)
    assert key("{a}", {1: 0}) != key("{a}", {True: 0})
    nan, other = float("nan"), -float("nan")
    assert key("{a}", {nan: 1, other: 2}) == key("{a}", {other: 2, nan: 1})


def test_equal_instants_in_different_zones_have_different_keys() -> None:
    moment = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
    alike: list[tzinfo] = [timezone(timedelta(0), "Z"), ZoneInfo("UTC"), ZoneInfo("Europe/Paris")]
    others = [moment.astimezone(zone) for zone in alike]
    assert all(other == moment for other in others)
    assert len({key("{a}", value) for value in [moment, *others]}) == 4


def test_ints_of_any_size_have_keys_of_their_own() -> None:
    huge = [10**5000, 10**5000 + 1, -(10**5000), 2**1024, 2**1024 - 1, -(2**1024), 1 - 2**1024]
    made = {key("{a}", value) for value in huge} | {key("{a}", [value]) for value in huge}
    assert len(made) == 2 * len(huge)


def test_lone_surrogates_have_keys_of_their_own() -> None:
    texts = ["\ud800", "\udc00", "\ud800\udc00", "\U00010000", "?"]
    assert len({key("{a}", text) for text in texts}) == len(texts)


@pytest.mark.parametrize("glyph", ["x", "é", "/", "'", "\n", "*", "{"])
def test_long_values_are_hashed_and_stay_apart(glyph: str) -> None:
    long = glyph * 10_000
    made = [key("{a}/{b}", *call) for call in [(long, 1), (long + "x", 1), (1, long)]]
    assert len(set(made)) == 3
    assert all(len(one) == 65 and one.startswith(b"#") for one in made)


def test_a_key_is_hashed_above_256_bytes_and_not_at_256() -> None:
    assert key("{a}", "x" * 256) == b"x" * 256
    assert key("{a}", "x" * 257) == b"#" + hashlib.sha256(b"x" * 257).hexdigest().encode()
    two_bytes_each = "é" * 127
    assert key("{a}", two_bytes_each) == f"'{two_bytes_each}'".encode()
    assert key("{a}", two_bytes_each + "é").startswith(b"#")


def test_a_key_that_looks_hashed_is_hashed() -> None:
    hashed = key("{a!s}", "x" * 300)
    assert key("{a!s}", hashed.decode()) == b"#" + hashlib.sha256(hashed).hexdigest().encode()
    assert key("#{a}", 1) == b"#" + hashlib.sha256(b"#1").hexdigest().encode()


class Opaque:
    def __str__(self) -> str:
        return "opaque"

    def __format__(self, spec: str) -> str:
        raise LookupError("no format")


@pytest.mark.parametrize(
    ("template", "call", "expected"),
    [
        ("{a!s}", ("x/y z",), b"x/y z"),
        ("{a!r}", ("x",), b"'x'"),
        ("{a!a}", ("é",), b"'\\xe9'"),
        ("{a:.2f}", (1.234,), b"1.23"),
        ("{a!s:>5}", ("ab",), b"   ab"),
        ("{a!s}", (Opaque(),), b"opaque"),
        ("{a!s}{b!s}", ("x", "y"), b"xy"),
        ("{a!s}/{b!s}", ("x/y", "z"), b"x/y/z"),
        ("{a}/{b!s}", ("x", "y/z"), b"x/y/z"),
        ("{a!s}/{b}", ("x y", "z"), b"x y/z"),
        ("{a!s}/{b}", ("", "z"), b"/z"),
        ("{a:%Y}/{b}", (date(2024, 5, 1), 7), b"2024/7"),
        # Where the text would end could not be told.
        ("{a!s}/{b}", ("x/y", "z"), b"'x/y'/z"),
        ("{a!s}/{b}", ("'x", "z"), b"'\\'x'/z"),
        ("{a!s}{b}", ("x", "z"), b"'x'z"),
    ],
)
def test_a_conversion_or_format_spec_means_just_that_text(
    template: str, call: tuple[object, ...], expected: bytes
) -> None:
    assert key(template, *call) == expected


@pytest.mark.parametrize("template", ["{b:.2f}", "{b:>3}"])
def test_an_error_of_format_names_the_field(template: str) -> None:
    value = "x" if "f" in template else Opaque()
    error = "ValueError: Unknown format code" if "f" in template else "LookupError: no format"
    with pytest.raises(SerializationError) as caught:
        key(template, 1, value)
    assert str(caught.value).startswith(f"cache key '{template}': cannot format b: {error}")
    assert isinstance(caught.value.__cause__, (ValueError, LookupError))


REFUSED = [
    ("{x}", "field 'x': no such parameter; the parameters are: a, b, c"),
    ("{a}{ b}", "field ' b': no such parameter"),
    ("{}", "field '': positional fields are refused: name a parameter; the parameters are: a, b"),
    ("{0}", "field '0': positional fields are refused"),
    ("{a.b}", "field 'a.b': attribute access is refused: a template is read from the registry and"),
    ("{a.__class__!r}", "must not be code; the parameters are: a, b, c"),
    ("{a[0]}", "field 'a[0]': index access is refused"),
    ("{a:{b}}", "field 'a': fields within a format spec are refused"),
    ("{a!s:{b}}", "field 'a': fields within a format spec are refused"),
    ("{a!x}", "field 'a': unknown conversion 'x'"),
    ("{a", "expected '}' before end of string; the parameters are: a, b, c"),
    ("a}", "Single '}' encountered in format string"),
    ("{", "Single '{' encountered in format string"),
    (False, "must be a format string, or True"),
    (None, "must be a format string, or True"),
    (1, "must be a format string, or True"),
]


@pytest.mark.parametrize(("template", "reason"), REFUSED)
def test_a_bad_template_is_refused_with_its_name_and_the_reason(template: Any, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        compile_template(template, NAMES)
    assert str(caught.value).startswith(f"cache key {template!r}: ")
    assert reason in str(caught.value)


def test_a_field_of_a_method_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no such parameter; there are no parameters"):
        compile_template("{a}", ())


class Point(NamedTuple):
    x: int


class Word(str):
    pass


class Zone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, moment: datetime | None) -> str:
        return "Z"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "a: object of type 'object'"),
        ([{"x": Opaque()}], "a[0]['x']: object of type 'Opaque'"),
        ((1, [2, Point(1)]), "a[1][1]: object of type 'Point'"),
        ({1: Word("x")}, "a[1]: object of type 'Word'"),
        (OrderedDict(), "a: object of type 'OrderedDict'"),
        ({(1, Word("x")): 1}, "a.keys()[...][1]: object of type 'Word'"),
        ({Word("x")}, "a{...}: object of type 'Word'"),
        ([bytearray()], "a[0]: object of type 'bytearray'"),
        ([time(1, tzinfo=Zone())], "a[0].tzinfo: object of type 'Zone'"),
    ],
)
def test_what_has_no_exact_rendering_is_refused_with_the_path_to_it(
    value: object, reason: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        key("{a}", value)
    assert str(caught.value) == f"cache key '{{a}}': cannot render {reason}"


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_64_levels_have_a_key_and_65_are_refused_and_so_is_a_cycle() -> None:
    assert key("{a}", nested(64)) == b"[" * 64 + b"1" + b"]" * 64
    cycle: list[object] = []
    cycle.append({"x": cycle})
    for value in (nested(65), cycle):
        with pytest.raises(SerializationError, match="nested deeper than 64 levels, or within"):
            key("{a}", value)


def test_a_compiled_template_says_what_it_depends_on_and_survives_pickling() -> None:
    compiled = compile_template("{b}/{a}/{b!s}", NAMES)
    assert (compiled.template, compiled.fields) == ("{b}/{a}/{b!s}", ("b", "a"))
    assert compile_template(True, NAMES).template is True
    assert pickle.loads(pickle.dumps(compiled)) == compiled


@pytest.mark.parametrize("template", ["{a:>2000000000}", "{a:.1001f}", "{a!s:1001}"])
def test_a_template_cannot_fill_the_memory_of_callers(template: str) -> None:
    with pytest.raises(ValueError, match="a width or precision over 1000 is refused"):
        compile_template(template, NAMES)
    assert compile_template("{a:>1000}", NAMES)
