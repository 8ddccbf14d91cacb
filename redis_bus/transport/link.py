"""Link: one blocking connection, which redis-py makes and whose socket is ours from then on."""

from __future__ import annotations

import _socket
import contextlib
import select
import socket
import ssl
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import hiredis
import redis

from . import wire

if TYPE_CHECKING:
    from .limit import Seat
    from .transport import NodeTransport

BUFFER_BYTES = 65536
# How long the kernel waits by itself, and a read with ``beyond`` for more than that.
MOMENT_SECONDS = 0.05
CLOSED = "Connection closed by server."
_NOT_YET = object()
# What Redis says unasked; before hiredis 3.2 it was told from an answer by nothing.
PUSHED: Any = getattr(hiredis, "PushNotification", object)
# Elsewhere the time of a socket's options is laid out in other ways.
_HAS_KERNEL_TIME = sys.platform == "linux" and struct.calcsize("l") == 8
_MOMENT = struct.pack("ll", 0, round(MOMENT_SECONDS * 1e6))


class Link:
    """One connection, in the hands of one caller at a time.

    redis-py connects, so what TLS, passwords and Sentinel need is its own. What is sent and read
    afterwards goes past its layers. Where Python keeps the timeout of a socket it asks the kernel
    before each read and each write whether that can be done; on Linux, the kernel of a plain socket
    is told to wait a moment instead, and is asked only where that was not enough. Each signal
    begins that moment anew: with over 20 of them a second, all the time, a read has no timeout.
    """

    __slots__ = (
        "_buffer",
        "_connection",
        "_is_plain",
        "_least",
        "_reader",
        "_socket",
        "_timeout",
        "closings",
        "home",
        "idle_since",
        "seat",
    )

    # redis-py's classes are typed in part only.
    def __init__(
        self, connection: Any, home: NodeTransport, timeout: float, sock: socket.socket
    ) -> None:
        """Take over the socket of a connection that is connected: see `public_link.open_link`."""
        self._connection = connection
        self.home = home  # whose it is
        self.idle_since = 0.0
        self.closings = 0
        self.seat: Seat | None = None  # where there may be only so many connections
        self._socket: socket.socket | None = sock
        self._reader = hiredis.Reader(
            protocolError=redis.exceptions.InvalidResponse,
            replyError=wire.error_maker(connection),
            notEnoughData=_NOT_YET,
        )
        self._buffer = bytearray(BUFFER_BYTES)
        # Not one of gevent, say, which leaves the kernel nothing to wait for.
        is_socket = isinstance(sock, _socket.socket)
        is_plain = is_socket and not isinstance(sock, ssl.SSLSocket)
        self._is_plain = _HAS_KERNEL_TIME and is_plain
        self._timeout = timeout
        self._least = 1  # bytes for which the kernel wakes a read
        if self._is_plain:
            sock.settimeout(None)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, _MOMENT)

    def is_broken(self) -> bool:
        """Whether the other side closed it, or left bytes that nobody asked for."""
        try:
            return self.can_read(0.0)
        except (redis.RedisError, OSError, ValueError):
            return True

    def set_timeout(self, seconds: float) -> None:
        """Give up a read or a write after that many seconds."""
        if seconds != self._timeout:
            self._timeout = seconds
            if not self._is_plain and self._socket is not None:
                self._socket.settimeout(seconds)

    def send(self, data: bytes) -> None:
        """Send packed commands in one write. Raises what redis-py does, where that fails."""
        sock = self._open()
        try:
            if self._is_plain:
                self._send_all(sock, data)
            else:
                sock.sendall(data)
        except TimeoutError:
            raise redis.TimeoutError("Timeout writing to socket") from None
        except OSError as error:
            raise redis.ConnectionError(f"Error while writing to socket: {error}") from error

    def _send_all(self, sock: socket.socket, data: bytes) -> None:
        """Send all of it within the timeout. Raises TimeoutError."""
        try:
            sent = sock.send(data)
            if sent == len(data):
                return
            data = data[sent:]
        except BlockingIOError:
            pass
        rest, end = memoryview(data), time.monotonic() + self._timeout
        while rest:
            if not _is_ready(sock, select.POLLOUT, end - time.monotonic()):
                raise TimeoutError
            with contextlib.suppress(BlockingIOError):
                rest = rest[sock.send(rest) :]

    def can_read(self, seconds: float) -> bool:
        """Whether something comes within so long, if only that the connection is closed."""
        sock = self._open()
        if self._reader.has_data() or (isinstance(sock, ssl.SSLSocket) and sock.pending()):
            return True
        if self._least > 1:
            self._set_least(sock, 1)
        return _is_ready(sock, select.POLLIN, seconds)

    def read(self, *, push: bool = False, beyond: int = 0) -> object:
        """Return the next reply; an error reply is returned, not raised.

        ``push``: or what Redis says unasked, where it has a kind of its own for that (RESP3).
        ``beyond``: so many bytes are of no use yet, as more follow as a rule: it is not worth to
        wake up for them, for a moment at least. Raises what redis-py does where nothing comes.
        """
        while True:
            reply = self._reader.gets(False)
            if reply is _NOT_YET:
                self._receive(beyond)
                beyond = 0
            elif isinstance(reply, redis.RedisError) and not isinstance(reply, redis.ResponseError):
                raise reply
            elif push or type(reply) is not PUSHED:
                return reply

    @property
    def is_plain(self) -> bool:
        """Whether a loop can read it: not where TLS is in between."""
        return self._is_plain

    def fileno(self) -> int:
        """The number of its socket; it may be closed already, which is -1."""
        return -1 if self._socket is None else self._socket.fileno()

    def read_ready(self) -> list[object]:
        """Return the replies that have come, without waiting for any. Raises as `read` does."""
        sock = self._open()
        if self._least > 1:
            self._set_least(sock, 1)
        try:
            count = sock.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as error:
            raise redis.ConnectionError(f"Error while reading from socket: {error}") from error
        if count == 0:
            raise redis.ConnectionError(CLOSED)
        self._reader.feed(self._buffer, 0, count)  # type: ignore[arg-type]
        replies: list[object] = []
        while (reply := self._reader.gets(False)) is not _NOT_YET:
            if isinstance(reply, redis.RedisError) and not isinstance(reply, redis.ResponseError):
                raise reply
            if type(reply) is not PUSHED:
                replies.append(reply)
        return replies

    def read_asked(self) -> object:
        """Return the reply to a command that ASKING was sent before."""
        asked = self.read()
        reply = self.read()
        return asked if isinstance(asked, redis.ResponseError) else reply

    def cut(self) -> None:
        """End whatever another thread waits for on it; that thread is to close it."""
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket = None
        self._connection.disconnect()
        if self.seat is not None:
            self.seat.leave()

    def __del__(self) -> None:
        # At the end of Python the socket may be looked at first, and would be said to be open.
        with contextlib.suppress(Exception):
            self.close()

    def _open(self) -> socket.socket:
        sock = self._socket
        if sock is None:
            raise redis.ConnectionError(CLOSED)
        return sock

    def _receive(self, beyond: int) -> None:
        """Wait for bytes, and hand them to the reader."""
        sock, least = self._open(), min(beyond + 1, BUFFER_BYTES)
        try:
            if least != self._least and self._is_plain:
                self._set_least(sock, least)
            try:
                count = sock.recv_into(self._buffer)
            except BlockingIOError:
                if least > 1:
                    self._set_least(sock, 1)
                # It has waited for a moment already.
                if not _is_ready(sock, select.POLLIN, self._timeout - MOMENT_SECONDS):
                    raise TimeoutError from None
                count = sock.recv_into(self._buffer)
        except (TimeoutError, BlockingIOError):
            raise redis.TimeoutError("Timeout reading from socket") from None
        except OSError as error:
            raise redis.ConnectionError(f"Error while reading from socket: {error}") from error
        if count == 0:
            raise redis.ConnectionError(CLOSED)
        self._reader.feed(self._buffer, 0, count)  # type: ignore[arg-type]  # any buffer will do

    def _set_least(self, sock: socket.socket, least: int) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
        self._least = least


def _is_ready(sock: socket.socket, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(max(0.0, seconds * 1000)))
