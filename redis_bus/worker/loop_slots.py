"""Slots on a loop: many ``async def`` jobs at a time, taken and told in batches."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import redis

from ..errors import BusError, ProtocolError
from ..protocol.commands import MOST_TAKEN, Claim, Route, needs_admission
from ..protocol.entries import Job, parse_job
from ..transport.link import Link
from ..transport.loops import Connections, Loops
from .asker import Lane
from .dispatch import Dispatch
from .fetcher import LOOK_SECONDS, Fetcher
from .loop import LoopThread, Running
from .pump import Leave, Pump
from .runner import Runner
from .slot import Slot

if TYPE_CHECKING:
    from .worker import Worker

logger = logging.getLogger("redis_bus.loop_slots")


class LoopSlot(Slot):
    """Runs its jobs as tasks of one loop; it has neither a thread nor a connection of its own."""

    def __init__(self, worker: Worker, lane: Lane, runner: Runner, number: int) -> None:
        super().__init__(worker, lane, runner, number)
        assert isinstance(worker.loop, LoopThread)
        self._loop = worker.loop
        # Of the job that it runs now.
        self._on_loop: Running
        self._connections: Connections
        self._rest: Callable[[LoopSlot], None]

    def begin(
        self, claim: Claim, job: Job, connections: Connections, rest: Callable[[LoopSlot], None]
    ) -> None:
        """Run a job that was claimed for it, tell its outcome, and ``rest``; on the loop."""
        self._connections, self._rest = connections, rest
        self._on_loop = self._loop.begin(self._work(claim, job), claim.route.method)

    async def _work(self, claim: Claim, job: Job) -> None:
        route, claims = claim.route, self._claims
        try:
            self._note_time(claim)
            if claims.is_held_beside(self, job):
                claims.end(self)
                return
            self._unsent = claims.outcome(job)
            is_plain = job.key is None and not route.durable
            if self._unsent is None and (is_plain or await self._is_admitted(claim, job)):
                start = self._start(claim, job)
                try:
                    result = await self.runner.run_on_loop(route.method, job, start, self._loop)
                except BaseException as error:  # noqa: BLE001 - functions' own may misbehave
                    result = self._stopped(route.method, error)
                self._keep_outcome(route, job, result)
        except (BusError, redis.RedisError, OSError) as error:
            logger.warning("worker %s: job %s: %s", self._worker.id, job.id, error)
            self._let_go()
        finally:
            self._loop.end(self._on_loop)
            # Nothing is awaited here: the function may have cancelled its own task.
            self._begin_to_tell()

    def _begin_to_tell(self) -> None:
        if self._unsent is None or self.is_abandoned:
            self._rest(self)
            return
        self._note_run(self._unsent)
        held = self.held
        is_durable = held is None or held[0].durable
        if is_durable or not self._connections.post(self._unsent, self):
            self._tell_with_care()

    def done(self) -> bool:
        """See `Receiver`: it is what gets the answer to its outcome."""
        return False

    def set_result(self, replies: list[Any], /) -> None:
        """Take the answer to the outcome; have it told again where it is an error."""
        if isinstance(replies[0], redis.RedisError):
            self._tell_with_care()
        else:
            self._told(replies[0])
            self._rest(self)

    def set_exception(self, error: BaseException, /) -> None:
        """Have the outcome told again."""
        self._tell_with_care()

    def _tell_with_care(self) -> None:
        """Have the outcome told in a task of its own: again, or as replicas are to confirm it."""
        held = self.held
        if held is None or self.is_abandoned:
            self._rest(self)
            return

        async def tell() -> None:
            try:
                await self._tell(held[0])
            finally:
                self._loop.end(self._on_loop)
                self._rest(self)

        self._on_loop = self._loop.begin(tell(), held[0].method)

    async def _is_admitted(self, claim: Claim, job: Job) -> bool:
        """Whether a job may run, for its replicas and its cache key; if not, it is let go."""
        route, hold = claim.route, self._worker.replicas.hold
        if route.durable and not await _apart(lambda: hold(self._post, route, job)):
            self._claims.end(self)
            return False
        if job.key is not None and needs_admission(job, claim.now_ms):
            verdict = (await self._connections.exchange(self._post.admit(route, job)))[0]
            if verdict != b"run":
                self._claims.end(self)
                return False
        return not self.is_abandoned

    async def _tell(self, route: Route) -> None:
        if self._unsent is None or self.is_abandoned:
            return
        if route.durable:
            await _apart(self._deliver)
            return
        try:
            reply = (await self._connections.exchange(self._unsent))[0]
        except BusError as error:
            logger.debug("worker %s: %s; it is told by itself", self._worker.id, error)
            await _apart(self._tell_alone)
        else:
            self._told(reply)

    def _tell_alone(self) -> None:
        """Send the outcome until it is taken, or the worker stops."""
        while self._unsent is not None and not self._stopping.is_set():
            try:
                self._told(self._transport.exchange(self._unsent)[0])
            except (BusError, redis.RedisError, OSError) as error:
                self._wait_for_redis(error)
                self._replace_large_outcome()
        self._deliver()

    def _told(self, reply: object) -> None:
        self._accepted(reply)
        self._unsent = None
        self._claims.end(self)


class LoopFetcher(Fetcher):
    """Claims as many jobs as slots are idle, in one go, and has them run on the loop."""

    def __init__(
        self,
        worker: Worker,
        lane: Lane,
        slots: Sequence[LoopSlot],
        dispatch: Dispatch,
        loops: Loops,
    ) -> None:
        super().__init__(worker, lane, dispatch, 0)
        assert isinstance(worker.loop, LoopThread)
        self._loop, self._loops, self._quota = worker.loop, loops, worker.quota
        self._all = len(slots)
        self._idle = dict.fromkeys(slots)
        self._changed = threading.Condition()
        self._is_waiting = False  # for a slot to be idle
        self._pump = Pump(self._loop, self, lambda: worker.was_told_twice)
        self._served = self._post
        self._client: int | None = None
        # What was asked for last: of which routes, how many jobs, for which slots.
        self._asked: tuple[list[Route], int, list[LoopSlot]]

    def serve(self) -> None:
        """Fetch jobs until the worker stops, and wait for those that run."""
        super().serve()
        self._is_waiting = True
        with self._changed:
            while len(self._idle) < self._all and not self._worker.was_told_twice:
                self._changed.wait(LOOK_SECONDS)

    def wake(self) -> None:
        """Have it look whether the worker is to stop."""
        self._pump.look()
        with self._changed:
            self._changed.notify_all()

    def _goes_on(self) -> bool:
        return not self._stopping.is_set() and not self._is_spent()

    def _step(self, link: Link, client: int | None) -> None:
        """Wait for jobs and claim as many as can be run, in one write; and begin them."""
        self._claims.settle()
        self._served = self._worker.replicas.wait(self._post)
        self._client = client
        try:
            replies = self._pump.run(link) if link.is_plain else self._converse(link)
        finally:
            self.waiting = None
        if replies is not None:
            order, limit, idle = self._asked
            taken = self._checked(replies[0], replies[1], order, limit)
            self._begin(self._post.parse_taken(taken, order), idle)
        elif self._worker.was_told_twice:
            # The loop may stand still, and jobs be on their way to it.
            link.cut()
            self._claims.answered(self)
            self._claims.give_back_strangers()

    def _converse(self, link: Link) -> list[object] | None:
        """Wait and take in this thread, where the loop cannot read the connection."""
        self._wait_for_room(link)
        try:
            data = self.ask()
        except Leave:
            return None
        if data is None:
            return None
        link.send(data)
        return [link.read(), link.read()]

    def _begin(self, claims: list[Claim], idle: list[LoopSlot]) -> None:
        """Give jobs that were claimed to idle slots."""
        found = [(claim, _job_of(claim)) for claim in claims]
        jobs = [(claim, job) for claim, job in found if job is not None]
        if self._stopping.is_set():
            for claim, job in jobs:
                self._claims.release(claim.route, job.id)
            jobs = []
        begun = [(slot, claim, job) for slot, (claim, job) in zip(idle, jobs, strict=False)]
        self._note(begun)
        if begun:
            self._loop.post(self._start, begun)
        for claim in [claim for claim, job in found if job is None]:
            self._read_job(claim)  # which says why it is none, and puts it away

    def _note(self, begun: list[tuple[LoopSlot, Claim, Job]]) -> None:
        for slot, _, _ in begun:
            del self._idle[slot]
        self._claims.begin_all([(slot, claim.route, job) for slot, claim, job in begun], self)

    # -- on the loop --------------------------------------------------------------------------

    def ask(self) -> bytes | None:
        """See `Turn`."""
        replicas, link = self._worker.replicas, self._link
        if (
            not self._goes_on()
            or self._claims.are_doubted
            or (replicas.are_missed and replicas.served(self._post) is not self._served)
            or (self._served is not self._post and not replicas.are_missed)
            or (link is not None and self._transport.is_astray(link))
        ):
            raise Leave
        idle = self._admitted()
        if not idle:
            return None
        limit = min(len(idle), MOST_TAKEN)
        order, data = self._turn(self._served, limit)
        self._asked = order, limit, idle
        self._claims.ask(self)
        self.waiting = self._client
        return data

    def take(self, woken: object, taken: object) -> bool:
        """See `Turn`."""
        self.waiting = None
        errors = redis.ResponseError
        if self._stopping.is_set() or isinstance(woken, errors) or isinstance(taken, errors):
            return False
        order, _, idle = self._asked
        claims = self._post.parse_taken(taken, order)
        begun = []
        for slot, claim in zip(idle, claims, strict=False):
            job = _job_of(claim)
            if job is None:
                return False
            begun.append((slot, claim, job))
        self._note(begun)
        if begun:
            self._start(begun)
        return True

    def _start(self, begun: list[tuple[LoopSlot, Claim, Job]]) -> None:
        connections = self._loops.here()
        for slot, claim, job in begun:
            slot.begin(claim, job, connections, self._rest)

    def _rest(self, slot: LoopSlot) -> None:
        self._idle[slot] = None
        self._pump.rested()
        if self._is_waiting:
            with self._changed:
                self._changed.notify_all()

    # -- who is idle --------------------------------------------------------------------------

    def _wait_for_room(self, link: Link) -> None:
        """Wait until an idle slot may run a job, or none ever will."""
        began = time.monotonic()
        with self._changed:
            self._is_waiting = True  # before it looks, as who rests looks whether it waits
            while not self._admitted():
                if self._stopping.is_set() or self._is_spent():
                    break
                self._changed.wait(LOOK_SECONDS)
            self._is_waiting = False
        self._check(link, began)

    def _admitted(self) -> list[LoopSlot]:
        return [slot for slot in list(self._idle) if self._quota.admits(slot)]

    def _is_spent(self) -> bool:
        """Whether no slot may run a job any more."""
        return len(self._idle) == self._all and not self._admitted()


def _job_of(claim: Claim) -> Job | None:
    """Return the job of a claim; None for bytes that are no job."""
    try:
        return None if claim.foreign else parse_job(claim.entry)
    except ProtocolError:
        return None


async def _apart(work: Callable[[], object]) -> bool:
    """Do what blocks in a thread of its own, which ends with the process; return its result."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[object] = loop.create_future()

    def tell(result: object, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            failure = error
        try:
            loop.call_soon_threadsafe(tell, result, failure)
        except RuntimeError:
            logger.debug("the loop has ended meanwhile")

    threading.Thread(target=run, name="redis_bus apart", daemon=True).start()
    return bool(await done)
