"""Keys, script calls and replies. Nothing here does any I/O: it says what goes over the wire.

Whatever decides the bytes of a command, or what bytes from Redis mean, lives in this file; the
scripts in ``lua/`` are its other half, and ``lua/README.rst`` describes both.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import hiredis

from ..errors import ProtocolError
from . import scripts
from .entries import Job, Mode

Command = tuple[bytes | str | int | float, ...]

LEASE_MS = 10_000
# A flight lasts its budget, but never longer than this, and a lease: a key is never stuck.
FLIGHT_CAP_MS = 60_000
# A flight outlives its worker's lease, so that a job that is given away finds its own.
HOLD_MS = 3 * LEASE_MS
# Where nobody looked for ended leases for that long, Redis may have stood still meanwhile.
GAP_MS = 7_000
# How many workers whose lease has ended one sweep looks after.
SWEPT_AT_ONCE = 10
# How long the outcome of a call is kept that its only waiter does not come for.
ALONE_MS = 40_000
DEAD_LETTERS_KEPT = 1000
# How long a job's outcome is told to a client that listens; it listens anew with each slice.
LISTEN_MS = 60_000
# A blocking command is sent for at most this long, so that a dead socket, a failover or a lost
# worker is noticed.
SLICE_SECONDS = 5.0
NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
JOB_ID = re.compile(r"[A-Za-z0-9_.-]+\Z")
METHOD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
ERROR_TAG = b"e"
MOVED_TAG = b">"
MOST_PARTITIONS = 1024
# How many jobs one `take` claims at the most: Redis stands still for it.
MOST_TAKEN = 500
# How many packed waits are kept: one for each number of jobs and each method that is first.
MOST_TURNS = 200
# hiredis annotates a tuple of any length as one of length 1.
_pack: Callable[[Command], bytes] = cast(Any, hiredis.pack_command)
_ASKING = _pack(("ASKING",))
# To look them up in their class takes as long as ten comparisons.
_WAIT, _RUN, _REFRESH = Mode.WAIT, Mode.RUN, Mode.REFRESH
BLOCKING = ("BLPOP", "BLMOVE")
ROLE: Command = ("ROLE",)
# Bytes of the reply to `call` that says it is queued in mode 'wait', and of that to `finish` that
# says it is done: what follows is waited for as well. No error is as short.
QUEUED_BYTES = len(b":1700000000000\r\n")
DONE_BYTES = len(b"$4\r\ndone\r\n")


class Ready(tuple[Any, ...]):
    """A command that is packed already: filling in what differs is faster than packing it all."""

    data: bytes


def _form(*parts: bytes | str | None) -> bytes:
    """Return a packed command with gaps, to be filled in by ``%``.

    None is a gap, for a length and as many bytes.
    """
    packed = [b"*%d\r\n" % len(parts)]
    for part in parts:
        if part is None:
            packed.append(b"$%d\r\n%b\r\n")
        else:
            text = part.encode() if isinstance(part, str) else part
            packed.append((b"$%d\r\n%b\r\n" % (len(text), text)).replace(b"%", b"%%"))
    return b"".join(packed)


def check_bus_name(name: str) -> str:
    """Return the name of a bus. Raises ValueError where it could reach into another's keys."""
    if not NAME.match(name):
        raise ValueError(f"bus name {name!r}: use one or more of A-Z a-z 0-9 _ . -")
    return name


def check_prefix(prefix: str) -> str:
    """Return a prefix, which may be empty. Raises ValueError for other than allowed characters."""
    if prefix and not METHOD_NAME.match(prefix):
        raise ValueError(
            f"prefix {prefix!r}: use A-Z a-z 0-9 _ . - and begin with a letter or an underscore"
        )
    return prefix


def check_method_name(name: str) -> str:
    """Return the name of a method. Raises ValueError where it is not one."""
    if not METHOD_NAME.match(name):
        raise ValueError(
            f"method name {name!r}: use A-Z a-z 0-9 _ . - and begin with a letter or an underscore"
        )
    return name


def pack(*commands: Command) -> bytes:
    """Return commands as they go over the wire, in one piece."""
    return b"".join([_packed(command) for command in commands])


