"""Fan-out on asyncio: a method called for many arguments, a window of tasks at a time, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CallTimeout, QueueFull
from ..protocol.deadline import Deadline, check_seconds
from ..protocol.target import Args, ShownCall
from .fan_out import check_iterables, check_window

if TYPE_CHECKING:
    from .async_method import AsyncMethod

AnyIterable = Iterable[Any] | AsyncIterable[Any]


def fan_out(
    method: AsyncMethod, iterables: tuple[AnyIterable, ...], timeout: float | None, size: int
) -> AsyncGenerator[Any, None]:
    """Return the iterator of the values. See `AsyncMethod.map`."""
    check_iterables(method.__name__, iterables)
    check_seconds("timeout", timeout)
    return Window(method, Rows(iterables), timeout, check_window(size)).values()


class Rows:
    """What `zip` would give, of iterables of both kinds."""

    def __init__(self, iterables: tuple[AnyIterable, ...]) -> None:
        self._iterators: list[Any] = [
            aiter(one) if isinstance(one, AsyncIterable) else iter(one) for one in iterables
        ]

    async def next(self) -> Args | None:
        """Return the next arguments; None where the shortest iterable is at its end."""
        row: list[object] = []
        for iterator in self._iterators:
            try:
                awaited = hasattr(iterator, "__anext__")
                row.append(await anext(iterator) if awaited else next(iterator))
            except (StopIteration, StopAsyncIteration):
                return None
        return tuple(row) if row else None


@dataclass(slots=True, eq=False)
class Turn:
    """One call of the window, or the error of an iterable in its place."""

    args: Args
    task: asyncio.Task[Any] | None = None
    error: BaseException | None = None


class Window:
    """The calls that are in flight or unread, each a task, in the order of the arguments."""

    def __init__(self, method: AsyncMethod, rows: Rows, timeout: float | None, size: int) -> None:
        self._method, self._rows, self._size = method, rows, size
        self._limit = size  # less where the method's queue has no room for so many
        self._timeout, self._end = timeout, Deadline(timeout)
        self._turns: deque[Turn] = deque()
        self._failed = False  # then what comes behind is not wanted any more
        self._is_over = False
        self._news: asyncio.Future[None] | None = None  # another turn
        self._room: asyncio.Future[None] | None = None  # for another turn

    async def values(self) -> AsyncGenerator[Any, None]:
        """Yield the values; whatever ends that, the calls in flight are cancelled."""
        __tracebackhide__ = True
        # Arguments may come slowly: no value that is there waits for them.
        feeder = asyncio.create_task(self._feed())
        try:
            while await self._has_turn(feeder):
                value = await self._value(self._turns[0])
                self._turns.popleft()
                self._limit = min(self._size, self._limit + 1)
                _wake(self._room)
                yield value
        finally:
            self._is_over = True
            tasks = [turn.task for turn in self._turns if turn.task is not None]
            for task in (feeder, *tasks):
                task.cancel()
            await asyncio.wait([feeder, *tasks])

    async def _feed(self) -> None:
        """Begin calls as long as there are arguments and room."""
        try:
            while not self._failed:
                if len(self._turns) >= self._limit:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
                    continue
                args = await self._rows.next()
                if args is None:
                    break
                turn = Turn(args)
                self._begin(turn)
                self._add(turn)
        except (Exception, asyncio.CancelledError) as error:
            if self._is_over:
                raise
            # Of an iterable, which may have awaited what somebody cancelled; raised at its turn.
            self._add(Turn((), error=error))
        finally:
            _wake(self._news)

    def _add(self, turn: Turn) -> None:
        self._turns.append(turn)
        _wake(self._news)

    def _begin(self, turn: Turn) -> asyncio.Task[Any]:
        """Make a call, in a task of its own."""
        task = turn.task = asyncio.create_task(self._method(*turn.args))
        task.add_done_callback(self._note)
        return task

    def _note(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if _is_refused(error):
            self._limit = max(1, len(self._running()))
        elif error is not None:
            self._failed = True

    def _running(self) -> list[asyncio.Task[Any]]:
        return [turn.task for turn in self._turns if turn.task is not None and not turn.task.done()]

    async def _has_turn(self, feeder: asyncio.Task[None]) -> bool:
        """Wait for the next arguments. Returns whether there are any."""
        while not self._turns and not feeder.done():
            self._news = asyncio.get_running_loop().create_future()
            if not await self._in_time([self._news, feeder]):
                raise CallTimeout(f"{self._shown(self._method.__name__)}: no more arguments came")
        return bool(self._turns)

    async def _value(self, turn: Turn) -> object:
        """Return the value of the first call, or raise why there is none."""
        __tracebackhide__ = True
        if turn.error is not None:
            raise turn.error
        task = turn.task
        assert task is not None
        while True:
            if not await self._in_time([task]):
                shown = self._shown(ShownCall(self._method.__name__, turn.args, {}))
                raise CallTimeout(f"{shown}: no reply in {self._end.budget:.3g} s")
            others = self._running()
            if not _is_refused(task.exception()):
                return task.result()
            # With the calls behind it the queue was full, maybe: there is room once one is done.
            if others:
                await self._in_time(others)
            task = self._begin(turn)
            if not others:
                await self._in_time([task])
                if _is_refused(task.exception() if task.done() else None):
                    return task.result()

    async def _in_time(self, what: list[Any]) -> bool:
        """Wait for one of some futures, as long as `map` may take. Returns whether one is done."""
        left = None if self._timeout is None else self._end.left()
        done, _ = await asyncio.wait(what, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    def _shown(self, what: object) -> str:
        return f"{what} in map(timeout={self._timeout:g})"


def _is_refused(error: BaseException | None) -> bool:
    """Whether a call was not enqueued for want of room; what the function raised has a cause."""
    return isinstance(error, QueueFull) and error.__cause__ is None


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
