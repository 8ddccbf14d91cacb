"""Wire: what is used of redis-py's insides, of blocking connections; see `async_wire`, too.

Nothing else in this package names an attribute of redis-py that begins with an underscore. Where
one is missing, in another version or in a class of the user's, its public calls have to do.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import redis
from redis import exceptions

# Where a connection has its socket, and what makes an exception of an error reply.
SOCKET, PARSER, PARSE_ERROR = "_sock", "_parser", "parse_error"
# Error replies that mean something to us, by how they begin; any other is a ResponseError.
ERRORS: dict[str, type[redis.RedisError]] = {
    "ASK": exceptions.AskError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    "CROSSSLOT": exceptions.ClusterCrossSlotError,
    "EXECABORT": exceptions.ExecAbortError,
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "MOVED": exceptions.MovedError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "TRYAGAIN": exceptions.TryAgainError,
    "WRONGPASS": exceptions.AuthenticationError,
}


def connect(connection: Any) -> None:
    """Connect and log in. What fails half-way leaves no socket open."""
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise


def socket_of(connection: Any) -> socket.socket | None:
    """Return the socket of a connection, to be used past it; None where it has none to give."""
    found: Any = getattr(connection, SOCKET, None)
    has_all = all(hasattr(found, name) for name in ("recv_into", "sendall", "settimeout", "fileno"))
    return found if has_all else None


def error_maker(connection: Any) -> Callable[[str], Exception]:
    """Return what makes an exception of the text of an error reply, as redis-py would."""
    found: Any = getattr(getattr(connection, PARSER, None), PARSE_ERROR, None)
    if not callable(found):
        return make_error

    def make(text: str) -> Exception:
        error: Exception = found(text)
        # redis-py 5.0 knows those of a cluster on connections of its cluster's clients only.
        return make_error(text) if type(error) is redis.ResponseError else error

    return make


def make_error(text: str) -> Exception:
    """Return the exception that an error reply means."""
    code, _, rest = text.partition(" ")
    kind = ERRORS.get(code)
    if kind is None:
        return redis.ResponseError(text.removeprefix("ERR "))
    return kind(rest)


def forced_master(manager: Any) -> str | None:
    """Return the host at which a Sentinel's master is said to be, whatever the sentinels say."""
    found: str | None = getattr(manager, "_force_master_ip", None)
    return found
