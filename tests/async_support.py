"""What the tests of `AsyncBus` share: running a coroutine so that nothing it leaves goes unseen."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from redis_bus import AsyncBus
from redis_bus.transport.async_cluster import AsyncRouted
from redis_bus.transport.async_transport import AsyncTransport
from tests.support import eventually

T = TypeVar("T")
NOTICED = (ResourceWarning, RuntimeWarning)


def run(
    work: Coroutine[Any, Any, T],
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> T:
    """Run a coroutine; fail where asyncio has to log an error, or to warn, on its behalf.

    So are tasks whose exception is never retrieved, coroutines never awaited, sockets left open.
    """
    said: list[object] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # what tests before this one left is not of this one

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: said.append(what))
        value = await work
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        assert not rest, rest
        return value

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = new_loop()
        try:
            value = loop.run_until_complete(watched())
            gc.collect()
            loop.run_until_complete(asyncio.sleep(0))
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        gc.collect()
    said += [w.message for w in caught if isinstance(w.message, NOTICED)]
    assert not said, said
    return value


@contextlib.asynccontextmanager
async def calling(url: str, **settings: Any) -> AsyncIterator[AsyncBus]:
    """Give an AsyncBus; fail where something still waits on it when it is closed."""
    async with AsyncBus(**{"name": "test", "url": url, "timeout": 20, **settings}) as bus:
        yield bus
        await nothing_waits(bus)


async def nothing_waits(bus: AsyncBus) -> None:
    """Fail where an outcome or a reply is still expected on this loop's connections."""
    transport = bus._core.loops.here()
    for one in transport.nodes() if isinstance(transport, AsyncRouted) else [transport]:
        assert isinstance(one, AsyncTransport)
        inbox, link = one._inbox, one._link
        assert inbox is None or not inbox._expected
        await until(lambda link=link: link is None or not link._waiting)


async def until(condition: Callable[[], T]) -> T:
    """Wait for a condition, looked at in a thread: this loop goes on meanwhile."""
    return await asyncio.to_thread(eventually, condition)


class Gate:
    """Holds a function open: it says that it was entered and waits to be let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.seen: list[object] = []

    def __call__(self, a: Any = 0) -> Any:
        self.seen.append(a)
        self.entered.set()
        assert self.go.wait(20)
        return a
