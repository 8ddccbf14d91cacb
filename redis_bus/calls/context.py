"""Context: a few headers, such as a trace id, that travel with calls and with what these call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType

MAX_BYTES = 8192  # names and values together

_NONE: Mapping[str, str] = MappingProxyType({})
_headers: ContextVar[Mapping[str, str]] = ContextVar("redis_bus_headers", default=_NONE)


def headers() -> dict[str, str]:
    """Return the headers that calls made here take along.

    In a function that a worker runs, they are those that its own call came with (where others
    joined it, the first one's); elsewhere none. `with_headers` adds to them.
    """
    return dict(_headers.get())


@contextlib.contextmanager
def with_headers(headers: Mapping[str, str] | None = None, /, **more: str) -> Iterator[None]:
    """Have the calls within the block take headers along, besides those that they would anyway.

    As a context variable it holds for this thread or task, and for tasks that are begun within.
    Names and values are text, 8,192 bytes of it in all. Raises TypeError, ValueError for others.
    """
    token = _headers.set(checked({**_headers.get(), **(headers or {}), **more}))
    try:
        yield
    finally:
        _headers.reset(token)


def current() -> Mapping[str, str]:
    """Return the headers as they are, not to be changed."""
    return _headers.get()


def came_with(headers: Mapping[str, str]) -> None:
    """Note the headers of the job that runs in this context from here on."""
    _headers.set(headers)


def checked(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers that can travel. Raises TypeError, ValueError."""
    size = 0
    for name, value in headers.items():
        for text in (name, value):
            if not isinstance(text, str):
                raise TypeError(f"headers are text, not {type(text).__name__}: {name!r}: {value!r}")
            size += len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise ValueError(
            f"headers of {size} bytes: {MAX_BYTES} is the most that travels with a call"
        )
    return dict(headers)
