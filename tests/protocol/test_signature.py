"""Signatures survive Redis, bind as Python binds, and no text of theirs ever becomes code."""

from __future__ import annotations

import collections.abc
import copy
import functools
import inspect
import json
import keyword
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redis_bus.errors import ProtocolError
from redis_bus.printable import in_one_line
from redis_bus.protocol.signature import RemoteDefault, binder, describe, method_name, restore

KINDS = (
    "positional_only",
    "positional_or_keyword",
    "var_positional",
    "keyword_only",
    "var_keyword",
)
NAMES = (
    *("a", "b", "c", "x1", "self", "cls", "print", "int", "name", "func", "signature", "p0", "p1"),
    *(
        "_",
        "__",
        "_private",
        "__private",
        "__class__",
        "__builtins__",
        "match",
        "type",
        "é",
        "變數",
    ),
)
ANNOTATIONS = (
    *("int", "str", "dict", "None", "object", "list[str]", "list[str] | None", "int | str"),
    *("collections.abc.Sequence[int]", "typing.Any", "typing.Optional[int]", "Opaque"),
    *("typing.Literal['a b']", "collections.abc.Callable[[int], str]", "typing.TypeVar('T')"),
)


class Opaque:
    """What no codec knows."""


OPAQUE = Opaque()
DEFAULTS = st.one_of(
    st.sampled_from((None, True, 0, -1, 2**70, 1.5, "", "x'\"\n", (), (1, "a"), [], [1, [2]])),
    st.sampled_from((b"\x00\xff", {"k": (1,)}, OPAQUE, Opaque, print, ..., [OPAQUE])),
)
SURROUNDINGS = {"collections": collections, "typing": typing, "Opaque": Opaque}


@dataclass
class Source:
    """A ``def`` and the values of its defaults."""

    text: str
    values: list[object]

    def define(self) -> Callable[..., object]:
        namespace: dict[str, object] = {**SURROUNDINGS, "_values": self.values}
        # Source of the test's own making: it says what Python itself would do.
        exec(compile(self.text, "<test>", "exec", dont_inherit=True), namespace)
        return typing.cast("Callable[..., object]", namespace["target"])


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """Draw ``def target(...)`` with parameters of all kinds that returns what it was given."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=8))
    kinds = sorted(draw(st.sampled_from(range(5))) for _ in names)
    values: list[object] = []
    written: list[str] = []
    used: list[str] = []
    default_seen = star_seen = False
    for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if kind in (2, 4) and kind in kinds[:index]:
            continue
        if kind >= 1 and 0 in kinds[:index] and "/" not in written:
            written.append("/")
        if kind == 3 and not star_seen:
            written.append("*")
        star_seen = star_seen or kind in (2, 3)
        text = ("", "", "*", "", "**")[kind] + name
        if draw(st.booleans()):
            text += f": {draw(st.sampled_from(ANNOTATIONS))}"
        wants_default = kind in (0, 1, 3) and draw(st.booleans())
        if wants_default or (kind in (0, 1) and default_seen):
            text += f" = _values[{len(values)}]"
            values.append(draw(DEFAULTS))
            default_seen = default_seen or kind < 3
        written.append(text)
        used.append(name)
    if kinds and set(kinds) == {0}:
        written.append("/")
    returns = draw(st.sampled_from(("", *(f" -> {text}" for text in ANNOTATIONS))))
    result = "".join(f"{name}, " for name in used)
    return Source(f"def target({', '.join(written)}){returns}:\n    return ({result})", values)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Source, list[int], dict[str, int]]:
    """Draw a function and a call that may or may not fit it."""
    source = draw(sources())
    parameters = tuple(inspect.signature(source.define()).parameters)
    args = draw(st.lists(st.integers(0, 9), max_size=len(parameters) + 1))
    likely = st.sampled_from(parameters) if parameters else st.sampled_from(NAMES)
    names = st.one_of(likely, likely, likely, st.sampled_from(NAMES))
    return source, args, draw(st.dictionaries(names, st.integers(10, 19), max_size=5))


def travel(func: Callable[..., object]) -> Signature:
    """The signature as another process sees it."""
    return restore(json.loads(json.dumps(describe(func))))


def fixed(text: str) -> str:
    """A signature's text with what differs between processes in the form that is published."""
    text = re.sub(r"<([\w.]+) object at 0x[0-9a-f]+>", r"<\1>", text)
    text = text.replace("<built-in function print>", "<function print>")
    return text.replace("Optional[int]", "int | None")


