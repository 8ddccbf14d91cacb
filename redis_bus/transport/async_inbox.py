"""The connection of `AsyncBus` that is told of outcomes, and the jobs whose ids name it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import weakref
from collections import deque
from typing import Any

import redis

from ..errors import BusError
from .async_link import AsyncLink, ignore, within
from .refusals import refusal
from .transport import READ_SECONDS, NodeTransport

# An inbox is pinged where it was silent for so long; its answer may take as long again.
INBOX_SECONDS = 2.0


class InboxName:
    """What an inbox is known by: its channel, and the ids of jobs, which say where they are told.

    It outlives the connection, so that the next one is told of what the last one waited for.
    """

    def __init__(self) -> None:
        token = base64.urlsafe_b64encode(os.urandom(9)).decode("ascii")
        self.channel = f"rb:inbox:{token}"
        self._prefix = f"{token}."
        self._numbers = itertools.count(1)

    def new_job_id(self) -> str:
        """Return the id of a job that is told here; no other job has it."""
        return f"{self._prefix}{next(self._numbers)}"

    def is_in(self, job: str) -> bool:
        """Whether a job is told here because of its id."""
        return job.startswith(self._prefix)


class _Ends:
    """Ends waits. Most are for equally long, and end in the order of their begin: by one timer.

    What has ended is not kept for that: it may be large.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waits: deque[tuple[float, weakref.ref[asyncio.Future[bytes | None]]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: asyncio.Future[bytes | None], seconds: float) -> None:
        waits, end = self._waits, self._loop.time() + seconds
        while waits and _has_ended(waits[0][1]()):
            waits.popleft()
        if waits and end < waits[-1][0]:
            timer = self._loop.call_at(end, _expire, future)
            future.add_done_callback(lambda _: timer.cancel())
            return
        waits.append((end, weakref.ref(future)))
        if self._timer is None:
            self._timer = self._loop.call_at(end, self._look)

    def _look(self) -> None:
        self._timer = None
        waits, now = self._waits, self._loop.time()
        while waits and (waits[0][0] <= now or _has_ended(waits[0][1]())):
            _expire(waits.popleft()[1]())
        if waits:
            self._timer = self._loop.call_at(waits[0][0], self._look)


def _has_ended(future: asyncio.Future[bytes | None] | None) -> bool:
    return future is None or future.done()


def _expire(future: asyncio.Future[bytes | None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class Inbox(AsyncLink):
    """A connection that subscribes one channel, on which the outcomes of jobs are told."""

    takes_pushes = True

    def __init__(self, connection: Any, base: NodeTransport, name: InboxName) -> None:
        super().__init__(connection, base)
        self.name = name
        self._expected: dict[bytes, set[asyncio.Future[bytes | None]]] = {}
        self._ends = _Ends()
        self._listens = False  # until then, lists are plain answers

    async def subscribe(self) -> None:
        """Listen on the channel. Raises ConnectionLost, BusError."""
        self._listens = True
        subscribe = ("SUBSCRIBE", self.name.channel)
        reply = (await within(self, self.exchange((subscribe,)), READ_SECONDS))[0]
        if isinstance(reply, redis.RedisError):
            self.close(reply)
            if not isinstance(reply, redis.ResponseError):
                raise self._base.lost(reply)
            raise BusError(f"Redis at {self._base.address} {refusal(reply)}")
        self.patience = INBOX_SECONDS
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def expect(self, job: str) -> asyncio.Future[bytes | None]:
        """Return the outcome to be; empty where it is to be looked for in its reply list."""
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        if self.is_closed:  # since it was asked for: nothing will be told here
            future.set_result(b"")
        else:
            self._expected.setdefault(job.encode(), set()).add(future)
        return future

    def end(self, future: asyncio.Future[bytes | None], seconds: float) -> None:
        """Have a wait end after so long, with None."""
        self._ends.add(future, seconds)

    def ignore(self, job: str, future: asyncio.Future[bytes | None]) -> None:
        """Wait for it no longer."""
        futures = self._expected.get(job.encode())
        if futures is not None:
            futures.discard(future)
            if not futures:
                del self._expected[job.encode()]

    def check(self) -> None:
        """See to it that a dead connection is noticed, where nothing has come for a while."""
        silent = self._loop.time() - self._heard
        if not self.is_closed and not self._waiting and silent > INBOX_SECONDS:
            self.exchange((("PING",),)).add_done_callback(ignore)

    def close(self, error: BaseException | None = None) -> None:
        """Close it; who waits for an outcome is to look for it."""
        super().close(error)
        for futures in self._expected.values():
            for future in futures:
                if not future.done():
                    future.set_result(b"")
        self._expected.clear()

    def received(self, reply: Any) -> None:
        if self._listens and isinstance(reply, list):
            if reply[0] == b"message":
                self._told(reply[2])
                return
            if reply[0] not in (b"subscribe", b"pong"):
                return
        self.answered(reply)

    def _told(self, message: bytes) -> None:
        job, _, outcome = message.partition(b" ")
        for future in self._expected.pop(job, ()):
            if not future.done():
                future.set_result(outcome)
