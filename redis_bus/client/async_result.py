"""Results of jobs as `AsyncBus` gives them: what asks Redis is awaited."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ..calls import calls, waiting
from ..protocol import outcome
from ..protocol.commands import Route
from ..protocol.deadline import Deadline
from .result import JobResult

if TYPE_CHECKING:
    from .async_core import AsyncCore


class AsyncRun(JobResult):
    """The result of a ``run`` on an `AsyncBus`: `AsyncResult`, awaited."""

    def __init__(
        self, core: AsyncCore, route: Route, job: str, allow: tuple[type[BaseException], ...] = ()
    ) -> None:
        super().__init__(core.name, route, job, allow)
        self._core = core

    async def get(self, timeout: float | None = None) -> Any:
        """Return the value, or raise what the function raised. See `AsyncResult.get`."""
        __tracebackhide__ = True
        deadline = Deadline(self._core.timeout if timeout is None else timeout)
        found = await self._core.drive(waiting.outcome_of(self._ticket(), deadline))
        return outcome.decode(found, self._core.serializer, self._allow)

    def __await__(self) -> Generator[Any, None, Any]:
        """Await it: `get`, with the timeout of its bus; so it goes into asyncio.as_completed."""
        return self.get().__await__()

    async def done(self) -> bool:
        """Whether `get` would return, or raise the function's exception, at once."""
        return await self._core.drive(waiting.is_done(self._ticket()))

    async def cancel(self) -> bool:
        """Withdraw the job. See `AsyncResult.cancel`."""
        return await self._core.drive(calls.cancel(self._ticket()))
