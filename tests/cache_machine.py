"""The promises of the cache as a machine: any step of any client, at any time, on a real Redis.

Each rule sends one script or command, so that Hypothesis chooses how callers, workers and those
who clear interleave, and shrinks what it finds. Nothing waits: time passes by moving the times
that are written in Redis into the past, and by deleting what would have expired.

The model is a slot for each cache key (what it would be served, who fills it, since when values
count) and a record for each job. ``RULES`` are the promises; each check names the one it holds.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from typing import Any

import hiredis
import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from redis_bus.protocol import scripts
from redis_bus.protocol.commands import (
    LEASE_MS,
    MOVED_TAG,
    Command,
    Post,
    Route,
    Service,
    evalsha,
    needs_admission,
    pack,
)
from redis_bus.protocol.entries import Mode, parse_job
from tests.cache_model import (
    ALL_KEYS,
    BRIEF_MS,
    CANCELLED,
    EXPIRIES,
    FOREIGN,
    LONG_MS,
    LOSSES,
    LOST,
    METHODS,
    NEVER_MS,
    REGISTRATIONS,
    RULES,
    SLOTS,
    TRIES,
    WORKERS,
    Claim,
    Lease,
    Method,
    Run,
    Slot,
    Waiter,
    Wire,
    Worker,
)

Place = tuple[str, bytes | None]

places = st.sampled_from([*SLOTS, SLOTS[0], SLOTS[0], ("a", None), ("b", None)])
slots = st.sampled_from([*SLOTS, SLOTS[0]])
methods = st.sampled_from(METHODS)
numbers = st.integers(0, 7)
expiries = st.sampled_from(EXPIRIES)
seldom = st.sampled_from([False] * 3 + [True])
rarely = st.sampled_from([False] * 7 + [True])


class CacheMachine(RuleBasedStateMachine):
    """Sends any step at any time, and knows what may come of it."""

    wire: Wire
    counts: Counter[str]  # of examples, states checked, commands, and answers of the scripts

    def __init__(self) -> None:
        super().__init__()
        self.service = Service("test", "machine")
        self.routes = {
            (method, index, tries): Route(self.service, method, etag, keep_ms=LONG_MS, tries=tries)
            for method in METHODS
            for index, (etag, _) in enumerate(REGISTRATIONS)
            for tries in TRIES
        }
        self.counts["examples"] += 1
        self.names = {script.sha: name for name, script in scripts.load().items()}
        self.ids = itertools.count(1)
        self.now = 0
        self.failed = False
        self.methods = {method: Method(0) for method in METHODS}
        self.slots = {place: Slot() for place in SLOTS}
        self.workers = [self.hire(serves) for serves in WORKERS]
        self.dead: list[Worker] = []
        self.holders: list[Worker] = []
        self.claims: list[Claim] = []
        self.gone: list[Claim] = []
        self.left: list[Claim] = []  # by the dead, until they are given away
        self.is_swept = True  # somebody looked for ended leases not long ago
        self.ended: list[Worker] = []  # as a sweep has found them
        self.held: list[tuple[Worker, Run]] = []  # as a look at their claims has found it
        self.runs: list[Run] = []
        self.waiters: list[Waiter] = []
        self.kept: set[tuple[str, bytes]] = set()  # what was stored without an expiry
        # Each computation's value is one that no other has; who made it, and since when.
        self.made: dict[bytes, tuple[Run, int]] = {}
        self.look = pack(
            *(("GET", self.route(method).cache(key)) for method, key in SLOTS),
            *(("HGET", self.service.meta, method) for method in METHODS),
            *(("LLEN", self.route(method).queue) for method in METHODS),
            *(("LLEN", self.route(method).wake) for method in METHODS),
        )
        self.looks = len(SLOTS) + 3 * len(METHODS)
        self.seen: list[Any] = []
        self.wire.ask(pack(("FLUSHALL",), ("SET", self.service.swept, "1", "PX", LONG_MS)), 2)
        for method in METHODS:
            self.send(*self.service.publish(method, *REGISTRATIONS[0]))

    # -- callers ------------------------------------------------------------------------------

    @rule(place=slots, outdated=rarely, lost=rarely)
    def call(self, place: Place, outdated: bool, lost: bool) -> None:
        self.call_by(place, Mode.CALL, outdated, lost)

    @rule(lost=rarely)
    def call_the_same(self, lost: bool) -> None:
        self.call_by(SLOTS[0], Mode.CALL, False, lost)

    @rule(place=places, outdated=rarely, lost=rarely)
    def run(self, place: Place, outdated: bool, lost: bool) -> None:
        self.call_by(place, Mode.RUN, outdated, lost)

    @rule(method=methods, outdated=rarely, is_told=st.booleans())
    def call_alone(self, method: str, outdated: bool, is_told: bool) -> None:
        self.call_by((method, None), Mode.TOLD if is_told else Mode.WAIT, outdated, False)

    def call_by(self, place: Place, mode: Mode, outdated: bool, lost: bool) -> None:
        """Call, or enqueue; ``lost``: the answer does not arrive, whoever asked calls anew."""
        name, key = place
        method = self.methods[name]
        registration = method.registration or 0
        if outdated:
            registration = (registration + 1) % len(REGISTRATIONS)
        elif method.registration is None:
            self.publish(name, 0)  # what a caller does that was told so
        number = next(self.ids)
        tries = TRIES[number % len(TRIES)]
        job = Run(f"j{number}", name, key, mode, registration, method.generation, tries)
        route = self.routes[name, registration, job.tries]
        said = self.send(*route.call(job.id, b"body", mode=mode, budget_ms=LONG_MS, key=key))
        # Alone it is told only since when it is queued.
        status, *rest = [b"queued", said] if isinstance(said, int) else said
        if registration != method.registration:
            self.check(7, status == b"stale", f"a call with an old etag: {status}")
            return
        floor, leader = 0, job
        if key is None:
            self.check(3, status == b"queued", status)
            job.since_ms = said if isinstance(said, int) else None
            self.enqueue(job, None)
        else:
            floor = self.slots[name, key].floor
            leader = self.called(job, self.slots[name, key], status, rest)
        if not lost and (status != b"hit" or mode is Mode.RUN):
            waiter = Waiter(leader, job.shape, floor, mode, leader is job)
            self.waiters.append(waiter)

    def called(self, job: Run, slot: Slot, status: bytes, rest: list[Any]) -> Run:
        """What a call with a cache key must be told. Returns the job to wait for."""
        value, leader = slot.value, slot.leader
        if status == b"hit":
            outcome = rest[0].partition(b"\n")[2]
            self.check_fresh(outcome, job, slot.floor)
            self.check(4, outcome == value, f"{outcome!r} is served, not {value!r}")
            job.outcome = outcome
            if slot.stale and leader is None:
                refresh = Run(
                    job.id + "r", job.method, job.key, Mode.REFRESH, job.registration,
                    job.generation, job.tries,
                )  # fmt: skip
                self.enqueue(refresh, slot)
            return job
        self.check(6, value is None, f"{value!r} is there, and a caller has to wait")
        if leader is None:
            self.check(4, status == b"queued", f"nothing flies, but {status!r} {rest}")
            self.check(2, rest[0] == job.id.encode(), rest)
            self.enqueue(job, slot)
            return job
        self.check(2, status == b"joined", f"{leader.id} flies, but {status!r}")
        self.check(2, rest[0] == leader.id.encode(), f"{leader.id} flies, not {rest}")
        leader.joined = True
        if job.mode is Mode.RUN:
            self.check_shared(leader, b"2")
        return leader

    def check_shared(self, leader: Run, shared: bytes) -> None:
        """The flight says who waits for its job, and so how long the outcome is kept for them."""
        flight = self.send("GET", self.route(leader.method).flight(leader.key or b""))
        said = None if flight is None else flight.split(b" ")[2]
        self.check(3, said == shared, f"{leader} is shared, its flight says {flight!r}")

    def enqueue(self, job: Run, slot: Slot | None) -> None:
        job.noted = job.mode in (Mode.RUN, Mode.TOLD)
        self.methods[job.method].queue.append(job)
        self.runs.append(job)
        if slot is not None:
            slot.leader = job

    @precondition(lambda self: self.waiters)
    @rule(number=numbers)
    def read(self, number: int) -> None:
        """Look whether the outcome is there; the only reader of a job takes it away."""
        self.read_by(self.waiters[number % len(self.waiters)])

    def read_by(self, waiter: Waiter) -> None:
        run = waiter.run
        reply = self.service.reply(run.id)
        if waiter.mode is Mode.WAIT:
            found = self.send("LPOP", reply)
        else:
            listed = self.send("LRANGE", reply, 0, -1)
            self.check(3, len(listed) <= 1 or run.lost, f"{run.id}: {listed}")
            found = listed[0] if listed else None
        if found is None:
            self.check(3, run.outcome is None or run.lost, f"{run.id} is finished, no outcome")
            return
        if run.lost and found != run.outcome:
            self.waiters.remove(waiter)
            return
        self.check(3, found == run.outcome, f"{run.id}: {found!r}, not {run.outcome!r}")
        if found.startswith(MOVED_TAG):
            assert run.moved is not None
            waiter.run = run.moved
            return
        if found not in (CANCELLED, LOST):
            self.check_fresh(found, waiter, waiter.floor)
        self.waiters.remove(waiter)

    def check_fresh(self, outcome: bytes, asked: Run | Waiter, floor: int) -> None:
        """An outcome that a call gets was computed for that call, and not before a clear."""
        run = asked if isinstance(asked, Run) else asked.run
        maker, began = self.made.get(b"m" + outcome[1:], (None, 0))
        self.check(8, maker is not None, f"{outcome!r} is served")
        assert maker is not None
        self.check(3, (maker.method, maker.key) == (run.method, run.key), f"of {maker}, to {run}")
        self.check(3, run.key is not None or maker is run, f"of {maker}, to {run}")
        self.check(7, maker.shape == asked.shape, f"of {maker}, to {asked}")
        self.check(4, began > floor, f"{outcome!r} began at {began}, the clear was at {floor}")

    @rule(place=slots, another=st.booleans())
    def discard(self, place: tuple[str, bytes], another: bool) -> None:
        """Forget the value that could not be read, if it is still the one that was."""
        entry = self.seen[SLOTS.index(place)]
        if entry is None:
            return
        read = b"another" if another else entry
        sha1 = hashlib.sha1(read, usedforsecurity=False).hexdigest()
        found = self.send(*self.route(place[0]).discard(place[1], sha1))
        self.check(8, found == (not another), f"{read!r} was read, {entry!r} is there: {found}")
        if not another:
            self.slots[place].value = None

    @precondition(lambda self: self.waiters)
    @rule(number=numbers)
    def give_up(self, number: int) -> None:
        self.waiters.pop(number % len(self.waiters))

    @precondition(lambda self: any(run.noted for run in self.runs))
    @rule(number=numbers, any_job=rarely)
    def cancel(self, number: int, any_job: bool) -> None:
        """Withdraw a run that may wait; or whatever job there was, also again."""
        noted = [run for run in self.runs if run.noted]
        found = self.runs if any_job else noted
        run = found[-1 - number % len(found)]
        flight = None if run.key is None else self.route(run.method).flight(run.key)
        since_ms = run.since_ms if run.mode is Mode.TOLD else None
        cancel = self.route(run.method).cancel(run.id, flight, CANCELLED, enqueued_ms=since_ms)
        status = self.send(*cancel)
        if (run.is_dropped or run.lost) and status == b"late":
            run.noted = False
            return  # too late for it, or for whoever cancels it
        if not run.noted:
            self.check(10, status == b"late", f"{run}: {status!r}")
            return
        slot = None if run.key is None else self.slots[run.method, run.key]
        if slot is None or (slot.leader is run and not run.joined):
            self.check(9, status == b"cancelled", f"nobody else waits for {run}: {status!r}")
        if status != b"cancelled":
            self.check(9, status == b"shared", f"{run}: {status!r}")
            return
        others = [w for w in self.waiters if w.run.last is run and not w.own]
        self.check(9, not others, f"{run} is cancelled, others wait for it: {others}")
        run.noted, run.cancelled, run.outcome = False, True, CANCELLED
        queue = self.methods[run.method].queue
        if run in queue:  # not one whose queue was lost
            queue.remove(run)
        entries = self.send("LRANGE", self.route(run.method).queue, 0, -1)
        waits = any(entry.startswith(run.id.encode() + b" ") for entry in entries)
        self.check(9, not waits, f"{run} is cancelled, and waits")
        if slot is not None and slot.leader is run:
            slot.leader = None

    # -- workers ------------------------------------------------------------------------------

    @precondition(lambda self: any(self.tokens()))
    @rule(number=numbers, lost=rarely)
    def wake(self, number: int, lost: bool) -> None:
        """A worker pops a token; ``lost``: with the connection, on its way to the worker."""
        worker, name = self.woken(number)
        self.send("LPOP", self.route(name).wake)
        if lost:
            self.methods[name].owed = True
        else:
            self.holders.append(worker)

    @precondition(lambda self: any(self.tokens()))
    @rule(number=numbers)
    def wake_and_take(self, number: int) -> None:
        """The same with nobody in between."""
        worker, name = self.woken(number)
        self.send("LPOP", self.route(name).wake)
        self.take_by(worker)

    def woken(self, number: int) -> tuple[Worker, str]:
        """Who waits for tokens, and the method whose token there is."""
        tokens = dict(zip(METHODS, self.tokens(), strict=True))
        found = [(w, m) for w in self.workers for m in w.serves if tokens[m]]
        return found[number % len(found)]

    @precondition(lambda self: self.holders)
    @rule(number=numbers, lost=seldom)
    def take(self, number: int, lost: bool) -> None:
        """Claim the next job after a token; ``lost``: the worker does not hear of it."""
        self.take_by(self.holders.pop(number % len(self.holders)), lost)

    @precondition(lambda self: any(self.lengths()))
    @rule(number=numbers)
    def take_without_a_token(self, number: int) -> None:
        self.take_by(self.workers[number % len(self.workers)])

    def take_by(self, worker: Worker, lost: bool = False) -> bool:
        routes = worker.post.routes
        taken = self.send(*worker.post.take(routes))
        claim = worker.post.parse_take(taken, routes)
        if claim is None:
            for name in worker.serves:
                self.pass_over(name)
                self.check(12, not self.methods[name].queue, f"{name} waits, nothing is taken")
            return False
        job = parse_job(claim.entry)
        by_id = next((run for run in reversed(self.runs) if run.id == job.id), None)
        self.check(9, not (by_id and by_id.cancelled), f"{job.id} is cancelled, and taken")
        self.pass_over(job.method)
        queue = self.methods[job.method].queue
        self.check(12, bool(queue) and queue[0] is by_id, f"{job.id} is taken before {queue[:1]}")
        run = queue.pop(0)
        same = (run.key, run.mode, run.attempt) == (job.key, job.mode, job.attempt)
        self.check(12, same, f"{run} became {job}")
        run.noted, worker.lease = False, Lease.GOES_ON
        # What was given away, and comes back to whom it was taken from: that worker has tried to
        # finish it before it takes anything.
        self.claims = [c for c in self.claims if c.run is not run or c.worker is not worker]
        admission = needs_admission(job, claim.now_ms)
        held = Claim(worker, run, job, admission, known=not lost)
        self.claims.append(held)
        if not lost and not admission:
            self.begin(held)
        return True

    def pass_over(self, name: str) -> None:
        queue = self.methods[name].queue
        while queue and queue[0].is_dropped:
            queue.pop(0)

    def begin(self, claim: Claim) -> None:
        claim.value = b"m%d" % len(self.made)
        self.made[claim.value] = (claim.run, self.now)

    @precondition(lambda self: any(c.known and c.admission and not c.value for c in self.claims))
    @rule(number=numbers, lost=st.booleans())
    def admit(self, number: int, lost: bool) -> None:
        """Ask whether a late job has to run; ``lost``: the answer is, it is asked again."""
        waiting = [c for c in self.claims if c.known and c.admission and not c.value]
        self.admit_by(waiting[number % len(waiting)], lost)

    def admit_by(self, claim: Claim, lost: bool = False) -> None:
        run = claim.run
        assert run.key is not None
        method, slot = self.methods[run.method], self.slots[run.method, run.key]
        command = claim.worker.post.admit(self.route(run.method), claim.job)
        verdict = self.send(*command)
        if not claim.stands:
            self.check(10, verdict == b"fenced", f"{run}: {verdict!r} without a claim")
        elif verdict == b"run":
            if run.generation == method.generation:
                self.check(2, slot.leader in (None, run), f"{run} runs beside {slot.leader}")
                served = slot.value is not None and slot.leader is not run
                self.check(2, not served, f"{run} runs, {slot.value!r} is there")
                run.joined = run.joined or slot.leader is not run
                slot.leader = run
            if not lost:
                self.begin(claim)
        elif verdict == b"moved":
            self.check(2, slot.leader not in (None, run), f"{run} is moved to nobody")
            assert slot.leader is not None
            slot.leader.joined = True
            self.check_shared(slot.leader, b"2")
            run.moved, run.outcome = slot.leader, MOVED_TAG + slot.leader.id.encode()
        elif verdict == b"answered":
            self.check(2, slot.value is not None, f"{run} is answered with nothing")
            run.outcome = slot.value
        else:
            self.check(3, verdict == b"dropped", verdict)
            waiting = [w for w in self.waiters if w.run.last is run]
            self.check(3, run.late and not waiting, f"{run} is dropped, {waiting} wait")
            if slot.leader is run:
                slot.leader = None
        if verdict != b"run":
            claim.stands = False
            if not lost:
                self.claims.remove(claim)

    @precondition(lambda self: any(c.value for c in self.claims))
    @rule(number=numbers, expiry=expiries, lost=rarely)
    def finish(self, number: int, expiry: tuple[int, int], lost: bool) -> None:
        """Answer with a value; ``lost``: Redis's answer is, the worker sends it again."""
        begun = [claim for claim in self.claims if claim.value]
        self.finish_by(begun[number % len(begun)], False, expiry, lost)

    @precondition(lambda self: any(c.value for c in self.claims))
    @rule(number=numbers)
    def finish_and_keep(self, number: int) -> None:
        begun = [claim for claim in self.claims if claim.value]
        self.finish_by(begun[number % len(begun)], False, EXPIRIES[0])

    @precondition(lambda self: any(c.value for c in self.claims))
    @rule(number=numbers, lost=rarely)
    def fail(self, number: int, lost: bool) -> None:
        """Answer with an error."""
        begun = [claim for claim in self.claims if claim.value]
        self.finish_by(begun[number % len(begun)], True, EXPIRIES[0], lost)

    def finish_by(
        self, claim: Claim, fails: bool, expiry: tuple[int, int], lost: bool = False
    ) -> None:
        assert claim.value is not None
        run = claim.run
        outcome = b"e" + claim.value[1:] if fails else claim.value
        status = self.send(*self.finish_command(claim, outcome, expiry))
        if not lost:
            self.claims.remove(claim)
            self.gone.append(claim)
        if not claim.stands:
            self.check(10, status == b"fenced", f"{run}: {status!r} without a claim")
            return
        self.check(3, status == b"done", f"{run}: {status!r}")
        claim.stands = False
        run.outcome = outcome
        if run.key is not None:
            slot = self.slots[run.method, run.key]
            if slot.leader is run:
                slot.leader = None
                if not fails and expiry[0]:
                    if expiry[0] == NEVER_MS:
                        self.kept.add((run.method, run.key))
                    slot.value, slot.soft, slot.stale = outcome, expiry[1] > 0, False
        waiters = [waiter for waiter in self.waiters if waiter.run.last is run]
        if waiters and not run.lost:
            reply = self.service.reply(run.id)
            found = self.send("LRANGE", reply, 0, -1)
            self.check(3, found == [outcome], f"{run}: its waiters find {found}")
            left_ms = self.send("PTTL", reply)
            later = any(waiter.mode is Mode.RUN for waiter in waiters)
            self.check(3, left_ms > BRIEF_MS or not later, f"{run} is kept for {left_ms} ms")

    def finish_command(self, claim: Claim, outcome: bytes, expiry: tuple[int, int]) -> Command:
        return claim.worker.post.finish(
            self.route(claim.run.method), claim.job, outcome,
            spent_us=1, expire_ms=expiry[0], stale_ms=expiry[1],
        )  # fmt: skip

    @rule(place=slots, expiry=expiries)
    def compute(self, place: tuple[str, bytes], expiry: tuple[int, int]) -> None:
        """A call that is answered before anybody else does anything."""
        slot = self.slots[place]
        if slot.value or slot.leader:
            return
        self.call_by(place, Mode.CALL, False, False)
        while self.claims[-1:] == [] or self.claims[-1].run is not slot.leader:
            if not self.take_by(self.generalist()):
                return
        self.finish_by(self.claims[-1], False, expiry)

    @precondition(lambda self: any(not c.value for c in self.claims))
    @rule(number=numbers)
    def release(self, number: int) -> None:
        """Give back a job that is not started: the worker stops, or never heard of its claim."""
        idle = [claim for claim in self.claims if not claim.value]
        self.release_by(idle[number % len(idle)])

    def release_by(self, claim: Claim) -> None:
        run = claim.run
        command = claim.worker.post.release(self.route(run.method), run.id)
        released = self.send(*command)
        self.claims.remove(claim)
        self.gone.append(claim)
        self.check(10, released == claim.stands, f"{run}: {released}")
        if claim.stands:
            claim.stands = False
            self.put_back(run)

    def put_back(self, run: Run) -> None:
        run.noted = run.mode in (Mode.RUN, Mode.TOLD)
        self.methods[run.method].queue.insert(0, run)
        noted = self.send("HGET", self.route(run.method).pending, run.id)
        wanted = (b"" if run.key is None else b"k" + run.key) if run.mode is Mode.RUN else None
        noted = noted and noted.lstrip(b"0123456789")  # when it was enqueued
        self.check(12, noted == wanted, f"{run} is put back with the note {noted!r}")

    @precondition(lambda self: self.gone)
    @rule(number=numbers, what=st.sampled_from(["finish", "finish", "release"]))
    def send_again(self, number: int, what: str) -> None:
        """Finish or release once more what is finished, released or somebody else's by now."""
        claim = self.gone[-1 - number % len(self.gone)]
        run, worker = claim.run, claim.worker
        if worker in self.dead:
            return  # the dead send nothing; what they had claimed stays as they left it
        if any(c.run is run and c.worker is worker and c.stands for c in self.claims):
            return
        if what == "release":
            found = self.send(*worker.post.release(self.route(run.method), run.id))
            self.check(10, found == 0, f"{run} is released without a claim")
            return
        outcome = claim.value or b"mnobody"
        found = self.send(*self.finish_command(claim, outcome, EXPIRIES[0]))
        self.check(10, found == b"fenced", f"{run} is finished without a claim: {found!r}")

    @rule(number=numbers, end=st.sampled_from([None] * 5 + ["killed", "seen", "leaves"]))
    def beat_or_die(self, number: int, end: str | None) -> None:
        worker = self.workers[number % len(self.workers)]
        if end:
            self.die(worker, end)
        else:
            self.beat_by(worker)

    def beat_by(self, worker: Worker) -> None:
        flights = [
            (self.route(claim.run.method), claim.job)
            for claim in self.claims
            if claim.worker is worker and claim.value
        ]
        put_back = self.send(*worker.post.beat(flights))
        worker.lease = Lease.GOES_ON
        self.check_put_back(worker, put_back)

    def check_put_back(self, worker: Worker, put_back: int) -> None:
        owed = any(self.methods[name].owed for name in worker.serves)
        self.check(11, not put_back or owed or bool(self.holders), "a token was lost")
        for name in worker.serves:
            self.methods[name].owed = False

    def die(self, worker: Worker, end: str) -> None:
        """A worker dies with the token and the jobs that it holds; another is started.

        It is 'killed', or whoever started it has 'seen' that; or it 'leaves', and says so.
        """
        if end == "leaves":
            self.check_put_back(worker, self.send(*worker.post.leave()))
            holds = any(c.worker is worker and c.stands for c in self.claims)
            worker.lease = Lease.IS_DEAD if holds else Lease.NONE
        elif end == "seen":
            self.end_lease_of(worker, Lease.IS_DEAD)
        self.workers.remove(worker)
        self.dead.append(worker)
        self.workers.append(self.hire(worker.serves))
        if worker in self.holders:
            for name in worker.serves:
                self.methods[name].owed = True
        self.holders = [holder for holder in self.holders if holder is not worker]
        self.left += [c for c in self.claims if c.worker is worker and c.stands]
        self.claims = [claim for claim in self.claims if claim.worker is not worker]

    # -- workers whose lease has ended --------------------------------------------------------

    @precondition(lambda self: any(w.lease is Lease.GOES_ON for w in self.holding()))
    @rule(number=numbers, steps=st.sampled_from([0, 2, 9]))
    def end_lease(self, number: int, steps: int) -> None:
        """A worker that holds jobs is late with its beat, or dead; maybe it is noticed at once."""
        found = [worker for worker in self.holding() if worker.lease is Lease.GOES_ON]
        self.end_lease_of(found[number % len(found)], Lease.HAS_ENDED)
        self.take_over(number, steps)

    def end_lease_of(self, worker: Worker, lease: Lease) -> None:
        self.send("ZADD", self.service.workers, "XX", lease.value, worker.post.worker)
        if worker.lease is not Lease.NONE:
            worker.lease = lease

    def holding(self) -> list[Worker]:
        """Who holds jobs, dead or alive."""
        found = {c.worker.post.worker: c.worker for c in [*self.left, *self.claims] if c.stands}
        return list(found.values())

    @precondition(lambda self: self.held or self.ended or any(w.is_over for w in self.holding()))
    @rule(
        number=numbers,
        steps=st.sampled_from([1, 1, 9]),
        between=st.sampled_from([None, "beat", "reclaim"]),
    )
    def go_on_taking_over(self, number: int, steps: int, between: str | None) -> None:
        """Somebody else may do the same, or the worker beat once more."""
        late = [w for w in self.ended if w in self.workers]
        late = late or [w for w, _ in self.held if w in self.workers]
        if between == "beat" and late:
            self.beat_by(late[number % len(late)])
        elif between == "reclaim" and self.held:
            self.reclaim_by(*self.held[number % len(self.held)])
        self.take_over(number, steps)

    def take_over(self, number: int, steps: int) -> None:
        """Look whose lease has ended, what that one holds, and give it away: some of the steps."""
        for _ in range(steps):
            if self.held:
                self.reclaim_by(*self.held.pop(number % len(self.held)))
            elif self.ended:
                self.look_at_claims(self.ended.pop(number % len(self.ended)))
            else:
                self.sweep()

    def sweep(self) -> None:
        keys = [self.service.workers, self.service.swept]
        _, *found = self.send(*evalsha("sweep", keys, LEASE_MS, LONG_MS, 1000))
        known = [*self.workers, *self.dead]
        for worker in known:
            if not self.is_swept and worker.lease is Lease.HAS_ENDED:
                worker.lease = Lease.GOES_ON
        self.is_swept = True
        over = {worker.post.worker.encode(): worker for worker in known if worker.is_over}
        self.check(14, set(found) == set(over), f"{found} are swept, not {set(over)}")
        self.ended = list(over.values())

    def look_at_claims(self, worker: Worker) -> None:
        found = self.send(*self.service.claims(worker.post.worker))
        if worker.lease is Lease.GOES_ON:
            self.check(14, found == [], f"{worker} is alive, and holds {found}")
            return
        held = {c.run.id: c.run for c in self.claims_of(worker)}
        jobs = [parse_job(head) for head in found[1::2]]
        self.check(14, {job.id for job in jobs} == set(held), f"{held} are held, not {jobs}")
        for job in jobs:
            run = held[job.id]
            self.check(14, (job.key, job.method) == (run.key, run.method), f"{run} became {job}")
        self.held += [(worker, run) for run in held.values()]
        if not held:
            worker.lease = Lease.NONE

    def claims_of(self, worker: Worker) -> list[Claim]:
        return [c for c in [*self.left, *self.claims] if c.worker is worker and c.stands]

    def reclaim_by(self, worker: Worker, run: Run) -> None:
        command = self.route(run.method).reclaim(worker.post.worker, run.id, run.key, LOST)
        status = self.send(*command)
        claim = next((c for c in self.claims_of(worker) if c.run is run), None)
        if worker.lease is Lease.GOES_ON:
            self.check(14, status == b"alive", f"{run} of {worker}, who is alive: {status!r}")
            return
        if claim is None:
            self.check(10, status == b"gone", f"{run} is held no more: {status!r}")
            return
        claim.stands = False
        self.left = [each for each in self.left if each is not claim]
        slot = None if run.key is None else self.slots[run.method, run.key]
        if run.attempt < run.tries:
            self.check(14, status == b"requeued", f"{run} may run again: {status!r}")
            run.attempt += 1
            self.put_back(run)
            return
        self.check(14, status == b"lost", f"{run} may not run again: {status!r}")
        run.outcome = LOST
        if slot is not None and slot.leader is run:
            slot.leader = None
            flight = self.send("GET", self.route(run.method).flight(run.key or b""))
            self.check(2, flight is None, f"{run} is lost, and flies still: {flight!r}")
        if run.tries > 1 or run.mode is Mode.RUN:
            self.methods[run.method].letters += 1

    # -- those who clear and publish ----------------------------------------------------------

    @precondition(lambda self: any(slot.value or slot.leader for slot in self.slots.values()))
    @rule(number=numbers, outdated=rarely)
    def clear(self, number: int, outdated: bool) -> None:
        found = [place for place, slot in self.slots.items() if slot.value or slot.leader]
        place = name, key = found[number % len(found)]
        method, slot = self.methods[name], self.slots[place]
        registration = method.registration or 0
        if outdated:
            registration = (registration + 1) % len(REGISTRATIONS)
        status = self.send(*self.routes[name, registration, 1].clear(key))
        if registration != method.registration:
            self.check(7, status == b"stale", f"a clear with an old etag: {status!r}")
        else:
            had = b"nothing" if slot.value is None else b"cleared"
            self.check(4, status == had, f"{slot.value!r} was there, {status!r}")
            slot.value, slot.leader, slot.floor = None, None, self.now

    @rule(
        method=methods,
        registration=st.sampled_from([None, None, *range(len(REGISTRATIONS))]),
        outdated=rarely,
    )
    def clear_all_or_publish(self, method: str, registration: int | None, outdated: bool) -> None:
        if registration is None:
            self.clear_all(method, outdated)
        else:
            self.publish(method, registration)

    def clear_all(self, method: str, outdated: bool) -> None:
        known = self.methods[method].registration
        registration = ((known or 0) + outdated) % len(REGISTRATIONS)
        generation = self.send(*self.routes[method, registration, 1].clear_all())
        if known is None:
            self.check(7, generation is None, generation)
        elif outdated:
            self.check(7, generation == b"stale", f"a clear of all with an old etag: {generation}")
        else:
            self.check(4, generation != b"stale", f"{generation} of the current etag")
            self.begin_anew(method)

    def publish(self, method: str, registration: int) -> None:
        known = self.methods[method].registration
        new = REGISTRATIONS[registration]
        found = self.send(*self.service.publish(method, *new))
        if known == registration:
            self.check(10, found == [b"same"], found)
        elif known is None:
            self.check(7, found == [b"published", b""], found)
        else:
            old = REGISTRATIONS[known]
            self.check(7, found == [b"published", old[0].encode()], found)
            if old[1] != new[1]:
                self.begin_anew(method)
        self.methods[method].registration = registration

    def begin_anew(self, name: str) -> None:
        """No value and no flight of a method counts any more."""
        self.methods[name].generation += 1
        for (method, _), slot in self.slots.items():
            if method == name:
                slot.value, slot.leader, slot.floor = None, None, self.now

    # -- time, and what Redis loses -----------------------------------------------------------

    @precondition(lambda self: any(slot.soft and slot.value for slot in self.slots.values()))
    @rule(number=numbers)
    def grow_stale(self, number: int) -> None:
        """A value passes its soft expiry."""
        found = [place for place, slot in self.slots.items() if slot.soft and slot.value]
        place = found[number % len(found)]
        slot = self.slots[place]
        head, _, outcome = self.seen[SLOTS.index(place)].partition(b"\n")
        entry = head.partition(b" ")[0] + b" 1\n" + outcome
        slot.stale = True
        self.send("SET", self.route(place[0]).cache(place[1]), entry, "KEEPTTL")

    @rule(number=numbers, past_deadline=st.booleans())
    def grow_old(self, number: int, past_deadline: bool) -> None:
        """A job has waited for long, and maybe past its deadline: its own caller has given up."""
        waiting = [run for method in self.methods.values() for run in method.queue]
        found: list[Run | Claim] = [*waiting, *(c for c in self.claims if c.stands)]
        if not found:
            return
        old = found[number % len(found)]
        if isinstance(old, Run):
            run, queue = old, self.route(old.method).queue
            for index, entry in enumerate(self.send("LRANGE", queue, 0, -1)):
                if entry.startswith(run.id.encode() + b" "):
                    self.send("LSET", queue, index, self.aged(entry, past_deadline))
        else:
            run, running = old.run, old.worker.post.running
            deadline = 1 if past_deadline else old.job.deadline_ms
            old.job = old.job._replace(enqueued_ms=1, deadline_ms=deadline)
            entry = self.send("HGET", running, run.id)
            if entry is not None:
                self.send("HSET", running, run.id, self.aged(entry, past_deadline))
        if past_deadline:
            run.late = True
            self.waiters = [w for w in self.waiters if not (w.run is run and w.own)]

    def aged(self, entry: bytes, past_deadline: bool) -> bytes:
        words = entry.split(b" ", 5)
        words[4] = b"1"
        if past_deadline:
            words[3] = b"1"
        return b" ".join(words)

    @precondition(lambda self: any(slot.leader for slot in self.slots.values()))
    @rule(number=numbers, foreign=st.booleans())
    def lose_flight(self, number: int, foreign: bool) -> None:
        """A flight is evicted, expires, or a stranger writes over it."""
        flights = [place for place, slot in self.slots.items() if slot.leader]
        self.lose_one("flight", flights[number % len(flights)], foreign)

    @precondition(lambda self: any(slot.value for slot in self.slots.values()))
    @rule(number=numbers, foreign=st.booleans())
    def lose_value(self, number: int, foreign: bool) -> None:
        values = [place for place, slot in self.slots.items() if slot.value]
        self.lose_one("value", values[number % len(values)], foreign)

    def lose_one(self, what: str, place: tuple[str, bytes], foreign: bool) -> None:
        route, slot = self.route(place[0]), self.slots[place]
        if what == "flight":
            key, slot.leader = route.flight(place[1]), None
        else:
            key, slot.value = route.cache(place[1]), None
        if foreign:
            self.send("SET", key, FOREIGN, "PX", LONG_MS)
        else:
            self.send("DEL", key)

    @rule(number=st.integers(0, 6 * len(LOSSES) - 1))
    def lose_any(self, number: int) -> None:
        """Whatever other key is evicted."""
        holding = self.holding() or self.workers
        worker = holding[number % len(holding)]
        name = METHODS[number % len(METHODS)]
        method, route = self.methods[name], self.route(name)
        lost: str
        match LOSSES[number % len(LOSSES)]:
            case "queue":
                lost = route.queue
                for run in method.queue:
                    run.lost = True
                method.queue = []
            case "wake":
                lost, method.owed = route.wake, True
            case "pending":
                lost = route.pending
                for run in self.runs:
                    if run.method == name and run.mode is not Mode.TOLD:
                        run.noted = False
            case "running":
                lost = worker.post.running
                for claim in self.claims_of(worker):
                    claim.stands, claim.run.lost = False, True
                self.left = [claim for claim in self.left if claim.stands]
            case "workers":
                lost = self.service.workers
                for worker in [*self.workers, *self.dead]:
                    worker.lease = Lease.NONE
            case "swept":
                lost, self.is_swept = self.service.swept, False
            case "reply":
                if not self.waiters:
                    return
                run = self.waiters[number % len(self.waiters)].run
                lost, run.lost = self.service.reply(run.id), run.lost or run.outcome is not None
            case "meta":
                lost = self.service.meta
                for each in METHODS:
                    self.methods[each].registration = None
                    self.begin_anew(each)
            case "value":
                self.lose_one("value", SLOTS[number % len(SLOTS)], True)
                return
            case beside:
                lost = getattr(self.service, beside, "") or getattr(route, beside)
        self.send("DEL", lost)

    # -- what holds after every step ----------------------------------------------------------

    @invariant()
    def check_state(self) -> None:
        self.counts["states"] += 1
        values = self.seen[: len(SLOTS)]
        fields = self.seen[len(SLOTS) : len(SLOTS) + len(METHODS)]
        generations = {}
        for name, found in zip(METHODS, fields, strict=True):
            self.check(7, (found is None) == (self.methods[name].registration is None), found)
            generations[name] = None if found is None else found.split(b" ")[2]
        for place, entry in zip(SLOTS, values, strict=True):
            self.check_value(place, entry, generations[place[0]])
        for name, generation in generations.items():
            method = self.methods[name]
            if generation is not None:
                number = int(generation)
                self.check(4, number >= method.written, "a generation comes back")
                method.written = number
        for name, length in zip(METHODS, self.lengths(), strict=True):
            queue = self.methods[name].queue
            self.check(2, length <= len(queue), f"{length} jobs wait, not {queue}")
            wanted = sum(not run.is_dropped for run in queue)
            self.check(12, length >= wanted, f"{length} jobs wait, not {queue}")
        self.check_tokens()

    def check_value(
        self, place: tuple[str, bytes], entry: bytes | None, live: bytes | None
    ) -> None:
        """What a call would be served is what the model says, whoever wrote it."""
        slot = self.slots[place]
        outcome = None
        if entry is not None and entry != FOREIGN and entry.partition(b" ")[0] == live:
            outcome = entry.partition(b"\n")[2]
            self.check(1, outcome[:1] == b"m", f"{outcome!r} is stored")
            self.check(8, outcome in self.made, f"{outcome!r} is stored")
            maker, began = self.made[outcome]
            self.check(4, began > slot.floor, f"{outcome!r} is older than a clear")
            shape = REGISTRATIONS[self.methods[place[0]].registration or 0][1]
            self.check(7, maker.shape == shape, f"{outcome!r} is of another shape")
        self.check(5, outcome == slot.value, f"{outcome!r} is stored, not {slot.value!r}")

    def check_tokens(self) -> None:
        for name, length, tokens in zip(METHODS, self.lengths(), self.tokens(), strict=True):
            self.check(11, tokens <= 1, f"{name} has {tokens} tokens")
            if length and not tokens and not self.methods[name].owed:
                about = any(name in holder.serves for holder in self.holders)
                self.check(11, about, f"{name} waits without a token")

    def teardown(self) -> None:
        """Let everybody finish, and see that all were answered and nothing is left."""
        if self.failed:
            return
        for claim in [claim for claim in self.claims if not claim.known]:
            self.release_by(claim)
        while self.holders:
            self.take_by(self.holders.pop())
        self.take_over_from_the_dead()
        worker = self.generalist()
        self.beat_by(worker)
        while self.claims or any(self.tokens()):
            self.advance(worker)
        for name in METHODS:
            self.pass_over(name)
            self.check(11, not self.methods[name].queue, f"{name} waits, and nobody is woken")
        for name in METHODS:
            letters = self.send("LLEN", self.route(name).dead)
            self.check(14, letters == self.methods[name].letters, f"{letters} letters of {name}")
        for waiter in list(self.waiters):
            while waiter in self.waiters and not waiter.run.lost:
                self.check(3, waiter.run.outcome is not None, f"{waiter} is never answered")
                self.read_by(waiter)
        self.check_leaks()

    def take_over_from_the_dead(self) -> None:
        for worker in self.dead:
            self.end_lease_of(worker, Lease.IS_DEAD)
        self.held, self.ended = [], []
        while any(worker.is_over for worker in self.dead):
            self.take_over(0, 1)
            self.check_state()
        for claim in self.left:  # Redis lost the list of workers, and nobody knows of this one
            claim.run.lost = True

    def advance(self, worker: Worker) -> None:
        """Finish a job that is held, or let a worker wake and take one."""
        if not self.claims:
            name = next(m for m, n in zip(METHODS, self.tokens(), strict=True) if n)
            self.send("LPOP", self.route(name).wake)
            self.take_by(worker)
        elif self.claims[0].value:
            self.finish_by(self.claims[0], False, EXPIRIES[0])
        else:
            self.admit_by(self.claims[0])
        self.check_state()

    def check_leaks(self) -> None:
        base = self.service.base
        lasting = {self.service.meta, self.service.workers}
        lasting |= {f"{base}{kind}:{m}" for kind in ("stats", "wake", "dead") for m in METHODS}
        lasting |= {claim.worker.post.running for claim in self.left}
        kept = {self.route(name).cache(key) for name, key in self.kept}
        for key, left_ms in self.send("EVAL", ALL_KEYS, 0):
            bounded = left_ms > 0 or key in kept or key.decode() in lasting
            self.check(13, bounded, f"{key!r} stays for ever")

    # -- small parts --------------------------------------------------------------------------

    def check(self, number: int, holds: bool, why: object) -> None:
        if not holds:
            self.failed = True
            raise AssertionError(f"rule {number} ({RULES[number]}): {why}")

    def send(self, *command: bytes | str | int | float) -> Any:
        """Send one command, and look at what Redis holds after it."""
        try:
            reply, *self.seen = self.wire.ask(pack(command) + self.look, 1 + self.looks)
        except hiredis.ReplyError:
            self.failed = True
            raise
        self.now += 1
        self.counts["commands"] += 1
        word = reply[0] if isinstance(reply, list) and reply else reply
        if command[0] == "EVALSHA" and isinstance(word, bytes) and word.isalpha():
            self.counts[f"{self.names[str(command[1])]} {word.decode()}"] += 1
        return reply

    def lengths(self) -> list[int]:
        """How many jobs wait, of each method."""
        return self.seen[-2 * len(METHODS) : -len(METHODS)]

    def tokens(self) -> list[int]:
        return self.seen[-len(METHODS) :]

    def route(self, method: str) -> Route:
        return self.routes[method, 0, 1]

    def generalist(self) -> Worker:
        return next(worker for worker in self.workers if len(worker.serves) == len(METHODS))

    def hire(self, serves: str) -> Worker:
        routes = [self.route(method) for method in serves]
        return Worker(serves, Post(self.service, f"w{next(self.ids)}", routes))
