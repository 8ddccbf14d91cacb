"""A function's signature as data in Redis, and back: what makes remote methods look local.

``describe`` runs where a function lives and ``restore`` wherever it is called, so
``inspect.signature`` and argument binding need none of the callee's code. Everything that
``restore`` reads may have been written by anybody: it is compared and shown, never evaluated.
"""

from __future__ import annotations

import ast
import functools
import json
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from types import CodeType, FunctionType
from typing import Any, cast

from ..errors import ProtocolError, SerializationError
from ..printable import in_one_line
from .annotations import signature_of
from .codec import from_json, to_json
from .rendering import annotation_text, shown, value_text

_KINDS = {
    "positional_only": Parameter.POSITIONAL_ONLY,
    "positional_or_keyword": Parameter.POSITIONAL_OR_KEYWORD,
    "var_positional": Parameter.VAR_POSITIONAL,
    "keyword_only": Parameter.KEYWORD_ONLY,
    "var_keyword": Parameter.VAR_KEYWORD,
}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

# Annotations that mean the same in every process; any other is kept as text.
_SHARED_ANNOTATIONS: dict[str, object] = {
    "None": None,
    **{
        builtin.__name__: builtin
        for builtin in (
            *(bool, int, float, complex, str, bytes, bytearray, memoryview),
            *(list, tuple, dict, set, frozenset, range, slice, object, type),
        )
    },
}


@dataclass(frozen=True, slots=True, repr=False)
class RemoteDefault:
    """A default value that only the callee has; ``text`` is what it published of it."""

    text: str

    def __repr__(self) -> str:
        return in_one_line(self.text)


@dataclass(frozen=True, slots=True, repr=False)
class LongDefault:
    """A default with an int in it that is too large for Python to write: shown in hexadecimal."""

    value: object

    def __repr__(self) -> str:
        return shown(self.value)


@dataclass(frozen=True, slots=True, repr=False)
class RemoteAnnotation:
    """An annotation that names something of the callee's; ``text`` is how it is written there."""

    text: str

    def __repr__(self) -> str:
        return in_one_line(self.text)


def describe(func: Callable[..., object]) -> dict[str, object]:
    """Return the signature of ``func`` as data that JSON can hold.

    A default that cannot make the round trip exactly is described by its text alone. The same code
    gives the same description in every process: see `rendering`.

    Raises ValueError where Python knows no signature for ``func`` (some builtins), or knows
    one that no ``def`` could have, and TypeError where ``func`` is not callable.
    """
    try:
        signature = signature_of(func)
    except ValueError as error:
        raise ValueError(
            f"{func!r} has no signature that Python can read; wrap it in a function"
        ) from error
    parameters = tuple(signature.parameters.values())
    _check_parameters(parameters)
    description: dict[str, object] = {"parameters": [_describe_parameter(p) for p in parameters]}
    if signature.return_annotation is not Signature.empty:
        description["returns"] = _annotation_text(signature.return_annotation)
    return description


def restore(description: Mapping[str, object]) -> Signature:
    """Return the signature that ``describe`` published.

    Its text is that of the callee's own ``inspect.signature``, except that annotations which
    are strings there are shown without quotes. No text of the description is ever evaluated.

    Raises ProtocolError where the description is not that of a valid signature.
    """
    if not isinstance(description, Mapping):
        raise ProtocolError(f"a signature is an object, not {type(description).__name__}")
    published = description.get("parameters")
    if not isinstance(published, list):
        raise ProtocolError("a signature needs a list of parameters")
    returns: object = Signature.empty
    if "returns" in description:
        returns = _restore_annotation(description["returns"])
    parameters = [_restore_parameter(item) for item in published]
    try:
        _check_parameters(parameters)
        return Signature(parameters, return_annotation=returns)
    except ValueError as error:
        raise ProtocolError(f"not a valid signature: {error}") from error