def _packed(command: Command) -> bytes:
    return command.data if type(command) is Ready else _pack(command)


def pack_asking(commands: Iterable[Command]) -> bytes:
    """Return commands for a node of a cluster to which their slot is about to come."""
    return b"".join([part for one in commands for part in (_ASKING, _packed(one))])


def check_job_id(job: str) -> str:
    """Return the id of a job. Raises ValueError where it is not one."""
    if not JOB_ID.match(job):
        raise ValueError(f"job id {job!r}: use one or more of A-Z a-z 0-9 _ . -")
    return job


def wait_less(command: Command, passed: float) -> Command:
    """Return a command; one that blocks, so that it ends when it would have without a delay."""
    if command[0] not in BLOCKING:
        return command
    return (*command[:-1], max(0.001, round(float(command[-1]) - passed, 3)))


def evalsha(name: str, keys: Sequence[bytes | str], *args: bytes | str | int) -> Command:
    """Return the call of a script, by its name."""
    return ("EVALSHA", scripts.load()[name].sha, len(keys), *keys, *args)


def check_partitions(partitions: int) -> int:
    """Return a number of partitions. Raises TypeError or ValueError for what cannot be one."""
    if isinstance(partitions, bool) or not isinstance(partitions, int):
        kind = type(partitions).__name__
        raise TypeError(f"partitions={partitions!r}: a whole number, not {kind}")
    if not 1 <= partitions <= MOST_PARTITIONS:
        raise ValueError(f"partitions={partitions!r}: from 1 to {MOST_PARTITIONS}")
    return partitions


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a cache key: the same for callers in every language."""
    return zlib.crc32(key) % partitions


def methods_key(bus: str) -> str:
    """Return the key of the hash of a bus's descriptors: one key for discovery."""
    return f"rb:{{{bus}}}:methods"


def bus_of_methods_key(key: bytes) -> str | None:
    """Return the bus whose `methods_key` that is; None where it is none of ours."""
    name = key.decode("utf-8", "replace").removeprefix("rb:{").removesuffix("}:methods")
    # Keys of others may look alike, with names that no bus can have.
    return name if NAME.match(name) and methods_key(name).encode() == key else None


def bus_pattern(bus: str) -> str:
    """Return the SCAN pattern that matches the keys of one bus, and of no other."""
    return f"rb:{{{bus}[}}:]*"


@dataclass(frozen=True, slots=True)
class Service:
    """The keys of one service: a prefix on a bus. They share a hash tag, so a cluster slot.

    A service of several partitions has that for each of them. ``part`` 0 is there in any case.
    """

    bus: str
    prefix: str
    part: int = 0
    label: str = field(init=False)  # the service and its partition, in the ids of results, too
    base: str = field(init=False)

    def __post_init__(self) -> None:
        # '#' is in no name.
        label = f"{self.prefix}#{self.part}" if self.part else self.prefix
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "base", f"rb:{{{self.bus}:{label}}}:")

    def at(self, part: int) -> Service:
        """Return another partition of the service."""
        return self if part == self.part else Service(self.bus, self.prefix, part)

    @property
    def meta(self) -> str:
        return f"{self.base}meta"

    @property
    def workers(self) -> str:
        return f"{self.base}workers"

    @property
    def swept(self) -> str:
        return f"{self.base}swept"

    def running(self, worker: str) -> str:
        return f"{self.base}running:{worker}"

    def reply(self, job: str) -> str:
        return f"{self.base}reply:{job}"

    def publish(self, method: str, etag: str, shape: str) -> Command:
        return evalsha("publish", [self.meta], method, etag, shape)

    def shut(self, method: str, etag: str, shape: str, span: int, ballot: bytes = b"") -> Command:
        """Begin to publish in several partitions; in partition 0 that gives the ``ballot``."""
        return evalsha("shut", [self.meta], method, etag, shape, span, ballot)

    def open(self, method: str, etag: str, ballot: bytes) -> Command:
        return evalsha("open", [self.meta], method, etag, ballot)

    def span(self) -> Command:
        """Ask partition 0 how many there ever were; the answer is for `read_span`."""
        return ("HGET", self.meta, "#")

    def sweep(self) -> Command:
        """Find the workers whose lease has ended."""
        return evalsha("sweep", [self.workers, self.swept], LEASE_MS, GAP_MS, SWEPT_AT_ONCE)

    def claims(self, worker: str) -> Command:
        """Look what a worker whose lease has ended still holds."""
        return evalsha("claims", [self.workers, self.running(worker)], worker)

    def lapse(self, worker: str) -> Command:
        """End the lease of a worker that is known to be dead."""
        return ("ZADD", self.workers, "XX", 0, worker)

    def wait_alone(self, job: str, seconds: float) -> Command:
        """The wait of a job's only reader: it takes the outcome away."""
        return ("BLPOP", self.reply(job), seconds)

    def inboxes(self, job: str) -> str:
        return f"{self.base}inboxes:{job}"

    def listen(self, job: str, inbox: str) -> Command:
        """Have the outcome of a job told on a channel, or have it now, if it is there."""
        return evalsha("listen", [self.reply(job), self.inboxes(job)], inbox, LISTEN_MS)

    def look(self, job: str) -> Command:
        """The outcome of a job, if it is there."""
        return ("LINDEX", self.reply(job), 0)

    def wait_shared(self, job: str, seconds: float) -> Command:
        """The wait of one of many: the list is moved onto itself, so the outcome stays."""
        reply = self.reply(job)
        return ("BLMOVE", reply, reply, "LEFT", "LEFT", seconds)


