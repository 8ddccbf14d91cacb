"""One write, one wait: commands on redis-py's connections, without its command layer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import redis

from . import scripts
from .errors import BusError, ConnectionLost
from .protocol import SLICE_SECONDS, Command, pack

# A reply that is later than this means that the peer is gone.
READ_SECONDS = SLICE_SECONDS + 5.0
# A connection that was idle for longer is looked at before it is used again.
FRESH_SECONDS = 0.5
# How often scripts are loaded for one request: somebody may flush them again at any moment.
LOAD_TRIES = 10


class Link:
    """One connection, in the hands of one caller at a time."""

    __slots__ = ("_connection", "_timeout", "idle_since")

    def __init__(self, connection: Any) -> None:  # redis-py's classes are typed in part only
        self._connection = connection
        self._timeout = READ_SECONDS
        self.idle_since = 0.0
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

    def read(self) -> object:
        """Return the next reply; an error reply is returned, not raised."""
        try:
            return self._connection.read_response(disable_decoding=True)
        except redis.ResponseError as error:
            return error

    def close(self) -> None:
        self._connection.disconnect()


class Transport:
    """Sends commands and reads their replies; safe to share between threads, and after a fork."""

    def __init__(self, client: redis.Redis) -> None:
        pool = getattr(client, "connection_pool", None)
        if not isinstance(pool, redis.ConnectionPool):
            raise TypeError(f"conn: a redis.Redis is needed, not {type(client).__name__}")
        settings: dict[str, Any] = {**pool.connection_kwargs, "socket_timeout": READ_SECONDS}
        self._connect: Callable[[], Any] = lambda: pool.connection_class(**settings)
        self._idle: list[Link] = []
        self._pid = os.getpid()
        self.address = describe_address(settings)

    def exchange(self, *commands: Command, timeout: float = READ_SECONDS) -> list[Any]:
        """Send commands in one write and return their replies, of which none is an error.

        ``timeout`` (s) bounds the wait for each reply. Scripts that Redis does not know are
        loaded and sent again, with what followed them. Raises ConnectionLost where Redis cannot
        be reached or was cut off, and BusError, with Redis's words, for an error reply.
        """
        replies: list[Any] = []
        for _ in range(LOAD_TRIES):
            rest = commands[len(replies) :]
            link = self.checkout()
            try:
                link.set_timeout(timeout)
                link.send(pack(*rest))
                for _ in rest:
                    reply = link.read()
                    if isinstance(reply, redis.ResponseError):
                        raise reply
                    replies.append(reply)
            except redis.exceptions.NoScriptError:
                # What was sent behind the script may block: only a new connection ends that.
                link.close()
                self.load_scripts()
                continue
            except redis.ResponseError as error:
                link.close()
                raise BusError(f"Redis at {self.address} refused: {error}") from error
            except (redis.RedisError, OSError) as error:
                link.close()
                raise self.lost(error) from error
            except BaseException:
                link.close()
                raise
            self.checkin(link)
            return replies
        raise BusError(f"Redis at {self.address} forgets its scripts faster than they are loaded")

    def ask(self, *commands: Command) -> list[Any]:
        """Like `exchange`, for commands that do no harm when they are sent twice."""
        try:
            return self.exchange(*commands)
        except ConnectionLost:
            return self.exchange(*commands)

    def load_scripts(self) -> None:
        """Make every script of ours known to Redis."""
        link = self.checkout()
        try:
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

    def checkout(self) -> Link:
        """Return a connection that nobody else uses. Raises ConnectionLost."""
        if self._pid != os.getpid():
            # The parent's sockets: both sides writing to one would mix their bytes.
            self._pid = os.getpid()
            self._idle = []
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - link.idle_since < FRESH_SECONDS or not link.is_broken():
                return link
            link.close()
        try:
            return Link(self._connect())
        except (redis.RedisError, OSError) as error:
            raise self.lost(error) from error

    def checkin(self, link: Link) -> None:
        """Give a connection back, with no reply outstanding."""
        link.idle_since = time.monotonic()
        self._idle.append(link)

    def lost(self, error: BaseException) -> ConnectionLost:
        """Return the error that says, in words, what became of the connection."""
        return ConnectionLost(f"Redis at {self.address}: {error}")

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


def describe_address(settings: dict[str, Any]) -> str:
    """Return where a connection goes, for people: never with its password."""
    if settings.get("path"):
        return str(settings["path"])
    host = settings.get("host")
    if host is None:
        pool = settings.get("connection_pool")
        return f"sentinel service {getattr(pool, 'service_name', '?')}"
    return f"{host}:{settings.get('port', 6379)}"


def connect(url: str, **redis_kwargs: Any) -> redis.Redis:
    """Return a client for a URL; ``valkey://`` and ``valkeys://`` are ``redis://`` and ``rediss://``.

    Raises ValueError, without the password, for a URL that means nothing.
    """
    scheme, mark, rest = url.partition("://")
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
    if scheme in ("redis+cluster", "redis+sentinel"):
        raise ValueError(f"{scheme}:// is not supported in this version")
    if not mark or scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"not a Redis URL: {hide_password(url)!r}; it begins with redis://")
    redis_kwargs.setdefault("retry", redis.retry.Retry(redis.backoff.NoBackoff(), 0))
    try:
        return redis.Redis.from_url(f"{scheme}://{rest}", **redis_kwargs)
    except ValueError:
        # What redis-py says of it may quote the password.
        raise ValueError(f"not a Redis URL: {hide_password(url)!r}") from None


def hide_password(url: str) -> str:
    """Return a URL that can be shown, without what it says of passwords."""
    url, _, _ = url.partition("?")
    scheme, mark, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}{mark}{user}:***@{place}" if at else url
