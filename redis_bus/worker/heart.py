"""Heart: tells Redis, beside the work, that a worker is alive, and wakes it when it shall stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..calls.directory import publish
from ..calls.patience import LEAST_SECONDS
from ..calls.sweep import sweep
from ..errors import BusError, ProtocolError
from ..protocol.commands import LEASE_MS, Command, Post, methods_key
from ..protocol.descriptor import from_json
from ..protocol.target import Target
from .asker import LEAVE_SECONDS, Lane
from .stop_flag import StopFlag

if TYPE_CHECKING:
    from .worker import Worker

logger = logging.getLogger("redis_bus.heart")

# Four beats fit in a lease: three may be late or lost before the worker counts as dead.
BEAT_SECONDS = LEASE_MS / 1000 / 4
UNBLOCK_SECONDS = 0.05


class Heart:
    """A thread beside a worker; it beats also while jobs hold the worker for long."""

    def __init__(self, worker: Worker, targets: Sequence[Target], stopping: StopFlag) -> None:
        self._worker = worker
        self._targets = {target.name: target for target in targets}
        self._stopping = stopping
        self._ended = threading.Event()
        self._retired = False
        self._thread = threading.Thread(target=self._run, name="redis_bus heart", daemon=True)
        self._others: dict[str, str] = {}
        # Those that did not answer in time come last: they shall not keep the others from it.
        self._lanes: list[Lane] = []

    def start(self) -> None:
        """Beat once, so that the worker counts as alive, then go on in a thread.

        Raises ConnectionLost where Redis cannot be reached.
        """
        worker = self._worker
        self._lanes = list(worker.lanes)
        for dead in worker.succeeds:
            for post, _ in worker.lanes:
                worker.core.transport.ask(*post.lapse(dead))
        # Partition 0 last: who is alive there serves them all.
        for lane in reversed(self._lanes):
            self._beat(lane)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and the worker's lease at once."""
        self._ended.set()
        self._stopping.set()
        if self._thread.is_alive():  # its first beat may have failed
            self._thread.join()
        error = self._tell_all(lambda post: [post.leave()])
        if error is not None:
            logger.warning("worker %s: it cannot say that it leaves: %s", self._worker.id, error)

    def _run(self) -> None:
        # A signal that comes to this thread would not end what the main thread waits for.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        loop, healthy = self._worker.loop, True
        next_beat = time.monotonic() + BEAT_SECONDS
        while not self._ended.is_set():
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + BEAT_SECONDS
                healthy = self._try_to_beat(healthy)
            loop.look()
            if self._stopping.is_set():
                self._retire()
                # So that they see it; their next wait, too.
                self._worker.look_around()
                self._ended.wait(UNBLOCK_SECONDS)
            else:
                self._stopping.wait(min(loop.look_seconds, max(0.0, next_beat - time.monotonic())))

    def _try_to_beat(self, healthy: bool) -> bool:
        failed: list[Lane] = []
        end = time.monotonic() + BEAT_SECONDS
        for lane in list(self._lanes):
            try:
                self._beat(lane)
                if lane is self._worker.lanes[0]:
                    self._look_after_registry()
            except Exception as error:  # noqa: BLE001 - without its heart a worker counts as dead
                if healthy and not failed:
                    logger.warning(
                        "worker %s: its heartbeat failed: %s; it tries again every %g s",
                        self._worker.id,
                        error,
                        BEAT_SECONDS,
                    )
                failed.append(lane)
                if time.monotonic() > end:
                    break
        self._lanes = [lane for lane in self._lanes if lane not in failed] + failed
        return not failed

    def _beat(self, lane: Lane) -> None:
        """Renew the lease, see what is claimed, and look after workers whose lease has ended."""
        worker, core, (post, claims) = self._worker, self._worker.core, lane
        beat = post.beat(claims.all_held(), serves=not self._retired)
        held = ("HKEYS", post.running)
        lost, claimed = core.transport.ask(beat, held, timeout=BEAT_SECONDS)
        if lost:
            logger.info("worker %s: put back %d lost wake tokens", worker.id, lost)
        for asker in worker.askers:
            asker.leave_old_master()
        claims.give_back_lost(claimed)
        try:
            core.drive(sweep(core.name, post.service, BEAT_SECONDS))
        except BusError as error:
            logger.warning(
                "worker %s: it cannot look after others: %s; its next heartbeat tries again",
                worker.id,
                error,
            )

    def _look_after_registry(self) -> None:
        """Publish again what is gone: a cleanup, an empty Redis; notice other services."""
        names = list(self._targets)
        worker = self._worker
        service = worker.service
        registry = ("HMGET", methods_key(worker.core.name), *names)
        current = ("HMGET", service.meta, *names)
        listed, meta = worker.core.transport.ask(registry, current, timeout=BEAT_SECONDS)
        again = []
        for name, data, field in zip(names, listed, meta, strict=True):
            if data is None:
                again.append(name)
                continue
            etag = self._published_etag(name, data)
            if etag == self._targets[name].etag and (field or b"")[:16] != etag.encode():
                again.append(name)
        if again:
            logger.info("worker %s: publishes %s again", worker.id, ", ".join(again))
            registrations = [r for r in worker.registrations if r.name in again]
            targets = [self._targets[r.name] for r in registrations]
            descriptors = [r.published() for r in registrations]
            worker.core.drive(publish(worker.core.name, targets, descriptors))

    def _published_etag(self, name: str, data: bytes) -> str | None:
        """Return the etag that is published; say once whose it is where it is another's."""
        try:
            descriptor = from_json(name, data)
        except ProtocolError as error:
            logger.warning("%s", error)
            return None
        etag = descriptor.etag
        if etag != self._targets[name].etag and self._others.get(name) != etag:
            self._others[name] = etag
            logger.warning(
                "method %s is published differently by %s; callers follow that one",
                name,
                descriptor.publisher,
            )
        return etag

    def _retire(self) -> None:
        """Leave the list of those who serve: what runs may take long, no other job is taken."""
        if self._retired:
            return
        self._retired = True
        error = self._tell_all(Post.retire)
        if error is not None:
            logger.debug("worker %s: cannot say that it stops: %s", self._worker.id, error)

    def _tell_all(self, words: Callable[[Post], list[Command]]) -> BusError | None:
        """Send commands to each partition, also where another cannot be reached: return why not."""
        end, failure = time.monotonic() + LEAVE_SECONDS, None
        for post, _ in self._worker.lanes:
            left = max(LEAST_SECONDS, end - time.monotonic())
            try:
                self._worker.core.transport.ask(*words(post), timeout=left)
            except BusError as error:
                failure = error
        return failure