def outcome(func: Callable[..., object], args: object, kwargs: object) -> object:
    try:
        return func(*args, **kwargs)  # type: ignore[arg-type]
    except TypeError as error:
        return str(error)


@settings(deadline=None, max_examples=400)
@given(calls())
def test_a_call_binds_or_fails_exactly_as_python_has_it(
    call: tuple[Source, list[int], dict[str, int]],
) -> None:
    source, args, kwargs = call
    real = source.define()
    expected = outcome(real, args, kwargs)
    assert outcome(binder(inspect.signature(real), "target"), args, kwargs) == expected
    # Defaults that stayed with the callee are bound as their text.
    travelled = outcome(binder(travel(real), "target"), args, kwargs)
    assert repr(travelled) == fixed(repr(expected))


@settings(deadline=None, max_examples=300)
@given(sources())
def test_a_signature_reads_the_same_on_the_other_side(source: Source) -> None:
    real = source.define()
    assert str(travel(real)) == fixed(str(inspect.signature(real)))
    bind = binder(travel(real), "target")
    assert inspect.signature(bind) == travel(real)
    assert describe(bind) == describe(real)


def plain(a: int, /, b: list[str] | None, *args: object, c: str = "x", **rest: Opaque) -> None: ...


async def coroutine(a: int, b: int = 2) -> int:
    return a + b


@functools.wraps(plain)
def wrapper(*args: object, **kwargs: object) -> None: ...


class Holder:
    def __init__(self, start: int = 0) -> None: ...

    def method(self, a: int, b: str = "b") -> int:
        return a

    def __call__(self, *, key: bytes) -> None: ...

    @classmethod
    def build(cls, a: int) -> Holder:
        return cls(a)

    @staticmethod
    def helper(a: int) -> None: ...


@pytest.mark.parametrize(
    ("func", "text"),
    [
        (plain, "(a: int, /, b: list[str] | None, *args: object, c: str = 'x', **rest: Opaque)"),
        (wrapper, "(a: int, /, b: list[str] | None, *args: object, c: str = 'x', **rest: Opaque)"),
        (coroutine, "(a: int, b: int = 2) -> int"),
        (Holder().method, "(a: int, b: str = 'b') -> int"),
        (Holder.build, "(a: int) -> Holder"),
        (Holder.helper, "(a: int)"),
        (Holder, "(start: int = 0)"),
        (Holder(), "(*, key: bytes)"),
        (functools.partial(coroutine, b=5), "(a: int, *, b: int = 5) -> int"),
        (functools.partial(plain, 1, ["x"]), "(*args: object, c: str = 'x', **rest: Opaque)"),
        pytest.param(
            lambda x, y=OPAQUE: x, f"(x, y=<{__name__}.Opaque>)", id="a default by its type"
        ),
        (sorted, "(iterable, /, *, key=None, reverse=False)"),
    ],
)
def test_every_kind_of_callable_shows_its_signature(func: Callable[..., object], text: str) -> None:
    assert str(travel(func)).removesuffix(" -> None") == text


def test_builtin_annotations_are_types_again_and_the_others_text() -> None:
    parameters = travel(plain).parameters
    assert parameters["a"].annotation is int
    assert travel(plain).return_annotation is None
    assert not isinstance(parameters["rest"].annotation, str)
    assert repr(parameters["rest"].annotation) == "Opaque"


def test_the_description_is_what_a_reader_expects() -> None:
    def f(a: int, *, b: collections.abc.Sequence[int] = OPAQUE, c=1): ...  # type: ignore

    f.__annotations__ = {"a": int, "b": collections.abc.Sequence[int]}
    assert describe(f) == {
        "parameters": [
            {"name": "a", "kind": "positional_or_keyword", "annotation": "int"},
            {
                "name": "b",
                "kind": "keyword_only",
                "annotation": "collections.abc.Sequence[int]",
                "default_repr": f"<{__name__}.Opaque>",
            },
            {"name": "c", "kind": "keyword_only", "default": 1},
        ]
    }


