"""Named steps of a call's life, each one script on a real Redis, so that a test reads as a story.

Keys and arguments are those of `redis_bus.protocol.commands`; replies are what Redis sent, as
bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from redis_bus.protocol import scripts
from redis_bus.protocol.commands import (
    FLIGHT_CAP_MS,
    GAP_MS,
    HOLD_MS,
    LEASE_MS,
    SWEPT_AT_ONCE,
    Claim,
    Command,
    Post,
    Route,
    Service,
    evalsha,
)
from redis_bus.protocol.entries import Job, Mode, parse_job
from tests.support import PATIENCE_SECONDS, eventually

ETAG = "etag-of-the-test"
OTHER_ETAG = "etag-of-another."
SHAPE = "shape-of-a-value"
OTHER_SHAPE = "shape-of-another"
BUDGET_MS = 5_000
KEEP_MS = 3_600_000
EXPIRE_MS = 86_400_000
VALUE = b"mvalue"
OTHER_VALUE = b"manother"
ERROR = b"eerror"
CANCELLED = b"ecancelled"
LOST = b"elost"
LETTERS = 1000
INBOX = "rb:inbox:of-a-client"
# What a stranger, or half a write, may leave under a key of ours.
FOREIGN = [
    b"",
    b"\0",
    b"\xff\xfe",
    b" ",
    b"\n",
    b"foreign bytes",
    b"1 2 3 4",
    b"a b\nc",
    b"9" * 400,
]


class Driver:
    """One service on the test's Redis, and the steps that its callers and workers take."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.service = Service("test", "unit")
        self._ids = itertools.count(1)

    def send(self, *command: bytes | str | int | float) -> Any:
        """Send one command past redis-py's command layer and return the reply, bytes as bytes."""
        try:
            return self._send(command)
        except redis.exceptions.NoScriptError:
            self.load_scripts()
            return self._send(command)

    def _send(self, command: Command) -> Any:
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            self.client.connection_pool.release(connection)

    def load_scripts(self) -> None:
        for script in scripts.load().values():
            self._send(("SCRIPT", "LOAD", script.source))

    # -- the steps --------------------------------------------------------------------------------

    def route(
        self,
        method: str = "m",
        *,
        etag: str = ETAG,
        max_queue: int | None = None,
        keep_ms: int = KEEP_MS,
        tries: int = 1,
    ) -> Route:
        return Route(self.service, method, etag, max_queue=max_queue, keep_ms=keep_ms, tries=tries)

    def post(self, worker: str = "w", methods: Sequence[str] = ("m",)) -> Post:
        return Post(self.service, worker, [self.route(method) for method in methods])

    def publish(self, method: str = "m", etag: str = ETAG, shape: str = SHAPE) -> Any:
        return self.send(*self.service.publish(method, etag, shape))

    def shut(
        self, etag: str = ETAG, shape: str = SHAPE, *, part: int = 0, span: int = 2, **ballot: bytes
    ) -> Any:
        return self.send(*self.service.at(part).shut("m", etag, shape, span, **ballot))

    def open(self, ballot: bytes, etag: str = ETAG, *, part: int = 0) -> Any:
        return self.send(*self.service.at(part).open("m", etag, ballot))

    def call(
        self,
        method: str = "m",
        *,
        key: bytes | None = None,
        mode: Mode | None = None,
        body: bytes = b"body",
        budget_ms: int = BUDGET_MS,
        job: str | None = None,
        etag: str = ETAG,
        max_queue: int | None = None,
        keep_ms: int = KEEP_MS,
        fail_fast: bool = False,
        but: str | None = None,
        tries: int = 1,
    ) -> Any:
        """Without a key the caller waits alone, with one it may be joined; or say the mode.

        The answer is that of the other modes where it is the short one of 'wait' and 'told'.
        """
        job = job or self.new_id()
        if mode is None:
            mode = Mode.WAIT if key is None else Mode.CALL
        route = self.route(method, etag=etag, max_queue=max_queue, keep_ms=keep_ms, tries=tries)
        command = route.call(
            job,
            body,
            mode=mode,
            budget_ms=budget_ms,
            key=key,
            fail_fast=fail_fast,
            but=but,
        )
        answer = self.send(*command)
        return [b"queued", job.encode(), answer] if isinstance(answer, int) else answer

    def run(self, method: str = "m", *, key: bytes | None = None, **options: Any) -> Any:
        return self.call(method, key=key, mode=Mode.RUN, **options)

    def queued(self, *args: Any, **options: Any) -> str:
        """Call, and return the id of the job that this enqueued."""
        status, job, _ = self.call(*args, **options)
        assert status == b"queued"
        return str(job.decode())

    def take(self, worker: str = "w", methods: Sequence[str] = ("m",)) -> Claim | None:
        post = self.post(worker, methods)
        return post.parse_take(self.send(*post.take(post.routes)), post.routes)

    def take_many(
        self, limit: int, worker: str = "w", methods: Sequence[str] = ("m",)
    ) -> list[Claim]:
        post = self.post(worker, methods)
        return post.parse_taken(self.send(*post.take(post.routes, limit)), post.routes)

    def taken(self, worker: str = "w", methods: Sequence[str] = ("m",)) -> Job:
        """Take, and return the job, which is there."""
        claim = self.take(worker, methods)
        assert claim is not None
        assert not claim.foreign
        return parse_job(claim.entry)

    def finish(
        self,
        job: Job,
        outcome: bytes = VALUE,
        *,
        worker: str = "w",
        method: str = "m",
        expire_ms: int = EXPIRE_MS,
        stale_ms: int = 0,
        spent_us: int = 7,
        now_ms: int = 0,
    ) -> Any:
        command = self.post(worker, [method]).finish(
            self.route(method),
            job,
            outcome,
            spent_us=spent_us,
            expire_ms=expire_ms,
            stale_ms=stale_ms,
            now_ms=now_ms,
        )
        return self.send(*command)

    def fill(self, key: bytes, outcome: bytes = VALUE, **options: Any) -> None:
        """Let a value be computed and stored under a key."""
        self.queued(key=key)
        assert self.finish(self.taken(), outcome, **options) == b"done"

    def admit(self, job: Job, *, worker: str = "w", method: str = "m") -> Any:
        return self.send(*self.post(worker, [method]).admit(self.route(method), job))

    def hold(self, job: str, *, worker: str = "w") -> Any:
        return self.send(*self.post(worker, ["m"]).hold(job))

    def release(self, job: str, *, worker: str = "w", method: str = "m") -> Any:
        return self.send(*self.post(worker, [method]).release(self.route(method), job))

    def discard(self, key: bytes, sha1: str, method: str = "m") -> Any:
        return self.send(*self.route(method).discard(key, sha1))

    def clear(self, key: bytes, method: str = "m", etag: str = ETAG) -> Any:
        return self.send(*self.route(method, etag=etag).clear(key))

    def clear_all(self, method: str = "m") -> Any:
        return self.send(*self.route(method).clear_all())

    def cancel(
        self,
        job: str,
        key: bytes | None = None,
        method: str = "m",
        enqueued_ms: int | None = None,
    ) -> Any:
        """Say when it was enqueued only for mode 'told'."""
        flight = None if key is None else self.route(method).flight(key)
        cancel = self.route(method).cancel(job, flight, CANCELLED, enqueued_ms=enqueued_ms)
        return self.send(*cancel)

    def listen(self, job: str, inbox: str = INBOX) -> Any:
        return self.send(*self.service.listen(job, inbox))

    def beat(
        self,
        worker: str = "w",
        methods: Sequence[str] = ("m",),
        flights: Sequence[Job] = (),
        lease_ms: int = LEASE_MS,
    ) -> Any:
        routes = [self.route(method) for method in methods]
        keys: list[bytes | str] = [self.service.workers, self.service.running(worker)]
        for route in routes:
            keys += [route.queue, route.wake, route.serving]
        keys += [routes[0].flight(job.key or b"") for job in flights]
        jobs = [job.id for job in flights]
        return self.send(*evalsha("beat", keys, worker, lease_ms, HOLD_MS, len(routes), *jobs))

    def leave(self, worker: str = "w", methods: Sequence[str] = ("m",)) -> Any:
        return self.send(*self.post(worker, methods).leave())

    def state(
        self, job: str, enqueued_ms: int, method: str = "m", workers: Sequence[str] = ()
    ) -> Any:
        return self.send(*self.route(method).state(job, enqueued_ms, workers))

    def sweep(
        self, *, lease_ms: int = LEASE_MS, gap_ms: int = GAP_MS, most: int = SWEPT_AT_ONCE
    ) -> tuple[int, list[bytes]]:
        """Return the ms until the next lease ends, and the workers whose lease has ended."""
        keys = [self.service.workers, self.service.swept]
        left, *ended = self.send(*evalsha("sweep", keys, lease_ms, gap_ms, most))
        return left, ended

    def held(self, worker: str = "w") -> dict[bytes, bytes]:
        """What a worker whose lease has ended holds: job and head of its entry."""
        found = self.send(*self.service.claims(worker))
        return dict(zip(found[::2], found[1::2], strict=True))

    def reclaim(
        self,
        job: str,
        key: bytes | None = None,
        *,
        worker: str = "w",
        method: str = "m",
        outcome: bytes = LOST,
        keep_ms: int = KEEP_MS,
        letters: int = LETTERS,
    ) -> Any:
        route, service = self.route(method), self.service
        keys: list[bytes | str] = [service.workers, service.running(worker), route.queue]
        keys += [route.wake, route.pending, service.reply(job), service.inboxes(job)]
        keys += [route.stats, route.dead]
        keys += [] if key is None else [route.flight(key)]
        times = (keep_ms, LEASE_MS, LEASE_MS, FLIGHT_CAP_MS)
        return self.send(*evalsha("reclaim", keys, worker, job, outcome, *times, letters))

    def bury(
        self,
        entry: bytes,
        job: bytes | str | None = None,
        *,
        worker: str = "w",
        letters: int = LETTERS,
    ) -> Any:
        keys = [self.route().dead] + ([] if job is None else [self.service.running(worker)])
        claimed = [] if job is None else [job]
        return self.send(*evalsha("bury", keys, worker, entry, letters, *claimed))

    def retry(self, letter: bytes, entry: bytes, job: str, method: str = "m") -> Any:
        return self.send(*self.route(method).retry_letter(letter, entry, job))

    def new_id(self) -> str:
        return f"job-{next(self._ids)}"

    # -- what is to be seen -----------------------------------------------------------------------

    def length(self, method: str = "m") -> int:
        return int(self.send("LLEN", self.route(method).queue))

    def tokens(self, method: str = "m") -> int:
        return int(self.send("LLEN", self.route(method).wake))

    def pop_token(self, method: str = "m") -> bool:
        """What a worker's wait does once it is woken."""
        return self.send("LPOP", self.route(method).wake) is not None

    def reply(self, job: str) -> list[bytes]:
        return list(self.send("LRANGE", self.service.reply(job), 0, -1))

    def reply_ttl(self, job: str) -> int:
        return int(self.send("PTTL", self.service.reply(job)))

    def inboxes(self, job: str) -> set[bytes]:
        """The channels on which a job's outcome will be told."""
        return set(self.client.smembers(self.service.inboxes(job)))

    def entry(self, key: bytes, method: str = "m") -> bytes | None:
        found = self.send("GET", self.route(method).cache(key))
        assert found is None or isinstance(found, bytes)
        return found

    def outcome(self, key: bytes, method: str = "m") -> bytes | None:
        """The outcome stored under a key."""
        entry = self.entry(key, method)
        return None if entry is None else entry.partition(b"\n")[2]

    def flight(self, key: bytes, method: str = "m") -> tuple[str, str, str] | None:
        """The job that may fill a key, its generation, and '1' where others wait for it."""
        found = self.send("GET", self.route(method).flight(key))
        if found is None:
            return None
        job, generation, shared = found.decode().split(" ")
        return job, generation, shared

    def generation(self, method: str = "m") -> str:
        return str(self.send("HGET", self.service.meta, method).decode().split(" ")[2])

    def claims(self, worker: str = "w") -> list[str]:
        return sorted(job.decode() for job in self.send("HKEYS", self.service.running(worker)))

    def pending(self, method: str = "m") -> dict[str, bytes]:
        """What is noted of jobs that may be cancelled, without when they were enqueued."""
        flat = iter(self.client.hgetall(self.route(method).pending).items())
        return {job.decode(): noted.lstrip(b"0123456789") for job, noted in flat}

    def waiting(self, method: str = "m") -> list[str]:
        """The jobs in a queue, the next one first."""
        entries = self.send("LRANGE", self.route(method).queue, 0, -1)
        return [entry.partition(b" ")[0].decode() for entry in entries]

    def lease_ends(self) -> dict[str, float]:
        """The workers, and when the lease of each ends."""
        found = self.client.zrange(self.service.workers, 0, -1, withscores=True)
        return {worker.decode(errors="replace"): ends for worker, ends in found}

    def letters(self, method: str = "m") -> list[bytes]:
        return list(self.send(*self.route(method).letters()))

    def stats(self, method: str = "m") -> dict[str, int]:
        found = self.client.hgetall(self.route(method).stats)
        return {name.decode(): int(count) for name, count in found.items()}

    def ttl(self, key: bytes | str) -> int:
        return int(self.send("PTTL", key))

    def all_keys(self) -> set[bytes]:
        return set(self.client.keys("*"))

    def now_ms(self) -> int:
        seconds, micros = self.send("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    # -- what happens around the scripts ----------------------------------------------------------

    def pass_by(self, time_ms: int) -> None:
        """Wait until the server's clock is past a time."""
        eventually(lambda: self.now_ms() > time_ms)

    def late(self, method: str = "m", **options: Any) -> str:
        """Enqueue a job whose deadline has passed, and return its id."""
        job = self.queued(method, budget_ms=1, **options)
        self.pass_by(self.now_ms() + 1)
        return job

    def lose_flight(self, key: bytes, method: str = "m") -> None:
        """Let a flight expire, as it does when its job waits for very long."""
        flight = self.route(method).flight(key)
        self.send("PEXPIRE", flight, 1)
        eventually(lambda: self.send("EXISTS", flight) == 0)

    def end_lease(self, worker: str = "w", ends_ms: float | None = None) -> None:
        """Let a lease end in the past; 0: it is known that the worker is dead."""
        if ends_ms is None:
            ends_ms = self.now_ms() - 1
        self.client.zadd(self.service.workers, {worker: ends_ms})

    @contextlib.contextmanager
    def memory_full(self) -> Iterator[None]:
        """Redis refuses whatever needs memory, and evicts nothing."""
        full = {"maxmemory-policy": "noeviction", "maxmemory": "1"}
        before = {name: self.client.config_get(name)[name] for name in full}
        try:
            for name, value in full.items():
                self.client.config_set(name, value)
            yield
        finally:
            for name, value in before.items():
                self.client.config_set(name, value)

    def make_stale(self, key: bytes, method: str = "m") -> None:
        """Set the soft expiry of a value into the past."""
        entry = self.entry(key, method)
        assert entry is not None
        head, _, outcome = entry.partition(b"\n")
        generation = head.split(b" ")[0]
        self.send("SET", self.route(method).cache(key), generation + b" 1\n" + outcome, "KEEPTTL")

    def blocked(self) -> int:
        """How many clients wait in Redis."""
        return int(self.client.info("clients")["blocked_clients"])


class Waiter:
    """A client that blocks on its own connection until it is answered."""

    def __init__(self, driver: Driver, command: Command) -> None:
        self._reply: Any = None
        self._thread = threading.Thread(target=self._wait, args=(driver, command), daemon=True)
        self._thread.start()

    def _wait(self, driver: Driver, command: Command) -> None:
        self._reply = driver.send(*command)

    def reply(self) -> Any:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "still blocked"
        return self._reply


class Listener:
    """A client that has subscribed a channel."""

    def __init__(self, driver: Driver, inbox: str = INBOX) -> None:
        self._driver, self._inbox = driver, inbox
        self._pubsub = driver.client.pubsub()
        self._pubsub.subscribe(inbox)
        assert self._next()["type"] == "subscribe"

    def told(self) -> list[bytes]:
        """What was published on the channel so far."""
        self._driver.send("PUBLISH", self._inbox, "the end")
        messages = []
        while (message := self._next()["data"]) != b"the end":
            messages.append(message)
        return messages

    def close(self) -> None:
        self._pubsub.close()

    def _next(self) -> dict[str, Any]:
        message = self._pubsub.get_message(timeout=PATIENCE_SECONDS)
        assert message is not None, "nothing is told"
        return dict(message)


def within(value: int, most: int, slack: int = 5_000) -> bool:
    """Whether what is left of an expiry is what was set, less what a slow machine takes."""
    return most - slack < value <= most
