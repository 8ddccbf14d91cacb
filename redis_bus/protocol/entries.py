"""Lines in Redis: queue entries, cached entries and dead letters, and what they mean."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from ..errors import ProtocolError

# How often a job that may be repeated is run, where its workers die.
MAX_ATTEMPTS = 3
_ENTRY_LINE = re.compile(rb"\d+ \d+\n", re.ASCII)
_LETTER_LINE = re.compile(rb"(\d+) ([a-z]+) ([!-~]+)\n", re.ASCII)


class Mode(str, Enum):
    """What the caller of a job does: it decides who reads the outcome, and how long it is kept."""

    WAIT = "wait"  # blocks on the reply list in the same write; the only reader
    CALL = "call"  # of a method with a cache key; others may join it
    ASYNC = "async"  # the same, with a key or without, by a caller that listens and may cancel
    TOLD = "told"  # is told on the inbox that the job's id names, alone, and may cancel
    RUN = "run"  # comes back for the outcome, any number of times
    REFRESH = "refresh"  # nobody: the value was stale and its caller has been served


_MODES = {mode.value: mode for mode in Mode}


class Job(NamedTuple):
    """A claimed job, as its queue entry has it; times are the server's, in ms."""

    id: str
    method: str
    attempt: int
    tries: int
    deadline_ms: int  # 0: none
    enqueued_ms: int
    etag: str
    mode: Mode
    generation: str
    key: bytes | None
    body: bytes


def parse_job(entry: bytes) -> Job:
    """Return the job in a queue entry. Raises ProtocolError for bytes that are not ours."""
    head, _, rest = entry.partition(b"\n")
    try:
        parts = head.decode().split(" ")
        job, attempt, tries, deadline, enqueued, etag, mode, generation, size, method = parts
        length = 0 if size == "-" else int(size)
        if not 0 <= length <= len(rest):
            raise ValueError(size)
        # In their order: names of arguments would take as long as all the rest.
        return Job(
            job,
            method,
            int(attempt),
            int(tries),
            int(deadline),
            int(enqueued),
            etag,
            _MODES[mode],
            generation,
            None if size == "-" else rest[:length],
            rest[length:],
        )
    except (ValueError, KeyError):
        raise ProtocolError(f"a queue entry that is no job: {entry[:60]!r}") from None


def parse_entry(entry: bytes) -> bytes:
    """Return the outcome in a cached entry. Raises ProtocolError for bytes that are not ours."""
    line = _ENTRY_LINE.match(entry)
    if not line:
        raise ProtocolError(f"a cached value that is not ours: {entry[:60]!r}")
    return entry[line.end() :]


class Letter(NamedTuple):
    """A job that was given up, or bytes that are none, as the list of dead letters has it."""

    when_ms: int
    why: str  # 'lost' with its workers, or 'foreign' bytes
    worker: str
    entry: bytes
    raw: bytes


def parse_letter(raw: bytes) -> Letter:
    """Return the dead letter in an item of the list; what has no line of ours is all entry."""
    line = _LETTER_LINE.match(raw)
    if not line:
        return Letter(0, "foreign", "", raw, raw)
    when, why, worker = line.groups()
    return Letter(int(when), why.decode(), worker.decode(), raw[line.end() :], raw)


def retried(entry: bytes) -> bytes:
    """Return a queue entry that was given up, to be tried as often again, with no deadline."""
    head, _, rest = entry.partition(b"\n")
    job, attempt, tries, _, enqueued, etag, _, *others = head.split(b" ")
    again = int(attempt) + 1
    more = int(attempt) + (MAX_ATTEMPTS if int(tries) > 1 else 1)
    fields = [job, b"%d" % again, b"%d" % more, b"0", enqueued, etag, b"run", *others]
    return b" ".join(fields) + b"\n" + rest
