"""Dead letters as `AsyncBus` gives them: what asks Redis is awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BusError
from ..protocol.commands import Route
from ..protocol.entries import Letter, retried
from ..protocol.target import Target
from .async_result import AsyncRun
from .dead_letters import DeadLetter, list_letters

if TYPE_CHECKING:
    from .async_core import AsyncCore


class AsyncDeadLetter(DeadLetter):
    """A job that no worker could finish; `AsyncMethod.dead_letters` lists them."""

    def __init__(self, core: AsyncCore, target: Target, route: Route, letter: Letter) -> None:
        super().__init__(core.blocking, target, route, letter)
        self._async = core

    async def retry(self) -> AsyncRun:  # type: ignore[override]
        """Give the job to the workers again. See `DeadLetter.retry`."""
        job, route = self._job, self._route
        if job is None:
            raise BusError(
                f"{self.method}: dead letter {self.id} is no job: it can only be dropped"
            )
        entry = retried(self._letter.entry)
        command = route.retry_letter(self._letter.raw, entry, job.id)
        if not (await self._async.loops.here().ask(command))[0]:
            raise BusError(f"{self.method}: dead letter {self.id} is not there any more")
        return AsyncRun(self._async, route, job.id)

    async def drop(self) -> bool:  # type: ignore[override]
        """Delete the letter. Returns whether it was still there."""
        command = self._route.drop_letter(self._letter.raw)
        return bool((await self._async.loops.here().ask(command))[0])


async def dead_letters(core: AsyncCore, target: Target) -> list[AsyncDeadLetter]:
    """Return the dead letters of a method, oldest first."""
    found = await core.drive(list_letters(target))
    return [AsyncDeadLetter(core, target, route, letter) for route, letter in found]