def binder(signature: Signature, name: str) -> Callable[..., tuple[object, ...]]:
    """Return a function with this signature that returns its arguments, bound.

    They come as a tuple in the order of the parameters, defaults applied, ``*args`` as a tuple
    and ``**kwargs`` as a dict. Python itself does the binding, so a call that does not fit is a
    TypeError in Python's own words; it names the method by ``name``, an identifier or not.

    Safe for signatures read from Redis: the compiler is given a syntax tree made from nothing
    but the *number* of parameters of each kind, with names of our own. The published names are
    put into the finished code object as its variable names, which are data that Python compares
    with a call's keywords; defaults and annotations are attached as objects; ``name`` is only
    ever shown. So no text can become code, and any identifier will do as a name, also one that
    the compiler refuses or would normalise. The names are checked here all the same.

    Raises ValueError where ``signature`` is one that no ``def`` could have.
    """
    parameters = tuple(signature.parameters.values())
    _check_parameters(parameters)
    code = _binder_code(tuple(parameter.kind.value for parameter in parameters))
    variables = {_placeholder(i): parameter.name for i, parameter in enumerate(parameters)}
    code = code.replace(co_varnames=tuple(variables[v] for v in code.co_varnames))

    given = [p for p in parameters if p.default is not Parameter.empty]
    defaults = {p.name: _bound_default(p) for p in given}
    # Without builtins and globals the body could reach nothing, even if it named something.
    bind = FunctionType(code, {"__builtins__": {}}, name)
    bind.__qualname__ = name  # what TypeErrors show, in every Python since 3.10
    is_named = Parameter.KEYWORD_ONLY
    bind.__defaults__ = tuple(defaults[p.name] for p in given if p.kind is not is_named)
    bind.__kwdefaults__ = {p.name: defaults[p.name] for p in given if p.kind is is_named}
    bind.__annotations__ = {
        p.name: p.annotation for p in parameters if p.annotation is not Parameter.empty
    }
    if signature.return_annotation is not Signature.empty:
        bind.__annotations__["return"] = signature.return_annotation
    return bind


def _bound_default(parameter: Parameter) -> object:
    default = parameter.default
    return default.value if isinstance(default, LongDefault) else default


def method_name(func: Callable[..., object], prefix: str = "") -> str:
    """Return the name that ``func`` is registered under when none is given.

    Raises ValueError where it has none of its own: a lambda, a ``functools.partial``, an object.
    """
    name = getattr(func, "__name__", None)
    if not isinstance(name, str) or not name or name.startswith("<"):
        raise ValueError(f"{func!r} has no name to register it under; give one with name=...")
    return prefix + name


def _check_parameters(parameters: Sequence[Parameter]) -> None:
    """Raise ValueError unless a ``def`` could have these parameters.

    ``inspect.Signature`` alone is not enough: it accepts two ``*args``, and before 3.11 also
    a default before the ``/`` and none after it.
    """
    seen: set[str] = set()
    last_kind: int = Parameter.POSITIONAL_ONLY
    default_seen = False
    for parameter in parameters:
        name, kind = parameter.name, parameter.kind
        if not _is_name(name):
            raise ValueError(f"{name!r} is not a valid parameter name")
        if name in seen:
            raise ValueError(f"duplicate parameter name: {name!r}")
        if kind < last_kind:
            raise ValueError(f"parameter {name!r} is out of order")
        if kind == last_kind and kind in _VARIADIC:
            raise ValueError(f"parameter {name!r} is a second one of its kind")
        has_default = parameter.default is not Parameter.empty
        if kind <= Parameter.POSITIONAL_OR_KEYWORD:
            if default_seen and not has_default:
                raise ValueError(f"parameter {name!r} without a default follows one with a default")
            default_seen = has_default
        seen.add(name)
        last_kind = kind


def _is_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def _describe_parameter(parameter: Parameter) -> dict[str, object]:
    published: dict[str, object] = {
        "name": parameter.name,
        "kind": _KIND_NAMES[parameter.kind],
    }
    if parameter.annotation is not Parameter.empty:
        published["annotation"] = _annotation_text(parameter.annotation)
    if parameter.default is not Parameter.empty:
        try:
            published["default"] = _in_order(to_json(parameter.default))
        except SerializationError:
            published["default_repr"] = _default_text(parameter.default)
    return published


def _default_text(default: object) -> str:
    return default.text if isinstance(default, RemoteDefault) else value_text(default)


def _annotation_text(annotation: object) -> str:
    if isinstance(annotation, RemoteAnnotation):
        return annotation.text
    return annotation_text(annotation)


