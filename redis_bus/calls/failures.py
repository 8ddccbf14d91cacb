"""Failures: what errors of a connection mean for a call, and whether anything was done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConnectionLost

if TYPE_CHECKING:
    pass

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


def _system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an error was made of."""
    system = error if isinstance(error, OSError) else error.__context__
    # Its context may also be an error that the caller was handling: it must have its words.
    if isinstance(system, OSError) and system.strerror and system.strerror in str(error):
        return system
    return None
