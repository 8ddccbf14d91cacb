"""Worker: one id, one lease, and one or more slots that run jobs, until it is told to stop."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

import redis

from ..calls.partitions import count_partitions
from ..errors import BusError
from ..protocol.commands import Post
from ..protocol.registration import Registration
from ..protocol.target import Target
from ..transport.async_cluster import open_loops
from ..transport.loops import Loops
from ..transport.transport import READ_SECONDS
from .asker import LEAVE_SECONDS, Asker, Lane, unblock
from .claims import Claims
from .dispatch import Dispatch
from .fetcher import LOOK_SECONDS, Fetcher, SharedSlot
from .heart import Heart
from .loop import Loop, LoopHere, LoopThread
from .loop_slots import LoopFetcher, LoopSlot
from .quota import Quota
from .replicas import Replicas
from .runner import Runner
from .slot import Slot
from .stop_flag import StopFlag

if TYPE_CHECKING:
    from ..client.core import Core

logger = logging.getLogger("redis_bus.worker")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Whether this context imports a module whose bus is to be served by the one who imports it.
_imports = contextvars.ContextVar("redis_bus_imports", default=False)


class ServedAtImport(BusError):
    """A module serves by itself while it is imported to be served."""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Refuse to serve within the block: the module that is imported there shall not, by itself.

    A thread that the module starts may serve.
    """
    token = _imports.set(True)
    try:
        yield
    finally:
        _imports.reset(token)


