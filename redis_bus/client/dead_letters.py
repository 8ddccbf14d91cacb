"""Dead letters: jobs that were given up, kept for people to look at, try again or drop."""

from __future__ import annotations

import datetime
import hashlib
from typing import TYPE_CHECKING

from ..calls.partitions import count_partitions
from ..calls.steps import Steps, ask
from ..errors import BusError, ConnectionLost, ProtocolError, SerializationError
from ..protocol import arguments
from ..protocol.commands import Route
from ..protocol.entries import Job, Letter, parse_job, parse_letter, retried
from ..protocol.target import ShownCall, Target
from .result import AsyncResult

if TYPE_CHECKING:
    from .core import Core


class DeadLetter:
    """A job that no worker could finish; `Method.dead_letters` lists them.

    ``id`` is the job's, or a digest where the bytes are no job. ``why``: 'lost' with the workers
    that ran it, or 'foreign': not written by this library. ``time`` (UTC) is when that was found,
    ``worker`` by whom it was held, ``attempts`` how often it was begun, ``call`` what was called.
    """

    def __init__(self, core: Core, target: Target, route: Route, letter: Letter) -> None:
        self._core = core
        self._route = route
        self._letter = letter
        self._job = _job_of(letter)
        self.method = target.name
        self.id = self._job.id if self._job else hashlib.sha256(letter.raw).hexdigest()[:16]
        self.why = letter.why
        self.time = datetime.datetime.fromtimestamp(letter.when_ms / 1000, datetime.timezone.utc)
        self.worker = letter.worker
        self.attempts = self._job.attempt if self._job else 0
        self.call = _shown(target, self._job, letter.entry)

    def retry(self) -> AsyncResult:
        """Give the job to the workers again, as often as before, and return its result to be.

        It has no deadline any more. Raises BusError where the bytes are no job, or where somebody
        else has retried or dropped the letter.
        """
        job = self._job
        if job is None:
            raise BusError(
                f"{self.method}: dead letter {self.id} is no job: it can only be dropped"
            )
        entry = retried(self._letter.entry)
        command = self._route.retry_letter(self._letter.raw, entry, job.id)
        try:
            was_there = self._core.transport.exchange(command)[0]
        except ConnectionLost as error:
            text = f"{self.method}: dead letter {self.id}: {error}; it may be tried again, or not"
            raise ConnectionLost(text) from error
        if not was_there:
            raise BusError(f"{self.method}: dead letter {self.id} is not there any more")
        return AsyncResult(self._core, self._route, job.id)

    def drop(self) -> bool:
        """Delete the letter. Returns whether it was still there."""
        command = self._route.drop_letter(self._letter.raw)
        return bool(self._core.transport.ask(command)[0])

    def __repr__(self) -> str:
        return f"<dead letter {self.id} of {self.call}: {self.why}, {self.time:%Y-%m-%d %H:%M:%S}>"


def dead_letters(core: Core, target: Target) -> list[DeadLetter]:
    """Return the dead letters of a method, oldest first."""
    found = core.drive(list_letters(target))
    return [DeadLetter(core, target, route, letter) for route, letter in found]


def list_letters(target: Target) -> Steps[list[tuple[Route, Letter]]]:
    """Return the letters of all partitions that there ever were, oldest first."""
    found: list[tuple[Route, Letter]] = []
    span = yield from count_partitions(target.route.service, len(target.routes))
    for route in target.route.spread(span):
        found += [(route, parse_letter(raw)) for raw in (yield ask(route.letters()))[0]]
    return sorted(found, key=lambda one: one[1].when_ms) if span > 1 else found


def _job_of(letter: Letter) -> Job | None:
    try:
        return parse_job(letter.entry)
    except ProtocolError:
        return None


def _shown(target: Target, job: Job | None, entry: bytes) -> str:
    if job is None:
        return f"{target.name}: {entry[:60]!r}"
    try:
        given = arguments.decode(job.body, target.serializer)
    except (ProtocolError, SerializationError):
        return f"{target.name}(<{len(job.body)} bytes>)"
    return str(ShownCall(target.name, given.args, given.kwargs))
