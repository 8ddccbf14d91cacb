"""Method: a remote function that looks like a local one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from ..calls import calls
from ..calls.context import headers
from ..calls.middleware import Call
from ..calls.steps import Steps
from ..protocol.commands import Service
from ..protocol.deadline import Deadline
from ..protocol.target import KEEP, Args, Kwargs, Options, Target, empty_signature
from . import dead_letters, direct, fan_out, forks
from .dead_letters import DeadLetter
from .result import AsyncResult

if TYPE_CHECKING:
    from .core import Core

P = ParamSpec("P")
R = TypeVar("R")


class Method(Generic[P, R]):
    """A method on the bus: call it, or look at it, as if it were here.

    ``__name__``, ``__doc__`` and ``__signature__`` are the callee's, so ``help()``,
    ``inspect.signature`` and completion work; ``cache_key`` is its template, True or None.
    """

    __name__: str
    __signature__: inspect.Signature

    def __init__(self, core: Core, name: str, options: Options | None = None) -> None:
        self._core = core
        self._options = Options() if options is None else options
        self._target: Target | None = None
        self.__name__ = self.__qualname__ = name
        self.__signature__ = empty_signature()

    listens = False

    def told_job(self, service: Service, deadline: Deadline) -> Steps[None]:
        """Return the id of a job that will be told on an inbox: there is none."""
        yield from ()

    @property
    def target(self) -> Target:
        """What is known of the method, as far as this process has heard."""
        if self._target is None:
            self.adopt(self._core.first_target(self.__name__))
            assert self._target is not None
        return self._target

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the method and return its value.

        Raises what the function raised (see `Options.allow` for types that are not builtin),
        TypeError for arguments that do not fit its signature, SerializationError for arguments
        of other types than those that make the round trip, and the errors of the bus:
        CallTimeout, NoWorkers, QueueFull, ConnectionLost, NotConfirmed.
        """
        __tracebackhide__ = True
        value: Any
        drive, hooks = self._core.drive, self._core.middleware.calls
        if not hooks.are_any:
            value = direct.call(self._core, self, args, kwargs, self._options)
            return value  # type: ignore[no-any-return]
        call = self._seen(args, kwargs, "call")
        work = calls.call(self, args, kwargs, self._options, call)
        value = hooks.around(call, partial(drive, work))
        return value  # type: ignore[no-any-return]

    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncResult:
        """Enqueue the call and return at once; the result is kept for the bus's result_expire.

        It waits for a worker as long as that takes; with ``options(timeout=...)`` it is dropped
        where no worker takes it within that time. Raises what a call raises before it waits.
        """

        __tracebackhide__ = True

        def enqueue(seen: Call | None = None) -> AsyncResult:
            __tracebackhide__ = True
            route, job = self._core.drive(calls.run(self, args, kwargs, self._options, seen))
            return AsyncResult(self._core, route, job, self._options.allow)

        hooks = self._core.middleware.calls
        if not hooks:
            return enqueue()
        call = self._seen(args, kwargs, "run")
        return hooks.around(call, partial(enqueue, call))

    def _seen(self, args: Args, kwargs: Kwargs, kind: str) -> Call:
        """Return a call as middleware sees it."""
        return Call(self._core.name, self.__name__, args, kwargs, headers(), kind)

    def map(
        self,
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        buffersize: int = fan_out.DEFAULT_WINDOW,
    ) -> Iterator[R]:
        """Call the method for the arguments of each turn, and return an iterator of its values.

        They come in the order of the arguments, as from `concurrent.futures.Executor.map`. At most
        ``buffersize`` calls are in flight, or done and not yet read: as many are enqueued at once,
        further ones as values are read, so the iterables may be endless. ``timeout``: seconds from
        here until a value must be there; None: as long as each call may take. Each call has the
        method's options, and a deadline of its own from when it is enqueued; an outcome that came
        in time is kept for a consumer that is slow, for the method's result_expire. The outcome of
        a cached method is not kept so long: where it is gone, that call is made again.

        Where a call failed its exception is raised at its turn, and ends the iteration: those of
        `__call__`, CallTimeout, what an iterable raised. Then, and where the iterator is closed or
        dropped, the calls that no worker has taken are withdrawn. Where the method has max_queue,
        no more are enqueued than there is room for. A job whose worker died is kept as a dead
        letter, as that of a `run` is. Raises TypeError where there is no iterable; TypeError,
        ValueError for a buffersize or a timeout that is none.
        """
        return fan_out.fan_out(self._core, self, self._options, iterables, timeout, buffersize)

    def options(
        self,
        *,
        timeout: float | None = KEEP,
        fail_fast: bool = KEEP,
        allow: tuple[type[BaseException], ...] = KEEP,
    ) -> Method[P, R]:
        """Return this method with other settings for the calls made through what is returned.

        ``timeout``: seconds that a call waits; None: for ever. ``fail_fast``: raise NoWorkers at
        once where nobody alive serves the method. ``allow``: exception classes that are raised
        as themselves when the remote function raises them.

        Raises TypeError and ValueError for a timeout that is no number of seconds.
        """
        __tracebackhide__ = True
        chosen = self._options.changed(timeout=timeout, fail_fast=fail_fast, allow=allow)
        method: Method[P, R] = Method(self._core, self.__name__, chosen)
        method.adopt(self.target)
        return method

    def clear_cache(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the cached value for these arguments.

        A call that starts after this returns never sees a value whose computation began before
        it; callers already waiting still get theirs (leases: Nishtala et al., "Scaling Memcache
        at Facebook", NSDI'13).

        Returns whether there was a value to forget. Raises TypeError where the arguments do not
        fit the method's signature, or the method has no cache_key; NotConfirmed where it is durable
        and too few replicas know that it was cleared.
        """
        __tracebackhide__ = True
        return self._core.drive(calls.clear(self, args, kwargs))

    def clear_all_cache(self) -> None:
        """Forget all cached values of the method, in a time that does not depend on how many.

        Raises TypeError where the method has no cache_key, and NotConfirmed as `clear_cache` does.
        """
        self._core.drive(calls.clear_all(self))

    def dead_letters(self) -> list[DeadLetter]:
        """Return the jobs of the method that were given up, oldest first, at most 1,000.

        A job is given up after its workers died of it: one that may run twice after three
        attempts, a `run`, or a call of `map`, of any other after one.
        """
        return dead_letters.dead_letters(self._core, self.target)

    @property
    def cache_key(self) -> str | bool | None:
        """The template of the method's cache keys, True for all arguments, None for no cache."""
        return self.target.descriptor.cache_key

    def adopt(self, target: Target) -> None:
        """Look and act like this registration from here on."""
        self._target = target
        self.__doc__ = target.doc
        self.__signature__ = target.signature

    def refreshed(self) -> Steps[Target]:
        """Ask what is published now, and adopt it. Raises BusError where the method is gone."""
        newer = yield from self._core.look_up(self.__name__)
        if self._target is None or newer.etag != self._target.etag:
            self.adopt(newer)
        return newer

    def __get__(self, instance: object, owner: type | None = None) -> Method[P, R]:
        # A method of the bus is a routine for `inspect` and so for help(), which look for this.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it with what its bus was made of, for a bus of its own in another process."""
        arguments = forks.arguments_of(self._core, repr(self))
        return method_of, (self._core.face, arguments, self.__name__, self._options)

    def __repr__(self) -> str:
        return f"<method {self.__name__}{self.__signature__} of bus {self._core.name!r}>"


def method_of(
    face: Callable[..., Any], arguments: dict[str, Any], name: str, options: Options
) -> Method[..., Any]:
    """Return a method of a bus of this process, for one that was pickled in another."""
    return Method(face(**arguments)._core, name, options)
