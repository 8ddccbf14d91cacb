"""Claims: the jobs that a worker holds, as it knows them and as Redis does."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable

from ..errors import ProtocolError
from ..protocol.commands import Command, Post, Ready, Route
from ..protocol.entries import Job, parse_job
from ..transport.transport import Transport
from .asker import Asker, unblock

logger = logging.getLogger("redis_bus.claims")

# How many outcomes are remembered of jobs that must not run again, and how large they all may be.
MOST_OUTCOMES = 4096
MOST_BYTES = 4_000_000


class Claims:
    """What one worker holds. A claim that it does not know of came with a reply that was lost.

    Such a job is given back, not started; but only once it is certain that it is on its way to no
    slot. For that, every slot that was asking for a job when the claim was seen must have had its
    answer since, or have lost its connection.
    """

    def __init__(self, post: Post, transport: Transport) -> None:
        self._post = post
        self._transport = transport
        self._lock = threading.Lock()
        self._held: dict[Asker, tuple[Route, Job]] = {}
        self._holders: dict[str, int] = {}  # how many slots hold a job
        # How often each slot began or ended to ask for a job: odd while it asks.
        self._turns: dict[Asker, int] = {}
        # Claims that nobody here knows of, and the turns of those who may be about to.
        self._doubts: dict[str, dict[Asker, int]] = {}
        # Two who look at once could give back what was given back, and taken anew in between.
        self._looking = threading.Lock()
        # Outcomes that Redis did not take in time: their jobs were run, and are not to run again.
        self._late: dict[str, Command] = {}
        self._ran = Outcomes()

    # -- what the slots do --------------------------------------------------------------------

    def ask(self, slot: Asker) -> None:
        """Note that a slot is about to ask for a job."""
        turn = self._turns.get(slot, 0)
        self._turns[slot] = turn + 1 + turn % 2

    def begin(self, slot: Asker, route: Route, job: Job, asker: Asker | None = None) -> None:
        """Note the job that a slot was given, and is to run now; ``asker``: who asked for it."""
        with self._lock:
            self._hold(slot, route, job)
            self._answered(asker or slot)

    def begin_all(self, begun: Iterable[tuple[Asker, Route, Job]], asker: Asker) -> None:
        """Note the jobs that slots were given; all at once: ``asker`` had one answer for them."""
        with self._lock:
            for slot, route, job in begun:
                self._hold(slot, route, job)
            self._answered(asker)

    def ran(self, job: Job, finish: Command) -> None:
        """Note that a job has run, and what tells its outcome."""
        if job.attempt >= job.tries:
            with self._lock:
                self._ran.add(job, finish)

    def outcome(self, job: Job) -> Command | None:
        """Return what tells the outcome of a job that has run here already.

        Redis gives it away again where a replica was promoted that had not heard of the claim, or
        not of its end.
        """
        return self._ran.get(job)

    def is_held_beside(self, slot: Asker, job: Job) -> bool:
        """Whether another slot has that job already, and is to run it or runs it."""
        if len(self._held) == 1:  # its own
            return False
        with self._lock:
            own = self._held.get(slot)
            is_own = own is not None and own[1].id == job.id
            return self._holders.get(job.id, 0) > is_own

    def answered(self, slot: Asker) -> None:
        """Note that a slot was given nothing to run, or lost the connection on which it asked."""
        with self._lock:
            self._answered(slot)

    def end(self, slot: Asker) -> None:
        """Note that a slot has no job any more."""
        with self._lock:
            self._drop(slot)

    def held(self, slot: Asker) -> tuple[Route, Job] | None:
        """Return the job of a slot."""
        return self._held.get(slot)

    def all_held(self) -> list[tuple[Route, Job]]:
        """Return the jobs of all slots."""
        with self._lock:
            return list(self._held.values())

    def release(self, route: Route, job: str) -> None:
        """Give a job back, not started, to the head of its queue."""
        self._transport.ask(self._post.release(route, job))

    def bury(self, route: Route, entry: bytes, *, claimed: bool) -> None:
        """Put what is no job to the dead letters."""
        job = entry.partition(b" ")[0].decode("ascii", "replace") if claimed else None
        self._transport.exchange(route.bury(self._post.worker, entry, job))

    def keep_late(self, job: str, finish: Command) -> None:
        """Keep an outcome until Redis takes it again."""
        with self._lock:
            self._late[job] = finish

    def send_late(self) -> Iterable[object]:
        """Send the outcomes that were kept, and return the replies one by one."""
        with self._lock:
            late = list(self._late.items())
        for job, finish in late:
            yield self._transport.exchange(finish)[0]
            with self._lock:
                self._late.pop(job, None)

    def _hold(self, slot: Asker, route: Route, job: Job) -> None:
        self._drop(slot)
        self._held[slot] = (route, job)
        self._holders[job.id] = self._holders.get(job.id, 0) + 1
        self._doubts.pop(job.id, None)

    def _drop(self, slot: Asker) -> None:
        held = self._held.pop(slot, None)
        if held is None:
            return
        job = held[1].id
        left = self._holders.pop(job) - 1
        if left:
            self._holders[job] = left

    def _answered(self, slot: Asker) -> None:
        turn = self._turns.get(slot, 0)
        self._turns[slot] = turn + turn % 2

    # -- what nobody knows of -----------------------------------------------------------------

    def give_back_strangers(self) -> None:
        """Give back what is lost; on a new connection, before it takes.

        It was lost with the old one, as a rule: so its caller need not wait for a heartbeat.
        """
        with self._looking:
            self._look(self._transport.ask(("HKEYS", self._post.running))[0])

    def give_back_lost(self, found: Iterable[bytes]) -> None:
        """Give back what is lost of the claims found at a heartbeat.

        There may be some even so: what Redis took for a connection that was lost already, after
        the new one looked.
        """
        # Who looks already may wait for Redis, and a heart must not.
        if self._looking.acquire(blocking=False):
            try:
                self._look(found)
            finally:
                self._looking.release()

    @property
    def are_doubted(self) -> bool:
        """Whether there are claims that nobody knows of, which are to be settled."""
        return bool(self._doubts)

    def settle(self) -> None:
        """Give back what is lost of the claims in doubt; for a slot that has had its answer."""
        if self._doubts:
            with self._looking:
                self._give_back_settled()

    def in_doubt(self) -> set[Asker]:
        """Return the slots to which an unknown claim may be on its way."""
        with self._lock:
            doubts = [doubt for turns in self._doubts.values() for doubt in turns.items()]
            return {slot for slot, turn in doubts if self._turns[slot] == turn}

    def _look(self, found: Iterable[bytes]) -> None:
        jobs = {job.decode("utf-8", "surrogateescape") for job in found}
        with self._lock:
            known = {*self._late, *(job.id for _, job in self._held.values())}
            # A copy, as one who begins to ask holds no lock.
            asking = {slot: turn for slot, turn in self._turns.copy().items() if turn % 2}
            self._doubts = {job: self._doubts.get(job, asking) for job in jobs - known}
        self._give_back_settled()
        # Those who wait for a job have their answer at once then, and settle it.
        unblock(self.in_doubt())

    def _give_back_settled(self) -> None:
        with self._lock:
            lost = [
                job
                for job, turns in self._doubts.items()
                if all(self._turns[slot] != turn for slot, turn in turns.items())
            ]
            for job in lost:
                del self._doubts[job]
        for job in lost:
            self._give_back(job)

    def _give_back(self, job: str) -> None:
        field = job.encode("utf-8", "surrogateescape")
        entry = self._transport.ask(("HGET", self._post.running, field))[0]
        routes = {route.method: route for route in self._post.routes}
        try:
            found = parse_job(entry or b"")
        except ProtocolError as error:
            if entry is not None:
                logger.error("worker %s: %s; it is deleted", self._post.worker, error)
                self._transport.ask(("HDEL", self._post.running, field))
            return
        finish = self.outcome(found)
        if finish is not None:
            logger.info("worker %s: tells again what came of job %s", self._post.worker, job)
            self._transport.exchange(finish)
        elif found.method in routes:
            logger.info("worker %s: gives job %s back, not started", self._post.worker, job)
            # Once: sent again, it could meet the claim of a slot that has taken the job anew.
            self._transport.exchange(self._post.release(routes[found.method], job))


class Outcomes:
    """What tells the outcomes of the last jobs that must not run again."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, int], tuple[Command, int]] = OrderedDict()
        self._bytes = 0

    def add(self, job: Job, finish: Command) -> None:
        if type(finish) is Ready:
            size = len(finish.data)
        else:
            size = sum([len(part) for part in finish if type(part) is bytes])
        key = job.id, job.attempt
        if key in self._found:
            self._bytes -= self._found.pop(key)[1]
        self._found[key] = finish, size
        self._bytes += size
        while len(self._found) > MOST_OUTCOMES or self._bytes > MOST_BYTES:
            _, (_, size) = self._found.popitem(last=False)
            self._bytes -= size

    def get(self, job: Job) -> Command | None:
        found = self._found.get((job.id, job.attempt))
        return None if found is None else found[0]
