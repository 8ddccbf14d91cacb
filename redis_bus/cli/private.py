"""The private Redis of ``redis-bus --embedded``: started, or found to be there already."""

from __future__ import annotations

import contextlib
import os
import socket

from ..embedded import EmbeddedRedis
from ..transport.distributed import describe_url
from ..transport.servers import EmbeddedUnavailable

PROBE_SECONDS = 1.0


def private_url(stack: contextlib.ExitStack, port: int) -> tuple[str, str]:
    """Start a private Redis, or find the one that is there; return its URL and what to say."""
    for last_try in (False, True):
        listener = _what_listens(port)
        if listener == "redis":
            url = f"redis://localhost:{port}/0"
            return url, f"port {port} is taken by a Redis already: {url} is used"
        try:
            server = stack.enter_context(EmbeddedRedis(port=port if listener == "nothing" else 0))
        except EmbeddedUnavailable:
            # Somebody else may have taken the port since it was looked at.
            if last_try or _what_listens(port) == "nothing":
                raise
            continue
        if listener == "nothing":
            ends = "it ends with this process"
            return server.url, f"a private Redis is at {server.url}; {ends}"
        return server.url, (
            f"port {port} is taken by something else: a private Redis is at {server.url}; "
            f"other terminals find it with REDIS_BUS_URL={server.url}"
        )
    raise AssertionError("the last try returns or raises")


def where_others_look(url: str) -> list[str]:
    """Return what to say of an environment that leads other processes past the private Redis."""
    for name in ("REDIS_BUS_URL", "REDIS_URL"):
        other = os.environ.get(name)
        if not other:
            continue
        try:
            place = describe_url(other)
        except ValueError:
            place = "no Redis"
        if place == describe_url(url):
            return []
        return [
            f"{name} does not count with --embedded, but others that have it look at {place}: "
            f"set REDIS_BUS_URL={url} for them"
        ]
    return []


def _what_listens(port: int) -> str:
    """Return what answers on a port of the loopback interface: nothing, redis or other."""
    try:
        with socket.create_connection(("127.0.0.1", port), PROBE_SECONDS) as probe:
            probe.settimeout(PROBE_SECONDS)
            probe.sendall(b"PING\r\n")
            answer = probe.recv(64)
    except ConnectionRefusedError:
        return "nothing"
    except OSError:
        return "other"
    # A Redis that wants a password, or is still loading, is a Redis all the same.
    return "redis" if answer.startswith((b"+PONG", b"-NOAUTH", b"-LOADING")) else "other"
