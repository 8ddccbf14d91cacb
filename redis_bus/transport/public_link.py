"""Public link: a blocking connection that is used by redis-py's public calls alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis

from . import wire
from .link import CLOSED, PUSHED, Link

if TYPE_CHECKING:
    from .transport import NodeTransport


def open_link(connection: Any, home: NodeTransport, timeout: float) -> Link:
    """Connect within about ``timeout`` seconds, and return the connection as a bus uses it.

    Its socket is used past redis-py, which is faster, where redis-py has one to give.
    """
    connection.socket_timeout = timeout  # of the handshake, too
    if hasattr(connection, "socket_connect_timeout"):
        known = connection.socket_connect_timeout
        connection.socket_connect_timeout = timeout if known is None else min(known, timeout)
    wire.connect(connection)
    sock = wire.socket_of(connection)
    if sock is None:
        return PublicLink(connection, home, timeout)
    return Link(connection, home, timeout, sock)


class PublicLink(Link):
    """One connection, of which only redis-py knows where its socket is.

    A reply is waited for as long as a `Link` would, and what has begun to come as long as redis-py
    waits for it.
    """

    __slots__ = ("_is_open",)

    def __init__(self, connection: Any, home: NodeTransport, timeout: float) -> None:
        self._connection = connection
        self.home = home
        self.idle_since = 0.0
        self.closings = 0
        self.seat = None
        self._socket = None
        self._is_plain = False
        self._timeout = timeout
        self._is_open = True

    def send(self, data: bytes) -> None:
        self._check()
        self._connection.send_packed_command([data], check_health=False)

    def can_read(self, seconds: float) -> bool:
        self._check()
        return bool(self._connection.can_read(seconds))

    def read(self, *, push: bool = False, beyond: int = 0) -> object:
        while True:
            if not self.can_read(self._timeout):
                raise redis.TimeoutError("Timeout reading from socket")
            try:
                reply: object = self._connection.read_response(
                    disable_decoding=True, disconnect_on_error=False, push_request=push
                )
            except redis.ResponseError as error:
                return error
            if push or type(reply) is not PUSHED:
                return reply

    def fileno(self) -> int:
        return -1

    def read_ready(self) -> list[object]:
        replies = []
        while self.can_read(0.0):
            replies.append(self.read())
        return replies

    def cut(self) -> None:
        self._connection.disconnect()

    def close(self) -> None:
        self._is_open = False
        super().close()

    def _check(self) -> None:
        # Closed, redis-py would connect anew, and log in, in the middle of what is under way.
        if not self._is_open or not getattr(self._connection, "is_connected", True):
            raise redis.ConnectionError(CLOSED)
