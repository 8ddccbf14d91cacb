"""The service that ``redis-bus bench`` measures."""

from __future__ import annotations

from ..bus import Bus

# By what serves them: a worker each.
PLAIN, ASYNC, FIRST = "plain_*", "async_*", "first_job"


def plain_echo(a: int, b: int) -> int:
    return a + b


def plain_cached(a: int, b: int) -> int:
    return a + b


async def async_echo(a: int, b: int) -> int:
    return a + b


def first_job() -> None:
    """The job that waits for a worker whose start is measured."""


def later(payload: bytes) -> bytes:
    """Jobs of this wait: no worker serves it."""
    return payload


def register_on(bus: Bus) -> Bus:
    """Register all of it on a bus, and return that."""
    for function in (plain_echo, async_echo, first_job, later):
        bus.register_method(function)
    bus.register_method(plain_cached, cache_key="{a}/{b}")
    return bus
