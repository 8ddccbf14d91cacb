"""Slot: take a job, run it, finish it; one write and one wait for each."""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING

import redis

from ..calls import nested
from ..errors import BusError
from ..protocol import outcome
from ..protocol.commands import DONE_BYTES, LEASE_MS, Claim, Command, Route, needs_admission, pack
from ..protocol.entries import Job, parse_job
from ..transport.link import Link
from .asker import BACKOFF_SECONDS, Asker, AstrayError, Lane
from .runner import Runner, Start
from .stop_flag import StopNow

if TYPE_CHECKING:
    from .worker import Worker

logger = logging.getLogger("redis_bus.slot")

# So often a connection breaks with an outcome of so many bytes, before another one is sent.
MAX_BROKEN_LINKS = 4
LARGE_BYTES = 500_000


class Slot(Asker):
    """Runs one job after the other, over a connection of its own; a worker has one or more.

    It takes a job only when it can run it at once.
    """

    def __init__(self, worker: Worker, lane: Lane, runner: Runner, number: int) -> None:
        super().__init__(worker, lane, number)
        self.runner = runner
        self.is_abandoned = False
        self._quota = worker.quota
        self._unsent: Command | None = None
        self._broken_links = 0  # in a row, with the same outcome to send
        self._has_run: Job | None = None  # of which that is not noted yet
        self._host: nested.Host | None = None
        self._began = 0.0
        self._ahead = 0.0  # s that the server's clock is ahead of ours, at the least

    @property
    def held(self) -> tuple[Route, Job] | None:
        """Its job, until Redis has taken the outcome."""
        return self._claims.held(self)

    def serve(self) -> None:
        """Run jobs until the worker stops, or has begun as many as it may."""
        while self._goes_on():
            try:
                self._serve_link()
            except AstrayError as error:
                self._turn_elsewhere(error)
            except (BusError, redis.RedisError, OSError) as error:
                self._wait_for_redis(error)
                self._replace_large_outcome()
        self._deliver()

    def serve_next(self) -> bool:
        """Run a job that waits now, if there is one."""
        served = self._worker.replicas.served(self._post)
        if served is None:
            return False
        order, _ = self._turn(served)
        self._claims.ask(self)
        taken = self._transport.exchange(self._post.take(order))[0]
        claim = self._post.parse_take(taken, order)
        if claim is None:
            self._claims.answered(self)
            return False
        has_run = self._handle(claim)
        self._deliver()
        return has_run or self.serve_next()

    def abandon(self) -> Command | None:
        """Let nothing come of its job any more; return what its waiters are to be told instead."""
        self.is_abandoned = True
        held, unsent = self.held, self._unsent
        if held is None or unsent is not None:
            return unsent
        return self._finish(*held, self.runner.lost(held[0].method))

    # -- the loop -----------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        return not self._stopping.is_set() and self._quota.admits(self)

    def _step(self, link: Link, client: int | None) -> None:
        """Send the last job's outcome, wait, take the next job: one write, then run it."""
        self._claims.settle()
        order, wait_and_take = self._next_turn()
        finish = self._unsent
        self._claims.ask(self)
        self.waiting = client
        try:
            if finish:
                link.send(pack(finish) + wait_and_take)
                self._note_run(finish)
                reply = link.read(beyond=DONE_BYTES)
                if reply == b"done" or self._accepted(reply):
                    self._unsent = None
                    self._claims.end(self)
                else:
                    self._deliver()  # on another connection: this one waits already
            else:
                link.send(wait_and_take)
            woken, taken = link.read(), link.read()
        finally:
            self.waiting = None
        claim = self._read_claim(woken, taken, order)
        if claim is None:
            self._claims.answered(self)
        elif self._stopping.is_set() and not claim.foreign:
            self._claims.release(claim.route, parse_job(claim.entry).id)
            self._claims.answered(self)
        else:
            self._handle(claim)

    def _handle(self, claim: Claim) -> bool:
        """Run a claimed job. Returns whether that is done: see `_run`."""
        job = self._read_job(claim)
        if job is None:
            return True
        self._claims.begin(self, claim.route, job)
        return self._run(claim, job)

    def _run(self, claim: Claim, job: Job) -> bool:
        """Run a job; its outcome is left in ``_unsent``, or sent if it is durable.

        Returns whether that is done; else it was given back, as replicas do not know that it began.
        """
        claims, route = self._claims, claim.route
        self._note_time(claim)
        # First: what runs beside is not to be given back.
        if claims.is_held_beside(self, job):
            claims.end(self)
            return True
        self._unsent = claims.outcome(job)
        if self._unsent is None:
            if route.durable and not self._worker.replicas.hold(self._post, route, job):
                claims.end(self)
                return False
            self._execute(claim, job)
        if self._unsent is not None and claim.route.durable:
            self._deliver()  # by itself: replicas are to confirm it
        return True

    def _note_time(self, claim: Claim) -> None:
        self._ahead = claim.now_ms / 1000 - time.perf_counter()

    def _execute(self, claim: Claim, job: Job) -> None:
        if job.key is not None and needs_admission(job, claim.now_ms):
            verdict = self._transport.exchange(self._post.admit(claim.route, job))[0]
            if verdict != b"run":
                self._claims.end(self)
                return
        if self.is_abandoned:
            return
        start = self._start(claim, job)
        try:
            result = self.runner.run(claim.route.method, job, start)
        except BaseException as error:  # noqa: BLE001 - a function's own exceptions may misbehave
            result = self._stopped(claim.route.method, error)
        self._keep_outcome(claim.route, job, result)

    def _start(self, claim: Claim, job: Job) -> Start:
        """Note that a job begins to run, and say how."""
        self._quota.begin(self)
        # Past its deadline it runs for those who joined it, whose own time is not known.
        left = (job.deadline_ms - claim.now_ms) / 1000 if job.deadline_ms else 0.0
        waited = max(0.0, (claim.now_ms - job.enqueued_ms) / 1000)
        if self._host is None:
            self._host = self._make_host()
        self._began = time.perf_counter()
        return Start(left if left > 0 else None, waited, self._host)

    def _stopped(self, method: str, error: BaseException) -> bytes:
        """Return the outcome of a job that a worker's end, or an odd exception, cut short."""
        # Raised amid C code, as in readline, StopNow may come out as a SystemError.
        is_stopped = self._worker.was_told_twice and isinstance(error, SystemError)
        if is_stopped or isinstance(error, StopNow):
            return self.runner.lost(method)
        return self.runner.broken(method, error)

    def _keep_outcome(self, route: Route, job: Job, result: bytes) -> None:
        self._unsent = self._finish(route, job, result)
        self._has_run = job

    def _note_run(self, finish: Command) -> None:
        """Note what tells the outcome of a job; while it is on its way, as that takes a moment."""
        job, self._has_run = self._has_run, None
        if job is not None:
            self._claims.ran(job, finish)

    def _is_abandoned(self) -> bool:
        return self.is_abandoned

    def _finish(self, route: Route, job: Job, result: bytes) -> Command:
        now = time.perf_counter()
        is_keyed = job.key is not None
        return self._post.finish(
            route,
            job,
            result,
            spent_us=round((now - self._began) * 1e6),
            expire_ms=self.runner.expire_ms(route.method) if is_keyed else 0,
            stale_ms=self.runner.stale_ms(route.method) if is_keyed else 0,
            now_ms=round((now + self._ahead) * 1000),
        )

    def _make_host(self) -> nested.Host:
        """What a job's own calls are to know of the worker that runs it."""
        worker = self._worker
        is_alone = len(worker.slots) == 1
        return nested.Host(
            worker.id if is_alone else None,
            self._post.service.at(0),
            worker.methods,
            worker.expects_others,
        )

    def _replace_large_outcome(self) -> None:
        """Say that an outcome is too large, where Redis cuts the connection whenever it comes.

        Redis does so above its ``proto-max-bulk-len``, with no other answer that is sure to arrive.
        """
        held = self.held
        self._broken_links = self._broken_links + 1 if self._unsent else 0
        if self._unsent is None or held is None or self._broken_links < MAX_BROKEN_LINKS:
            return
        size = sum(len(part) for part in self._unsent if isinstance(part, bytes))
        if size < LARGE_BYTES:
            return
        method = held[0].method
        logger.error("%s: Redis takes no outcome of %d bytes", method, size)
        text = f"{method}: it ran, but Redis does not take its outcome of {size} bytes"
        self._unsent = self._finish(*held, outcome.encode_error(BusError(text), trace=""))

    def _deliver(self) -> None:
        """Send the outcome that was not sent yet; `finish` may be sent twice."""
        if self._unsent is not None:
            self._note_run(self._unsent)
        end = time.monotonic() + LEASE_MS / 1000
        for turn in itertools.count():
            unsent, held = self._unsent, self.held
            if unsent is None or held is None or self.is_abandoned:
                self._unsent = None
                self._claims.end(self)
                return
            replicas, route = self._worker.replicas, held[0]
            try:
                reply, *count = self._transport.exchange(unsent, confirm=replicas.confirm(route))
                self._accepted(reply)
                if count and not replicas.has(self._post, route, count[0]):
                    # A replica that is promoted now would have it run again.
                    self._claims.keep_late(held[1].id, unsent)
                self._unsent = None
            except BusError as error:
                if time.monotonic() > end:
                    logger.error("an outcome cannot be sent now: %s", error)
                    self._claims.keep_late(held[1].id, unsent)
                    self._unsent = None
                else:
                    time.sleep(BACKOFF_SECONDS[min(turn, len(BACKOFF_SECONDS) - 1)])

    def _let_go(self) -> None:
        if self._unsent is None:
            self._claims.end(self)  # it did not come to run: it is given back
