"""A published method as its callers use it: how to bind, key, encode and route a call."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import BusError, ProtocolError, SerializationError
from ..printable import printable
from . import arguments, cache_key, codec, signature
from .commands import Route, Service, check_method_name, check_prefix, partition_of
from .deadline import check_seconds
from .descriptor import Descriptor
from .entries import MAX_ATTEMPTS
from .rendering import shown

_SHOWN_CHARACTERS = 80
Args = tuple[object, ...]
Kwargs = Mapping[str, object]
KEEP: Any = object()  # a setting of a call that is not changed


class Target:
    """All that a call needs to know of its method, made once for each published registration.

    Raises ProtocolError for a descriptor that no registration of ours could have published, and
    BusError for one whose serializer ``own`` does not accept. ``timeout`` (s) is the caller's: it
    counts where the registration left it open.
    """

    def __init__(
        self, bus: str, descriptor: Descriptor, own: codec.Serializer, timeout: float | None
    ) -> None:
        self.descriptor = descriptor
        self.etag = descriptor.etag
        self.shape = descriptor.shape
        self.name = descriptor.name
        self.signature = signature.restore(descriptor.signature)
        self.serializer = _accepted(descriptor, own)
        self.timeout = timeout if descriptor.open_timeout else descriptor.timeout
        try:
            service = Service(bus, check_prefix(descriptor.service))
            self.bind = signature.binder(self.signature, check_method_name(descriptor.name))
            self.key = self._compile_key()
        except ValueError as error:
            raise ProtocolError(f"method {descriptor.name!r}: {error}") from error
        idempotent = descriptor.idempotent
        self.may_run_twice = self.key is not None if idempotent is None else idempotent
        keep_ms = max(1, round(descriptor.result_expire * 1000))
        partitions, limit = descriptor.partitions, descriptor.max_queue
        # A partition's share: what waits in the others is not known there.
        self.max_queue = None if limit is None else -(-limit // partitions)
        self.route = Route(
            service,
            descriptor.name,
            self.etag,
            max_queue=self.max_queue,
            keep_ms=keep_ms,
            tries=MAX_ATTEMPTS if self.may_run_twice else 1,
            durable=descriptor.durable,
        )
        self.routes = self.route.spread(partitions)
        # Callers that make one call each are to be spread, too. `next` is safe in threads.
        self._turns = itertools.count(random.randrange(partitions))

    @property
    def doc(self) -> str | None:
        """The docstring, as it can be shown."""
        doc = self.descriptor.doc
        return None if doc is None else printable(doc)

    def route_for(self, key: bytes | None) -> Route:
        """Return the way of a call: by its cache key, or the next one, to spread them evenly."""
        partitions = len(self.routes)
        if partitions == 1:
            return self.route
        turn = next(self._turns) if key is None else partition_of(key, partitions)
        return self.routes[turn % partitions]

    def _compile_key(self) -> cache_key.CacheKey | None:
        template = self.descriptor.cache_key
        if template is None or template is False:
            return None
        parameters = self.signature.parameters
        key = cache_key.compile_template(template, list(parameters))
        for field in key.fields:
            if isinstance(parameters[field].default, signature.RemoteDefault):
                raise ValueError(
                    f"cache_key {template!r} uses {field!r}, whose default "
                    f"{parameters[field].default!r} cannot be sent to callers"
                )
        return key

    def encode(self, args: Args, kwargs: Kwargs, headers: Mapping[str, str]) -> bytes:
        """Return the arguments as bytes. Raises SerializationError, naming the path."""
        __tracebackhide__ = True
        try:
            return arguments.encode(args, kwargs, headers, self.serializer)
        except SerializationError as error:
            self._name_the_argument(args, kwargs)
            raise SerializationError(f"{ShownCall(self.name, args, kwargs)}: {error}") from None

    def _name_the_argument(self, args: Args, kwargs: Kwargs) -> None:
        """Raise with the path from the argument's own name, where one argument is at fault."""
        __tracebackhide__ = True
        bound = self.signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            try:
                codec.encode(value, self.serializer, root=name)
            except SerializationError as error:
                what = str(error).replace("encode ", "encode argument ", 1)
                raise SerializationError(f"{ShownCall(self.name, args, kwargs)}: {what}") from None


def _accepted(descriptor: Descriptor, own: codec.Serializer) -> codec.Serializer:
    if descriptor.serializer == own.name:
        return own
    if descriptor.serializer in ("msgpack", "json"):
        return codec.get_serializer(descriptor.serializer)
    raise BusError(
        f"method {descriptor.name!r} is published with serializer {descriptor.serializer!r}, which "
        f"this bus does not accept; open it with that serializer only if you trust every "
        f"process on this Redis"
    )


class ShownCall(NamedTuple):
    """A call as it would be typed, shortened; made into text only when a message needs it."""

    name: str
    args: Args
    kwargs: Kwargs

    def __str__(self) -> str:
        parts = [_short(value) for value in self.args]
        parts += [f"{key}={_short(value)}" for key, value in self.kwargs.items()]
        text = ", ".join(parts)
        if len(text) > 2 * _SHOWN_CHARACTERS:
            text = text[: 2 * _SHOWN_CHARACTERS] + "..."
        return f"{self.name}({text})"


def _short(value: object) -> str:
    if isinstance(value, (str, bytes, list, tuple, dict, set, frozenset)) and len(value) > 200:
        return f"<{type(value).__name__} of {len(value)}>"
    try:
        text = shown(value)
    except Exception as error:  # noqa: BLE001 - a message must not fail for an argument's __repr__
        return f"<{type(value).__name__}: {type(error).__name__} in repr>"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one call, never mixed with the user's keyword arguments.

    ``timeout`` (s) is used where ``has_timeout``; None waits for ever.
    """

    timeout: float | None = None
    has_timeout: bool = False
    fail_fast: bool = False
    allow: tuple[type[BaseException], ...] = ()

    def changed(
        self,
        *,
        timeout: float | None = KEEP,
        fail_fast: bool = KEEP,
        allow: tuple[type[BaseException], ...] = KEEP,
    ) -> Options:
        """Return these settings with others. Raises TypeError, ValueError for a wrong timeout."""
        __tracebackhide__ = True
        if timeout is not KEEP:
            check_seconds("timeout", timeout)
        return Options(
            timeout=self.timeout if timeout is KEEP else timeout,
            has_timeout=self.has_timeout or timeout is not KEEP,
            fail_fast=self.fail_fast if fail_fast is KEEP else fail_fast,
            allow=self.allow if allow is KEEP else tuple(allow),
        )


def empty_signature() -> inspect.Signature:
    """The signature of a method that is not imported yet: anything goes."""
    kinds = inspect.Parameter
    return inspect.Signature(
        [kinds("args", kinds.VAR_POSITIONAL), kinds("kwargs", kinds.VAR_KEYWORD)]
    )