def test_a_callable_without_signature_is_refused_clearly() -> None:
    with pytest.raises(ValueError, match=r"<class 'type'> has no signature .* wrap it"):
        describe(type)
    with pytest.raises(TypeError, match="not a callable"):
        describe(typing.cast("Callable[..., object]", 5))


@pytest.mark.parametrize("name", ["math_sum", "math.sum", "a-b", "class", "", "x(): 1", "ﬁ", "π"])
def test_type_errors_are_pythons_words_under_the_methods_name(name: str) -> None:
    bind = binder(travel(lambda a, b: None), name)
    assert (bind.__name__, bind.__qualname__) == (name, name)
    for args, kwargs, words in (
        ((1,), {}, "missing 1 required positional argument: 'b'"),
        ((1, 2), {"c": 3}, "got an unexpected keyword argument 'c'"),
        ((1, 2, 3), {}, "takes 2 positional arguments but 3 were given"),
        ((1, 2), {"a": 3}, "got multiple values for argument 'a'"),
    ):
        assert outcome(bind, args, kwargs) == f"{name}() {words}"


def test_an_omitted_argument_binds_the_callees_default() -> None:
    def f(a: object = OPAQUE, *args: object, b: object = (1, 2), **kw: object) -> None: ...

    bind = binder(travel(f), "f")
    assert bind() == (RemoteDefault(f"<{__name__}.Opaque>"), (), (1, 2), {})
    assert bind(1, 2, b=3, z=4) == (1, (2,), 3, {"z": 4})


@pytest.mark.parametrize("kind", ["positional_or_keyword", "keyword_only"])
@pytest.mark.parametrize(
    "name", ["__debug__", "ﬁ", "µ", "\N{MATHEMATICAL BOLD SMALL X}", "__import__", "__name__", "_"]
)
def test_names_that_the_compiler_refuses_or_changes_are_kept(name: str, kind: str) -> None:
    published = {"parameters": [{"name": name, "kind": kind, "default": 7}]}
    signature = restore(published)
    bind = binder(signature, "f")
    assert str(inspect.signature(bind)) == str(signature)
    assert (bind(), bind(**{name: 8})) == ((7,), (8,))
    unknown = outcome(bind, (), {f"{name}_": 1})
    assert str(unknown).startswith(f"f() got an unexpected keyword argument '{name}_'")


def test_many_parameters_bind_in_order() -> None:
    names = [f"a{index}" for index in range(1000)]
    signature = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    assert binder(signature, "f")(*range(999), a999=-1) == (*range(999), -1)


BAD_NAMES = ("", " ", "a b", "1a", "a.b", ".0", "a=1", "*a", "a\n", "\ud800", *keyword.kwlist)


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_names_that_no_def_could_have_are_refused(name: str, kind: str) -> None:
    with pytest.raises(ProtocolError):
        restore({"parameters": [{"name": name, "kind": kind}]})


def test_binder_checks_the_parameters_itself() -> None:
    parameter = Parameter("a", Parameter.POSITIONAL_ONLY)
    parameter._name = "class"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="'class' is not a valid parameter name"):
        binder(Signature([parameter]), "f")


def listed(*parameters: tuple[str, str] | tuple[str, str, object]) -> dict[str, object]:
    return {
        "parameters": [
            dict(zip(("name", "kind", "default"), parameter, strict=False))
            for parameter in parameters
        ]
    }