class Worker:
    """Serves registered functions, ``concurrency`` jobs at a time, until it is told to stop.

    With ``max_jobs`` it stops by itself, once it has run so many.

    One job at a time runs in the thread that serves. More run in threads of their own, and their
    ``async def`` functions on one loop.
    """

    def __init__(
        self,
        core: Core,
        served: Sequence[tuple[Registration, Target]],
        *,
        debug: bool = False,
        concurrency: int = 1,
        max_jobs: int | None = None,
    ) -> None:
        self.core = core
        self.id = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.registrations = [registration for registration, _ in served]
        self._targets = targets = [target for _, target in served]
        self.service = targets[0].route.service
        # Workers whose place this one takes, of which its supervisor knows that they are dead.
        self.succeeds: tuple[str, ...] = ()
        # Whether jobs run in threads of their own even one at a time: a second signal leaves them.
        self.is_apart = False
        # Whether its supervisor keeps others beside it.
        self.has_others = False
        self.methods = frozenset(target.name for target in targets)
        self.stopping = StopFlag()
        self.loop: Loop = LoopHere() if concurrency == 1 else LoopThread()
        self.quota = Quota(max_jobs)
        self.replicas = Replicas(self)
        # Who waits for Redis to come back.
        self.away: set[Asker] = set()
        self._runners = [
            Runner(served, self.loop, core.middleware, debug=debug) for _ in range(concurrency)
        ]
        self._loops = self._open_loops() if concurrency > 1 else None
        self.lanes: list[Lane] = []
        self.slots: list[Slot] = []
        self._dispatch = Dispatch(self.stopping)
        self._fetchers: list[Fetcher] = []
        self._set_up(len(targets[0].routes))
        self._check_connections()
        self._heart = Heart(self, targets, self.stopping)
        self._signals = 0
        self._pid = os.getpid()
        # Slots that have ended, and None to leave those alone that have not.
        self._news: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._failures: list[BaseException] = []
        self._fetched = threading.Event()  # a fetcher has ended

    def _set_up(self, partitions: int) -> None:
        """Make ready for so many partitions. With one, each slot waits for its jobs itself."""
        self.lanes = []
        for part, routes in enumerate(
            zip(*(target.route.spread(partitions) for target in self._targets), strict=True)
        ):
            post = Post(self.service.at(part), self.id, routes)
            self.lanes.append(Lane(post, Claims(post, self.core.transport)))
        runners, lanes = list(enumerate(self._runners)), self.lanes
        self._fetchers, dispatch = [], self._dispatch
        if partitions == 1 and self._loops is not None:
            slots = [LoopSlot(self, lanes[0], runner, number) for number, runner in runners]
            self.slots = [*slots]
            self._fetchers = [LoopFetcher(self, lanes[0], slots, dispatch, self._loops)]
            return
        if partitions == 1:
            self.slots = [Slot(self, lanes[0], runner, number) for number, runner in runners]
            return
        self.slots = [SharedSlot(self, lanes, one, number, dispatch) for number, one in runners]
        self._fetchers = [Fetcher(self, lane, dispatch, n) for n, lane in enumerate(lanes)]

    # -- the two ways to serve ----------------------------------------------------------------

    def serve(self) -> None:
        """Run jobs until `stop`, a signal, or ``max_jobs`` of them. See `Bus.serve`."""
        _refuse_at_import()
        self._begin()
        with self._listening(), self._alive(), self._fetching():
            logger.info("worker %s serves %s", self.id, ", ".join(sorted(self.methods)))
            if isinstance(self.slots[0], LoopSlot):
                self._serve_on_loop()
            elif len(self.slots) == 1 and not self.is_apart:
                self.slots[0].serve()
            else:
                self._serve_in_threads()
        logger.info("worker %s has stopped", self.id)

    def serve_once(self) -> int:
        """Run the jobs that wait now, one after the other, and return how many there were."""
        _refuse_at_import()
        self._begin()
        with self._listening(), self._alive():
            queued = done = 0
            for post, _ in self.lanes:
                queues = (("LLEN", route.queue) for route in post.routes)
                queued += sum(self.core.transport.ask(*queues))
            while done < queued and not self.stopping.is_set() and self.slots[0].serve_next():
                done += 1
        return done

    def stop(self) -> None:
        """Finish what runs and take no other job; safe from any thread and signal handler."""
        self.stopping.set()

    def signalled(self) -> None:
        """Stop; at the second time leave alone jobs that run in threads of their own.

        Safe from any thread and signal handler.
        """
        self._signals += 1
        self.stop()
        self._news.put(None)

    def expects_others(self) -> bool:
        """Whether other workers of its supervisor are alive, or come; not once all are to end."""
        return self.has_others and not self.stopping.is_set()

    @property
    def askers(self) -> Sequence[Asker]:
        """Those that ask Redis for jobs, each over a connection of its own."""
        return self._fetchers or self.slots

    def running(self) -> list[str]:
        """Return the methods that run now, one for each job."""
        held = [slot.held for slot in self.slots if slot.runner.is_running]
        return [claim[0].method for claim in held if claim is not None]

    @property
    def was_told_twice(self) -> bool:
        """Whether a second signal said to stop at once."""
        return self._signals > 1

    # -- several jobs at a time ---------------------------------------------------------------

    def _serve_in_threads(self) -> None:
        """Serve with all slots until they have ended, or a second signal leaves them alone."""
        threads: dict[Slot, threading.Thread] = {}
        for slot in self.slots:
            # A daemon: the second signal ends the process, whatever a function does then.
            name = f"redis_bus slot {len(threads) + 1}"
            threads[slot] = threading.Thread(
                target=self._serve_slot, args=(slot,), name=name, daemon=True
            )
            threads[slot].start()
        while threads:
            ended = self._next_news(LOOK_SECONDS)
            if ended is not None:
                threads.pop(ended).join()
            elif self._signals > 1:
                self._abandon(threads)
                break
        if self._failures:
            raise self._failures[0]

    def _serve_slot(self, slot: Slot) -> None:
        try:
            self._keep_failure(slot.serve)
        finally:
            self._news.put(slot)

    def _keep_failure(self, serve: Callable[[], None]) -> None:
        try:
            serve()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that serves
            self._failures.append(error)
            self.stop()

    def _next_news(self, seconds: float) -> Slot | None:
        try:
            return self._news.get(timeout=seconds)
        except queue.Empty:
            return None

    def _abandon(self, threads: dict[Slot, threading.Thread]) -> None:
        """Tell those who wait for the jobs of these slots that they are lost, and go.

        A function in a thread cannot be ended from outside. What comes of it is not wanted then.
        """
        lost = [finish for finish in [slot.abandon() for slot in self.slots] if finish is not None]
        self.loop.cancel()
        replies = self.core.transport.exchange_each(*lost, timeout=LEAVE_SECONDS) if lost else []
        for error in [reply for reply in replies if isinstance(reply, BusError)][:1]:
            # Their callers learn it when the lease has ended.
            logger.warning("worker %s: cannot say which jobs are lost: %s", self.id, error)
        # Slots without a job are about to end.
        end = time.monotonic() + LEAVE_SECONDS
        while any(slot.held is None for slot in threads):
            ended = self._next_news(max(0.0, end - time.monotonic()))
            if ended is not None:
                threads.pop(ended).join()
            elif time.monotonic() >= end:
                break

    # -- fetchers -----------------------------------------------------------------------------

    def _open_loops(self) -> Loops | None:
        """Return the connections for outcomes where all jobs can run on the loop, else None."""
        if not all(registration.is_async for registration in self.registrations):
            return None
        try:
            return open_loops(self.core.transport)
        except TypeError:  # asyncio has no such connections
            return None

    def _serve_on_loop(self) -> None:
        """Wait until the fetcher has ended, or a second signal says to leave alone what runs."""
        while not self._fetched.is_set():
            self._next_news(LOOK_SECONDS)
            if self._signals > 1:
                self._abandon({})
                break

    def _fetch(self, fetcher: Fetcher) -> None:
        try:
            self._keep_failure(fetcher.serve)
        finally:
            self._fetched.set()
            self._news.put(None)

    @contextlib.contextmanager
    def _fetching(self) -> Iterator[None]:
        """Have the jobs of each partition fetched within the block, where slots do not do that."""
        threads = [
            threading.Thread(target=self._fetch, args=(one,), name="redis_bus fetcher", daemon=True)
            for one in self._fetchers
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            if threads:
                self.stop()
            end = time.monotonic() + (LEAVE_SECONDS if self.was_told_twice else READ_SECONDS)
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        if self._failures:
            raise self._failures[0]

    def look_around(self) -> None:
        """Have all who wait for a job see that the worker is to stop."""
        unblock(self.askers)
        self._dispatch.wake()
        for fetcher in self._fetchers:
            fetcher.wake()

    # -- staying alive, and stopping ----------------------------------------------------------

    def _begin(self) -> None:
        """Publish, and make ready for all partitions that the service has, or once had.

        What is queued in those that it has no longer is to be run, too.
        """
        self.publish()
        partitions = self.core.drive(count_partitions(self.service, len(self.lanes)))
        if partitions != len(self.lanes):
            self._set_up(partitions)
            self._check_connections()

    def _check_connections(self) -> None:
        """Raise BusError where there may be fewer connections than serving takes."""
        limit, jobs = self.core.transport.max_connections, len(self.askers)
        others = self.core.own_connections + int(self._loops is not None)
        if limit is not None and limit < jobs + 1 + others:
            more = f", {others} of asyncio" if others else ""
            raise BusError(
                f"max_connections={limit}: to serve so takes {jobs + 1 + others} connections to a "
                f"Redis ({jobs} to wait for jobs, 1 for the heartbeat{more}); allow of more, "
                f"and of one more for each call that its jobs make at a time"
            )

    def publish(self) -> None:
        """Publish the methods; where memory is full, the heart does that once there is room."""
        try:
            self.core.drive(self.core.publish(self.registrations))
        except BusError as error:
            if not isinstance(error.__cause__, redis.exceptions.OutOfMemoryError):
                raise
            logger.warning("worker %s: its methods are not published: %s", self.id, error)

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            self._heart.start()
            yield
        finally:
            self._heart.stop()
            self.loop.close()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT, where Python lets us: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # None: it was set by other than Python, which cannot be put back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A process that a job forked: it is no worker, the signal means it alone.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signalled()
        if len(self.slots) > 1:
            return
        if self._signals > 1:
            self.slots[0].runner.interrupt()
        else:
            self.slots[0].runner.tell_debugger()


def check_concurrency(concurrency: int, *, debug: bool) -> None:
    """Raise TypeError or ValueError for what cannot be the number of jobs at a time."""
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):
        kind = type(concurrency).__name__
        raise TypeError(f"concurrency={concurrency!r}: a whole number of jobs, not {kind}")
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency!r}: one job at a time is the least")
    if debug and concurrency > 1:
        raise ValueError(f"concurrency={concurrency!r}: pdb needs one job at a time (debug=True)")


def _refuse_at_import() -> None:
    if _imports.get():
        raise ServedAtImport("a module serves by itself when it is imported")
