"""The least that a request and a reply over Redis take: sockets, hand-packed commands.

Each side sends its two commands in one write: LPUSH what the other waits for, BLPOP what it waits
for itself. Both replies are small, so that what has come ends with the second.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

REQUEST = b"raw:request"


def connect() -> socket.socket:
    url = urlsplit(os.environ["REDIS_BUS_URL"])
    connection = socket.create_connection((url.hostname, url.port or 6379))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def popped(connection: socket.socket) -> bytes:
    """Return what BLPOP popped, after the reply of an LPUSH that may stand before it."""
    came = b""
    while True:
        came += connection.recv(4096)
        reply = came[came.find(b"*") :]
        # *2, $length, list, $length, value, and nothing
        if reply[:1] == b"*" and reply.count(b"\r\n") == 5:
            return reply.split(b"\r\n")[4]