def _in_order(tree: Any) -> object:
    """Return a tree of `to_json` with the elements of each set in one order: that of their texts.

    A set has another order with each hash seed.
    """
    if isinstance(tree, list):
        return [_in_order(child) for child in tree]
    if not isinstance(tree, dict):
        return tree
    ordered = {key: _in_order(child) for key, child in tree.items()}
    for kind in ("$set", "$frozenset"):
        # A dict of the user's with such a key alone is written otherwise.
        if len(tree) == 1 and kind in tree:
            ordered[kind] = sorted(cast("list[object]", ordered[kind]), key=json.dumps)
    return ordered


def _restore_parameter(published: object) -> Parameter:
    if not isinstance(published, Mapping):
        raise ProtocolError(f"a parameter is an object, not {type(published).__name__}")
    name, kind = published.get("name"), published.get("kind")
    if not isinstance(name, str) or not isinstance(kind, str):
        raise ProtocolError("a parameter's name and kind are text")
    # Not left to Parameter: it fails on "" in a way of its own, and renames ".0".
    if not _is_name(name):
        raise ProtocolError(f"{name!r} is not a valid parameter name")
    if kind not in _KINDS:
        raise ProtocolError(f"parameter {name!r} is of an unknown kind: {kind!r}")
    annotation: object = Parameter.empty
    if "annotation" in published:
        annotation = _restore_annotation(published["annotation"])
    try:
        return Parameter(
            name, _KINDS[kind], default=_restore_default(published), annotation=annotation
        )
    except ValueError as error:
        raise ProtocolError(f"not a valid parameter: {error}") from error


def _restore_default(published: Mapping[str, object]) -> object:
    if "default" in published:
        return _showable(from_json(published["default"]))
    if "default_repr" not in published:
        return Parameter.empty
    text = published["default_repr"]
    if not isinstance(text, str):
        raise ProtocolError(f"the repr of a default is text, not {type(text).__name__}")
    return RemoteDefault(text)


def _showable(default: object) -> object:
    """Return a default so that a signature can be shown, whatever ints are in it."""
    try:
        repr(default)
    except ValueError:
        return LongDefault(default)
    return default


def _restore_annotation(text: object) -> object:
    if not isinstance(text, str):
        raise ProtocolError(f"an annotation is text, not {type(text).__name__}")
    if text in _SHARED_ANNOTATIONS:
        return _SHARED_ANNOTATIONS[text]
    return RemoteAnnotation(text)


def _placeholder(index: int) -> str:
    return f"p{index}"


@functools.lru_cache(maxsize=256)
def _binder_code(kinds: tuple[int, ...]) -> CodeType:
    """Compile ``def bind(p0, p1, ...): return (p0, p1, ...)`` for parameters of these kinds."""
    by_kind: dict[int, list[ast.arg]] = {kind: [] for kind in _KIND_NAMES}
    for index, kind in enumerate(kinds):
        by_kind[kind].append(ast.arg(arg=_placeholder(index)))
    arguments = ast.arguments(
        posonlyargs=by_kind[Parameter.POSITIONAL_ONLY],
        args=by_kind[Parameter.POSITIONAL_OR_KEYWORD],
        vararg=next(iter(by_kind[Parameter.VAR_POSITIONAL]), None),
        kwonlyargs=by_kind[Parameter.KEYWORD_ONLY],
        kw_defaults=[None] * len(by_kind[Parameter.KEYWORD_ONLY]),
        kwarg=next(iter(by_kind[Parameter.VAR_KEYWORD]), None),
        defaults=[],
    )
    names: list[ast.expr] = [ast.Name(_placeholder(i), ast.Load()) for i in range(len(kinds))]
    body = ast.Return(ast.Tuple(names, ast.Load()))
    function = ast.FunctionDef(name="bind", args=arguments, body=[body], decorator_list=[])
    module = ast.fix_missing_locations(ast.Module(body=[function], type_ignores=[]))
    compiled = compile(module, "<redis_bus binder>", "exec")
    # The module itself is never run: the function's code is one of its constants.
    return next(constant for constant in compiled.co_consts if isinstance(constant, CodeType))
