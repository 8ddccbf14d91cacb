"""Replicas: whether they have what a worker does for durable methods, and what if not."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from ..errors import BusError
from ..protocol.commands import Post, Route
from ..protocol.confirm import Confirm
from ..protocol.entries import Job
from .asker import unblock

if TYPE_CHECKING:
    from .worker import Worker

logger = logging.getLogger("redis_bus.replicas")

# How long a worker waits for replicas: for less long than callers, who can withdraw only what no
# worker has taken. And how often it looks whether they are back.
CONFIRM_SECONDS = 1.0
LOOK_SECONDS = 0.5


class Replicas:
    """What the slots of one worker know of the replicas.

    While too few of them confirm, no job of a durable method is taken: they wait in their queues,
    where their callers can withdraw them. The worker's other methods are served meanwhile, and its
    other partitions, which may be on other servers: each is known by the post that serves it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._missed: dict[Post, int] = {}  # where not all is well: so many did not confirm
        self._others: dict[tuple[Post, int], Post | None] = {}

    @property
    def are_missed(self) -> bool:
        """Whether too few of them confirm something, somewhere."""
        return bool(self._missed)

    def confirm(self, route: Route) -> Confirm | None:
        """Return how what is written for a method is to be confirmed."""
        return Confirm(route.durable, CONFIRM_SECONDS) if route.durable else None

    def hold(self, post: Post, route: Route, job: Job) -> bool:
        """Whether a claimed job may begin: replicas have the claim, or none need to.

        Where they have not, it is given back.
        """
        confirm = self.confirm(route)
        if confirm is None:
            return True
        transport = self._worker.core.transport
        # Else it was asked for before that was known.
        if not 0 < self._missed.get(post, 0) <= route.durable:
            held, count = transport.exchange(post.hold(job.id), confirm=confirm)
            if held != b"held":
                text = "worker %s: job %s was given away before it began"
                logger.warning(text, post.worker, job.id)
                return False
            if self.has(post, route, count):
                return True
        transport.ask(post.release(route, job.id))
        return False

    def has(self, post: Post, route: Route, count: int) -> bool:
        """Note how many replicas confirmed something; return whether they are enough."""
        if count >= route.durable:
            return True
        with self._lock:
            before = self._missed.get(post, 0)
            self._missed[post] = min(before or route.durable, route.durable)
            if not before:
                logger.warning(
                    "worker %s: %d of %d replicas confirmed in %g s what it did for %s; it begins "
                    "no job of a durable method until they do",
                    self._worker.id,
                    count,
                    route.durable,
                    CONFIRM_SECONDS,
                    route.method,
                )
                name = "redis_bus replicas"
                look = threading.Thread(target=self._look, args=(post,), name=name, daemon=True)
                look.start()
        return False

    def served(self, post: Post) -> Post | None:
        """Return what may be taken now of what a post serves; None for nothing."""
        missed = self._missed.get(post, 0)
        if not missed:
            return post
        if (post, missed) not in self._others:
            routes = [route for route in post.routes if route.durable < missed]
            other = Post(post.service, post.worker, routes) if routes else None
            self._others[post, missed] = other
        return self._others[post, missed]

    def wait(self, post: Post) -> Post:
        """Return what may be taken of what a post serves, once there is something."""
        while (served := self.served(post)) is None:
            if self._worker.stopping.wait(LOOK_SECONDS):
                return post  # nothing is begun any more
        return served

    def _look(self, post: Post) -> None:
        """Write something until enough replicas confirm it."""
        worker = self._worker
        while not worker.stopping.wait(LOOK_SECONDS):
            confirm = Confirm(self._missed[post], CONFIRM_SECONDS)
            beat = post.beat([], serves=False)
            try:
                count = worker.core.transport.exchange(beat, confirm=confirm)[-1]
                if count >= confirm.replicas:
                    for claims in (lane.claims for lane in worker.lanes if lane.post is post):
                        for _ in claims.send_late():
                            pass  # as a rule they are there, and are kept no longer
            except BusError as error:
                logger.debug("worker %s: replicas cannot be asked for: %s", worker.id, error)
                continue
            if count >= confirm.replicas:
                with self._lock:
                    del self._missed[post]
                logger.info("worker %s: replicas confirm again what it does", worker.id)
                unblock(worker.askers)  # they wait for jobs of other methods
                return
