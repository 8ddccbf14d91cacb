"""Bus: register functions, find those of others, call and serve them."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import redis

from .calls import directory
from .calls.middleware import Chain
from .client import forks
from .client.core import Core
from .client.method import Method
from .client.result import AsyncResult, parse_id
from .errors import BusError
from .protocol import codec
from .protocol.commands import check_bus_name, check_method_name, check_partitions, check_prefix
from .protocol.deadline import check_seconds
from .protocol.registration import OF_BUS, Registering, Registration, Settings
from .transport.clients import given
from .transport.cluster import open_transport
from .transport.distributed import Deployment, open_url
from .worker.logs import LogRuns
from .worker.quota import check_max_jobs

if TYPE_CHECKING:
    from .worker.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_URL = "redis://localhost:6379/0"
DEFAULT_TIMEOUT = 30.0


class Bus(Registering):
    """An inter-service bus on one Redis; buses with equal names share everything.

    ``result_expire``: seconds that a result nobody has read is kept. ``cache_expire``: seconds
    that cached values live, None: for ever, 0: not kept. ``prefix``: put in front of the names
    of the functions registered here, which form one service. ``timeout``: seconds that a call
    waits, None: for ever. ``serializer``: "msgpack", "json", "pickle" (only where you trust
    every process on this Redis) or an object with ``dumps`` and ``loads``. ``conn`` is a client of
    redis-py or of valkey-py, else ``url``, REDIS_BUS_URL, REDIS_URL or redis://localhost:6379/0
    counts; ``redis_kwargs`` are those of `redis.Redis`, such as ``db``, ``max_connections``,
    ``unix_socket_path`` or ``connection_pool``, and not for a client that is given. ``partitions``:
    over how many parts of Redis the service registered here is spread, for one that is too much for
    a core; published with it.

    Making one does no I/O. Raises ValueError for names with characters other than
    ``A-Z a-z 0-9 _ . -`` and for a URL that means nothing, TypeError for what is of another type.
    """

    def __init__(
        self,
        name: str = "redis_bus",
        conn: redis.Redis | redis.RedisCluster | None = None,
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
        for argument, text in (("name", name), ("prefix", prefix), ("url", url or "")):
            if not isinstance(text, str):
                raise TypeError(f"{argument}={text!r}: a str, not {type(text).__name__}")
        self.name = check_bus_name(name)
        self.prefix = check_prefix(prefix)
        self.partitions = check_partitions(partitions)
        for setting, value in (("cache_expire", cache_expire), ("timeout", timeout)):
            check_seconds(setting, value)
        if not check_seconds("result_expire", result_expire):
            raise ValueError(f"result_expire={result_expire!r}: results must be kept for a while")
        self.result_expire = result_expire
        self.cache_expire = cache_expire
        self.timeout = timeout
        self.serializer = codec.get_serializer(serializer)
        found = given(conn, url, redis_kwargs)
        self._deployment: Deployment = found or open_url(url or default_url(), **redis_kwargs)
        self._conn: Any = conn
        transport = open_transport(self._deployment)
        self._core = Core(self.name, transport, self.serializer, timeout, Chain([LogRuns()]))
        self._core.face = Bus
        self.middleware = self._core.middleware
        if found is None:
            self._core.arguments = {
                "name": name,
                "result_expire": result_expire,
                "cache_expire": cache_expire,
                "prefix": prefix,
                "url": url or default_url(),
                "timeout": timeout,
                "serializer": serializer,
                "partitions": partitions,
                **redis_kwargs,
            }
        self._workers: set[Worker] = set()

    @property
    def conn(self) -> Any:
        """The client of redis-py that was given, or one that leads to the same Redis.

        Where that is a cluster, its client connects as it is made: when first asked for.
        """
        if self._conn is None:
            self._conn = self._deployment.client()
        return self._conn

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
    ) -> Method[P, R]:
        """Register a function, or the dotted path of one, and return it as a method of the bus.

        What a path leads to is imported when this process serves it or first uses the method.
        The settings are those of `register`.
        """
        settings = Settings(
            cache_key=cache_key,
            cache_expire=self.cache_expire if cache_expire is OF_BUS else cache_expire,
            stale=stale,
            idempotent=idempotent,
            max_queue=max_queue,
            timeout=self.timeout if timeout is OF_BUS else timeout,
            durable=durable,
            open_timeout=timeout is OF_BUS and self.timeout == DEFAULT_TIMEOUT,
            result_expire=self.result_expire,
            serializer=self.serializer.name,
            partitions=self.partitions,
        )
        registration = Registration(function, name, self.prefix, settings)
        name = check_method_name(registration.name)
        method: Method[P, R] = Method(self._core, name)
        if not registration.needs_import:
            method.adopt(self._core.compile(registration))
        self._core.add(registration, method)
        return method

    # -- finding ------------------------------------------------------------------------------

    def all_methods(self) -> list[str]:
        """Return the names of the methods on the bus, sorted; those of every service."""
        known = self._core.drive(directory.list_names(self.name))
        return sorted({*known, *self._core.registrations})

    def get_method(self, name: str) -> Method[..., Any] | None:
        """Return a method as it is published now; None where there is none of that name."""
        method = self._core.methods.get(name)
        if method is None:
            method = Method(self._core, name)
        try:
            self._core.drive(method.refreshed())
        except directory.UnknownMethod:
            self._core.methods.pop(name, None)
            return None
        return self._core.methods.setdefault(name, method)

    def __getattr__(self, name: str) -> Method[..., Any]:
        __tracebackhide__ = True
        # Consoles ask every object for these, and would wait for Redis each time.
        if name.startswith(("__", "_repr_", "_ipython_")) or "_core" not in self.__dict__:
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __getitem__(self, name: str) -> Method[..., Any]:
        __tracebackhide__ = True
        method = self._core.methods.get(name) or self.get_method(name)
        if method is None:
            raise KeyError(directory.no_such_method(self.name, name, self.all_methods()))
        return method

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get_method(name) is not None

    def __dir__(self) -> list[str]:
        names = set(super().__dir__())
        try:
            return sorted(names | set(self.all_methods()))
        except BusError:
            # Completion in a console must not fail for want of a Redis.
            return sorted(names | set(self._core.registrations))

    def get_async_result(self, id: str) -> AsyncResult:  # noqa: A002 - the contract's name
        """Return the result with that id, of a `Method.run` in any process.

        Raises BusError for text that is no id.
        """
        keep_ms = max(1, round(self.result_expire * 1000))
        return AsyncResult(self._core, *parse_id(self.name, id, keep_ms))

    # -- serving ------------------------------------------------------------------------------

    def serve(
        self,
        pattern: str | None = None,
        debug: bool = False,
        *,
        concurrency: int = 1,
        max_jobs: int | None = None,
    ) -> None:
        """Serve what was registered here until SIGTERM or SIGINT.

        ``pattern``: only the methods whose names match it (as in a shell: ``math_*``).
        ``debug``: on an exception, pdb opens in the frame that raised.
        ``concurrency``: how many jobs run at a time. One runs in this thread; of more, each plain
        function runs in a thread of its own, all ``async def`` functions on one event loop.
        ``max_jobs``: return once so many jobs were run; None: never.

        Raises BusError where there is nothing to serve, ConnectionLost where Redis cannot be
        reached at the start; after that, a worker tries again until Redis is back.
        """
        serving = self._serving(pattern, debug=debug, concurrency=concurrency, max_jobs=max_jobs)
        with serving as worker:
            worker.serve()

    def serve_once(self, pattern: str | None = None, debug: bool = False) -> int:
        """Run the jobs that wait now, in turn, and return how many there were. See `serve`."""
        with self._serving(pattern, debug=debug) as worker:
            return worker.serve_once()

    def _make_worker(
        self,
        pattern: str | None,
        *,
        debug: bool = False,
        concurrency: int = 1,
        max_jobs: int | None = None,
    ) -> Worker:
        from .worker.worker import Worker, check_concurrency  # who only calls needs none of it

        check_concurrency(concurrency, debug=debug)
        check_max_jobs(max_jobs)
        wanted = [
            registration
            for name, registration in self._core.registrations.items()
            if pattern is None or fnmatch.fnmatchcase(name, pattern)
        ]
        if not wanted:
            what = f"matches {pattern!r}" if self._core.registrations else "is registered here"
            raise BusError(f"bus {self.name!r}: nothing to serve, no method {what}")
        targets = [self._core.compile(registration) for registration in wanted]
        served = list(zip(wanted, targets, strict=True))
        return Worker(self._core, served, debug=debug, concurrency=concurrency, max_jobs=max_jobs)

    @contextlib.contextmanager
    def _serving(self, pattern: str | None, **settings: Any) -> Iterator[Worker]:
        worker = self._make_worker(pattern, **settings)
        transport = self._core.transport
        closings = transport.closings
        self._workers.add(worker)
        try:
            yield worker
        finally:
            self._workers.discard(worker)
            if transport.closings != closings:  # what it needed to end is not needed any more
                transport.close()

    def stop(self) -> None:
        """Let each `serve` that runs in another thread finish what it runs and return."""
        for worker in list(self._workers):
            worker.stop()

    # -- looking after ------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, float]]:
        """Return per method: calls, hits, joins, errors, lost, dead, queued, workers, latency.

        ``calls`` counts all, ``hits`` those answered from the cache, ``joins`` those that shared
        the run of another, ``errors`` the runs that raised, ``lost`` the jobs that were given up
        with their workers, ``dead`` the letters that are kept of them; ``queued`` jobs wait now
        for ``workers`` alive; ``latency`` is the mean run in seconds.
        """
        return self._core.drive(directory.stats(self.name))

    def cleanup(self) -> int:
        """Delete all keys of this bus, by SCAN and UNLINK, and return how many there were.

        Registrations too: workers that live publish theirs again at their next heartbeat.
        """
        core = self._core
        deleted: int = core.drive(directory.cleanup(self.name, core.transport.masters()))
        self._core.forget_published()
        return deleted

    def close(self) -> None:
        """Stop serving and close the connections; the bus can be used again."""
        self.stop()
        self._core.transport.close()

    def __enter__(self) -> Bus:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of: a copy has connections of its own, and nothing registered."""
        return functools.partial(type(self), **forks.arguments_of(self._core, repr(self))), ()

    def __repr__(self) -> str:
        prefix = f", prefix={self.prefix!r}" if self.prefix else ""
        return f"<Bus {self.name!r}{prefix} at {self._core.transport.address}>"


def default_url() -> str:
    """Return the URL that counts where none is given."""
    return os.environ.get("REDIS_BUS_URL") or os.environ.get("REDIS_URL") or DEFAULT_URL
