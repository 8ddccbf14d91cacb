"""What a registration says of a method, as it stands in Redis: JSON, for any language."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from ..errors import ProtocolError
from .commands import METHOD_NAME, MOST_PARTITIONS
from .deadline import MOST_SECONDS

_ETAG_CHARACTERS = 16
_MARK = re.compile(r"[!-~]{16}\Z")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A published method. Expiries and timeouts are in seconds.

    ``timeout`` is left open (``open_timeout``) where neither the method nor its bus set one: the
    caller's own counts then. ``publisher`` says who published it, for messages.

    ``etag`` is 16 characters that stand for all that the registration says: by them a caller
    notices that the method was registered anew. ``shape`` is 16 characters that stand for what
    gives cached values their meaning; values cached under another shape are not served, as the
    same key could mean other arguments, or be looked for in another partition. Both are made
    here, unless a publisher in another language made its own.
    """

    name: str
    service: str
    signature: dict[str, object]
    doc: str | None = None
    cache_key: str | bool | None = None
    cache_expire: float | None = 86400
    stale: float = 0
    idempotent: bool | None = None
    max_queue: int | None = None
    durable: int = 0  # how many replicas are to confirm what its callers and workers write
    timeout: float | None = None
    open_timeout: bool = True
    result_expire: float = 3600
    serializer: str = "msgpack"
    publisher: str = ""
    partitions: int = 1

    etag: str = ""
    shape: str = ""

    def __post_init__(self) -> None:
        if not self.etag:
            object.__setattr__(self, "etag", _digest(self._said()))
        if not self.shape:
            meaning = [self.cache_key, self.signature.get("parameters"), self.serializer]
            # Whoever changes their number finds nothing in a partition from before.
            meaning += [] if self.partitions == 1 else [self.partitions]
            object.__setattr__(self, "shape", _digest(meaning))

    def _said(self) -> dict[str, object]:
        """All that the registration says; not who said it, nor what is made of it."""
        made = ("publisher", "etag", "shape")
        return {name: value for name, value in self._as_dict().items() if name not in made}

    def to_json(self) -> str:
        """Return the descriptor as it is published."""
        return json.dumps(self._as_dict(), ensure_ascii=True, sort_keys=True)

    def _as_dict(self) -> dict[str, object]:
        tree = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.partitions == 1:
            del tree["partitions"]
        return tree


def from_json(name: str, data: bytes | str) -> Descriptor:
    """Return the descriptor published under a name.

    Raises ProtocolError for what is no descriptor, or one of another name.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError(f"method {name!r}: its descriptor is not JSON") from None
    if not METHOD_NAME.match(name):
        raise ProtocolError(f"method {name!r}: no method can have that name")
    if not isinstance(tree, dict) or tree.get("name") != name:
        raise ProtocolError(f"method {name!r}: its descriptor is not one of ours")
    known = {field.name for field in fields(Descriptor)}
    values = {key: value for key, value in tree.items() if key in known}
    problem = _find_problem(values)
    if problem:
        raise ProtocolError(f"method {name!r}: its descriptor has no valid {problem}")
    try:
        return Descriptor(**values)
    except RecursionError:
        raise ProtocolError(f"method {name!r}: its descriptor is nested too deep") from None


def _find_problem(values: Mapping[str, object]) -> str | None:
    """Return the first field of the wrong type, if any: anybody can write to Redis."""
    number = (int, float)
    nothing = type(None)
    types: dict[str, tuple[type, ...]] = {
        "name": (str,),
        "service": (str,),
        "signature": (dict,),
        "doc": (str, nothing),
        "cache_key": (str, bool, nothing),
        "cache_expire": (*number, nothing),
        "stale": number,
        "idempotent": (bool, nothing),
        "max_queue": (int, nothing),
        "durable": (int,),
        "timeout": (*number, nothing),
        "open_timeout": (bool,),
        "result_expire": number,
        "serializer": (str,),
        "publisher": (str,),
        "partitions": (int,),
        "etag": (str,),
        "shape": (str,),
    }
    for name in ("name", "service", "signature"):
        if name not in values:
            return name
    for name, value in values.items():
        if not isinstance(value, types[name]):
            return name
        if isinstance(value, (int, float)) and not 0 <= value < MOST_SECONDS:
            return name
        if name == "partitions" and (value is True or not 1 <= int(str(value)) <= MOST_PARTITIONS):
            return name
        if name == "service" and value and not METHOD_NAME.match(str(value)):
            return name
        if name in ("etag", "shape") and not _MARK.match(str(value)):
            return name
    return None


def _digest(tree: object) -> str:
    text = json.dumps(tree, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_ETAG_CHARACTERS]
