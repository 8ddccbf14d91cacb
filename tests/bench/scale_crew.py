"""A crew: thousands of connections in one thread, each of which waits and takes as a worker does.

Their jobs are answered at once with the same outcome. There are no hearts: a claim renews the
lease, and who beats is for `scale_workers` to measure.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterable
from typing import Any

import hiredis

from redis_bus.protocol import codec
from redis_bus.protocol.commands import Post, pack
from redis_bus.protocol.entries import parse_job

OUTCOME = codec.encode(3, codec.get_serializer("msgpack"))
READ_BYTES = 65_536
POLL_SECONDS = 0.1


class Crew:
    """Workers by their connections alone; they work in a thread as long as the block lasts."""

    def __init__(self, posts: Iterable[tuple[int, Post]]) -> None:
        """``posts``: of each connection, with the port to which it goes."""
        self.waits = 0  # that ended with nothing to do
        self.jobs = 0
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._poll = select.epoll()
        self._members = [_Member(port, post) for port, post in posts]
        self._by_socket = {member.socket.fileno(): member for member in self._members}
        for number in self._by_socket:
            self._poll.register(number, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Crew:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for member in self._members:
            member.socket.close()
        self._poll.close()
        if self._failure is not None:
            raise self._failure

    def check(self) -> None:
        """Raise what ended the crew, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for member in self._members:
                member.begin()
            while not self._stopping.is_set():
                for number, _ in self._poll.poll(POLL_SECONDS):
                    done = self._by_socket[number].read()
                    if done is not None:
                        self.jobs += done
                        self.waits += not done
        except BaseException as error:  # noqa: BLE001 - it ends the measurement, in `check`
            self._failure = error


class _Member:
    def __init__(self, port: int, post: Post) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._post = post
        self._reader = hiredis.Reader()
        self._replies: list[Any] = []
        self._turns = 0
        self._awaited = 0

    def begin(self, before: bytes = b"", replies: int = 0) -> None:
        """Wait for a job and take it, in one write, behind what is to be said before."""
        self._turns += 1
        self._order, turn = self._post.turn(self._turns)
        self._awaited = replies + 2
        self.socket.sendall(before + turn)

    def read(self) -> bool | None:
        """Return whether the turn ended with a job; None where it did not end yet."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("Redis closed a connection of the crew")
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            self._replies.append(reply)
        if len(self._replies) < self._awaited:
            return None
        taken, self._replies = self._replies[-1], []
        claim = self._post.parse_take(taken, self._order)
        if claim is None:
            self.begin()
            return False
        job, times = parse_job(claim.entry), {"spent_us": 1, "expire_ms": 60_000, "stale_ms": 0}
        self.begin(pack(self._post.finish(claim.route, job, OUTCOME, **times)), 1)
        return True
