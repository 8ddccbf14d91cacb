"""A function registered in this process: its settings, and how it becomes a descriptor."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

from ..errors import BusError
from .deadline import check_seconds
from .descriptor import Descriptor
from .signature import describe, method_name

P = ParamSpec("P")
R = TypeVar("R")


class _OfBus:
    def __repr__(self) -> str:
        return "<bus>"  # in `help`, as a default


OF_BUS: Any = _OfBus()  # an argument that was not given: the bus's own setting counts


@dataclass(frozen=True, slots=True)
class Settings:
    """What `Bus.register` was told of a method, with the bus's own settings filled in."""

    cache_key: str | bool | None
    cache_expire: float | None
    stale: float
    idempotent: bool | None
    max_queue: int | None
    timeout: float | None
    durable: bool | int
    open_timeout: bool
    result_expire: float
    serializer: str
    partitions: int = 1

    def __post_init__(self) -> None:
        for name in ("cache_expire", "stale", "timeout", "result_expire"):
            check_seconds(name, getattr(self, name))
        if self.stale is None or self.result_expire is None:
            raise TypeError("stale= and result_expire= are numbers of seconds, not None")
        if self.idempotent is not None and not isinstance(self.idempotent, bool):
            raise TypeError(f"idempotent={self.idempotent!r}: True, False or None")
        limit = self.max_queue
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"max_queue={limit!r}: how many jobs may wait, at least 1, or None")
        if not isinstance(self.durable, int) or self.durable < 0:
            raise ValueError(f"durable={self.durable!r}: True, or how many replicas confirm a call")
        if self.cache_key is not None and not isinstance(self.cache_key, (str, bool)):
            raise ValueError(f"cache_key={self.cache_key!r}: a format string, or True for all")
        if self.stale and self.cache_key in (None, False):
            raise ValueError("stale= needs a cache_key")


class Registration:
    """A function, or the dotted path of one that is imported when it is first needed."""

    def __init__(
        self,
        function: Callable[..., Any] | str,
        name: str | None,
        prefix: str,
        settings: Settings,
    ) -> None:
        self._given = function
        self._prefix = prefix
        self.settings = settings
        self.name = name if name is not None else self._default_name()

    def _default_name(self) -> str:
        if not isinstance(self._given, str):
            return method_name(self._given, self._prefix)
        return self._prefix + self._given.rpartition(".")[2].rpartition(":")[2]

    @property
    def path(self) -> str:
        """Where the function is, for messages."""
        if isinstance(self._given, str):
            return self._given
        module = getattr(self._given, "__module__", None) or "?"
        return f"{module}.{getattr(self._given, '__qualname__', type(self._given).__qualname__)}"

    @property
    def needs_import(self) -> bool:
        """Whether the function is known by its path only, so far."""
        return isinstance(self._given, str) and "function" not in self.__dict__

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function itself. Raises BusError where its path leads nowhere."""
        return import_path(self._given) if isinstance(self._given, str) else self._given

    @property
    def is_async(self) -> bool:
        """Whether the function is ``async def``, as it stands. Raises BusError as `function`."""
        function = self.function
        call = type(function).__call__
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)

    @cached_property
    def descriptor(self) -> Descriptor:
        """What is published. Raises BusError or ValueError where the function has no signature."""
        where = f"{self.path} in process {os.getpid()} on {os.uname().nodename}"
        settings = self.settings
        return Descriptor(
            name=self.name,
            service=self._prefix,
            signature=describe(self.function),
            doc=_doc(self.function),
            cache_key=settings.cache_key or None,
            cache_expire=settings.cache_expire,
            stale=settings.stale,
            idempotent=settings.idempotent,
            max_queue=settings.max_queue,
            durable=int(settings.durable),
            timeout=settings.timeout,
            open_timeout=settings.open_timeout,
            result_expire=settings.result_expire,
            serializer=settings.serializer,
            partitions=settings.partitions,
            publisher=where,
        )

    def published(self) -> Descriptor:
        """The descriptor, with the process that publishes it now: it may be a fork."""
        where = f"{self.path} in process {os.getpid()} on {os.uname().nodename}"
        return replace(self.descriptor, publisher=where)


class Registering:
    """What both kinds of bus have in common where functions are registered."""

    register_method: Callable[..., Any]

    def register(
        self,
        name: str | None = None,
        cache_key: str | bool | None = None,
        *,
        cache_expire: float | None = OF_BUS,
        stale: float = 0,
        idempotent: bool | None = None,
        max_queue: int | None = None,
        timeout: float | None = OF_BUS,
        durable: bool | int = False,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register the function below, plain or ``async def``.

        It is returned unchanged and can still be called here.

        ``name``: on the bus; without it, the bus's prefix and the function's name.
        ``cache_key``: a format string over the arguments, such as ``'{a}/{b}'``, or True for all
        of them: the results are cached under it. ``cache_expire``, ``timeout`` (s): instead of
        the bus's. ``stale``: seconds past its expiry that a value is still served while one run
        refreshes it. ``idempotent``: whether a call may run again after a fault; by default if
        it is cached. ``max_queue``: jobs that may wait; more raise QueueFull at the caller.
        ``durable``: a call counts as accepted once a replica of Redis has it, or so many replicas,
        and a job begins once they know that it was taken; else NotConfirmed is raised.

        Raises ValueError for settings or a template that cannot be.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            self.register_method(
                function,
                name,
                cache_key,
                cache_expire=cache_expire,
                stale=stale,
                idempotent=idempotent,
                max_queue=max_queue,
                timeout=timeout,
                durable=durable,
            )
            return function

        if callable(name):
            raise TypeError("write @bus.register() with its parentheses")
        return decorate


def _doc(function: Callable[..., Any]) -> str | None:
    """The docstring; of what a partial calls, not that of `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    doc = inspect.getdoc(function)
    # That of a dataclass is its signature, which may have addresses in it.
    is_made = dataclasses.is_dataclass(function) and (doc or "").startswith(f"{_name(function)}(")
    return None if is_made else doc


def _name(thing: object) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def import_path(path: str) -> Callable[..., Any]:
    """Import ``module.attr`` or ``module:attr``.

    Raises BusError, naming the path and what is wrong with it.
    """
    module_name, _, attributes = path.replace(":", ".", 1).rpartition(".")
    if ":" in path:
        module_name, _, attributes = path.partition(":")
    if not module_name or not attributes:
        raise BusError(f"{path!r} is not module.attr or module:attr")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise BusError(f"cannot import {path!r}: {error}") from error
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise BusError(f"cannot import {path!r}: no {attribute!r} in {found!r}") from None
    if not callable(found):
        raise BusError(f"{path!r} is not a function, but {type(found).__name__}")
    return found  # type: ignore[no-any-return]
