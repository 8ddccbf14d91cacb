"""Arguments: what a call sends along as bytes, and what a worker reads of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import ProtocolError
from . import codec


class Arguments(NamedTuple):
    """The arguments of a job, and the headers that came with them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    headers: dict[str, str]


def encode(
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    headers: Mapping[str, str],
    serializer: codec.Serializer,
) -> bytes:
    """Return arguments as bytes; headers only where there are any. Raises SerializationError."""
    # Containers as Python hands them over; what else they are would not make the round trip.
    value: list[object] = [list(args), kwargs if type(kwargs) is dict else dict(kwargs)]
    if headers:
        value.append(dict(headers))
    return codec.encode(value, serializer, root="arguments")


def decode(body: bytes, serializer: codec.Serializer) -> Arguments:
    """Return what `encode` wrote. Raises ProtocolError, SerializationError."""
    value = codec.decode(body, serializer)
    if type(value) is list and len(value) == 2:
        args, kwargs = value
        if type(args) is list and type(kwargs) is dict:
            return Arguments(tuple(args), kwargs, {})
    match value:
        case [list(args), dict(kwargs), dict(headers)] if _is_text(headers):
            return Arguments(tuple(args), kwargs, headers)
    raise ProtocolError("its arguments are not ours")


def _is_text(headers: dict[Any, Any]) -> bool:
    return all(isinstance(text, str) for item in headers.items() for text in item)
