"""As completed: the results of many runs in the order in which they get done."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import redis

from ..calls.patience import LEAST_SECONDS
from ..calls.steps import Steps, ask
from ..calls.sweep import sweep
from ..calls.waiting import AFTER_LEASE_SECONDS, FIRST_SLICE_SECONDS, MAX_MOVES, Away
from ..errors import BusError, CallTimeout, ConnectionLost
from ..protocol.commands import MOVED_TAG, SLICE_SECONDS, Command, Service, pack
from ..protocol.deadline import Deadline, check_seconds
from ..transport.link import Link
from ..transport.refusals import refusal
from ..transport.transport import READ_SECONDS, Transport
from .result import AsyncResult

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger("redis_bus.completed")

NEEDS = "to be told of outcomes takes the commands SUBSCRIBE and SADD, and the channels rb:inbox:*"
# How many jobs are asked for in one write: each answer may be a whole outcome.
ASKED_AT_ONCE = 64
# How many jobs without an outcome are looked for in each slice.
SEARCHED_AT_ONCE = 100


def as_completed(
    results: Iterable[AsyncResult], timeout: float | None = None
) -> Iterator[AsyncResult]:
    """Return an iterator of results as they get done, as `concurrent.futures.as_completed`.

    Those that are done already come first, and the same result only once. ``timeout``: seconds
    from here until all must be done; None: as long as that takes. A result whose job Redis lost
    counts as done: its `get` says so.

    It waits on a connection of its own, where Redis tells of outcomes. Raises TypeError for what
    is no `AsyncResult`, ValueError for results of different buses; and, while it is iterated,
    CallTimeout, ConnectionLost, and BusError where the user may not listen: that takes the
    commands SUBSCRIBE and SADD, and the channels ``rb:inbox:*``.
    """
    check_seconds("timeout", timeout)
    unique: dict[str, AsyncResult] = {}
    for result in results:
        if not isinstance(result, AsyncResult):
            text = f"as_completed: {result!r} is no AsyncResult"
            raise TypeError(f"{text}; for those of an AsyncBus there is asyncio.as_completed")
        unique.setdefault(result.id, result)
    found = list(unique.values())
    buses = {_bus_of(result): result._core for result in found}
    if len(buses) > 1:
        raise ValueError(f"as_completed: results of different buses: {', '.join(sorted(buses))}")
    deadline = Deadline(timeout)
    if not found:
        return iter(())
    return _Completion(found[0]._core, found, deadline).results()


def _bus_of(result: AsyncResult) -> str:
    core = result._core
    return f"{core.name!r} at {core.transport.address}"


class _Completion:
    """Results that are not done yet, and which job each waits for."""

    def __init__(self, core: Core, results: list[AsyncResult], deadline: Deadline) -> None:
        self._core, self._deadline = core, deadline
        self._count = len(results)
        # On a cluster, what is published on one node is heard on all: this one is the nearest.
        self._inbox = Inbox(core.transport, results[0]._route.service.base)
        self._waiting: dict[str, list[AsyncResult]] = {}  # by the job
        for result in results:
            self._waiting.setdefault(result._job, []).append(result)
        self._done: list[AsyncResult] = []
        self._moves: dict[str, int] = {}
        self._missed: set[str] = set()
        self._searched = 0

    def results(self) -> Iterator[AsyncResult]:
        """Yield the results as they get done."""
        __tracebackhide__ = True
        try:
            self._ask(None, list(self._waiting))
            longest = FIRST_SLICE_SECONDS
            while True:
                yield from self._take_done()
                if not self._waiting:
                    return
                end = time.monotonic() + longest
                # What was told while nobody listened is there; and it is remembered for a minute.
                self._listen()
                yield from self._take_done()
                while self._waiting and self._inbox.is_open:
                    self._check_time()
                    left = end - time.monotonic()
                    if left <= 0:
                        break
                    self._hear(left)
                    yield from self._take_done()
                if self._waiting:
                    longest = self._look_around()
        finally:
            self._inbox.close()

    def _take_done(self) -> list[AsyncResult]:
        done, self._done = self._done, []
        return done

    def _listen(self) -> None:
        """Have all outcomes told that are not there yet; Redis may be away for a while."""
        away = Away()
        while True:
            try:
                self._ask(self._inbox.open(self._left(READ_SECONDS)), list(self._waiting))
                return
            except ConnectionLost as error:
                self._inbox.close()
                pause = away.pause(self._deadline)
                if pause is None:
                    raise
                logger.debug("as_completed: %s; trying again", error)
                self._check_time()
                time.sleep(pause)

    def _hear(self, seconds: float) -> None:
        """Wait for so long until something is told."""
        try:
            message = self._inbox.next(self._left(seconds))
            if message is not None:
                job, _, found = message.partition(b" ")
                moved = self._told(job.decode("ascii", "replace"), found)
                self._ask(self._inbox.channel, moved)
        except ConnectionLost as error:
            logger.debug("as_completed: %s; trying again", error)
            self._inbox.close()

    def _ask(self, channel: str | None, jobs: list[str]) -> None:
        """Look which outcomes are there; have the others told on a channel."""
        while jobs:
            chunk = [job for job in jobs[:ASKED_AT_ONCE] if job in self._waiting]
            jobs = jobs[ASKED_AT_ONCE:]
            if not chunk:
                continue
            try:
                replies = self._core.drive(self._ask_for(chunk, channel))
            except ConnectionLost:
                raise
            except BusError as error:
                raise BusError(f"as_completed: {error}; {NEEDS}") from error
            for job, found in zip(chunk, replies, strict=True):
                if found is not None:
                    jobs += self._told(job, found)

    def _ask_for(self, jobs: list[str], channel: str | None) -> Steps[list[Any]]:
        commands: list[Command] = []
        for job in jobs:
            service = self._waiting[job][0]._route.service
            commands.append(service.look(job) if channel is None else service.listen(job, channel))
        return (yield ask(*commands, timeout=self._left(READ_SECONDS) + 1))

    def _told(self, job: str, found: bytes) -> list[str]:
        """Take what an outcome says. Returns the job whose outcome it is, where that is another."""
        results, moves = self._waiting.pop(job, []), self._moves.pop(job, 0)
        if not results or not found.startswith(MOVED_TAG) or moves == MAX_MOVES:
            self._done += results
            return []
        leader = found[len(MOVED_TAG) :].decode("ascii", "replace")
        self._waiting.setdefault(leader, []).extend(results)
        self._moves[leader] = moves + 1
        return [leader]

    def _look_around(self) -> float:
        """Look after dead workers, and for jobs that Redis knows nothing of any more.

        Returns how long the next slice may be (s).
        """
        longest = SLICE_SECONDS
        try:
            for service in {one._route.service for some in self._waiting.values() for one in some}:
                timeout = self._left(READ_SECONDS) + 1
                lease_ends = self._core.drive(sweep(service.bus, service, timeout))
                if lease_ends is not None:
                    longest = min(longest, lease_ends + AFTER_LEASE_SECONDS)
            self._look_for_lost()
            return FIRST_SLICE_SECONDS if self._missed else longest
        except ConnectionLost as error:
            logger.debug("as_completed: %s; trying again", error)
        except BusError as error:
            # An access rule may forbid it to callers; then it is left to the workers.
            logger.debug("as_completed: it cannot look around: %s", error)
        return longest

    def _look_for_lost(self) -> None:
        """Let results be done whose job was nowhere, twice in a row; once may be by chance."""
        jobs = list(self._waiting)
        first = self._searched % len(jobs)
        suspects = [job for job in self._missed if job in self._waiting]
        some = dict.fromkeys([*suspects, *jobs[first:], *jobs[:first]])
        jobs = list(some)[:SEARCHED_AT_ONCE]
        self._searched += len(jobs)
        missed = self._core.drive(_search({job: self._waiting[job][0] for job in jobs}))
        gone, self._missed = missed & self._missed, missed - self._missed
        self._done += [one for job in gone for one in self._waiting.pop(job)]

    def _left(self, longest: float) -> float:
        left = self._deadline.left()
        return longest if left is None else min(longest, left)

    def _check_time(self) -> None:
        """Raise CallTimeout where the time is up."""
        __tracebackhide__ = True
        if self._deadline.left() == 0.0:
            unfinished = sum(map(len, self._waiting.values()))
            # The words of `concurrent.futures`.
            text = f"{unfinished} (of {self._count}) results unfinished"
            first = next(iter(self._waiting.values()))[0]._ticket().shown
            which = f"{first} and others" if unfinished > 1 else first
            text = f"{text} in {self._deadline.budget:.3g} s: {which}"
            raise CallTimeout(f"as_completed: {text}")


def _search(results: dict[str, AsyncResult]) -> Steps[set[str]]:
    """Return the jobs that are neither queued nor claimed, and have no outcome."""
    workers: dict[Service, list[str]] = {}
    for service in {result._route.service for result in results.values()}:
        listed = (yield ask(("ZRANGE", service.workers, 0, -1)))[0]
        workers[service] = [worker.decode("ascii", "replace") for worker in listed]
    states = [one._route.state(job, 0, workers[one._route.service]) for job, one in results.items()]
    places = [place for _, _, place in (yield ask(*states))]
    unknown = [job for job, place in zip(results, places, strict=True) if place == b"unknown"]
    if not unknown:
        return set()
    found = yield ask(*(results[job]._route.service.look(job) for job in unknown))
    return {job for job, outcome in zip(unknown, found, strict=True) if outcome is None}


class Inbox:
    """A connection of its own that subscribes one channel, on which outcomes are told."""

    def __init__(self, transport: Transport, place: str) -> None:
        self._transport = transport
        self._place = place
        self._link: Link | None = None
        self.channel = ""

    @property
    def is_open(self) -> bool:
        return self._link is not None

    def open(self, timeout: float) -> str:
        """Return the channel, once it is subscribed. Raises ConnectionLost, BusError."""
        if self._link is not None:
            if self._link.closings == self._link.home.closings:
                return self.channel
            self.close()  # it leads where a master is none any more
        timeout = max(timeout, LEAST_SECONDS)
        self.channel = f"rb:inbox:{os.urandom(9).hex()}"
        self._link = link = self._transport.checkout(timeout, self._place)
        try:
            link.set_timeout(timeout)
            link.send(pack(("SUBSCRIBE", self.channel)))
            reply = link.read(push=True)
        except (redis.RedisError, OSError) as error:
            raise link.home.lost(error) from error
        if isinstance(reply, redis.ResponseError):
            self.close()
            refused = f"Redis at {link.home.address} {refusal(reply)}"
            raise BusError(f"as_completed: {refused}; {NEEDS}")
        return self.channel

    def next(self, seconds: float) -> bytes | None:
        """Return the next message; None where none comes for so long. Raises ConnectionLost."""
        link = self._link
        assert link is not None
        try:
            if not link.can_read(seconds):
                return None
            link.set_timeout(READ_SECONDS)
            match link.read(push=True):
                case [b"message", _, bytes(message)]:
                    return message
        except (redis.RedisError, OSError) as error:
            raise link.home.lost(error) from error
        return None

    def close(self) -> None:
        """Close the connection, which cannot be used for anything else."""
        if self._link is not None:
            self._link.close()
            self._link = None
