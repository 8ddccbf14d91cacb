"""The faces of a bus, for tests that are the same for both: `AsyncBus` with the calls of `Bus`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from typing import Any

from redis_bus import AsyncBus
from redis_bus.client.async_dead_letters import AsyncDeadLetter
from redis_bus.client.async_method import AsyncMethod, AsyncRun

BLOCKING = "Bus"
ASYNCIO = "AsyncBus"
ENDING_SECONDS = 10.0


class Loop:
    """An event loop in a thread of its own. It keeps what asyncio has to complain of."""

    def __init__(self) -> None:
        self.complaints: list[object] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, what: self.complaints.append(what))
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="loop of a fault test", daemon=True)
        self._thread.start()
        self.thread_id = self._thread.ident

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def do(self, work: Any) -> Any:
        """Wait for something awaitable, and return or raise what comes of it; from any thread."""

        async def awaited() -> Any:
            return await work

        with self._lock:
            if self._is_closed:
                raise RuntimeError("the test's loop is closed")
            future = asyncio.run_coroutine_threadsafe(awaited(), self._loop)
        return future.result()

    def close(self) -> None:
        """Cancel what runs, so that whoever waits for it goes on, and end the loop."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            ended = asyncio.run_coroutine_threadsafe(self._cancel(), self._loop)
        ended.result(ENDING_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ENDING_SECONDS)

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Face:
    """An `AsyncBus`, or a method, result or dead letter of one: its calls, waited for."""

    def __init__(self, behind: Any, loop: Loop) -> None:
        self._behind = behind
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._behind, name)
        if inspect.ismethod(value):
            return functools.partial(self._call, value)
        return self._shown(value)

    def __getitem__(self, name: str) -> Any:
        return self._shown(self._behind[name])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._behind, *args, **kwargs)

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        # A run can be awaited for its value; here it is the run itself that is wanted.
        is_awaited = inspect.isawaitable(value) and not isinstance(value, AsyncRun)
        return self._shown(self._loop.do(value) if is_awaited else value)

    def _shown(self, value: Any) -> Any:
        if isinstance(value, (AsyncMethod, AsyncRun, AsyncDeadLetter)):
            return Face(value, self._loop)
        if isinstance(value, list):
            return [self._shown(item) for item in value]
        return value


class AsyncFace(Face):
    """An `AsyncBus` on a loop of its own, as a blocking bus. Calls of many threads share it."""

    def __init__(self, name: str = "test", **kwargs: Any) -> None:
        super().__init__(AsyncBus(name, **kwargs), Loop())

    @property
    def thread_id(self) -> int | None:
        """The thread in which its calls log."""
        return self._loop.thread_id

    def close(self) -> None:
        """Close its connections and its loop; fails where asyncio had to complain of something."""
        self._loop.close()
        self._behind._bus.close()
        assert not self._loop.complaints, self._loop.complaints
