"""AsyncBus: the bus for asyncio; the names of `Bus`, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast

import redis
import redis.asyncio as aioredis

from .bus import DEFAULT_TIMEOUT, Bus
from .calls import directory
from .client import forks
from .client.async_core import AsyncCore
from .client.async_method import AsyncMethod
from .client.async_result import AsyncRun
from .client.result import parse_id
from .protocol import codec
from .protocol.registration import OF_BUS, Registering
from .transport.clients import given_either

if TYPE_CHECKING:
    from .worker.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class AsyncBus(Registering):
    """An inter-service bus on one Redis, for asyncio.

    Its arguments are those of `Bus`; ``conn`` may also be a client of `redis.asyncio`. All calls
    share one connection, and their outcomes come over a second one, however many are in flight; to
    each node, where Redis is a cluster.

    A method, ``bus.NAME``, is looked up when it is first awaited. So an unknown name is an error
    of the call: AttributeError, with close matches.

    It may be used on several event loops, one after the other or in several threads: each has
    connections of its own. `aclose`, or the end of an ``async with``, closes those of its loop, and
    so does the end of `asyncio.run`.
    """

    # Python would ask for the items 0, 1, 2... and get a method for each.
    __contains__ = None
    __iter__ = None

    def __init__(
        self,
        name: str = "redis_bus",
        conn: redis.Redis
        | redis.RedisCluster
        | aioredis.Redis
        | aioredis.RedisCluster
        | None = None,
        result_expire: float = 3600,
        cache_expire: float | None = 86400,
        prefix: str = "",
        *,
        url: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        serializer: str | codec.Serializer = "msgpack",
        partitions: int = 1,
        **redis_kwargs: Any,
    ) -> None:
        found = given_either(conn, url, redis_kwargs)
        self._bus = Bus(
            name,
            cast(Any, found),
            result_expire,
            cache_expire,
            prefix,
            url=url,
            timeout=timeout,
            serializer=serializer,
            partitions=partitions,
            **redis_kwargs,
        )
        self.name, self.prefix = self._bus.name, self._bus.prefix
        self.result_expire, self.cache_expire = self._bus.result_expire, self._bus.cache_expire
        self.timeout, self.serializer = self._bus.timeout, self._bus.serializer
        self.partitions = self._bus.partitions
        self._conn = conn
        self._core = AsyncCore(self._bus._core, AsyncMethod)
        self._core.face = AsyncBus
        self.middleware = self._core.middleware

    @property
    def conn(self) -> Any:
        """The client that was given, or a blocking one that leads to the same Redis."""
        return self._bus.conn if self._conn is None else self._conn

    # -- registering: local, without I/O ------------------------------------------------------

    def register_method(
        self,
        function: Callable[P, R] | str,
        name: str | None = None,
        cache_key: str | bool | None = None,
        *,
        cache_expire: float | None = OF_BUS,
        stale: float = 0,
        idempotent: bool | None = None,
        max_queue: int | None = None,
        timeout: float | None = OF_BUS,
        durable: bool | int = False,
    ) -> AsyncMethod:
        """Register a function, or the dotted path of one. See `Bus.register_method`."""
        method = self._bus.register_method(
            function,
            name,
            cache_key,
            cache_expire=cache_expire,
            stale=stale,
            idempotent=idempotent,
            max_queue=max_queue,
            timeout=timeout,
            durable=durable,
        )
        self._core.methods.pop(method.__name__, None)
        return self[method.__name__]

    # -- finding ------------------------------------------------------------------------------

    async def all_methods(self) -> list[str]:
        """Return the names of the methods on the bus, sorted; those of every service."""
        known = await self._core.drive(directory.list_names(self.name))
        return sorted({*known, *self._core.registrations})

    async def get_method(self, name: str) -> AsyncMethod | None:
        """Return a method as it is published now; None where there is none of that name."""
        method = self[name]
        try:
            await self._core.drive(method.refreshed())
        except directory.UnknownMethod:
            self._core.methods.pop(name, None)
            return None
        return method

    def __getattr__(self, name: str) -> AsyncMethod:
        # Consoles ask every object for these.
        if name.startswith(("__", "_repr_", "_ipython_")) or "_core" not in self.__dict__:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> AsyncMethod:
        if not isinstance(name, str):
            raise TypeError(f"{name!r}: the name of a method is a str")
        return self._core.method(name)

    def __dir__(self) -> list[str]:
        """The methods that were heard of: looking for others would need an await."""
        return sorted({*super().__dir__(), *self._core.methods, *self._core.registrations})

    def get_async_result(self, id: str) -> AsyncRun:  # noqa: A002 - the contract's name
        """Return the result with that id, of a ``run`` in any process.

        Raises BusError for text that is no id.
        """
        keep_ms = max(1, round(self._bus.result_expire * 1000))
        return AsyncRun(self._core, *parse_id(self.name, id, keep_ms))

    # -- serving ------------------------------------------------------------------------------

    async def serve(
        self,
        pattern: str | None = None,
        debug: bool = False,
        *,
        concurrency: int = 1,
        max_jobs: int | None = None,
    ) -> None:
        """Serve what was registered here until SIGTERM or SIGINT, or until it is cancelled.

        The worker has a thread of its own, and a loop of its own for ``async def`` functions: a
        function that blocks does not block this one. See `Bus.serve`.

        The first signal lets what runs finish, the second does not wait for it: who waits for such
        a job gets WorkerLost. Signals that somebody else handles are left to them: within uvicorn,
        say, call `stop` or cancel the task when the application ends.
        """
        serving = self._bus._serving(
            pattern, debug=debug, concurrency=concurrency, max_jobs=max_jobs
        )
        with serving as worker, _Signals.stop(worker):
            worker.is_apart = True
            await _in_thread(worker, worker.serve)

    async def serve_once(self, pattern: str | None = None, debug: bool = False) -> int:
        """Run the jobs that wait now, then return how many there were."""
        with self._bus._serving(pattern, debug=debug) as worker:
            return await _in_thread(worker, worker.serve_once)

    def stop(self) -> None:
        """Let each `serve` finish its job and return."""
        self._bus.stop()

    # -- looking after ------------------------------------------------------------------------

    async def stats(self) -> dict[str, dict[str, float]]:
        """Return the counters of every method. See `Bus.stats`."""
        return await self._core.drive(directory.stats(self.name))

    async def cleanup(self) -> int:
        """Delete all keys of this bus and return how many there were. See `Bus.cleanup`."""
        masters = await self._core.loops.here().masters()
        deleted = await self._core.drive(directory.cleanup(self.name, masters))
        self._core.forget_published()
        return deleted

    async def aclose(self) -> None:
        """Stop serving and close the connections; the bus can be used again."""
        try:
            await self._core.loops.close()
        finally:
            self._bus.close()

    async def __aenter__(self) -> AsyncBus:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of. See `Bus.__reduce__`."""
        return functools.partial(type(self), **forks.arguments_of(self._bus._core, repr(self))), ()

    def __repr__(self) -> str:
        return repr(self._bus).replace("<Bus", "<AsyncBus", 1)


