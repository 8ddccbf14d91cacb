"""Failures: what errors of redis-py mean, in words, and whether anything was done then."""

from __future__ import annotations

import os
import ssl
from typing import Any

import redis

from .errors import BusError, ConnectionLost

# Errors of a failover, which passes: a wait that was broken off, a master that is none any more.
PASSING = ("UNBLOCKED", "READONLY", "You can't write against a read only", "MASTERDOWN")
NO_REDIS = "no Redis at"
NO_TLS = "no TLS connection to Redis at"
WAYS_OUT = "start one, or say where it is with url= or REDIS_BUS_URL"
# Errors that are answers: it is a Redis, but not for us, or not yet.
REFUSALS = (
    redis.AuthenticationError,
    redis.BusyLoadingError,
    redis.ResponseError,
)
# Why commands were not carried out: an error reply, or no connection was made.
Failure = redis.RedisError | BusError


class NotNow(ConnectionLost):
    """Redis could not do it in that time, for its masters are about to change; it did nothing."""


def is_unreachable(error: ConnectionLost) -> bool:
    """Whether no connection could be made at all, so that nothing was sent."""
    return str(error).startswith((NO_REDIS, NO_TLS))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Redis refused a command because it has no memory left."""
    return isinstance(error.__cause__, redis.exceptions.OutOfMemoryError)


def is_undone(error: ConnectionLost) -> bool:
    """Whether it is certain that nothing was done."""
    return isinstance(error, NotNow) or is_unreachable(error)


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


def explain(error: BaseException, address: str, *, connecting: bool) -> str:
    system = _system_error(error)
    reason = _reason(error, system)
    if isinstance(error, redis.exceptions.InvalidResponse):
        return f"what listens at {address} is no Redis ({reason})"
    if isinstance(error, REFUSALS):
        return f"Redis at {address} refuses us: {reason}"
    if connecting and (" connecting to " in str(error) or isinstance(error, OSError)):
        return f"{NO_REDIS} {address} ({reason}); {WAYS_OUT}"
    return f"the connection to Redis at {address} was lost ({reason})"


def _system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an error was made of."""
    system = error if isinstance(error, OSError) else error.__context__
    # Its context may also be an error that the caller was handling: it must have its words.
    if isinstance(system, OSError) and system.strerror and system.strerror in str(error):
        return system
    return None


def _reason(error: BaseException, system: OSError | None) -> str:
    """Return what the operating system or Redis says, without what redis-py adds to it."""
    text = str(error)
    if system is not None:
        text = system.strerror or ""
    elif isinstance(error, (redis.TimeoutError, TimeoutError)):
        text = "it did not answer in time"
    return " ".join(text.partition(" (_ssl.c")[0].split()).rstrip(".")
