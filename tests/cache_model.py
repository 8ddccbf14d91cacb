"""What the machine of `tests.cache_machine` knows: the promises, and a record for each part."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass, field
from typing import Any

import hiredis
import redis

from redis_bus.protocol import scripts
from redis_bus.protocol.commands import Post, pack
from redis_bus.protocol.entries import Job, Mode

RULES = {
    1: "Only results are cached; an error neither is stored nor overwrites a stale value.",
    2: "A key has one computation in flight, until a clear or until its flight is lost.",
    3: "Every waiter gets one outcome, and one that was computed for its own call.",
    4: "A call that starts after a clear never sees a value whose computation began before it.",
    5: "A value is stored once and as it was computed; one that is not to be kept is only shared.",
    6: "A stale value is served at once, while exactly one run refreshes it.",
    7: "What was cached before a registration of another shape is not served after it.",
    8: "Bytes that are not ours count as a miss.",
    9: "A cancelled job neither waits nor runs; one that others wait for is not cancelled.",
    10: "Who has no claim changes nothing: a script that is sent again, a worker given up.",
    11: "A queue that waits has a wake token, or a worker about to take; a beat restores it.",
    12: "A job that is not lost is taken once, in its turn.",
    13: "Nothing that grows with the number of calls is without an expiry.",
    14: "What was held when its lease ended runs again, or fails once it used up its tries.",
}

# What a method may be registered as: the second differs in what it says, the third in what its
# cached values mean.
REGISTRATIONS = [
    ("etag-of-the-first", "shape-of-a-value"),
    ("etag-with-an-expiry", "shape-of-a-value"),
    ("etag-of-another-key", "shape-of-another"),
]
SLOTS = [("a", b"k1"), ("a", b"k2"), ("b", b"k1")]
METHODS = "ab"
# How often a job may run, where workers die of it.
TRIES = [1, 3]
# Which methods the workers serve.
WORKERS = ["ab", "ba", "b"]
# The budget of a call, and all that has a life: longer than any test run.
LONG_MS = 3_600_000
NEVER_MS = -1
# An outcome that a run shall find later is kept for longer than for who waits already.
BRIEF_MS = 60_000
CANCELLED = b"ecancelled"
LOST = b"elost"
FOREIGN = b"foreign bytes"
ALL_KEYS = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = {key, redis.call('PTTL', key)}
end
return found
"""
# How long a value is served, and after that while it is refreshed.
EXPIRIES = [(LONG_MS, LONG_MS), (LONG_MS, LONG_MS), (LONG_MS, 0), (NEVER_MS, 0), (0, 0)]
# What Redis may lose beside flights and values.
LOSSES = [
    "value",
    "queue",
    "wake",
    "reply",
    "pending",
    "running",
    "meta",
    "stats",
    "serving",
    "workers",
    "swept",
    "swept",
]


class Wire:
    """A connection that sends packed commands and reads their replies, and does no more."""

    def __init__(self, client: redis.Redis) -> None:
        where = client.connection_pool.connection_kwargs
        if "path" in where:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(where["path"])
        else:
            self._socket = socket.create_connection((where["host"], where["port"]))
        self._reader = hiredis.Reader()

    def ask(self, packed: bytes, count: int) -> list[Any]:
        """Send commands in one write and return their replies, of which none is an error."""
        self._socket.sendall(packed)
        replies: list[Any] = []
        while len(replies) < count:
            reply = self._reader.gets()
            if reply is False:
                self._reader.feed(self._socket.recv(65536))
                continue
            replies.append(reply)
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
        return replies

    def load_scripts(self) -> None:
        sources = [("SCRIPT", "LOAD", script.source) for script in scripts.load().values()]
        self.ask(pack(*sources), len(sources))

    def close(self) -> None:
        self._socket.close()


@dataclass(slots=True, eq=False)
class Run:
    """A job, and what became of it."""

    id: str
    method: str
    key: bytes | None
    mode: Mode
    registration: int
    generation: int
    tries: int
    attempt: int = 1
    since_ms: int | None = None  # when it was enqueued, if that was answered alone
    noted: bool = False  # it can be cancelled: by its note, or in mode 'told' without one
    late: bool = False
    joined: bool = False
    cancelled: bool = False
    lost: bool = False  # with its queue, its claim or its worker: nobody will answer
    outcome: bytes | None = None
    moved: Run | None = None

    @property
    def shape(self) -> str:
        return REGISTRATIONS[self.registration][1]

    @property
    def last(self) -> Run:
        """The job that will answer who waits for this one."""
        return self.moved.last if self.moved else self

    @property
    def is_dropped(self) -> bool:
        """Whether a worker passes over it."""
        return (self.late and self.key is None) or self.cancelled


@dataclass(slots=True, eq=False)
class Waiter:
    """A caller, the job that it waits for, and since when values count for it."""

    run: Run
    shape: str
    floor: int
    mode: Mode
    own: bool


@dataclass(slots=True, eq=False)
class Claim:
    """A job in the hands of a worker."""

    worker: Worker
    run: Run
    job: Job
    admission: bool
    known: bool  # whether the worker got the answer of `take`
    stands: bool = True
    value: bytes | None = None  # once the computation has begun


class Lease(enum.Enum):
    """What Redis knows of a worker; the value is the end of its lease."""

    NONE = -1
    IS_DEAD = 0
    HAS_ENDED = 1
    GOES_ON = 2


@dataclass(slots=True, eq=False)
class Worker:
    serves: str
    post: Post
    lease: Lease = Lease.NONE

    @property
    def is_over(self) -> bool:
        """Whether a sweep finds it."""
        return self.lease in (Lease.IS_DEAD, Lease.HAS_ENDED)


@dataclass(slots=True, eq=False)
class Slot:
    """A cache key: its value, the job that fills it, and when it was last cleared."""

    value: bytes | None = None
    soft: bool = False  # it becomes stale before it ends
    stale: bool = False
    leader: Run | None = None
    floor: int = 0


@dataclass(slots=True, eq=False)
class Method:
    registration: int | None
    generation: int = 0
    written: int = 0  # the generation as Redis has it
    queue: list[Run] = field(default_factory=list)
    letters: int = 0
    owed: bool = False  # a token went with its worker, or was evicted; until the next beat