@pytest.mark.parametrize(
    "description",
    [
        *(None, 1, "x", [], {}, {"parameters": None}, {"parameters": {}}, {"parameters": "ab"}),
        *({"parameters": [None]}, {"parameters": [["a", "positional_only"]]}),
        *({"parameters": [], "returns": 1}, {"parameters": [], "returns": None}),
        *(listed(("a", kind)) for kind in ("", "POSITIONAL_ONLY", "x")),
        *({"parameters": [{"name": "a", "kind": kind}]} for kind in (0, None, [], {})),
        *({"parameters": [{"name": name, "kind": KINDS[0]}]} for name in (0, None, [], b"a")),
        {"parameters": [{"name": "a"}]},
        {"parameters": [{"kind": KINDS[0]}]},
        {"parameters": [{"name": "a", "kind": KINDS[0], "annotation": 1}]},
        {"parameters": [{"name": "a", "kind": KINDS[0], "default_repr": 1}]},
        {"parameters": [{"name": "a", "kind": KINDS[2], "default_repr": "1"}]},
        listed(("a", KINDS[0]), ("a", KINDS[1])),
        listed(("a", KINDS[1]), ("b", KINDS[0])),
        listed(("a", KINDS[4]), ("b", KINDS[3])),
        listed(("a", KINDS[2]), ("b", KINDS[2])),
        listed(("a", KINDS[4]), ("b", KINDS[4])),
        listed(("a", KINDS[2], 1)),
        listed(("a", KINDS[4], 1)),
        listed(("a", KINDS[0], 1), ("b", KINDS[0])),
        listed(("a", KINDS[0], 1), ("b", KINDS[1])),
        listed(("a", KINDS[1], 1), ("b", KINDS[1])),
    ],
    ids=repr,
)
def test_what_is_not_a_signature_is_a_protocol_error(description: object) -> None:
    with pytest.raises(ProtocolError):
        restore(typing.cast("dict[str, object]", description))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from((*KINDS, *NAMES, *BAD_NAMES)),
)
KEYS = st.one_of(
    st.text(),
    st.sampled_from(
        ("parameters", "name", "kind", "annotation", "default", "default_repr", "returns")
    ),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(KEYS, inner)),
    max_leaves=15,
)


@st.composite
def garbled(draw: st.DrawFn) -> object:
    """Draw a true description in which one place holds something else."""
    tree: object = copy.deepcopy(describe(draw(sources()).define()))
    node, steps = tree, draw(st.integers(1, 4))
    for step in range(steps):
        if not isinstance(node, dict | list) or not node:
            break
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key: typing.Any = draw(st.sampled_from(keys))
        if step == steps - 1:
            node[key] = draw(TREES)
        else:
            node = node[key]
    return tree


@settings(deadline=None, max_examples=300)
@given(st.one_of(TREES, garbled(), st.fixed_dictionaries({"parameters": st.lists(TREES)})))
def test_garbage_is_a_protocol_error_or_a_signature_that_binds(tree: object) -> None:
    try:
        signature = restore(typing.cast("dict[str, object]", tree))
    except ProtocolError:
        return
    assert inspect.signature(binder(signature, "f")).parameters.keys() == (
        signature.parameters.keys()
    )


def test_a_tree_too_deep_to_read_is_a_protocol_error() -> None:
    tree: object = 1
    for _ in range(100_000):
        tree = [tree]
    for key in ("name", "kind", "annotation", "default", "default_repr"):
        parameter = {"name": "a", "kind": KINDS[1], key: tree}
        with pytest.raises(ProtocolError):
            restore({"parameters": [parameter]})


def test_no_text_from_redis_is_ever_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for text in (evil, f"a={evil}", f"a: {evil}", f"a):\n {evil}\n#", f"{{{evil}}}", f"f'{evil}'"):
        with pytest.raises(ProtocolError):
            restore(listed((text, KINDS[1])))
        with pytest.raises(ProtocolError):
            restore(listed(("a", text)))
        shown = {"annotation": text, "default_repr": text}
        signature = restore(
            {"parameters": [{"name": "a", "kind": KINDS[1], **shown}], "returns": text}
        )
        bind = binder(signature, text)
        assert bind() == (RemoteDefault(text),)
        assert outcome(bind, (1, 2), {}) == (
            f"{text}() takes from 0 to 1 positional arguments but 2 were given"
        )
        line = in_one_line(text)
        assert str(inspect.signature(bind)) == f"(a: {line} = {line}) -> {line}"
        assert describe(bind)["returns"] == text
        restore(listed(("a", KINDS[1], text)))
    assert not mark.exists()


def test_a_method_is_named_for_its_function() -> None:
    assert method_name(plain) == "plain"
    assert method_name(wrapper, "math_") == "math_plain"
    assert method_name(Holder().method, "h.") == "h.method"
    assert method_name(Holder) == "Holder"
    assert method_name(len) == "len"
    assert inspect.iscoroutinefunction(coroutine) and method_name(coroutine) == "coroutine"


@pytest.mark.parametrize("func", [lambda: 1, functools.partial(plain, 1), Holder()])
def test_a_nameless_callable_asks_for_a_name(func: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"no name to register it under; give one with name="):
        method_name(func, "math_")
