"""AsyncMethod: a remote function that looks like a local coroutine function."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..calls import calls, waiting
from ..calls.context import headers
from ..calls.directory import UnknownMethod
from ..calls.failures import NotNow, is_unreachable
from ..calls.middleware import Call
from ..calls.steps import Request, Steps
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Service
from ..protocol.deadline import Deadline
from ..protocol.target import KEEP, Args, Kwargs, Options, ShownCall, Target, empty_signature
from ..transport.loops import BusClosed
from ..transport.transport import SOON_SECONDS
from . import async_dead_letters, async_direct, async_fan_out, forks
from .async_dead_letters import AsyncDeadLetter
from .async_result import AsyncRun
from .fan_out import DEFAULT_WINDOW

if TYPE_CHECKING:
    from .async_core import AsyncCore

# After which times (s) a look-up is tried again whose connection was lost.
LOOK_UP_PAUSES = (0.02, 0.1, 0.3)


class AsyncMethod:
    """A method on the bus: ``await`` its call. See `Method`, whose names these are.

    What it is, it learns at its first call, or by ``await bus.get_method(name)``.
    """

    __name__: str
    __signature__: inspect.Signature
    listens = True

    def __init__(self, core: AsyncCore, name: str, options: Options | None = None) -> None:
        self._core = core
        self._options = Options() if options is None else options
        self._target: Target | None = None
        self.__name__ = self.__qualname__ = name
        self.__signature__ = empty_signature()
        registration = core.registrations.get(name)
        if registration is not None and not registration.needs_import:
            self.adopt(core.compile(registration))

    @property
    def target(self) -> Target:
        """What is known of the method. Raises RuntimeError before anything is."""
        if self._target is None:
            raise RuntimeError(f"{self.__name__}: await it, or bus.get_method(), first")
        return self._target

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the method and return its value. See `Method.__call__`.

        Where its task is cancelled, or its time is up, the job is withdrawn, if no worker has
        taken it.
        """
        __tracebackhide__ = True
        hooks = self._core.middleware.calls
        if not hooks:
            return await self._call(args, kwargs)
        call = self._seen(args, kwargs, "call")
        return await hooks.around_async(call, lambda: self._call(args, kwargs, call))

    async def _call(self, args: Args, kwargs: Kwargs, seen: Call | None = None) -> Any:
        __tracebackhide__ = True
        options, passed = self._options, await self._load()
        if passed > SOON_SECONDS:
            whole = options.timeout if options.has_timeout else self.target.timeout
            if whole is not None:
                options = options.changed(timeout=max(0.0, whole - passed))
        try:
            if seen is None:
                return await async_direct.call(self._core, self, args, kwargs, options)
            return await self._core.drive(calls.call(self, args, kwargs, options, seen))
        except BusClosed as error:
            shown = ShownCall(self.__name__, args, kwargs)
            raise BusError(f"{shown}: {error}; it is unknown whether it ran") from None

    async def run(self, /, *args: Any, **kwargs: Any) -> AsyncRun:
        """Enqueue the call and return at once. See `Method.run`."""
        hooks = self._core.middleware.calls
        if not hooks:
            return await self._enqueue(args, kwargs)
        call = self._seen(args, kwargs, "run")
        return await hooks.around_async(call, lambda: self._enqueue(args, kwargs, call))

    async def _enqueue(self, args: Args, kwargs: Kwargs, seen: Call | None = None) -> AsyncRun:
        await self._load()
        route, job = await self._core.drive(calls.run(self, args, kwargs, self._options, seen))
        return AsyncRun(self._core, route, job, self._options.allow)

    def _seen(self, args: Args, kwargs: Kwargs, kind: str) -> Call:
        """Return a call as middleware sees it."""
        return Call(self._core.name, self.__name__, args, kwargs, headers(), kind)

    def map(
        self,
        /,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        buffersize: int = DEFAULT_WINDOW,
    ) -> AsyncGenerator[Any, None]:
        """Call the method for the arguments of each turn; iterate its values by ``async for``.

        See `Method.map`. The iterables may be asynchronous too. The first calls are made when the
        first value is awaited; each is a task. They are cancelled, and so withdrawn if no worker
        has taken them, where one of them failed, the task that iterates is cancelled, or the
        iterator is closed by ``aclose()``. A job whose worker died is kept as a dead letter only
        where it may run twice, as that of a call is.
        """
        return async_fan_out.fan_out(self, iterables, timeout, buffersize)

    def options(
        self,
        *,
        timeout: float | None = KEEP,
        fail_fast: bool = KEEP,
        allow: tuple[type[BaseException], ...] = KEEP,
    ) -> AsyncMethod:
        """Return this method with other settings. See `Method.options`."""
        chosen = self._options.changed(timeout=timeout, fail_fast=fail_fast, allow=allow)
        method = AsyncMethod(self._core, self.__name__, chosen)
        if self._target is not None:
            method.adopt(self._target)
        return method

    async def clear_cache(self, /, *args: Any, **kwargs: Any) -> bool:
        """Forget the cached value for these arguments. See `Method.clear_cache`."""
        __tracebackhide__ = True
        await self._load()
        return await self._core.drive(calls.clear(self, args, kwargs))

    async def clear_all_cache(self) -> None:
        """Forget all cached values of the method. See `Method.clear_all_cache`."""
        await self._load()
        await self._core.drive(calls.clear_all(self))

    async def dead_letters(self) -> list[AsyncDeadLetter]:
        """Return the jobs of the method that were given up. See `Method.dead_letters`."""
        await self._load()
        return await async_dead_letters.dead_letters(self._core, self.target)

    @property
    def cache_key(self) -> str | bool | None:
        """The template of the method's cache keys, True for all arguments, None for no cache."""
        return self.target.descriptor.cache_key

    def adopt(self, target: Target) -> None:
        """Look and act like this registration from here on."""
        self._target = target
        self.__doc__ = target.doc
        self.__signature__ = target.signature

    def told_job(self, service: Service, deadline: Deadline) -> Steps[str | None]:
        """Return the id of a job that will be told on the inbox; None where that is lost again."""
        transport = self._core.loops.here()
        inbox = transport.open_inbox(service.base)
        if inbox is None:
            _, timeout = waiting.slice_of(deadline, waiting.FIRST_SLICE_SECONDS)
            yield Request((), timeout, inbox=service)
            inbox = transport.open_inbox(service.base)
        return None if inbox is None else inbox.name.new_job_id()

    def refreshed(self) -> Steps[Target]:
        """Ask what is published now, and adopt it. Raises BusError where the method is gone."""
        newer = yield from self._core.look_up(self.__name__)
        if self._target is None or newer.etag != self._target.etag:
            self.adopt(newer)
        return newer

    async def _load(self) -> float:
        """Learn what the method is, where that is not known; return how long it took (s).

        It takes no longer than a call may. Raises ConnectionLost, AttributeError.
        """
        __tracebackhide__ = True
        if self._target is not None:
            return 0.0
        options = self._options
        deadline = Deadline(options.timeout if options.has_timeout else self._core.timeout)
        for pause in (*LOOK_UP_PAUSES, None):
            try:
                self.adopt(await self._core.load(self.__name__, deadline.left()))
            except UnknownMethod:
                self._core.methods.pop(self.__name__, None)
                text = await self._core.no_such_method(self.__name__)
                raise AttributeError(text) from None
            except ConnectionLost as error:
                # Looking it up does no harm, however often.
                if is_unreachable(error) and not isinstance(error, NotNow):
                    raise ConnectionLost(f"{self.__name__}: {error}") from error
                left = deadline.left()
                if pause is None or (left is not None and left <= pause):
                    text = f"{self.__name__}: {error}; nothing was called yet"
                    raise ConnectionLost(text) from error
                await asyncio.sleep(pause)
            else:
                break
        return deadline.passed()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it with what its bus was made of. See `Method.__reduce__`."""
        arguments = forks.arguments_of(self._core.blocking, repr(self))
        return async_method_of, (self._core.face, arguments, self.__name__, self._options)

    def __repr__(self) -> str:
        return f"<async method {self.__name__}{self.__signature__} of bus {self._core.name!r}>"


def async_method_of(
    face: Callable[..., Any], arguments: dict[str, Any], name: str, options: Options
) -> AsyncMethod:
    """Return a method of an `AsyncBus` of this process. See `method_of` of `method`."""
    return AsyncMethod(face(**arguments)._core, name, options)
