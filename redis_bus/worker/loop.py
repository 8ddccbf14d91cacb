"""Loop: where the ``async def`` functions of a worker run."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from types import FrameType
from typing import Any, Protocol

from ..client import forks
from .stop_flag import StopNow

logger = logging.getLogger("redis_bus.loop")

# How long a loop may stand still before that is worth a warning, and how often it is looked at.
BLOCKED_SECONDS = 1.0
LOOK_SECONDS = 0.5
# How long tasks that are cancelled at the end may take for that.
CLOSE_SECONDS = 2.0
LEFT_ALONE = "the event loop of the async functions is blocked: it is left alone"

# For which run this code is: also that of tasks which a function starts.
_current: ContextVar[Running | None] = ContextVar("redis_bus_run", default=None)


class Loop(Protocol):
    """An event loop that lives as long as its worker."""

    look_seconds: float

    def run(self, awaitable: Awaitable[Any], method: str) -> Any:
        """Wait for what an ``async def`` function returned, in the context of the caller."""

    def cancel(self) -> None:
        """Cancel what runs, and return at once; from any thread."""

    def look(self) -> None:
        """Warn where a function blocks others; for the heart, every `look_seconds`."""

    def close(self) -> None:
        """Cancel what runs still, and close the loop, if there was need of one."""


class Running:
    """What runs on a loop for one job."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.task: asyncio.Task[None] | None = None
        self.warned = False


class _Run(Running):
    """One awaitable, and what came of it."""

    def __init__(self, awaitable: Awaitable[Any], method: str) -> None:
        super().__init__(method)
        self.ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._awaitable = awaitable
        self._value: Any = None
        # Where it is cancelled before it begins.
        self._error: BaseException | None = asyncio.CancelledError()

    async def carry_out(self) -> None:
        """Await it; whatever it raises is kept, not raised: the loop does not survive all of it."""
        here = os.getpid()
        try:
            self._value = await self._awaitable
        except BaseException as error:  # noqa: BLE001 - it is raised again in `result`
            self._error = error
        else:
            self._error = None
        forks.end_if_forked(here, self.method, self._error)

    def was_cancelled(self) -> bool:
        return isinstance(self._error, asyncio.CancelledError)

    def result(self) -> Any:
        """Return its value, or raise what it raised."""
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