class Route:
    """The commands that concern one published method, of a caller and of a worker."""

    def __init__(
        self,
        service: Service,
        method: str,
        etag: str = "",
        *,
        max_queue: int | None = None,
        keep_ms: int = 1,
        tries: int = 1,
        durable: int = 0,
    ) -> None:
        self.service = service
        self.method = method
        self.etag = etag
        self.keep_ms = keep_ms
        self._limit = 0 if max_queue is None else max_queue
        self.durable = durable  # how many replicas are to confirm what is written for it
        self.has_replicas = False  # whether so many confirmed what was written last
        self.alone_ms = min(ALONE_MS, max(keep_ms, LEASE_MS))
        base = service.base
        self.queue = f"{base}queue:{method}"
        self.wake = f"{base}wake:{method}"
        self.serving = f"{base}serving:{method}"
        self.stats = f"{base}stats:{method}"
        self.pending = f"{base}pending:{method}"
        self.dead = f"{base}dead:{method}"
        self._cache = f"{base}cache:{method}:".encode()
        self._flight = f"{base}flight:{method}:".encode()
        self._reply = f"{base}reply:"
        self._tries = tries
        self._call_limit = str(self._limit)
        self._call_times = (str(tries), str(keep_ms), str(LEASE_MS), str(FLIGHT_CAP_MS))
        sha = scripts.load()["call"].sha
        keys = (service.meta, self.stats, self.queue, self.wake)
        self._plain_call = ("EVALSHA", sha, "7", *keys)
        self._keyed_call = ("EVALSHA", sha, "9", *keys)
        names, values = (self.pending, self.serving), (method, etag)
        # job, budget, mode; limit; fast; times; key, body
        rest = (None, None, None, self._call_limit, None, *self._call_times, None, None)
        self._plain_form = _form(*self._plain_call, None, *names, *values, *rest)
        self._keyed_form = _form(*self._keyed_call, None, *names, None, None, *values, *rest)

    def spread(self, partitions: int) -> list[Route]:
        """Return the same in each of so many partitions, of which this is the first."""
        services = [self.service.at(part) for part in range(1, partitions)]
        make = functools.partial(
            Route,
            max_queue=self._limit,
            keep_ms=self.keep_ms,
            tries=self._tries,
            durable=self.durable,
        )
        return [self, *(make(service, self.method, self.etag) for service in services)]

    def cache(self, key: bytes) -> bytes:
        return self._cache + key

    def flight(self, key: bytes) -> bytes:
        return self._flight + key

    def call(
        self,
        job: str,
        body: bytes,
        *,
        mode: Mode,
        budget_ms: int,
        key: bytes | None = None,
        fail_fast: bool = False,
        but: str | None = None,
    ) -> Command:
        """Answer from the cache, join the flight, or enqueue. ``budget_ms`` 0: no deadline.

        It is refused where no worker alive serves the method: with ``fail_fast``; and with
        ``but``, a worker that is not counted.
        """
        reply, fast = self._reply + job, but or ("1" if fail_fast else "0")
        values = (
            self.method, self.etag, job, budget_ms, mode, self._call_limit, fast,
            *self._call_times, key or b"", body,
        )  # fmt: skip
        own, budget = job.encode(), b"%d" % budget_ms
        name, last = reply.encode(), (mode.encode(), fast.encode())
        if key is None:
            command = Ready((*self._plain_call, reply, self.pending, self.serving, *values))
            command.data = self._plain_form % (
                len(name), name, len(own), own, len(budget), budget, len(last[0]), last[0],
                len(last[1]), last[1], 0, b"", len(body), body,
            )  # fmt: skip
            return command
        cache, flight = self._cache + key, self._flight + key
        command = Ready(
            (*self._keyed_call, reply, self.pending, self.serving, cache, flight, *values)
        )
        command.data = self._keyed_form % (
            len(name), name, len(cache), cache, len(flight), flight, len(own), own,
            len(budget), budget, len(last[0]), last[0], len(last[1]), last[1],
            len(key), key, len(body), body,
        )  # fmt: skip
        return command

    def discard(self, key: bytes, sha1: str) -> Command:
        return evalsha("discard", [self.cache(key)], sha1)

    def clear(self, key: bytes) -> Command:
        keys = (self.service.meta, self.cache(key), self.flight(key))
        return evalsha("clear", keys, self.method, self.etag)

    def clear_all(self) -> Command:
        return evalsha("clear_all", [self.service.meta], self.method, self.etag)

    def state(self, job: str, enqueued_ms: int, workers: Iterable[str] = ()) -> Command:
        """Ask how a method is served, and where a job is; ``workers`` may have claimed it."""
        keys = [self.queue, self.serving, *map(self.service.running, workers)]
        return evalsha("state", keys, job, enqueued_ms)

    def cancel(
        self,
        job: str,
        flight: bytes | None,
        outcome: bytes,
        keep_ms: int | None = None,
        enqueued_ms: int | None = None,
    ) -> Command:
        """Withdraw a job that nobody has taken; its outcome is kept for the route's time.

        ``enqueued_ms``: when it was, in mode 'told'; 0: unknown, so it is found by its number.
        """
        service = self.service
        keys: list[bytes | str] = [self.queue, self.wake, self.pending]
        keys += [service.reply(job), service.inboxes(job), *([flight] if flight else [])]
        noted = [] if enqueued_ms is None else [enqueued_ms]
        return evalsha("cancel", keys, job, outcome, keep_ms or self.keep_ms, *noted)

    def reclaim(self, worker: str, job: str, key: bytes | None, outcome: bytes) -> Command:
        """Give a job away whose worker's lease has ended, or fail it with an outcome."""
        service = self.service
        keys: list[bytes | str] = [service.workers, service.running(worker), self.queue, self.wake]
        keys += [self.pending, service.reply(job), service.inboxes(job), self.stats, self.dead]
        keys += [] if key is None else [self.flight(key)]
        alone = self.alone_ms if key is None else LEASE_MS
        times = (max(self.keep_ms, LEASE_MS), alone, LEASE_MS, FLIGHT_CAP_MS)
        return evalsha("reclaim", keys, worker, job, outcome, *times, DEAD_LETTERS_KEPT)

    def bury(self, worker: str, entry: bytes, job: str | None = None) -> Command:
        """Put bytes that are no job to the dead letters; ``job``: as which they were claimed."""
        keys = [self.dead] + ([] if job is None else [self.service.running(worker)])
        claimed = [] if job is None else [job]
        return evalsha("bury", keys, worker, entry, DEAD_LETTERS_KEPT, *claimed)

    def letters(self) -> Command:
        return ("LRANGE", self.dead, 0, -1)

    def drop_letter(self, raw: bytes) -> Command:
        return ("LREM", self.dead, 1, raw)

    def retry_letter(self, raw: bytes, entry: bytes, job: str) -> Command:
        keys = [self.dead, self.queue, self.wake, self.pending, self.service.reply(job)]
        return evalsha("retry", keys, raw, entry)


