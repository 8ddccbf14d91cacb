"""Failures: what errors of redis-py mean, in words, and whether anything was done then."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any

import redis

from .errors import BusError, ConnectionLost

if TYPE_CHECKING:
    from .protocol import Command

# Errors of a failover, which passes: a wait that was broken off, a master that is none any more.
PASSING = ("UNBLOCKED", "READONLY", "You can't write against a read only", "MASTERDOWN")
# What a script ran into is quoted by Redis 6.2 within another error.
QUOTED = ("-READONLY ", "-MASTERDOWN ")
REPLICA = "READONLY it is a replica now"
MAXCLIENTS = "max number of clients"
HANG_UPS = (ConnectionResetError, BrokenPipeError)
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


class NotDone(ConnectionLost):
    """It is certain that nothing was done."""


class NotNow(NotDone):
    """Redis could not do it in that time, and did nothing; it may do it soon."""


class NotConnected(NotDone):
    """No connection could be made, so nothing was sent; there may be no Redis at all."""


class NotConnectedNow(NotConnected, NotNow):
    """No connection could be made in that time, so nothing was sent; there may be one soon."""


class Refused(NotConnected):
    """Redis does not want us, and will not soon: the password is wrong, say. Nothing was done."""


class SentBefore(ConnectionLost):
    """No connection can be made now, for a call that was sent before, as it says."""


def is_unreachable(error: ConnectionLost) -> bool:
    """Whether no connection could be made at all, so that nothing was sent."""
    return isinstance(error, NotConnected)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Redis refused a command because it has no memory left."""
    # By the name of its class: the steps of a call know nothing of redis-py.
    return any(one.__name__ == "OutOfMemoryError" for one in type(error.__cause__).__mro__)


def is_undone(error: ConnectionLost) -> bool:
    """Whether it is certain that nothing was done."""
    return isinstance(error, NotDone)


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


def refusal_of_login(error: BaseException, address: str, server: str = "Redis") -> str:
    """Say what is wrong with the password, and what to do; never which one it was."""
    text = str(error).lower()
    if "without any password" in text or "no password is set" in text:
        return f"{server} at {address} has no password, and one was given: leave it out"
    way = "as :PASSWORD@ or USER:PASSWORD@ before the host"
    if server != "Redis":
        way = "behind a ? as sentinel_password=, and sentinel_username="
    if "invalid" in text or "wrongpass" in text or "disabled" in text:
        text = f"{server} at {address} does not accept the password, or the user"
        return f"{text}; correct it in the URL, {way}, or in password= and username="
    text = f"{server} at {address} asks for a password"
    return f"{text}; say it in the URL, {way}, or by password= and username="


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