class LoopHere:
    """A loop in the worker's own thread, which turns while a function runs, and at no other time.

    It is for a worker that runs one job at a time: there is nobody to be held up.
    """

    look_seconds = math.inf

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._interrupted = False
        self._rests = threading.Event()
        self._rests.set()

    def run(self, awaitable: Awaitable[Any], method: str) -> Any:
        """Run it to its end. Raises StopNow where `interrupt` ended it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        run = _Run(awaitable, method)
        self._rests.clear()
        self._task = self._loop.create_task(run.carry_out(), name=method)
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass  # before it began
        finally:
            self._rests.set()
            self._task = None
        if self._interrupted and run.was_cancelled():
            raise StopNow
        return run.result()

    def interrupt(self) -> bool:
        """Cancel the function that runs; for signal handlers. False: it cannot, or did before."""
        loop, task = self._loop, self._task
        if loop is None or task is None or self._interrupted:
            return False
        self._interrupted = True
        loop.call_soon_threadsafe(task.cancel)
        return True

    def cancel(self) -> None:
        self.interrupt()

    def look(self) -> None:
        pass

    def close(self) -> None:
        # In another thread, a function that was cancelled may be about to end.
        if not self._rests.wait(2 * CLOSE_SECONDS):
            logger.warning(LEFT_ALONE)
            return
        loop, self._loop = self._loop, None
        if loop is not None:
            _wind_up(loop)


class LoopThread:
    """A loop in a thread of its own, on which the functions of several slots run at a time."""

    look_seconds = LOOK_SECONDS

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._cancelled = self._ended = False
        self._runs: set[Running] = set()
        # Of each task for which run it is.
        self._owners: weakref.WeakKeyDictionary[asyncio.Task[Any], Running] = (
            weakref.WeakKeyDictionary()
        )
        self._turned = True
        self._asked = 0.0
        self._looks = 0

    def run(self, awaitable: Awaitable[Any], method: str) -> Any:
        """Have it run on the loop, and wait for its end.

        Raises StopNow where `cancel` ended it, and after `close`.
        """
        run = _Run(awaitable, method)
        with self._lock:
            if self._ended:
                if inspect.iscoroutine(awaitable):
                    awaitable.close()
                raise StopNow
            if self._loop is None:
                self._start()
            assert self._loop is not None
            self._runs.add(run)
            # In a copy of the context of this thread, of which the task has a copy then.
            self._loop.call_soon_threadsafe(self._begin, self._loop, run)
        run.ended.get()
        if self._cancelled and run.was_cancelled():
            raise StopNow
        return run.result()

    def post(self, work: Callable[..., object], *args: Any) -> None:
        """Have work done on the loop, soon; not after `close`."""
        with self._lock:
            if self._ended:
                return
            if self._loop is None:
                self._start()
            assert self._loop is not None
            self._loop.call_soon_threadsafe(work, *args)

    def begin(self, work: Coroutine[Any, Any, None], method: str) -> Running:
        """Begin what a job does, in a context of its own, until `end`; to be called on the loop."""
        assert self._loop is not None
        run = Running(method)
        self._runs.add(run)
        _current.set(run)  # the task copies this context
        run.task = asyncio.Task(work, loop=self._loop, name=method)
        return run

    def end(self, run: Running) -> None:
        """Note that a job does nothing any more on the loop."""
        self._runs.discard(run)

    @property
    def here(self) -> asyncio.AbstractEventLoop:
        """The loop itself; for what runs on it."""
        assert self._loop is not None
        return self._loop

    @property
    def was_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel all functions that run, and return at once."""
        with self._lock:
            self._cancelled = True
            if self._loop is not None and not self._ended:
                self._loop.call_soon_threadsafe(self._cancel_all)

    def close(self) -> None:
        with self._lock:
            self._ended = True
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                return
            loop.call_soon_threadsafe(loop.stop)
        thread.join(2 * CLOSE_SECONDS)
        if thread.is_alive():
            logger.warning(LEFT_ALONE)

    # -- on the loop --------------------------------------------------------------------------

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(self._make_task)
        self._thread = threading.Thread(
            target=self._turn, args=(self._loop,), name="redis_bus loop", daemon=True
        )
        self._thread.start()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._ended:
            try:
                loop.run_forever()
            except BaseException as error:  # noqa: BLE001 - also SystemExit: others run here, too
                logger.error("a task on the loop raised %s", type(error).__name__)
        _wind_up(loop)

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        owner = _current.get()
        if owner is not None:
            self._owners[task] = owner
        return task

    def _begin(self, loop: asyncio.AbstractEventLoop, run: _Run) -> None:
        _current.set(run)
        run.task = loop.create_task(run.carry_out(), name=run.method)
        run.task.add_done_callback(lambda task: self._end(run))

    def _end(self, run: _Run) -> None:
        self._runs.discard(run)
        run.ended.put(None)

    def _cancel_all(self) -> None:
        for run in list(self._runs):
            if run.task is not None:
                run.task.cancel()

    # -- in the heart's thread ----------------------------------------------------------------

    def look(self) -> None:
        loop = self._loop
        if loop is None or not self._runs:
            self._turned = True
            return
        if self._turned:
            self._turned, self._asked, self._looks = False, time.monotonic(), 0
            loop.call_soon_threadsafe(self._note_turn)
            return
        self._looks += 1
        passed = time.monotonic() - self._asked
        # Twice: after the whole process has stood still, the loop must have had its chance.
        if passed >= BLOCKED_SECONDS and self._looks > 1:
            self._warn(loop, passed)

    def _note_turn(self) -> None:
        self._turned = True

    def _warn(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        task = asyncio.current_task(loop)
        own = next((run for run in list(self._runs) if run.task is task), None)
        run = own or (None if task is None else self._owners.get(task))
        if run is None or run.warned:
            return
        run.warned = True
        assert self._thread is not None
        frame = sys._current_frames().get(self._thread.ident or 0)
        logger.warning(
            "%s blocks the event loop, for %.1f s by now%s: all async functions of this worker "
            "wait for it; it should await, or be a plain function",
            run.method,
            seconds,
            _place(frame),
        )


def _place(frame: FrameType | None) -> str:
    """Say where the innermost coroutine is that runs in a thread: what it called blocks."""
    while frame is not None and not frame.f_code.co_flags & inspect.CO_COROUTINE:
        frame = frame.f_back
    if frame is None:
        return ""
    code = frame.f_code
    return f", in {code.co_name} ({os.path.basename(code.co_filename)}, line {frame.f_lineno})"


def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks that are left on a loop that stands, close its generators, then it."""
    try:
        # A stop that was asked for already would end what comes next.
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.run_until_complete(_cancel_rest(loop))
    except BaseException as error:  # noqa: BLE001 - what a task of the user's raises ends nothing
        logger.error("a task on the loop raised %s as it ended", type(error).__name__)
    finally:
        loop.close()


async def _cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        _, left = await asyncio.wait(rest, timeout=CLOSE_SECONDS)
        for task in left:
            logger.warning("a task that %s left does not end when cancelled", task.get_name())
    closing = asyncio.ensure_future(loop.shutdown_asyncgens())
    await asyncio.wait([closing], timeout=CLOSE_SECONDS)