def read_span(reply: bytes | None) -> int:
    """Return how many partitions a service ever had, as `Service.span` asks."""
    if reply is None or not reply.isdigit():
        return 1
    return min(max(1, int(reply)), MOST_PARTITIONS)


class Claim(NamedTuple):
    """What `take` answers: the job's method, its entry, and the server's time in ms."""

    route: Route
    entry: bytes
    now_ms: int
    foreign: bool


class Post:
    """The commands of one worker, for the methods that it serves."""

    def __init__(self, service: Service, worker: str, routes: Iterable[Route]) -> None:
        self.service = service
        self.worker = worker
        self.running = service.running(worker)
        self.routes = list(routes)
        self._turns: dict[tuple[int, int | None], tuple[list[Route], bytes]] = {}
        self._finishes: dict[tuple[Route, bool], tuple[tuple[str, ...], bytes]] = {}

    def turn(self, number: int, limit: int | None = None) -> tuple[list[Route], bytes]:
        """The routes in the order of a turn, and the packed wait and take for them.

        Another route is first each turn, so that no busy queue starves the rest.
        """
        first = number % len(self.routes)
        found = self._turns.get((first, limit))
        if found is None:
            order = self.routes[first:] + self.routes[:first]
            found = order, pack(self.wait(order, SLICE_SECONDS), self.take(order, limit))
            if len(self._turns) > MOST_TURNS:
                self._turns.clear()
            self._turns[first, limit] = found
        return found

    def wait(self, order: Sequence[Route], seconds: float) -> Command:
        return ("BLPOP", *(route.wake for route in order), seconds)

    def take(self, order: Sequence[Route], limit: int | None = None) -> Command:
        """Claim a job; with a ``limit``, so many at the most: their answer is for `parse_taken`."""
        keys: list[bytes | str] = [self.running, self.service.workers]
        for route in order:
            keys += [route.queue, route.wake, route.pending]
        return evalsha("take", keys, self.worker, LEASE_MS, *([] if limit is None else [limit]))

    def parse_take(self, reply: object, order: Sequence[Route]) -> Claim | None:
        """Return what `take` claimed, None for nothing. Raises ProtocolError for other replies."""
        if reply is None:
            return None
        if isinstance(reply, list) and len(reply) >= 3:
            index, entry, now, *foreign = reply
            route = order[(foreign[0] if foreign else index) - 1]
            return Claim(route, entry, now, bool(foreign))
        raise ProtocolError(f"take answered {reply!r}")

    def parse_taken(self, reply: object, order: Sequence[Route]) -> list[Claim]:
        """Return what `take` claimed that was given a limit. Raises ProtocolError."""
        if reply is None:
            return []
        if not isinstance(reply, list):
            raise ProtocolError(f"take answered {reply!r}")
        return [claim for one in reply if (claim := self.parse_take(one, order)) is not None]

    def finish(
        self,
        route: Route,
        job: Job,
        outcome: bytes,
        *,
        spent_us: int,
        expire_ms: int,
        stale_ms: int,
        now_ms: int = 0,
    ) -> Command:
        """Reply to every waiter, and store what is still valid. ``expire_ms`` -1: for ever.

        ``now_ms``: the server's time, as far as it is known, or earlier: so Redis need not look at
        its clock to know until when its caller waits.
        """
        # Who waits may be cut off from Redis for a while. With a key, the value is cached.
        alone, deadline = route.alone_ms if job.key is None else LEASE_MS, job.deadline_ms
        if job.mode is _RUN:
            alone, deadline = route.keep_ms, 0
        elif job.mode is _REFRESH:
            alone = 0
        elif deadline and now_ms:
            alone, deadline = max(0, min(alone, deadline - now_ms)), 0
        # Who joined may not have begun to wait: an outcome is kept for a lease at least.
        keep = max(route.keep_ms, LEASE_MS)
        args = (job.id, outcome, keep, alone, deadline, spent_us)
        if job.key is None:
            return self._finish_plain(route, job.mode is not _WAIT, *args)
        keys: list[bytes | str] = [self.running, self.service.reply(job.id), route.stats]
        if job.mode is not _WAIT:
            keys.append(self.service.inboxes(job.id))
        keys += [self.service.meta, route.cache(job.key), route.flight(job.key)]
        return evalsha("finish", keys, *args, route.method, job.generation, expire_ms, stale_ms)

    def _finish_plain(
        self,
        route: Route,
        tells: bool,
        job: str,
        outcome: bytes,
        keep: int,
        alone: int,
        deadline: int,
        spent: int,
    ) -> Command:
        """`finish` of a job without a key, packed: to fill in a form is faster than to pack it."""
        known = self._finishes.get((route, tells))
        if known is None:
            sha, count = scripts.load()["finish"].sha, "4" if tells else "3"
            start = ("EVALSHA", sha, count, self.running)
            gaps = [None] * (3 if tells else 2)
            form = _form(*start, None, route.stats, *gaps, str(keep), None, None, None)
            known = self._finishes[route, tells] = start, form
        head, form = known
        base, args = self.service.base, (job, outcome, keep, alone, deadline, spent)
        keys = (f"{base}reply:{job}", route.stats)
        own, numbers = job.encode(), (b"%d" % alone, b"%d" % deadline, b"%d" % spent)
        name, last = keys[0].encode(), (
            len(own), own, len(outcome), outcome, len(numbers[0]), numbers[0],
            len(numbers[1]), numbers[1], len(numbers[2]), numbers[2],
        )  # fmt: skip
        if not tells:
            command = Ready((*head, *keys, *args))
            command.data = form % (len(name), name, *last)
            return command
        told = f"{base}inboxes:{job}"
        also = told.encode()
        command = Ready((*head, *keys, told, *args))
        command.data = form % (len(name), name, len(also), also, *last)
        return command

    def admit(self, route: Route, job: Job) -> Command:
        assert job.key is not None
        service = self.service
        keys: list[bytes | str] = [self.running, service.reply(job.id), service.inboxes(job.id)]
        keys += [service.meta, route.cache(job.key), route.flight(job.key)]
        args = (job.generation, job.deadline_ms, HOLD_MS, max(route.keep_ms, LEASE_MS))
        return evalsha("admit", keys, job.id, route.method, *args)

    def hold(self, job: str) -> Command:
        """Write a claim once more, for replicas to confirm it behind this."""
        return evalsha("hold", [self.running], job)

    def release(self, route: Route, job: str) -> Command:
        keys = [self.running, route.queue, route.wake, route.pending]
        return evalsha("release", keys, job, FLIGHT_CAP_MS + LEASE_MS)

    def beat(self, flights: Sequence[tuple[Route, Job]], *, serves: bool = True) -> Command:
        """Renew the lease, for what it ``serves`` and for the flights of the jobs that run."""
        keyed = [(route, job) for route, job in flights if job.key is not None]
        return self._beat(LEASE_MS, self.routes if serves else [], keyed)

    def retire(self) -> list[Command]:
        """Serve nothing any more, though the lease goes on for the job that runs."""
        return [("ZREM", route.serving, self.worker) for route in self.routes]

    def lapse(self, worker: str) -> list[Command]:
        """End the lease of another worker of these methods, which is known to be dead."""
        served: list[Command] = [("ZREM", route.serving, worker) for route in self.routes]
        return [*served, self.service.lapse(worker)]

    def leave(self) -> Command:
        """End the lease at once."""
        return self._beat(0, self.routes, [])

    def _beat(
        self, lease_ms: int, served: Sequence[Route], flights: Sequence[tuple[Route, Job]]
    ) -> Command:
        keys: list[bytes | str] = [self.service.workers, self.running]
        for route in served:
            keys += [route.queue, route.wake, route.serving]
        keys += [route.flight(job.key or b"") for route, job in flights]
        jobs = [job.id for _, job in flights]
        return evalsha("beat", keys, self.worker, lease_ms, HOLD_MS, len(served), *jobs)


def needs_admission(job: Job, now_ms: int) -> bool:
    """Whether the key of a claimed job may be another's by now: it is late, or was given away."""
    if job.key is None:
        return False
    late = 0 < job.deadline_ms < now_ms
    return late or job.attempt > 1 or now_ms > job.enqueued_ms + FLIGHT_CAP_MS
