"""Bare: what calls are measured beside: Redis itself, without the bus, on the same server.

A pair is the least that a request and its reply take with redis-py: LPUSH and BLPOP on both sides.
The floor is the same over sockets, with the two commands of each side in one write.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import hiredis
import redis
import redis.asyncio as aioredis

from ..bus import default_url
from ..errors import BusError
from ..protocol.commands import Command, pack
from ..transport.async_transport import translate
from ..transport.distributed import Cluster, Endpoint, Sentinels, open_url
from ..transport.transport import NodeTransport
from ..transport.wire import socket_of
from .names import FLOOR, NAME_VARIABLE, PAIR, request_list

ANSWER = b"3"
# A blocking command that Redis has not answered after that long never will be.
PATIENCE_SECONDS = 10
CHUNK = 65536


class NoAnswer(BusError):
    """A bare worker did not answer."""


def endpoint_of(url: str | None, bus: str) -> Endpoint:
    """Return how to connect to the one server that has the keys of a bus's first service.

    Raises ValueError for a URL that means nothing, what redis-py raises where nobody answers.
    """
    deployment = open_url(url or default_url())
    endpoint = deployment.endpoint
    if isinstance(deployment, Sentinels):
        return endpoint.at(deployment.given.connection_pool.get_master_address())
    if isinstance(deployment, Cluster):
        with deployment.client() as client:
            node = client.get_node_from_key(request_list(bus, PAIR))
            return endpoint.at((node.host, int(node.port)))
    return endpoint


def client_of(endpoint: Endpoint, **more: Any) -> redis.Redis:
    """Return a client of redis-py for one server."""
    settings = {**endpoint.settings, **more}
    pool = redis.ConnectionPool(connection_class=endpoint.connection_class, **settings)
    return redis.Redis(connection_pool=pool)


def async_client_of(endpoint: Endpoint) -> aioredis.Redis:
    """Return a client of redis.asyncio for one server."""
    connection_class, settings = translate(NodeTransport(endpoint))
    pool = aioredis.ConnectionPool(connection_class=connection_class, **settings)
    return aioredis.Redis(connection_pool=pool)


# -- callers ----------------------------------------------------------------------------------


def pair(client: redis.Redis, request: str, reply: str) -> Callable[[], object]:
    """Return what makes a request to a bare worker and waits for its reply in that list."""

    def call() -> object:
        client.lpush(request, reply)
        return client.blpop([reply], PATIENCE_SECONDS) or _fail()

    return call


def floor(wire: Wire, request: str, reply: str) -> Callable[[], object]:
    """Return what does the same with one write and, mostly, one read."""
    asked = pack(("LPUSH", request, reply), ("BLPOP", reply, PATIENCE_SECONDS))

    def call() -> object:
        return wire.exchange(asked, 2)[1] or _fail()

    return call


def _fail() -> NoReturn:
    raise NoAnswer(f"a bare worker did not answer within {PATIENCE_SECONDS} s")


class Wire:
    """A socket to one server: bytes out, replies in. redis-py connects it, and logs in."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._connection = endpoint.connect()
        self._connection.connect()
        sock = socket_of(self._connection)
        if sock is None:
            raise NoAnswer("this redis-py has no socket to give: the bare commands need one")
        self._socket = sock
        self._socket.settimeout(2 * PATIENCE_SECONDS)
        self._reader = hiredis.Reader()

    def exchange(self, data: bytes, replies: int) -> list[Any]:
        """Send commands, and return the replies to them."""
        self._socket.sendall(data)
        found: list[Any] = []
        while len(found) < replies:
            reply = self._reader.gets()
            if reply is not False:
                found.append(reply)
                continue
            chunk = self._socket.recv(CHUNK)
            if not chunk:
                raise NoAnswer("Redis closed the connection")
            self._reader.feed(chunk)
        for reply in found:
            if isinstance(reply, hiredis.ReplyError):
                raise redis.ResponseError(str(reply))
        return found

    def close(self) -> None:
        self._connection.disconnect()


# -- workers: processes of their own ----------------------------------------------------------


def serve_pair(endpoint: Endpoint, request: str) -> None:
    """Answer with redis-py for ever."""
    client = client_of(endpoint, socket_timeout=None)
    while True:
        found: Any = client.blpop([request])
        client.lpush(found[1], ANSWER)


def serve_floor(endpoint: Endpoint, request: str) -> None:
    """Answer over a socket for ever: the reply, and the wait for the next request, in one write."""
    wire = Wire(endpoint)
    wire._socket.settimeout(None)
    wait: Command = ("BLPOP", request, 0)
    asked, replies = pack(wait), 1
    while True:
        (_, reply) = wire.exchange(asked, replies)[-1]
        asked, replies = pack(("LPUSH", reply, ANSWER), wait), 2


def main(kind: str) -> None:
    bus = os.environ[NAME_VARIABLE]
    serve = {PAIR: serve_pair, FLOOR: serve_floor}[kind]
    serve(endpoint_of(None, bus), request_list(bus, kind))


if __name__ == "__main__":
    main(sys.argv[1])