async def _in_thread(worker: Worker, work: Callable[[], R]) -> R:
    """Run a worker in a thread of its own; cancelled, it finishes its job first."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[R] = loop.create_future()

    def settle(value: R | None, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(cast(R, value))

    def run() -> None:
        value: R | None = None
        failure: BaseException | None = None
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it was awaited
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed without waiting
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name=f"redis_bus worker {worker.id}").start()
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        worker.stop()
        await asyncio.wait([ended])
        if not ended.cancelled() and ended.exception() is not None:
            logger.warning("worker %s ended with an error: %s", worker.id, ended.exception())
        raise


class _Signals:
    """Has SIGTERM and SIGINT stop the workers of one loop, where nobody else handles them."""

    _of: ClassVar[dict[asyncio.AbstractEventLoop, _Signals]] = {}

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()

    @classmethod
    @contextlib.contextmanager
    def stop(cls, worker: Worker) -> Iterator[None]:
        """Let the signals stop a worker within the block, where Python lets us handle them."""
        loop = asyncio.get_running_loop()
        ours = cls._of.get(loop)
        if ours is None:
            ours = cls._of[loop] = cls()
            ours._handle()
        ours._workers.append(worker)
        try:
            yield
        finally:
            ours._workers.remove(worker)
            if not ours._workers:
                del cls._of[loop]
                ours._restore()

    def _handle(self) -> None:
        for number in SIGNALS:
            before = signal.getsignal(number)
            if _is_free(before):
                with contextlib.suppress(ValueError):  # another thread than the main one
                    # Not by the loop: whose handler it has cannot be asked, nor be put back.
                    signal.signal(number, self._on_signal)
                    self._before[number] = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_forked = os.getpid() != self._pid
        if is_forked or not self._workers:
            # In a process that a job forked; or who handled it meanwhile has put this one back.
            signal.signal(number, signal.SIG_DFL if is_forked else self._before[number])
            signal.raise_signal(number)
            return
        for worker in self._workers:
            worker.signalled()

    def _restore(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, before)


def _is_free(handler: Any) -> bool:
    """Whether that handler of a signal is nobody's: it is Python's own, or that of asyncio.run."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    runner = getattr(asyncio, "Runner", None)  # since Python 3.11; its handler is a partial
    function = getattr(getattr(handler, "func", None), "__func__", None)
    return function is not None and function is getattr(runner, "_on_sigint", None)
