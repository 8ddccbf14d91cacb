"""What a job ended with, as bytes: a value, or an exception that the caller shall see."""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Callable, Iterable

from .. import errors
from ..errors import BusError, ProtocolError, RemoteError, RemoteTraceback
from ..printable import in_one_line, printable
from . import codec
from .commands import ERROR_TAG

_MSGPACK = codec.get_serializer("msgpack")
# Bounds what an exception takes in Redis; the end of a traceback is what names the error.
MAX_TRACEBACK_CHARACTERS = 100_000
MAX_TEXT_CHARACTERS = 100_000
# So much that the rest, at 4 bytes a character, always fits beside it.
MAX_ARGS_BYTES = codec.MAX_BYTES - 1024 * 1024


def encode_error(error: BaseException, trace: str | None = None) -> bytes:
    """Return an exception as an outcome, its traceback and its whole chain as text.

    Arguments that cannot be encoded, or are too large, travel as their text, of which the
    beginning counts. ``trace`` is shown instead of the exception's own traceback.
    """
    text = format_trace(error) if trace is None else trace
    fields = {"type": _type_name(type(error)), "text": text_of(error), "traceback": text}
    try:
        args = codec.encode(tuple(error.args), _MSGPACK, max_bytes=MAX_ARGS_BYTES)
    except Exception:  # noqa: BLE001 - the callee's own `args` may be anything, and raise anything
        args = None
    return ERROR_TAG + codec.encode({**fields, "args": args}, _MSGPACK)


def is_error(outcome: bytes) -> bool:
    """Whether an outcome is an exception."""
    return outcome[:1] == ERROR_TAG


def decode(
    outcome: bytes, accept: codec.Serializer, allowed: Iterable[type[BaseException]] = ()
) -> object:
    """Return the value of an outcome, or raise its exception.

    A builtin exception is raised as its own type, and so is one of the ``allowed`` classes or
    one of the bus itself; any other is a RemoteError. The callee's traceback is its
    ``__cause__``. Raises ProtocolError for bytes that are no outcome.
    """
    __tracebackhide__ = True
    if not is_error(outcome):
        return codec.decode(outcome, accept)
    error, trace = decode_error(outcome, allowed)
    raise error from RemoteTraceback(trace)


def decode_error(
    outcome: bytes, allowed: Iterable[type[BaseException]] = ()
) -> tuple[BaseException, str]:
    """Return the exception in an outcome and its traceback text. Raises ProtocolError."""
    fields = codec.decode(outcome[1:], _MSGPACK)
    match fields:
        case {
            "type": str(name),
            "text": str(text),
            "traceback": str(trace),
            "args": None | bytes() as data,
        }:
            pass
        case _:
            raise ProtocolError(f"an error reply that is not ours: {outcome[:60]!r}")
    args = None if data is None else codec.decode(data, _MSGPACK)
    if args is not None and not isinstance(args, tuple):
        raise ProtocolError(f"an error reply that is not ours: {outcome[:60]!r}")
    kind = _find_type(name, allowed)
    if kind is not None:
        built = _build(kind, args, text)
        if built is not None:
            return built, trace
    short = in_one_line(name.removeprefix("builtins."))
    message = f"{short}: {printable(text)}" if text else short
    return RemoteError(message, name, (text,) if args is None else args, trace), trace


def _find_type(name: str, allowed: Iterable[type[BaseException]]) -> type[BaseException] | None:
    for kind in allowed:
        if _type_name(kind) == name:
            return kind
    module, _, short = name.rpartition(".")
    # Only ever a class that is here already: a name from Redis imports nothing.
    place = {"builtins": builtins, errors.__name__: errors}.get(module)
    found = getattr(place, short, None)
    if not isinstance(found, type):
        return None
    # SystemExit and its like would end the caller: they stay remote.
    wanted = Exception if place is builtins else BusError
    return found if issubclass(found, wanted) else None


def _build(
    kind: Callable[..., BaseException], args: tuple[object, ...] | None, text: str
) -> BaseException | None:
    """Return an exception made of its arguments, or of its text; None where it takes neither."""
    try:
        built = kind(text) if args is None else kind(*args)
    except Exception:  # noqa: BLE001 - whatever a constructor raises, the caller gets a RemoteError
        return None
    return built if isinstance(built, BaseException) else None


def _type_name(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def text_of(error: BaseException) -> str:
    """Return the text of an exception, its beginning where that is long; never fails."""
    try:
        text = str.__str__(str(error))  # its own __str__ may return a subclass
    except BaseException as problem:  # noqa: BLE001 - the callee's own __str__ may raise anything
        return f"<{type(error).__name__} whose text cannot be shown: {type(problem).__name__}>"
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    return f"{text[:MAX_TEXT_CHARACTERS]}... ({len(text)} characters)"


def format_trace(error: BaseException) -> str:
    """Return an exception's traceback and chain as text; never fails."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as problem:  # noqa: BLE001 - formatting runs the callee's own methods
        return f"<a traceback that cannot be shown: {type(problem).__name__}>"
    return text[-MAX_TRACEBACK_CHARACTERS:]
