"""Twins: redis-py's classes and settings of connections, blocking, of asyncio, and valkey-py's."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio as aioredis

# Settings of a blocking connection that mean something else, or nothing, for one of asyncio.
BLOCKING_ONLY = {
    "command_packer",
    "event_dispatcher",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "parser_class",
    "retry",
}
# Of connections of asyncio only; what a bus sends it encodes itself.
ASYNCIO_ONLY = {"encoder_class"}
# Of blocking TLS connections only; they are in the settings where nobody asked for them, too.
OCSP = {
    "ssl_ocsp_context",
    "ssl_ocsp_expected_cert",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
}
# Of valkey-py's connections: how they introduce themselves, try again, parse and cache. A bus does
# all of that in its own way, as it does for redis-py's.
VALKEY_ONLY = {
    "cache_allow_list",
    "cache_deny_list",
    "cache_enabled",
    "cache_max_size",
    "cache_policy",
    "cache_ttl",
    "client_cache",
    "command_packer",
    "encoder_class",
    "lib_name",
    "lib_version",
    "parser_class",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
}
# By the name that both libraries give them.
BLOCKING: dict[str, type[Any]] = {
    "UnixDomainSocketConnection": redis.UnixDomainSocketConnection,
    "SSLConnection": redis.SSLConnection,
    "Connection": redis.Connection,
}
ASYNCIO: dict[str, type[Any]] = {
    "UnixDomainSocketConnection": aioredis.UnixDomainSocketConnection,
    "SSLConnection": aioredis.SSLConnection,
    "Connection": aioredis.Connection,
}
LIBRARIES = ("redis", "valkey")


def library_of(kind: type[Any]) -> str:
    """Return the name of the package that a class is of."""
    return kind.__module__.partition(".")[0]


def is_of_asyncio(kind: type[Any]) -> bool:
    """Whether a class of connections, of one of the libraries or made of theirs, is asyncio's."""
    return any(
        library_of(one) in LIBRARIES and ".asyncio." in f"{one.__module__}." for one in kind.__mro__
    )


def blocking_class(kind: type[Any]) -> type[Any]:
    """Return redis-py's blocking class of connections that connects as another class does.

    Raises TypeError for a class of the user's: what it does otherwise would be lost.
    """
    return BLOCKING[_find(kind)]


def asyncio_class(kind: type[Any]) -> type[Any]:
    """Return redis-py's class for asyncio. See `blocking_class`."""
    return ASYNCIO[_find(kind)]


def _find(kind: type[Any]) -> str:
    if library_of(kind) in LIBRARIES:
        for one in kind.__mro__:
            if one.__name__ in BLOCKING:
                return one.__name__
    raise TypeError(f"conn: AsyncBus cannot connect as {kind.__name__} does")


def for_blocking(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of connections of asyncio as blocking ones take them."""
    left_out = BLOCKING_ONLY | ASYNCIO_ONLY
    return {name: value for name, value in settings.items() if name not in left_out}


def for_asyncio(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of blocking connections as those of asyncio take them.

    Raises TypeError for one that they do not have.
    """
    for name in sorted(OCSP):
        if settings.get(name):
            raise TypeError(f"{name}=: AsyncBus cannot do that")
    left_out = BLOCKING_ONLY | OCSP
    return {name: value for name, value in settings.items() if name not in left_out}


def from_valkey(kind: type[Any], settings: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    """Return redis-py's blocking class, and its settings, for those of a client of valkey-py.

    Raises TypeError, which names it, for what redis-py has no twin of.
    """
    if library_of(kind) != "valkey":
        raise TypeError(
            f"conn: connections of class {kind.__name__} cannot be had with redis-py: give a "
            f"client of valkey-py's own connections, or one of redis-py's"
        )
    found = {}
    for name, value in settings.items():
        if name in VALKEY_ONLY:
            continue
        if library_of(type(value)) == "valkey" and name != "credential_provider":
            shown = type(value).__name__
            raise TypeError(f"conn: {name}={shown}: redis-py has no twin of it; leave it out")
        found["redis_connect_func" if name == "valkey_connect_func" else name] = value
    return blocking_class(kind), found
