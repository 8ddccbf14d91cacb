"""Claims: the jobs that a worker holds, as it knows them and as Redis does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from .entries import Job, parse_job
from .errors import ProtocolError
from .protocol import Command, Post, Route
from .transport import Transport

logger = logging.getLogger(__name__)


class Claims:
    """What one worker holds. A claim that it does not know of came with a reply that was lost.

    Such a job is given back, not started. The loop may be about to start it all the same, while
    the heart gives it back: a lock decides which of them it is.
    """

    def __init__(self, post: Post, transport: Transport) -> None:
        self.current: tuple[Route, Job] | None = None
        self._post = post
        self._transport = transport
        self._lock = threading.Lock()
        self._given_back: set[str] = set()
        self._suspects: set[str] = set()
        # Outcomes that Redis did not take in time: their jobs were run, and are not to run again.
        self._late: dict[str, Command] = {}

    def begin(self, route: Route, job: Job) -> bool:
        """Note the job that is to run now. Returns False where it was given back meanwhile."""
        with self._lock:
            if job.id not in self._given_back:
                self.current = (route, job)
                return True
            self._given_back.discard(job.id)
        # It may have been claimed a second time.
        self.release(route, job.id)
        return False

    def release(self, route: Route, job: str) -> None:
        """Give a job back, not started, to the head of its queue."""
        self._transport.ask(self._post.release(route, job))

    def bury(self, route: Route, entry: bytes, *, claimed: bool) -> None:
        """Put what is no job to the dead letters."""
        job = entry.partition(b" ")[0].decode("ascii", "replace") if claimed else None
        self._transport.exchange(route.bury(self._post.worker, entry, job))

    def keep_late(self, job: str, finish: Command) -> None:
        """Keep an outcome until Redis takes it again."""
        self._late[job] = finish

    def send_late(self) -> Iterable[object]:
        """Send the outcomes that were kept, and return the replies one by one."""
        for job, finish in list(self._late.items()):
            yield self._transport.exchange(finish)[0]
            del self._late[job]

    def give_back_strangers(self) -> None:
        """Give back all claims of which nothing is known; on a new connection, before it takes."""
        with self._lock:
            self._given_back.clear()  # what was on its way on the old connection never comes
        found = self._transport.ask(("HKEYS", self._post.running))[0]
        for job in self._strangers(found):
            self._give_back(job)

    def give_back_lost(self, found: Iterable[bytes]) -> None:
        """Give back what was claimed and not known at this beat and the one before.

        A claim on the way here is neither: it is known as soon as the loop has read it. What Redis
        took for a connection that was lost already, after the new one looked for that, is both.
        """
        strangers = self._strangers(found)
        for job in strangers & self._suspects:
            # Held until it is given back: else the loop may take it anew meanwhile, and run it.
            with self._lock:
                if self.current is None or self.current[1].id != job:
                    self._given_back.add(job)
                    self._give_back(job)
        self._suspects = strangers

    def _strangers(self, found: Iterable[bytes]) -> set[str]:
        current = self.current
        known = {*self._late, *([current[1].id] if current else [])}
        return {job.decode("utf-8", "surrogateescape") for job in found} - known

    def _give_back(self, job: str) -> None:
        field = job.encode("utf-8", "surrogateescape")
        entry = self._transport.ask(("HGET", self._post.running, field))[0]
        routes = {route.method: route for route in self._post.routes}
        try:
            method = parse_job(entry or b"").method
        except ProtocolError as error:
            if entry is not None:
                logger.error("worker %s: %s; it is deleted", self._post.worker, error)
                self._transport.ask(("HDEL", self._post.running, field))
            return
        if method in routes:
            logger.info("worker %s: gives job %s back, not started", self._post.worker, job)
            self.release(routes[method], job)
