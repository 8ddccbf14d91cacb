"""AsyncCore: drives the steps of calls over asyncio connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..calls import directory
from ..calls.patience import GRACE_SECONDS, LEAST_SECONDS
from ..calls.steps import Request, Steps, Wait, Withdrawal
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Service
from ..protocol.registration import Registration
from ..protocol.target import Target
from ..transport.async_cluster import open_loops
from ..transport.loops import BusClosed, Connections
from ..transport.transport import READ_SECONDS, SOON_SECONDS
from .core import Core

if TYPE_CHECKING:
    from .async_method import AsyncMethod

T = TypeVar("T")


# For commands, and for outcomes.
OWN_CONNECTIONS = 2


class AsyncCore:
    """What an `AsyncBus` knows and holds; registrations are those of the blocking core."""

    def __init__(self, core: Core, make: Callable[[AsyncCore, str], AsyncMethod]) -> None:
        """``make`` makes the method of a name."""
        self.name = core.name
        self.timeout = core.timeout
        self.middleware = core.middleware
        self.serializer = core.serializer
        self.loops = open_loops(core.transport)
        core.own_connections = OWN_CONNECTIONS
        limit = core.transport.max_connections
        if limit is not None and limit < OWN_CONNECTIONS:
            raise ValueError(
                f"max_connections={limit}: an AsyncBus takes {OWN_CONNECTIONS} connections to a "
                f"Redis, one for commands and one on which outcomes are told"
            )
        self.methods: dict[str, AsyncMethod] = {}
        self._core = core
        self._make = make
        # What makes a bus for its copies in other processes: see `Core.face`.
        self.face: Callable[..., Any] | None = None

    @property
    def registrations(self) -> dict[str, Registration]:
        return self._core.registrations

    @property
    def blocking(self) -> Core:
        """The core of the bus that registers and serves."""
        return self._core

    def method(self, name: str) -> AsyncMethod:
        """Return the method of a name, whether it is on the bus or not."""
        method = self.methods.get(name)
        if method is None:
            method = self.methods[name] = self._make(self, name)
        return method

    async def load(self, name: str, seconds: float | None = None) -> Target:
        """Ask what is published under a name, once for all who ask. Raises UnknownMethod.

        Who has waited for so many seconds gets ConnectionLost; None: for as long as that may take.
        """
        transport = self.loops.here()

        async def ask() -> Target:
            return await self._drive(self.look_up(name, seconds), transport)

        lost = self._core.transport.lost
        longest = 2 * READ_SECONDS
        # Where it is not to be had in that time, it says why: that is known a moment later.
        timeout = longest if seconds is None else min(longest, seconds + GRACE_SECONDS / 2)
        return await transport.once(f"method {name}", ask, timeout, lost)

    def look_up(self, name: str, budget: float | None = None) -> Steps[Target]:
        """Ask what is published under a name. See `Core.look_up`."""
        target = yield from self._core.look_up(name, budget)
        if name in self.methods:
            # Copies of a method with other options are made from this one.
            self.methods[name].adopt(target)
        return target

    def compile(self, registration: Registration) -> Target:
        """Return what a registration makes its calls."""
        return self._core.compile(registration)

    def forget_published(self) -> None:
        """Note that nothing is published any more."""
        self._core.forget_published()
        self.methods.clear()

    async def no_such_method(self, name: str) -> str:
        """Say that there is no method of that name, and which are like it."""
        known = await self.drive(directory.list_names(self.name))
        return directory.no_such_method(self.name, name, known)

    async def drive(self, steps: Steps[T]) -> T:
        """Carry out steps, and return what they return. Raises BusClosed, too."""
        __tracebackhide__ = True
        return await self._drive(steps, self.loops.here())

    async def _drive(self, steps: Steps[T], transport: Connections) -> T:
        __tracebackhide__ = True
        withdraw: Withdrawal | None = None
        try:
            request = next(steps)
            while True:
                # What was enqueued stays so while its caller looks around.
                withdraw = request.withdraw or withdraw
                try:
                    replies = await _send(request, transport)
                except BusClosed:
                    raise
                except BusError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(replies)
        except StopIteration as stop:
            value: T = stop.value
            return value
        except asyncio.CancelledError:
            if withdraw is not None:
                transport.forget(withdraw())
            raise


async def _send(request: Request, transport: Connections) -> list[Any]:
    if request.pause:
        await asyncio.sleep(request.pause)
    transport = request.at or transport
    if request.inbox is not None:
        await transport.inbox(request.timeout, request.inbox.base)
        return []
    if request.wait is not None:
        return await _wait(request, request.wait, transport)
    if not request.commands:
        return []
    send = transport.ask if request.may_repeat else transport.exchange
    return await send(*request.commands, timeout=request.timeout, confirm=request.confirm)


async def _wait(request: Request, wait: Wait, transport: Connections) -> list[Any]:
    """Send the commands, and wait on the inbox for the outcome."""
    timeout, service, began = request.timeout, wait.service, time.monotonic()
    commands, found = request.commands, None
    inbox = await transport.inbox(timeout, service.base)
    passed = time.monotonic() - began
    if passed > SOON_SECONDS:  # it had to be made, or Redis is slow: both are within the time
        timeout = max(LEAST_SECONDS, timeout - passed)
    future, is_told = inbox.expect(wait.job), inbox.name.is_in(wait.job)
    try:
        if is_told and commands:  # which make the job
            replies = await transport.exchange(*commands, timeout=timeout)
        else:
            seek = service.look if is_told else partial(service.listen, inbox=inbox.name.channel)
            *replies, found = await transport.exchange(*commands, seek(wait.job), timeout=timeout)
        if wait.queued is not None and isinstance(replies[0], int):
            wait.queued(replies[0])
        elif wait.only_if is not None and replies[0][0] != wait.only_if:
            if found is None and not is_told:
                transport.unlink(service.base, service.inboxes(wait.job))
            return [*replies, None]
        if found is None:
            found = await _first(future, wait.seconds)
            if found is None:
                inbox.check()
        if found == b"":  # it is too long for a message, or one may have been missed
            found = await look(service, wait.job, transport, timeout)
        if wait.alone and found is not None:
            transport.unlink(service.base, service.reply(wait.job))
        return [*replies, found]
    finally:
        inbox.ignore(wait.job, future)


async def look(service: Service, job: str, transport: Connections, timeout: float) -> bytes | None:
    """Look for an outcome in its reply list; None where it is not there, or cannot be had now."""
    try:
        found: bytes | None = (await transport.ask(service.look(job), timeout=timeout))[0]
    except ConnectionLost:
        # Not an error of what was sent before: that was answered.
        return None
    return found


async def _first(future: asyncio.Future[bytes | None], seconds: float) -> bytes | None:
    """Wait for an outcome for so long; None where it does not come."""
    timer = future.get_loop().call_later(seconds, _expire, future)
    try:
        return await future
    finally:
        timer.cancel()


def _expire(future: asyncio.Future[bytes | None]) -> None:
    if not future.done():
        future.set_result(None)
