"""Refusals: what errors of redis-py mean, in words, and whether anything was done then."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any

import redis

from ..errors import BusError

if TYPE_CHECKING:
    from ..protocol.commands import Command

from ..calls.failures import (
    HANG_UPS,
    MAXCLIENTS,
    NO_REDIS,
    NO_TLS,
    PASSING,
    QUOTED,
    REPLICA,
    WAYS_OUT,
    NotConnected,
    NotConnectedNow,
    Refused,
    _system_error,
    refusal_of_login,
)

# Errors that are answers: it is a Redis, but not for us, or not yet.
REFUSALS = (
    redis.AuthenticationError,
    redis.BusyLoadingError,
    redis.ResponseError,
)
# Why commands were not carried out: an error reply, or no connection was made.
Failure = redis.RedisError | BusError


def is_passing(error: BaseException) -> bool:
    """Whether an error reply says that nothing was done, and that it may be done soon.

    The server is a replica by now, or it loads its data: its connections are of no use.
    """
    if isinstance(error, (redis.BusyLoadingError, redis.ReadOnlyError)):
        return True
    if isinstance(error, redis.exceptions.MasterDownError):
        return True
    return isinstance(error, redis.ResponseError) and (
        str(error).startswith(PASSING) or any(word in str(error) for word in QUOTED)
    )


def replica_error(command: Command, reply: object) -> redis.ReadOnlyError | None:
    """Return the error that it is to be told by ``ROLE`` that a server is a replica."""
    if command == ("ROLE",) and not is_role_of_master(reply):
        return redis.ReadOnlyError(REPLICA)
    return None


def is_role_of_master(reply: object) -> bool:
    """Whether a server says by ``ROLE`` that it is a master; one that may not say it counts so."""
    return isinstance(reply, redis.ResponseError) or (
        isinstance(reply, list) and reply[:1] == [b"master"]
    )


def unsent(
    error: BaseException,
    address: str,
    *,
    was_there: bool = False,
    tls: dict[str, Any] | None = None,
    server: str = "Redis",
) -> NotConnected:
    """Return the error for a connection that could not be made.

    ``was_there``: there was one before, so there may be one again. ``tls``: the settings, where it
    was to be of TLS. ``server``: what it should be, for people.
    """
    system = _system_error(error)
    reason = _reason(error, system)
    absent = NotConnectedNow if was_there else NotConnected
    if isinstance(error, redis.AuthenticationError):
        return Refused(refusal_of_login(error, address, server))
    if MAXCLIENTS in str(error):
        text = f"{server} at {address} takes no more connections: its maxclients is reached"
        return NotConnectedNow(f"{text} ({reason}); nothing was sent")
    if is_passing(error):
        return NotConnectedNow(explain(error, address, connecting=True, server=server))
    reason_of_tls = None if tls is None else explain_tls(error, tls)
    if reason_of_tls is not None:
        text = f"{NO_TLS} {address} ({reason_of_tls})"
        may_pass = isinstance(system, ssl.SSLEOFError) or isinstance(error, redis.TimeoutError)
        return (absent if may_pass else Refused)(text)
    if isinstance(error, (redis.exceptions.InvalidResponse, *REFUSALS)):
        return Refused(explain(error, address, connecting=True, server=server))
    if " connecting to " not in str(error) and (
        isinstance(error, HANG_UPS) or not isinstance(error, OSError)
    ):
        text = explain(error, address, connecting=False, server=server)
        return NotConnectedNow(f"{text} before anything was sent; is its maxclients reached?")
    return absent(explain(error, address, connecting=True, server=server))


def explain_tls(error: BaseException, settings: dict[str, Any]) -> str | None:
    """Return why there is no TLS connection; None where that is not for TLS."""
    files = [settings.get(name) for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")]
    for file in files:
        if file and not os.access(file, os.R_OK):
            return f"{file} cannot be read"
    system = _system_error(error)
    if isinstance(system, ssl.SSLEOFError):
        return "it hung up: does it ask for a certificate, or for another one? See ssl_certfile"
    if isinstance(system, ssl.SSLError) or isinstance(error, redis.TimeoutError):
        return _reason(error, system)
    return None


def refusal(error: redis.RedisError) -> str:
    """Say that Redis refused something, in words that follow its name."""
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return f"is out of memory: {error}"
    if isinstance(error, redis.exceptions.AskError):  # MOVED, too
        return f"is one node of a cluster, say redis+cluster:// (its slot is elsewhere: {error})"
    return f"refused: {error}"


def explain(error: BaseException, address: str, *, connecting: bool, server: str = "Redis") -> str:
    system = _system_error(error)
    reason = _reason(error, system)
    if isinstance(error, redis.exceptions.InvalidResponse):
        return f"what listens at {address} is no Redis ({reason})"
    if isinstance(error, REFUSALS):
        return f"{server} at {address} refuses us: {reason}"
    if connecting and (" connecting to " in str(error) or isinstance(error, OSError)):
        return f"{NO_REDIS} {address} ({reason}); {WAYS_OUT}"
    return f"the connection to {server} at {address} was lost ({reason})"


def _reason(error: BaseException, system: OSError | None) -> str:
    """Return what the operating system or Redis says, without what redis-py adds to it."""
    text = str(error)
    if system is not None:
        text = system.strerror or ""
    elif isinstance(error, (redis.TimeoutError, TimeoutError)):
        text = "it did not answer in time"
    return " ".join(text.partition(" (_ssl.c")[0].split()).rstrip(".")
