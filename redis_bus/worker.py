"""Worker: take a job, run it, finish it; one write and one wait for each."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import redis

from . import nested, outcome
from .claims import Claims
from .entries import Job, parse_job
from .errors import BusError, ProtocolError
from .heart import Heart
from .protocol import (
    LEASE_MS,
    Claim,
    Command,
    Post,
    Route,
    needs_admission,
    pack,
)
from .registration import Registration
from .runner import Runner
from .stop_flag import StopFlag, StopNow
from .target import Target
from .transport import READ_SECONDS, Link

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
# So often a connection breaks with an outcome of so many bytes, before another one is sent.
MAX_BROKEN_LINKS = 4
LARGE_BYTES = 500_000
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
    """Serves registered functions, one job at a time, until it is told to stop."""

    def __init__(
        self, core: Core, served: Sequence[tuple[Registration, Target]], *, debug: bool = False
    ) -> None:
        self.core = core
        self.id = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.registrations = [registration for registration, _ in served]
        targets = [target for _, target in served]
        service = targets[0].route.service
        self.post = Post(service, self.id, [target.route for target in targets])
        self.claims = Claims(self.post, core.transport)
        # Workers whose place this one takes, of which its supervisor knows that they are dead.
        self.succeeds: tuple[str, ...] = ()
        self._methods = frozenset(target.name for target in targets)
        self._runner = Runner(served, debug=debug)
        self._transport = core.transport
        self._stopping = StopFlag()
        self._heart = Heart(self, targets, self._stopping)
        self._out = threading.Event()
        self._unsent: Command | None = None
        self._broken_links = 0  # in a row, with the same outcome to send
        self._signals = 0
        self._pid = os.getpid()
        self._turns = 0

    # -- the two ways to serve ----------------------------------------------------------------

    def serve(self) -> None:
        """Run jobs until `stop` or a signal. See `Bus.serve`."""
        _refuse_at_import()
        self._publish()
        with self._listening(), self._alive():
            logger.info("worker %s serves %s", self.id, ", ".join(self._runner.names))
            while not self._stopping.is_set():
                try:
                    self._serve_link()
                except (BusError, redis.RedisError, OSError) as error:
                    self._wait_for_redis(error)
                    self._replace_large_outcome()
            self._deliver()
        logger.info("worker %s has stopped", self.id)

    def serve_once(self) -> int:
        """Run the jobs that wait now, and return how many there were."""
        _refuse_at_import()
        self._publish()
        with self._listening(), self._alive():
            lengths = self._transport.ask(*(("LLEN", r.queue) for r in self.post.routes))
            done = 0
            while done < sum(lengths) and not self._stopping.is_set():
                order, _ = self._next_turn()
                taken = self._transport.exchange(self.post.take(order))[0]
                claim = self.post.parse_take(taken, order)
                if claim is None:
                    break
                self._handle(claim)
                self._deliver()
                done += 1
        return done

    def stop(self) -> None:
        """Finish the running job and take no other; safe from any thread and signal handler."""
        self._stopping.set()

    # -- the loop -----------------------------------------------------------------------------

    def _serve_link(self) -> None:
        """Serve over one connection until it breaks or the worker stops."""
        link = self._transport.checkout()
        try:
            link.set_timeout(READ_SECONDS)
            link.send(pack(("CLIENT", "ID")))
            client = link.read()
            for reply in self.claims.send_late():
                self._accepted(reply)
            self.claims.give_back_strangers()
            while not self._stopping.is_set():
                self._step(link, client if isinstance(client, int) else None)
        except BaseException:
            link.close()
            raise
        self._transport.checkin(link)

    def _step(self, link: Link, client: int | None) -> None:
        """Send the last job's outcome, wait, take the next job: one write, then run it."""
        order, wait_and_take = self._next_turn()
        finish = self._unsent
        self._heart.waiting = client
        try:
            link.send(pack(finish) + wait_and_take if finish else wait_and_take)
            if finish and self._accepted(link.read()):
                self._unsent = self.claims.current = None
            elif finish:
                self._deliver()  # on another connection: this one waits already
            woken, taken = link.read(), link.read()
        finally:
            self._heart.waiting = None
        if isinstance(woken, redis.ResponseError):
            raise woken
        if isinstance(taken, redis.exceptions.NoScriptError):
            taken = self._transport.exchange(self.post.take(order))[0]
        if isinstance(taken, redis.ResponseError):
            raise taken
        claim = self.post.parse_take(taken, order)
        if claim is None:
            return
        if self._stopping.is_set() and not claim.foreign:
            self.claims.release(claim.route, parse_job(claim.entry).id)
            return
        self._handle(claim)

    def _next_turn(self) -> tuple[list[Route], bytes]:
        self._turns += 1
        return self.post.turn(self._turns)

    def _handle(self, claim: Claim) -> None:
        """Run a claimed job; its outcome is left in ``_unsent``."""
        try:
            if claim.foreign:
                raise ProtocolError(f"a queue entry that is no job: {claim.entry[:60]!r}")
            job = parse_job(claim.entry)
        except ProtocolError as error:
            logger.error("%s: %s; it is put to the dead letters", claim.route.method, error)
            self.claims.bury(claim.route, claim.entry, claimed=not claim.foreign)
            return
        if not self.claims.begin(claim.route, job):
            return
        if needs_admission(job, claim.now_ms):
            verdict = self._transport.exchange(self.post.admit(claim.route, job))[0]
            if verdict != b"run":
                self.claims.current = None
                return
        # Past its deadline it runs for those who joined it, whose own time is not known.
        left = (job.deadline_ms - claim.now_ms) / 1000 if job.deadline_ms else 0.0
        started = time.perf_counter()
        try:
            budget = left if left > 0 else None
            result = self._runner.run(claim.route.method, job, budget, self._host(job))
        except StopNow:
            result = self._runner.lost(claim.route.method)
        except BaseException as error:  # noqa: BLE001 - a function's own exceptions may misbehave
            # Raised amid C code, as in readline, StopNow may come out as a SystemError.
            is_stopped = self._signals > 1 and isinstance(error, SystemError)
            method = claim.route.method
            result = self._runner.lost(method) if is_stopped else self._runner.broken(method, error)
        self._unsent = self.post.finish(
            claim.route,
            job,
            result,
            spent_us=round((time.perf_counter() - started) * 1e6),
            expire_ms=self._runner.expire_ms(claim.route.method),
            stale_ms=self._runner.stale_ms(claim.route.method),
        )

    def _host(self, job: Job) -> nested.Host:
        """What a job's own calls are to know: while it runs, this worker runs no other."""
        service = self.post.service
        return nested.Host(self.id, service.base, self._methods, job.id)

    def _replace_large_outcome(self) -> None:
        """Say that an outcome is too large, where Redis cuts the connection whenever it comes.

        Redis does so above its ``proto-max-bulk-len``, with no other answer that is sure to arrive.
        """
        current = self.claims.current
        self._broken_links = self._broken_links + 1 if self._unsent else 0
        if self._unsent is None or current is None or self._broken_links < MAX_BROKEN_LINKS:
            return
        size = sum(len(part) for part in self._unsent if isinstance(part, bytes))
        if size < LARGE_BYTES:
            return
        route, job = current
        logger.error("%s: Redis takes no outcome of %d bytes", route.method, size)
        text = f"{route.method}: it ran, but Redis does not take its outcome of {size} bytes"
        lost = outcome.encode_error(BusError(text), trace="")
        self._unsent = self.post.finish(route, job, lost, spent_us=0, expire_ms=0, stale_ms=0)

    def _accepted(self, reply: Any) -> bool:
        """Whether Redis took an outcome; if not, it is sent again by `_deliver`."""
        if isinstance(reply, redis.exceptions.NoScriptError):
            return False
        if isinstance(reply, redis.ResponseError):
            logger.error("Redis refused an outcome, it is sent again: %s", reply)
            return False
        if reply == b"fenced":
            logger.warning("an outcome was not wanted: it was there already, or the job given away")
        return True

    def _deliver(self) -> None:
        """Send the outcome that was not sent yet; `finish` may be sent twice."""
        end = time.monotonic() + LEASE_MS / 1000
        for turn in itertools.count():
            unsent = self._unsent
            current = self.claims.current
            if unsent is None or current is None:
                self.claims.current = None
                return
            try:
                self._accepted(self._transport.exchange(unsent)[0])
                self._unsent = None
            except BusError as error:
                if time.monotonic() > end:
                    logger.error("an outcome cannot be sent now: %s", error)
                    self.claims.keep_late(current[1].id, unsent)
                    self._unsent = None
                else:
                    self._out.wait(BACKOFF_SECONDS[min(turn, len(BACKOFF_SECONDS) - 1)])

    # -- staying alive, and stopping ----------------------------------------------------------

    def _publish(self) -> None:
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
            self._out.set()
            self._heart.stop()
            self._runner.close()

    def _wait_for_redis(self, error: Exception) -> None:
        """Come back when Redis does; a worker is not restarted for that."""
        if self._unsent is None:
            self.claims.current = None  # it did not come to run: it is given back
        logger.warning("worker %s: %s; trying again", self.id, error)
        for seconds in itertools.chain(BACKOFF_SECONDS, itertools.repeat(BACKOFF_SECONDS[-1])):
            if self._stopping.wait(seconds):
                return
            try:
                self._transport.exchange(("PING",))
                self._publish()
            except BusError:
                continue
            logger.info("worker %s: Redis is back", self.id)
            return

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
        self._signals += 1
        self.stop()
        if self._signals > 1:
            self._runner.interrupt()
        else:
            self._runner.tell_debugger()


def _refuse_at_import() -> None:
    if _imports.get():
        raise ServedAtImport("a module serves by itself when it is imported")
