"""Middleware: hooks around the calls that a bus makes, and around the runs of its workers.

The shape is that of Dramatiq's and taskiq's: an object with methods for before, after and failed.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableSequence
from typing import Any, TypeVar, overload

from ..protocol.target import Args, Kwargs, ShownCall

T = TypeVar("T")
logger = logging.getLogger("redis_bus.middleware")

CALL_HOOKS = ("before_call", "after_call", "call_failed")
RUN_HOOKS = ("before_run", "after_run", "run_failed")
HOOKS = (*CALL_HOOKS, *RUN_HOOKS)


class Event:
    """What both sides of a call know of it: what is called, its headers, and when it began."""

    __slots__ = ("args", "bus", "headers", "kwargs", "method", "notes", "started")

    def __init__(
        self, bus: str, method: str, args: Args, kwargs: Kwargs, headers: dict[str, str]
    ) -> None:
        self.bus = bus
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.headers = headers
        self.notes: dict[Any, Any] = {}
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.started

    def __str__(self) -> str:
        return str(ShownCall(self.method, self.args, self.kwargs))


class Call(Event):
    """A call that this process makes, as middleware sees it.

    ``kind``: 'call', or 'run' for a call that only enqueues. ``headers`` travel with it; what is
    put into them before the call does, too. ``status``, known after it: 'hit' (from the cache),
    'joined' (the run of another caller), 'queued', or the word of a refusal; '' where it did not
    come so far. ``notes`` are for what a middleware keeps from one hook to the other.
    """

    __slots__ = ("kind", "status")

    def __init__(
        self, bus: str, method: str, args: Args, kwargs: Kwargs, headers: dict[str, str], kind: str
    ) -> None:
        super().__init__(bus, method, args, kwargs, headers)
        self.kind = kind
        self.status = ""


class Run(Event):
    """A job that this process runs, as middleware sees it.

    ``job`` is its id, ``attempt`` 1 unless a worker died of it before, ``waited`` how long it was
    queued (s). ``headers`` came with it. ``was_stopped``: its worker was told to stop at once while
    it ran, and it failed of that. ``notes`` are as those of a `Call`.
    """

    __slots__ = ("attempt", "job", "waited", "was_stopped")

    def __init__(
        self,
        bus: str,
        method: str,
        args: Args,
        kwargs: Kwargs,
        headers: dict[str, str],
        *,
        job: str,
        attempt: int,
        waited: float,
    ) -> None:
        super().__init__(bus, method, args, kwargs, headers)
        self.job = job
        self.attempt = attempt
        self.waited = waited
        self.was_stopped = False


class Middleware:
    """Hooks around calls and runs: override those you need, append an object to ``bus.middleware``.

    Those before come in the order of the list, the others in its reverse; each ``before`` that
    returned is followed by one of its two others. What a ``before`` raises is raised to the caller,
    or is the outcome of the job, which does not run then. What the others raise is logged.

    A blocking ``map`` calls those before when it sends a call, the others when that is its turn. A
    call whose turn never comes has failed: of Cancelled, or of what kept it from being sent.

    Hooks are plain functions, on an `AsyncBus` too, and must not wait there. They may be called in
    several threads at once. What is appended with a hook that is an ``async def``, or with a public
    method that looks like a hook and is none, is refused: either would never run.
    """

    def before_call(self, call: Call) -> None:
        """A call is about to be made; nothing is sent yet."""

    def after_call(self, call: Call, value: object) -> None:
        """It returned this value; a run: this result to be."""

    def call_failed(self, call: Call, error: BaseException) -> None:
        """It raised this error, of the function's or of the bus."""

    def before_run(self, run: Run) -> None:
        """A function is about to be run, in this thread and context."""

    def after_run(self, run: Run, value: object) -> None:
        """It returned this value, which its caller gets."""

    def run_failed(self, run: Run, error: BaseException) -> None:
        """It raised this error; WorkerLost: it was stopped while it ran."""


