"""One write, one wait: commands on redis-py's connections, without its command layer."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from typing import Any

import redis

from . import scripts
from .address import check_settings, describe_address
from .address import connect as connect
from .errors import BusError, ConnectionLost
from .protocol import SLICE_SECONDS, Command, pack

# A reply that is later than this means that the peer is gone.
READ_SECONDS = SLICE_SECONDS + 5.0
# A connection that was idle for longer is looked at before it is used again.
FRESH_SECONDS = 0.5
# How long to wait where a unix socket has no room for another connection yet.
CROWDED_SECONDS = 0.01
# What passed so far of a timeout, and what is left of it, does not matter below these (s).
SOON_SECONDS = 0.5
LEAST_SECONDS = 0.05
# How often scripts are loaded for one request: somebody may flush them again at any moment.
LOAD_TRIES = 10
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
NOT_FOUND = (OSError, redis.sentinel.MasterNotFoundError, redis.sentinel.SlaveNotFoundError)


def _is_crowded(error: BaseException) -> bool:
    """Whether more connect to a unix socket than its backlog holds: it refuses them at once."""
    return isinstance(error.__context__, BlockingIOError)


class Link:
    """One connection, in the hands of one caller at a time."""

    __slots__ = ("_connection", "_timeout", "closings", "idle_since")

    # redis-py's classes are typed in part only.
    def __init__(self, connection: Any, timeout: float = READ_SECONDS) -> None:
        """Connect within about ``timeout`` seconds."""
        self._connection = connection
        self._timeout = timeout
        self.idle_since = 0.0
        self.closings = 0
        connection.socket_timeout = timeout  # of the handshake, too
        if hasattr(connection, "socket_connect_timeout"):
            known = connection.socket_connect_timeout
            connection.socket_connect_timeout = timeout if known is None else min(known, timeout)
        connection.connect()

    def is_broken(self) -> bool:
        """Whether the other side closed it, or left bytes that nobody asked for."""
        try:
            return bool(self._connection.can_read())
        except (redis.RedisError, OSError):
            return True

    def set_timeout(self, seconds: float) -> None:
        """Give up a read after that many seconds."""
        if seconds != self._timeout:
            self._timeout = seconds
            # redis-py has no public way that costs no system call when nothing changes.
            sock = self._connection._sock
            if sock is not None:
                sock.settimeout(seconds)

    def send(self, data: bytes) -> None:
        """Send packed commands in one write."""
        self._connection.send_packed_command([data], check_health=False)

    def can_read(self, seconds: float) -> bool:
        """Whether something comes within so long. Raises what redis-py does, where it is closed."""
        return bool(self._connection.can_read(timeout=seconds))

    def read(self, *, push: bool = False) -> object:
        """Return the next reply; an error reply is returned, not raised.

        ``push``: or what Redis says unasked, where it has a kind of its own for that (RESP3).
        """
        try:
            return self._connection.read_response(disable_decoding=True, push_request=push)
        except redis.ResponseError as error:
            return error

    def close(self) -> None:
        self._connection.disconnect()


class Transport:
    """Sends commands and reads their replies; safe to share between threads, and after a fork.

    Making one does no I/O. Raises TypeError and ValueError for settings with which no connection
    can be made.
    """

    def __init__(self, client: redis.Redis) -> None:
        pool = getattr(client, "connection_pool", None)
        if not isinstance(pool, redis.ConnectionPool):
            raise TypeError(f"conn: a redis.Redis is needed, not {type(client).__name__}")
        # Who waits has a deadline: what may be tried again is decided where that is known.
        no_retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        settings: dict[str, Any] = {**pool.connection_kwargs, "socket_timeout": READ_SECONDS}
        settings.update(retry=no_retry, retry_on_error=[], retry_on_timeout=False)
        check_settings(pool.connection_class, settings)
        self.connection_class = pool.connection_class
        self.settings = settings
        self._connect: Callable[[], Any] = lambda: pool.connection_class(**settings)
        self._tls = settings if issubclass(pool.connection_class, redis.SSLConnection) else None
        self._idle: list[Link] = []
        self._pid = os.getpid()
        self.closings = 0  # a connection that was made before the last of them is not kept
        self.address = describe_address(settings)

    def exchange(self, *commands: Command, timeout: float = READ_SECONDS) -> list[Any]:
        """Send commands in one write and return their replies, of which none is an error.

        ``timeout`` (s) bounds all of it, to connect as well. Scripts that Redis does not know are
        loaded and sent again, with what followed them. Raises ConnectionLost where Redis cannot
        be reached or was cut off, and BusError, with Redis's words, for an error reply.
        """
        replies: list[Any] = []
        end = time.monotonic() + timeout
        for _ in range(LOAD_TRIES):
            rest = commands[len(replies) :]
            link = self.checkout(_left(end, timeout))
            try:
                link.set_timeout(_left(end, timeout))
                link.send(pack(*rest))
                for _ in rest:
                    reply = link.read()
                    if isinstance(reply, redis.ResponseError):
                        raise reply
                    replies.append(reply)
                    link.set_timeout(_left(end, timeout))
            except redis.exceptions.NoScriptError:
                # What was sent behind the script may block: only a new connection ends that.
                link.close()
                self.load_scripts(_left(end, timeout))
                continue
            except redis.ResponseError as error:
                link.close()
                raise self._refused(error) from error
            except (redis.RedisError, OSError) as error:
                link.close()
                raise self.lost(error) from error
            except BaseException:
                link.close()
                raise
            self.checkin(link)
            return replies
        raise BusError(f"Redis at {self.address} forgets its scripts faster than they are loaded")

    def exchange_each(self, *commands: Command, timeout: float = READ_SECONDS) -> list[Any]:
        """Send commands that do not block in one write; return a reply or a BusError for each.

        So what became of each is known as well as it can be. Only those that were refused for want
        of their script are sent again. ConnectionLost stands for what has no reply.
        """
        replies: list[Any] = [None] * len(commands)
        todo = list(range(len(commands)))
        end = time.monotonic() + timeout
        for _ in range(LOAD_TRIES):
            failure: BusError | None = None
            read = 0
            try:
                link = self.checkout(_left(end, timeout))
            except ConnectionLost as error:
                failure = error
            else:
                try:
                    link.set_timeout(_left(end, timeout))
                    link.send(pack(*(commands[index] for index in todo)))
                    for index in todo:
                        replies[index] = link.read()
                        read += 1
                        link.set_timeout(_left(end, timeout))
                except (redis.RedisError, OSError) as error:
                    link.close()
                    failure = self.lost(error)
                except BaseException:
                    link.close()
                    raise
                else:
                    self.checkin(link)
            for index in todo[read:]:
                replies[index] = failure
            todo = [i for i in todo if isinstance(replies[i], redis.exceptions.NoScriptError)]
            if failure is None and todo:
                try:
                    self.load_scripts(_left(end, timeout))
                except BusError as error:
                    failure = error
                    for index in todo:
                        replies[index] = error
            if failure is not None or not todo:
                break
        return [
            self._refused(reply) if isinstance(reply, redis.ResponseError) else reply
            for reply in replies
        ]

    def ask(self, *commands: Command, timeout: float = READ_SECONDS) -> list[Any]:
        """Like `exchange`, for commands that do no harm when they are sent twice."""
        end = time.monotonic() + timeout
        try:
            return self.exchange(*commands, timeout=timeout)
        except ConnectionLost as error:
            if is_unreachable(error):
                raise
        # Not within the `except`: the first error would be told with the second.
        return self.exchange(*commands, timeout=_left(end, timeout))

    def load_scripts(self, timeout: float = READ_SECONDS) -> None:
        """Make every script of ours known to Redis."""
        link = self.checkout(timeout)
        try:
            link.set_timeout(timeout)
            known = scripts.load().values()
            link.send(pack(*(("SCRIPT", "LOAD", script.source) for script in known)))
            for _ in known:
                reply = link.read()
                if isinstance(reply, redis.ResponseError):
                    raise BusError(f"Redis at {self.address} refused our scripts: {reply}")
        except (redis.RedisError, OSError) as error:
            link.close()
            raise self.lost(error) from error
        except BaseException:
            link.close()
            raise
        self.checkin(link)

    def checkout(self, timeout: float = READ_SECONDS) -> Link:
        """Return a connection that nobody else uses, made in at most ``timeout`` seconds.

        Raises ConnectionLost where there is none by then.
        """
        if self._pid != os.getpid():
            # The parent's sockets: both sides writing to one would mix their bytes. Another thread
            # that finds the new number is to find them gone.
            self._idle = []
            self._pid = os.getpid()
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - link.idle_since < FRESH_SECONDS or not link.is_broken():
                return link
            link.close()
        end, closings = time.monotonic() + timeout, self.closings
        while True:
            try:
                link = Link(self._connect(), timeout)
                link.closings = closings
                return link
            except (redis.RedisError, OSError) as error:
                if not _is_crowded(error) or time.monotonic() > end:
                    # What it says is all that is known: nothing was sent yet.
                    raise self.lost(error, connecting=True) from None
            time.sleep(CROWDED_SECONDS)

    def checkin(self, link: Link) -> None:
        """Give a connection back, with no reply outstanding."""
        link.idle_since = time.monotonic()
        self._idle.append(link)
        if link.closings != self.closings:  # it was closed meanwhile
            self._close_idle()

    def _refused(self, error: redis.ResponseError) -> BusError:
        """Return the error that an error reply means."""
        if isinstance(error, redis.exceptions.NoScriptError):
            text = f"Redis at {self.address} forgets its scripts faster than they are loaded"
            return BusError(text)
        if str(error).startswith(PASSING):
            return ConnectionLost(f"Redis at {self.address} cannot do this now: {error}")
        return BusError(f"Redis at {self.address} {refusal(error)}")

    def lost(self, error: BaseException, *, connecting: bool = False) -> ConnectionLost:
        """Return the error that says, in words, what became of the connection."""
        if connecting and self._tls is not None:
            reason = _explain_tls(error, self._tls)
            if reason:
                return ConnectionLost(f"{NO_TLS} {self.address} ({reason})")
        return ConnectionLost(_explain(error, self.address, connecting=connecting))

    def lost_connecting(self, error: BaseException) -> ConnectionLost:
        """Return the error that says why there is no connection."""
        return self.lost(error, connecting=True)

    def close(self) -> None:
        """Close the idle connections now, and those in use when they are given back."""
        self.closings += 1
        self._close_idle()

    def _close_idle(self) -> None:
        while True:
            try:  # another thread may take the last one
                link = self._idle.pop()
            except IndexError:
                return
            link.close()


def _left(end: float, timeout: float) -> float:
    """Return what is left of a timeout (s); all of it as long as hardly any of it has passed.

    A socket's timeout costs a system call when it changes.
    """
    left = end - time.monotonic()
    return timeout if left > timeout - SOON_SECONDS else max(LEAST_SECONDS, left)


def is_unreachable(error: ConnectionLost) -> bool:
    """Whether no connection could be made at all, so that nothing was sent."""
    return str(error).startswith((NO_REDIS, NO_TLS))


def _explain_tls(error: BaseException, settings: dict[str, Any]) -> str | None:
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


def refusal(error: redis.ResponseError) -> str:
    """Say that Redis refused something, in words that follow its name."""
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return f"is out of memory: {error}"
    return f"refused: {error}"


def _explain(error: BaseException, address: str, *, connecting: bool) -> str:
    system = _system_error(error)
    reason = _reason(error, system)
    if isinstance(error, redis.exceptions.InvalidResponse):
        return f"what listens at {address} is no Redis ({reason})"
    if isinstance(error, REFUSALS):
        return f"Redis at {address} refuses us: {reason}"
    if connecting and (" connecting to " in str(error) or isinstance(error, NOT_FOUND)):
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
