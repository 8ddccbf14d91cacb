"""Runner: decode the arguments of a job, run its function, encode what came of it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..calls import context, nested
from ..calls.middleware import Chain, Run
from ..client import forks
from ..errors import BusError, ProtocolError, SerializationError, WorkerLost
from ..printable import printable
from ..protocol import arguments, codec, deadline, outcome
from ..protocol.arguments import Arguments
from ..protocol.entries import Job
from ..protocol.registration import Registration
from ..protocol.target import ShownCall, Target
from .frames import user_frames, user_trace
from .loop import Loop, LoopHere, LoopThread
from .stop_flag import StopNow

if TYPE_CHECKING:
    from .debugger import Debugger

logger = logging.getLogger("redis_bus.runner")


# Results of these types are no awaitables: most are of one of them, and it takes a while to look.
_PLAIN = {bool, bytes, dict, float, int, list, str, tuple, type(None)}


class _Mismatch(Exception):
    """The job was made for another registration of its method than the one served here."""


@dataclass(frozen=True, slots=True)
class _Served:
    function: Callable[..., Any]
    target: Target
    expire_ms: int
    stale_ms: int


class Start(NamedTuple):
    """How a job comes to run: what is left of its caller's time, how long it waited, and where.

    ``left`` (s) is inherited by nested calls; None: no end. ``host``: whose other jobs wait now.
    """

    left: float | None
    waited: float
    host: nested.Host


class Runner:
    """Runs the functions that a worker serves, one at a time; knows nothing of Redis.

    ``async def`` functions run on the ``loop``, and the run hooks of ``middleware`` around all.
    """

    def __init__(
        self,
        served: Sequence[tuple[Registration, Target]],
        loop: Loop,
        middleware: Chain,
        *,
        debug: bool = False,
    ) -> None:
        self._hooks = middleware
        self._debug = debug
        self._running = False
        self._debugger: Debugger | None = None
        self._loop = loop
        self._served = {
            registration.name: _Served(
                function=registration.function,
                target=target,
                expire_ms=_as_ms(registration.settings.cache_expire),
                stale_ms=_as_ms(registration.settings.stale),
            )
            for registration, target in served
        }

    @property
    def names(self) -> list[str]:
        """The methods served, sorted."""
        return sorted(self._served)

    def expire_ms(self, name: str) -> int:
        """How long a method's values are cached: -1 for ever, 0 not."""
        return self._served[name].expire_ms

    def stale_ms(self, name: str) -> int:
        """How long after that they are served while they are refreshed."""
        return self._served[name].stale_ms

    def run(self, name: str, job: Job, start: Start) -> bytes:
        """Run a method for a job and return the outcome.

        Raises StopNow, and nothing else: whatever the function raises is an outcome.
        """
        given = self._read(name, job)
        if isinstance(given, bytes):
            return given
        try:
            return contextvars.copy_context().run(self._carry_out, name, job, given, start)
        except StopNow:
            raise
        except BaseException as error:  # noqa: BLE001 - also SystemExit: a function stops no worker
            return self._failed(error, _shown(name, given))

    async def run_on_loop(self, name: str, job: Job, start: Start, loop: LoopThread) -> bytes:
        """Like `run`, for an ``async def`` function, in the task of its job on that loop."""
        given = self._read(name, job)
        if isinstance(given, bytes):
            return given
        try:
            served, run = self._served[name], self._enter(name, job, given, start)
            here = os.getpid()
            try:
                self._running = True
                try:
                    value = await served.function(*given.args, **given.kwargs)
                    if os.getpid() != here:
                        forks.end_if_forked(here, name, None)
                except BaseException as error:
                    forks.end_if_forked(here, name, error)
                    if loop.was_cancelled and isinstance(error, asyncio.CancelledError):
                        raise StopNow from None
                    raise
                finally:
                    self._running = False
                encoded = codec.encode(value, served.target.serializer, root="result")
            except BaseException as error:
                self._failed_between(run, error)
                raise
            if run is not None:
                self._hooks.runs.after(run, value)
            return encoded
        except StopNow:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            return self._failed(error, _shown(name, given))

    def _read(self, name: str, job: Job) -> Arguments | bytes:
        """Return the arguments of a job; the outcome, where they are none that can be used."""
        target, given = self._served[name].target, None
        # What comes before the hooks is logged here, the rest by the middleware that logs.
        try:
            given = arguments.decode(job.body, target.serializer)
            if job.etag != target.etag:
                _check_fit(target, given)
        except StopNow:
            raise
        except BaseException as error:  # noqa: BLE001 - a serializer of the user's, too
            logger.error("%s: %s", name, printable(outcome.text_of(error)))
            return self._failed(error, _shown(name, given))
        return given

    def lost(self, name: str) -> bytes:
        """The outcome of a job whose worker was told to stop at once."""
        return outcome.encode_error(
            WorkerLost(f"{name}: its worker was stopped while it ran"), trace=""
        )

    def broken(self, name: str, error: BaseException) -> bytes:
        """The outcome of a job whose exception could not even be looked at."""
        logger.error("%s: its exception of type %s cannot be shown", name, type(error).__name__)
        text = f"{name} raised an exception that cannot be shown, of type {type(error).__name__}"
        return outcome.encode_error(BusError(text), trace="")

    @property
    def is_running(self) -> bool:
        """Whether a function runs."""
        return self._running

    def interrupt(self) -> None:
        """Raise StopNow in the running function; for signal handlers, in the main thread.

        An ``async def`` function is cancelled instead: what is raised amid the loop's own work
        would be lost there. Where that does not end it, a third signal does as to any other.
        """
        if isinstance(self._loop, LoopHere) and self._loop.interrupt():
            return
        if self._debugger is not None:
            self._debugger.leave()
        elif self._running:
            raise StopNow

    def tell_debugger(self) -> None:
        """Say in pdb, where it is open, that the worker was told to stop; for signal handlers."""
        if self._debugger is not None:
            self._debugger.tell()

    def _carry_out(self, name: str, job: Job, given: Arguments, start: Start) -> bytes:
        """Run the function between the hooks, in a context of its own; return what it returned."""
        served, run = self._served[name], self._enter(name, job, given, start)
        try:
            value = self._call(name, given)
            encoded = codec.encode(value, served.target.serializer, root="result")
        except BaseException as error:
            self._failed_between(run, error)
            raise
        if run is not None:
            self._hooks.runs.after(run, value)
        return encoded

    def _enter(self, name: str, job: Job, given: Arguments, start: Start) -> Run | None:
        """Make this the context of a job, and call the first hooks; return what they are told of.

        None where there are no hooks.
        """
        deadline.inherit(start.left)
        nested.runs_on(start.host, job.id)
        context.came_with(given.headers)
        hooks = self._hooks.runs
        if not hooks.are_any:
            return None
        run = Run(
            self._served[name].target.route.service.bus,
            name,
            given.args,
            given.kwargs,
            given.headers,
            job=job.id,
            attempt=job.attempt,
            waited=start.waited,
        )
        hooks.before(run)
        return run

    def _failed_between(self, run: Run | None, error: BaseException) -> None:
        """Call the hooks of a run that failed."""
        if run is None:
            return
        if isinstance(error, StopNow):
            run.was_stopped = True
            error = WorkerLost(f"{run.method}: its worker was stopped while it ran")
        self._hooks.runs.failed(run, error)

    def _call(self, name: str, given: Arguments) -> Any:
        here = os.getpid()
        try:
            self._running = True
            value = self._served[name].function(*given.args, **given.kwargs)
            if os.getpid() != here:
                forks.end_if_forked(here, name, None)
            if type(value) not in _PLAIN and inspect.isawaitable(value):
                value = self._loop.run(value, name)
        except BaseException as error:
            forks.end_if_forked(here, name, error)
            raise
        finally:
            self._running = False
        return value

    def _failed(self, error: BaseException, shown: ShownCall | str) -> bytes:
        trace = user_trace(error)
        if isinstance(error, (SerializationError, ProtocolError, _Mismatch)):
            # Of a value that cannot be sent, say: it does not name the call by itself.
            kind = BusError if isinstance(error, _Mismatch) else type(error)
            return outcome.encode_error(kind(f"{shown}: {error}"), trace)
        if self._debug:
            sys.stderr.write(f"{trace}\n")
            self._examine(user_frames(error))
        return outcome.encode_error(error, trace)

    def _examine(self, frames: TracebackType | None) -> None:
        """Open pdb, until it is left or `interrupt` ends it. Raises StopNow in that case."""
        from .debugger import Debugger

        self._debugger = Debugger()
        try:
            self._debugger.examine(frames)
        finally:
            self._debugger = None


def _shown(name: str, given: Arguments | None) -> ShownCall | str:
    return name if given is None else ShownCall(name, given.args, given.kwargs)


def _check_fit(target: Target, given: Arguments) -> None:
    """Raise _Mismatch where arguments for another registration do not fit this one."""
    try:
        target.bind(*given.args, **given.kwargs)
    except TypeError as error:
        raise _Mismatch(
            f"its caller follows another registration of method {target.name} than its worker "
            f"serves, and {error}; services that register one name must be alike"
        ) from None


def _as_ms(seconds: float | None) -> int:
    """Seconds as whole ms, 0 only for 0; None is -1, for ever."""
    if seconds is None:
        return -1
    return max(1, round(seconds * 1000)) if seconds else 0