class Hooks:
    """Three hooks of several middlewares around one kind of event."""

    def __init__(self, chain: Iterable[Middleware], before: str, after: str, failed: str) -> None:
        names = (before, after, failed)
        # What is not overridden costs nothing.
        self._hooks = [
            tuple(getattr(one, name) if _is_overridden(one, name) else None for name in names)
            for one in chain
            if any(_is_overridden(one, name) for name in names)
        ]
        self._before = [
            (number, hooks[0]) for number, hooks in enumerate(self._hooks) if hooks[0] is not None
        ]
        self.are_any = bool(self._hooks)
        backwards = self._hooks[::-1]
        self._after = [after for _, after, _ in backwards if after is not None]
        self._failed = [failed for _, _, failed in backwards if failed is not None]

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def before(self, event: Any) -> None:
        """Call the first hook of each; where one raises, those before it hear of the error."""
        for number, before in self._before:
            try:
                waits = before(event)
                if waits is not None and inspect.isawaitable(waits):
                    raise TypeError(f"{_awaited(before)}: what it was to check is not checked")
            except BaseException as error:
                for _, _, failed in reversed(self._hooks[:number]):
                    if failed is not None:
                        _call(failed, event, error)
                raise

    def after(self, event: Any, value: object) -> None:
        for after in self._after:
            try:
                after(event, value)
            except Exception:  # noqa: BLE001 - it is logged
                _log(after, event)

    def failed(self, event: Any, error: BaseException) -> None:
        for failed in self._failed:
            _call(failed, event, error)

    def around(self, event: Any, work: Callable[[], T]) -> T:
        """Do the work between the hooks."""
        __tracebackhide__ = True
        self.before(event)
        return self.then(event, work)

    def then(self, event: Any, work: Callable[[], T]) -> T:
        """Do the work, where the first hooks were called, and call the others."""
        __tracebackhide__ = True
        try:
            value = work()
        except BaseException as error:
            self.failed(event, error)
            raise
        self.after(event, value)
        return value

    async def around_async(self, event: Any, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work between the hooks, and await it."""
        __tracebackhide__ = True
        self.before(event)
        try:
            value = await work()
        except BaseException as error:
            self.failed(event, error)
            raise
        self.after(event, value)
        return value


def _call(hook: Callable[[Any, Any], None], event: Any, what: object) -> None:
    try:
        hook(event, what)
    except Exception:  # noqa: BLE001 - it is logged
        _log(hook, event)


def _log(hook: Callable[[Any, Any], None], event: Any) -> None:
    """Log what a hook raised: the call or the run has its outcome already."""
    name = getattr(hook, "__qualname__", repr(hook))
    logger.exception("%s: the middleware hook %s raised", event, name)


class Chain(MutableSequence[Middleware]):
    """The middlewares of a bus, the outermost first: a list. Change it before calls are made."""

    def __init__(self, middlewares: Iterable[Middleware] = ()) -> None:
        self._list = list(middlewares)
        self._compile()

    def _compile(self) -> None:
        self.calls = Hooks(self._list, *CALL_HOOKS)
        self.runs = Hooks(self._list, *RUN_HOOKS)

    @overload
    def __getitem__(self, index: int) -> Middleware: ...
    @overload
    def __getitem__(self, index: slice) -> list[Middleware]: ...
    def __getitem__(self, index: int | slice) -> Middleware | list[Middleware]:
        return self._list[index]

    @overload
    def __setitem__(self, index: int, value: Middleware) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[Middleware]) -> None: ...
    def __setitem__(self, index: Any, value: Any) -> None:
        changed = list(self._list)
        changed[index] = value
        for one in changed:
            _check(one)
        self._list = changed
        self._compile()

    def __delitem__(self, index: int | slice) -> None:
        del self._list[index]
        self._compile()

    def __len__(self) -> int:
        return len(self._list)

    def insert(self, index: int, value: Middleware) -> None:
        """Put a middleware before that index.

        Raises TypeError for other objects, and for hooks that would never run.
        """
        _check(value)
        self._list.insert(index, value)
        self._compile()

    def __repr__(self) -> str:
        return repr(self._list)


def _check(middleware: object) -> None:
    if not isinstance(middleware, Middleware):
        hint = "; append an object of it" if isinstance(middleware, type) else ""
        raise TypeError(f"{middleware!r} is no redis_bus.Middleware{hint}")
    for name in HOOKS:
        hook = getattr(middleware, name)
        if not callable(hook):
            raise TypeError(f"the middleware hook {_named(middleware, name)} is no function")
        if _waits(hook):
            raise TypeError(_awaited(hook, _named(middleware, name)))
    for name in dir(middleware):
        if not name.startswith("_") and name not in HOOKS:
            _check_other(middleware, name)


def _check_other(middleware: Middleware, name: str) -> None:
    """Raise TypeError for a method that is likely meant as a hook, and would never be called."""
    import difflib

    close = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.8)
    looks_alike = name.startswith(("before_", "after_")) or name.endswith("_failed")
    if (close or looks_alike) and callable(getattr(middleware, name, None)):
        meant = f"did you mean {close[0]}?" if close else f"the hooks are {', '.join(HOOKS)}."
        raise TypeError(
            f"{_named(middleware, name)} is no hook of a middleware, and would never be called; "
            f"{meant} What is not meant as one needs a name that begins with _"
        )


def _is_overridden(middleware: Middleware, name: str) -> bool:
    return getattr(getattr(middleware, name), "__func__", None) is not getattr(Middleware, name)


def _waits(hook: Any) -> bool:
    """Whether calling a hook only makes something that is to be awaited or iterated."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return any(is_one(hook) or is_one(type(hook).__call__) for is_one in kinds)


def _awaited(hook: object, name: str = "") -> str:
    name = name or getattr(hook, "__qualname__", repr(hook))
    return f"the middleware hook {name} would never be awaited; write it as a plain function"


def _named(middleware: Middleware, name: str) -> str:
    return f"{type(middleware).__name__}.{name}"
