"""A connection whose socket is ours: what is read, what is sent, and when either is given up."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from redis_bus import Bus
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import Command, pack
from redis_bus.transport.link import MOMENT_SECONDS, Link
from tests.support import eventually

LARGE = os.urandom(1024) * 20_000  # more than fits into any socket's buffer


@pytest.fixture(scope="module", params=["unix", "tcp"])
def one(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(port=0 if request.param == "tcp" else None) as one:
        yield one


@pytest.fixture
def client(one: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(one.url) as client:
        yield client


@pytest.fixture
def link(one: EmbeddedRedis) -> Iterator[Link]:
    with Bus("test", url=one.url) as bus:
        link = bus._core.transport.checkout()
        link.set_timeout(10.0)
        yield link
        link.close()


def said(link: Link, *command: bytes | str | int | float, beyond: int = 0) -> object:
    link.send(pack(command))
    return link.read(beyond=beyond)


@pytest.mark.parametrize("beyond", [0, 1, 6, 7, 8, 70_000])
def test_a_reply_is_read_whether_it_is_longer_than_was_waited_for_or_not(
    link: Link, beyond: int
) -> None:
    assert said(link, "PING", beyond=beyond) == b"PONG"
    assert said(link, "ECHO", LARGE, beyond=beyond) == LARGE


def test_what_follows_the_first_reply_is_read_behind_it(link: Link) -> None:
    wait: Command = ("BLPOP", "empty", MOMENT_SECONDS * 4)
    link.send(pack(("PING",), wait, ("ECHO", "behind")))
    assert [link.read(beyond=7), link.read(), link.read()] == [b"PONG", None, b"behind"]


def test_an_error_is_a_reply_and_the_link_goes_on(link: Link) -> None:
    error = said(link, "LPOP", beyond=1000)
    assert isinstance(error, redis.ResponseError)
    assert said(link, "PING") == b"PONG"


@pytest.mark.parametrize("beyond", [0, 16])
@pytest.mark.parametrize("seconds", [MOMENT_SECONDS / 2, MOMENT_SECONDS * 2])
def test_a_reply_that_does_not_come_in_time_is_given_up(
    link: Link, seconds: float, beyond: int
) -> None:
    link.set_timeout(seconds)
    with pytest.raises(redis.TimeoutError):
        said(link, "BLPOP", "empty", 5, beyond=beyond)


def test_a_reply_that_comes_after_a_moment_is_waited_for(link: Link) -> None:
    assert said(link, "BLPOP", "empty", MOMENT_SECONDS * 3) is None


def test_what_nobody_takes_in_is_given_up(link: Link, client: redis.Redis) -> None:
    server = client.info("server")["process_id"]
    link.set_timeout(0.2)
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(redis.TimeoutError):
            link.send(LARGE)
    finally:
        os.kill(server, signal.SIGCONT)


def test_all_is_sent_to_one_who_takes_it_in_slowly(link: Link, client: redis.Redis) -> None:
    server = client.info("server")["process_id"]
    os.kill(server, signal.SIGSTOP)
    threading.Timer(MOMENT_SECONDS * 3, os.kill, (server, signal.SIGCONT)).start()
    assert said(link, "ECHO", LARGE) == LARGE


class WrappedSocket:
    """A socket as other libraries make them: it behaves like one of Python, and is none."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class WrappedConnection(redis.Connection):
    def _connect(self) -> Any:
        return WrappedSocket(super()._connect())


def test_a_socket_that_is_not_python_s_own_keeps_its_own_time() -> None:
    with EmbeddedRedis(port=0) as server:
        url = server.url
        pool = redis.ConnectionPool.from_url(url, connection_class=WrappedConnection)
        with Bus("test", conn=redis.Redis(connection_pool=pool)) as bus:
            link = bus._core.transport.checkout()
            assert said(link, "ECHO", LARGE, beyond=16) == LARGE
            link.set_timeout(MOMENT_SECONDS)
            with pytest.raises(redis.TimeoutError):
                said(link, "BLPOP", "empty", 5)
            assert link._socket is not None
            assert link._socket.gettimeout() == MOMENT_SECONDS
            link.close()


def test_a_link_is_broken_once_redis_has_closed_it(link: Link, client: redis.Redis) -> None:
    assert not link.is_broken()
    client.client_kill_filter(_id=str(said(link, "CLIENT", "ID")))
    eventually(link.is_broken)
    with pytest.raises(redis.ConnectionError):
        said(link, "PING")


def test_a_link_with_bytes_that_nobody_asked_for_is_broken(link: Link) -> None:
    link.send(pack(("PING",), ("PING",)))
    link.read()
    eventually(link.is_broken)


def test_a_link_that_was_closed_says_so(link: Link) -> None:
    link.close()
    assert link.is_broken()
    for use in (lambda: link.send(b""), link.read):
        with pytest.raises(redis.ConnectionError):
            use()


def test_what_redis_says_unasked_is_passed_over(one: EmbeddedRedis) -> None:
    with Bus("test", url=one.url, protocol=3) as bus:
        link = bus._core.transport.checkout()
        assert said(link, "CLIENT", "TRACKING", "ON", "BCAST") == b"OK"
        bus.conn.set("watched", 1)
        assert said(link, "PING") == b"PONG"
        bus.conn.set("watched", 2)
        assert link.can_read(10)
        assert link.read(push=True) == [b"invalidate", [b"watched"]]
        link.close()
