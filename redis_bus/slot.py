"""Slot: take a job, run it, finish it; one write and one wait for each."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import redis

from . import nested, outcome
from .entries import Job, parse_job
from .errors import BusError, ProtocolError
from .failures import refusal
from .protocol import LEASE_MS, Claim, Command, Route, needs_admission, pack
from .routing import is_routing
from .runner import Runner, Start
from .stop_flag import StopNow
from .transport import READ_SECONDS, Link, NodeTransport

if TYPE_CHECKING:
    from .worker import Worker

logger = logging.getLogger(__name__)

# So often a connection breaks with an outcome of so many bytes, before another one is sent.
MAX_BROKEN_LINKS = 4
LARGE_BYTES = 500_000
BACKOFF_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
# How long to wait for a Redis that does not answer where it is no matter if it never does.
LEAVE_SECONDS = 2.0
# Of those pauses, how many there are where a slot of the cluster moves.
MAX_ASTRAY = 3


class _AstrayError(Exception):
    """The keys are at another server than the one to which the connection leads."""


class Slot:
    """Runs one job after the other, over a connection of its own; a worker has one or more.

    It takes a job only when it can run it at once.
    """

    def __init__(self, worker: Worker, runner: Runner, number: int) -> None:
        self.runner = runner
        self.waiting: int | None = None  # the client id of its connection, while it waits
        self.is_abandoned = False
        self._worker = worker
        self._post = worker.post
        self._claims = worker.claims
        self._transport = worker.core.transport
        self._stopping = worker.stopping
        self._quota = worker.quota
        self.home: NodeTransport | None = None  # the server to which that connection leads
        self._unsent: Command | None = None
        self._astray, self._turned = 0, -math.inf  # how often it was at the wrong server, and when
        self._broken_links = 0  # in a row, with the same outcome to send
        self._began = 0.0
        self._turns = number  # each begins with another method

    def serve(self) -> None:
        """Run jobs until the worker stops, or has begun as many as it may."""
        while self._goes_on():
            try:
                self._serve_link()
            except _AstrayError as error:
                self._turn_elsewhere(error)
            except (BusError, redis.RedisError, OSError) as error:
                self._wait_for_redis(error)
                self._replace_large_outcome()
        self._deliver()

    def serve_next(self) -> bool:
        """Run a job that waits now, if there is one."""
        order, _ = self._next_turn()
        self._claims.ask(self)
        taken = self._transport.exchange(self._post.take(order))[0]
        claim = self._post.parse_take(taken, order)
        if claim is None:
            self._claims.answered(self)
            return False
        self._handle(claim)
        self._deliver()
        return True

    def abandon(self) -> Command | None:
        """Let nothing come of its job any more; return what its waiters are to be told instead."""
        self.is_abandoned = True
        held, unsent = self._claims.held(self), self._unsent
        if held is None or unsent is not None:
            return unsent
        return self._finish(*held, self.runner.lost(held[0].method))

    # -- the loop -----------------------------------------------------------------------------

    def _serve_link(self) -> None:
        """Serve over one connection until it breaks or the slot is to end."""
        link = self._transport.checkout(place=self._post.service.base)
        self.home = link.home
        try:
            link.set_timeout(READ_SECONDS)
            link.send(pack(("CLIENT", "ID")))
            client = link.read()
            for reply in self._claims.send_late():
                self._accepted(reply)
            self._claims.give_back_strangers()
            while self._goes_on() and not self._transport.is_astray(link):
                self._step(link, client if isinstance(client, int) else None)
        except BaseException as error:
            link.close()
            self._claims.answered(self)
            if isinstance(error, redis.RedisError) and self._transport.is_astray(link, error):
                raise _AstrayError(str(error)) from error
            raise
        self._transport.checkin(link)

    def _turn_elsewhere(self, error: Exception) -> None:
        """Go on where the keys are by now; while they move, that may be nowhere yet."""
        if self._unsent is None:
            self._claims.end(self)
        logger.debug("worker %s: %s; it looks where its keys are", self._worker.id, error)
        now = time.monotonic()
        # Once at once: as a rule they have moved already.
        self._astray = self._astray + 1 if now - self._turned < BACKOFF_SECONDS[-1] else 0
        self._turned = now
        if self._astray:
            self._stopping.wait(BACKOFF_SECONDS[min(self._astray, MAX_ASTRAY) - 1])

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
            link.send(pack(finish) + wait_and_take if finish else wait_and_take)
            if finish and self._accepted(link.read()):
                self._unsent = None
                self._claims.end(self)
            elif finish:
                self._deliver()  # on another connection: this one waits already
            woken, taken = link.read(), link.read()
        finally:
            self.waiting = None
        if isinstance(woken, redis.ResponseError):
            raise woken
        if isinstance(taken, redis.exceptions.NoScriptError):
            taken = self._transport.exchange(self._post.take(order))[0]
        if isinstance(taken, redis.ResponseError):
            raise taken
        claim = self._post.parse_take(taken, order)
        if claim is None:
            self._claims.answered(self)
        elif self._stopping.is_set() and not claim.foreign:
            self._claims.release(claim.route, parse_job(claim.entry).id)
            self._claims.answered(self)
        else:
            self._handle(claim)

    def _next_turn(self) -> tuple[list[Route], bytes]:
        self._turns += 1
        return self._post.turn(self._turns)

    def _handle(self, claim: Claim) -> None:
        """Run a claimed job; its outcome is left in ``_unsent``."""
        try:
            if claim.foreign:
                raise ProtocolError(f"a queue entry that is no job: {claim.entry[:60]!r}")
            job = parse_job(claim.entry)
        except ProtocolError as error:
            logger.error("%s: %s; it is put to the dead letters", claim.route.method, error)
            self._claims.bury(claim.route, claim.entry, claimed=not claim.foreign)
            self._claims.answered(self)
            return
        self._began = time.perf_counter()
        self._claims.begin(self, claim.route, job)
        if needs_admission(job, claim.now_ms):
            verdict = self._transport.exchange(self._post.admit(claim.route, job))[0]
            if verdict != b"run":
                self._claims.end(self)
                return
        if self.is_abandoned:
            return
        self._quota.begin(self)
        # Past its deadline it runs for those who joined it, whose own time is not known.
        left = (job.deadline_ms - claim.now_ms) / 1000 if job.deadline_ms else 0.0
        self._began = time.perf_counter()
        try:
            waited = max(0.0, (claim.now_ms - job.enqueued_ms) / 1000)
            start = Start(left if left > 0 else None, waited, self._host(job))
            result = self.runner.run(claim.route.method, job, start)
        except StopNow:
            result = self.runner.lost(claim.route.method)
        except BaseException as error:  # noqa: BLE001 - a function's own exceptions may misbehave
            # Raised amid C code, as in readline, StopNow may come out as a SystemError.
            is_stopped = self._worker.was_told_twice and isinstance(error, SystemError)
            method = claim.route.method
            result = self.runner.lost(method) if is_stopped else self.runner.broken(method, error)
        self._unsent = self._finish(claim.route, job, result)

    def _finish(self, route: Route, job: Job, result: bytes) -> Command:
        return self._post.finish(
            route,
            job,
            result,
            spent_us=round((time.perf_counter() - self._began) * 1e6),
            expire_ms=self.runner.expire_ms(route.method),
            stale_ms=self.runner.stale_ms(route.method),
        )

    def _host(self, job: Job) -> nested.Host:
        """What a job's own calls are to know of the worker that runs it."""
        worker = self._worker
        is_alone = len(worker.slots) == 1
        return nested.Host(
            worker.id if is_alone else None,
            self._post.service.base,
            worker.methods,
            job.id,
            worker.expects_others,
        )

    def _replace_large_outcome(self) -> None:
        """Say that an outcome is too large, where Redis cuts the connection whenever it comes.

        Redis does so above its ``proto-max-bulk-len``, with no other answer that is sure to arrive.
        """
        held = self._claims.held(self)
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

    def _accepted(self, reply: Any) -> bool:
        """Whether Redis took an outcome; if not, it is sent again by `_deliver`."""
        if isinstance(reply, redis.exceptions.NoScriptError):
            return False
        if isinstance(reply, redis.ResponseError):
            if not is_routing(reply):
                said, where = refusal(reply), self._transport.address
                logger.error("Redis at %s %s; the outcome is sent again", where, said)
            return False
        if reply == b"fenced" and not self.is_abandoned:
            logger.warning("an outcome was not wanted: it was there already, or the job given away")
        return True

    def _deliver(self) -> None:
        """Send the outcome that was not sent yet; `finish` may be sent twice."""
        end = time.monotonic() + LEASE_MS / 1000
        for turn in itertools.count():
            unsent, held = self._unsent, self._claims.held(self)
            if unsent is None or held is None or self.is_abandoned:
                self._unsent = None
                self._claims.end(self)
                return
            try:
                self._accepted(self._transport.exchange(unsent)[0])
                self._unsent = None
            except BusError as error:
                if time.monotonic() > end:
                    logger.error("an outcome cannot be sent now: %s", error)
                    self._claims.keep_late(held[1].id, unsent)
                    self._unsent = None
                else:
                    time.sleep(BACKOFF_SECONDS[min(turn, len(BACKOFF_SECONDS) - 1)])

    def _wait_for_redis(self, error: Exception) -> None:
        """Come back when Redis does; a worker is not restarted for that."""
        worker = self._worker
        if self._unsent is None:
            self._claims.end(self)  # it did not come to run: it is given back
        # Of several slots, one says it for all.
        level = logging.DEBUG if worker.away else logging.WARNING
        said = error if isinstance(error, BusError) else self._transport.lost(error)
        logger.log(level, "worker %s: %s; it tries again until it can serve on", worker.id, said)
        worker.away.add(self)
        try:
            for seconds in itertools.chain(BACKOFF_SECONDS, itertools.repeat(BACKOFF_SECONDS[-1])):
                if self._stopping.wait(seconds):
                    return
                try:
                    self._transport.exchange(("PING",), place=self._post.service.base)
                    worker.publish()
                except BusError:
                    continue
                break
        finally:
            worker.away.discard(self)
        level = logging.DEBUG if worker.away else logging.INFO
        address = self._transport.address
        logger.log(level, "worker %s: Redis is back at %s; it serves on", worker.id, address)


def unblock(slots: Iterable[Slot]) -> None:
    """Have slots that wait for a job look around; where that cannot be, they do with their slice.

    One that is about to wait is not held back from that.
    """
    commands: dict[NodeTransport, list[Command]] = {}
    for slot in slots:
        client, home = slot.waiting, slot.home
        if client is not None and home is not None:
            commands.setdefault(home, []).append(("CLIENT", "UNBLOCK", client))
    for home, some in commands.items():
        try:
            home.ask(*some, timeout=LEAVE_SECONDS)
        except BusError as error:
            logger.debug("a wait cannot be ended: %s", error)
