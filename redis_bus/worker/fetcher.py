"""Fetcher: claims the jobs of one of several partitions for slots that run those of all."""

from __future__ import annotations

import logging
import queue
import signal
import time
from typing import TYPE_CHECKING

import redis

from ..errors import BusError, ConnectionLost
from ..protocol.commands import Claim
from ..protocol.entries import Job
from ..transport.link import Link
from ..transport.transport import FRESH_SECONDS
from .asker import Asker, AstrayError, Lane
from .dispatch import Dispatch
from .runner import Runner
from .slot import Slot

if TYPE_CHECKING:
    from .worker import Worker

logger = logging.getLogger("redis_bus.fetcher")

# Where the system gives a signal to another thread than the main one, that looks for it so often.
LOOK_SECONDS = 0.5


class _StaleLinkError(Exception):
    """A connection was closed while its fetcher was parked: another one does as well."""


class Fetcher(Asker):
    """Asks for the jobs of one partition while a slot is idle, and hands them over.

    No two partitions can be waited for by one command, as they may be on two servers.
    """

    def __init__(self, worker: Worker, lane: Lane, dispatch: Dispatch, number: int) -> None:
        super().__init__(worker, lane, number)
        self.lane = lane
        self._dispatch = dispatch

    def serve(self) -> None:
        """Fetch jobs until the worker stops."""
        # A signal that comes to this thread would not end what the main thread waits for.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        while self._goes_on():
            try:
                self._serve_link()
            except _StaleLinkError:
                continue
            except AstrayError as error:
                self._turn_elsewhere(error)
            except (BusError, redis.RedisError, OSError) as error:
                self._wait_for_redis(error)

    def wake(self) -> None:
        """Have it look whether the worker is to stop."""

    def _goes_on(self) -> bool:
        return not self._stopping.is_set()

    def _step(self, link: Link, client: int | None) -> None:
        """Wait for a job and claim it, in one write; and see who can run it."""
        self._claims.settle()
        order, wait_and_take = self._next_turn()
        self._claims.ask(self)
        self.waiting = client
        try:
            link.send(wait_and_take)
            woken, taken = link.read(), link.read()
        finally:
            self.waiting = None
        claim = self._read_claim(woken, taken, order)
        if claim is None:
            self._claims.answered(self)
            self._park(link, found=False)
            return
        job = self._read_job(claim)
        if job is None:
            return
        if not self._dispatch.hand_over(self, claim, job):
            # Another partition was quicker, and a job that waits here would be kept from others.
            self._claims.release(claim.route, job.id)
            self._claims.answered(self)
        self._park(link, found=True)

    def _park(self, link: Link, *, found: bool) -> None:
        began = time.monotonic()
        self._dispatch.park(self, found=found)
        self._check(link, began)

    def _check(self, link: Link, began: float) -> None:
        """See whether the connection broke while it was of no use, since a time (monotonic)."""
        if time.monotonic() - began > FRESH_SECONDS and link.is_broken():
            raise _StaleLinkError


class SharedSlot(Slot):
    """Runs the jobs of all partitions: those that it takes in turn, and those it is given.

    It has no connection of its own. No two commands of different partitions go in one write, so
    the outcome goes by itself.
    """

    def __init__(
        self, worker: Worker, lanes: list[Lane], runner: Runner, number: int, dispatch: Dispatch
    ) -> None:
        super().__init__(worker, lanes[0], runner, number)
        self._lanes = lanes
        self._dispatch = dispatch
        self._given: queue.SimpleQueue[tuple[Claim, Job] | None] = queue.SimpleQueue()

    def serve(self) -> None:
        """Run jobs until the worker stops, or has begun as many as it may."""
        while self._goes_on():
            try:
                self._send_outcome()
                self._run_next()
            except (BusError, redis.RedisError, OSError) as error:
                self._wait_for_redis(error)
                self._replace_large_outcome()
        self._deliver()

    def serve_next(self) -> bool:
        """Run a job of any partition that waits now, if there is one."""
        for number in range(self._turns, self._turns + len(self._lanes)):
            lane = self._lanes[number % len(self._lanes)]
            while (found := self._take(lane)) is not None:
                has_run = self._run(*found)
                self._deliver()
                if has_run:
                    return True
        return False

    def give(self, fetcher: Fetcher, claim: Claim, job: Job) -> None:
        """Have it run a job that was claimed for it; to be called while it is idle."""
        self._post, self._claims = fetcher.lane
        self._claims.begin(self, claim.route, job, fetcher)
        self._given.put((claim, job))

    def wake(self) -> None:
        """Have it look whether the worker is to stop."""
        self._given.put(None)

    def _send_outcome(self) -> None:
        if self._unsent is None:
            return
        self._note_run(self._unsent)
        try:
            self._accepted(self._transport.exchange(self._unsent)[0])
        except ConnectionLost:
            raise  # `serve` waits for Redis, and comes back
        except BusError:
            self._deliver()
            return
        self._unsent = None
        self._claims.end(self)

    def _run_next(self) -> None:
        for fetcher in self._dispatch.turns():
            try:
                taken = self._take(fetcher.lane)
            except ConnectionLost as error:
                # Its fetcher waits until that server is back; the others may be on other servers.
                logger.debug("worker %s: %s; it looks elsewhere", self._worker.id, error)
                self._dispatch.unpark(fetcher)
                continue
            self._dispatch.looked(fetcher, found=taken is not None)
            if taken is not None:
                self._run(*taken)
                return
        given = self._wait_to_be_given()
        if given is not None:
            self._run(*given)

    def _take(self, lane: Lane) -> tuple[Claim, Job] | None:
        """Claim a job of a partition that waits now, if there is one."""
        self._post, self._claims = lane
        self._claims.settle()
        served = self._worker.replicas.served(self._post)
        if served is None:
            return None  # its fetcher waits until that changes
        order, _ = self._turn(served)
        self._claims.ask(self)
        try:
            taken = self._transport.exchange(self._post.take(order))[0]
            claim = self._post.parse_take(taken, order)
        except BaseException:
            self._claims.answered(self)
            raise
        if claim is None:
            self._claims.answered(self)
            return None
        job = self._read_job(claim)
        if job is None:
            return self._take(lane)
        if self._stopping.is_set():
            self._claims.release(claim.route, job.id)
            self._claims.answered(self)
            return None
        self._claims.begin(self, claim.route, job)
        return claim, job

    def _wait_to_be_given(self) -> tuple[Claim, Job] | None:
        """Return the job that it is given; None where it shall stop."""
        self._dispatch.rest(self)
        given = None
        while given is None and not self._stopping.is_set():
            given = self._look(LOOK_SECONDS)
        if given is None:
            self._dispatch.leave(self)
            while given is None and not self._given.empty():
                given = self._look(0)
        if given is not None and self._stopping.is_set():
            claim, job = given
            self._claims.release(claim.route, job.id)
            self._claims.end(self)
            return None
        return given

    def _look(self, seconds: float) -> tuple[Claim, Job] | None:
        try:
            return self._given.get(timeout=seconds)
        except queue.Empty:
            return None
