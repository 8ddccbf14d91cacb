"""Direct: a call on an `AsyncBus`, with one thing to await as long as all is well. See `direct`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import redis

from ..calls import calls, context, nested
from ..calls.calls import ODD, Begun, Told
from ..calls.waiting import FIRST_SLICE_SECONDS, slice_of
from ..errors import BusError
from ..protocol.commands import Command, Route
from ..protocol.deadline import Deadline
from ..protocol.entries import Mode
from ..transport.async_link import LOOK_AGAIN_SECONDS, ignore, late
from ..transport.loops import BusClosed
from ..transport.transport import READ_SECONDS
from .async_core import look
from .direct import read

if TYPE_CHECKING:
    from ..protocol.target import Args, Kwargs, Options
    from .async_core import AsyncCore
    from .async_method import AsyncMethod

_TOLD, _ASYNC = Mode.TOLD, Mode.ASYNC
Sent = asyncio.Future[list[Any]]


async def call(
    core: AsyncCore, method: AsyncMethod, args: Args, kwargs: Kwargs, options: Options
) -> object:
    """Call a method, which was looked up, and wait for its value. See `calls.call`."""
    __tracebackhide__ = True
    target = method.target
    deadline = Deadline(options.timeout if options.has_timeout else target.timeout)
    try:
        values = target.bind(*args, **kwargs)
    except TypeError:
        values = None
    begun: Begun | None = None
    if values is not None and deadline.budget != 0.0 and not target.route.durable:
        key = None if target.key is None else target.key(values)
        body, route = target.encode(args, kwargs, context.current()), target.route_for(key)
        call = _Call(core, Begun(target, route, key, body, "", deadline), options)
        begun = await (call.alone() if key is None else call.keyed(key))
        if begun is not None and begun.value is not ODD:
            return begun.value
    return await core.drive(calls.call(method, args, kwargs, options, begun=begun))


class _Call:
    """The first write of a call. ``begun`` has its value where all is well.

    Where there is no connection nothing is sent, and there is None instead.
    """

    __slots__ = ("_begun", "_connections", "_core", "_options")

    def __init__(self, core: AsyncCore, begun: Begun, options: Options) -> None:
        self._core = core
        self._connections = core.loops.here()
        self._begun = begun
        self._options = options

    async def alone(self) -> Begun | None:
        """Call without a cache key: what is waited for is the outcome alone."""
        begun, connections = self._begun, self._connections
        target, service = begun.target, begun.route.service
        inbox = connections.open_inbox(service.base)
        if inbox is None:
            return None
        begun.job = job = inbox.name.new_job_id()
        future = inbox.expect(job)
        begun.withdraw = told = _Told(begun.route, job, future)
        command = self._command(_TOLD)
        if not connections.post(command, told):
            inbox.ignore(job, future)
            return None
        inbox.end(future, slice_of(begun.deadline, FIRST_SLICE_SECONDS)[0])
        try:
            found = await future
            if found:
                connections.unlink(service.base, service.reply(job))
                begun.value = read(found, target, is_entry=False)
                if begun.value is not ODD:
                    return begun
            if found is None:
                inbox.check()
            inbox.ignore(job, future)
            answer = await self._answer(command, told.answered())
            if isinstance(answer, list):
                if found == b"":  # it is too long for a message, or one may have been missed
                    _, timeout = slice_of(begun.deadline, FIRST_SLICE_SECONDS)
                    found = await look(service, job, connections, timeout)
                    if found:
                        connections.unlink(service.base, service.reply(job))
                answer = [answer[0], found]
        except asyncio.CancelledError:
            inbox.ignore(job, future)
            connections.forget(told())
            raise
        begun.got(answer)
        return begun

    async def keyed(self, key: bytes) -> Begun | None:
        """Call with a cache key: what is waited for is the answer to `call`, maybe a hit."""
        begun = self._begun
        begun.job = job = calls.new_job_id()
        flight = begun.route.flight(key)
        begun.withdraw = withdraw = partial(calls.withdrawal, begun.route, job, flight)
        command = self._command(_ASYNC)
        sent: Sent = asyncio.get_running_loop().create_future()
        if not self._connections.post(command, sent):
            return None
        try:
            answer = await self._answer(command, sent)
        except asyncio.CancelledError:
            self._connections.forget(withdraw())
            raise
        if isinstance(answer, list) and answer[0][0] == b"hit":
            begun.value = read(answer[0][1], begun.target, is_entry=True)
        begun.got(answer)
        return begun

    def _command(self, mode: Mode) -> Command:
        begun, options = self._begun, self._options
        return begun.route.call(
            begun.job,
            begun.body,
            mode=mode,
            budget_ms=begun.deadline.left_ms(),
            key=begun.key,
            fail_fast=options.fail_fast,
            but=nested.busy_worker(begun.route),
        )

    async def _answer(self, command: Command, sent: Sent) -> list[Any] | BusError:
        """Return what was answered, or the error of that; what was not done is sent again."""
        timeout = slice_of(self._begun.deadline, FIRST_SLICE_SECONDS)[1]
        try:
            if timeout < READ_SECONDS:
                sent.add_done_callback(ignore)  # who gives up does not hear what it raises
                for seconds in (timeout, LOOK_AGAIN_SECONDS):  # the loop may have stood still
                    if not sent.done():
                        await asyncio.wait([sent], timeout=seconds)
                if not sent.done():
                    return self._core.blocking.transport.lost(late())
            replies = await sent
            if isinstance(replies[0], redis.RedisError):
                return await self._connections.exchange(command, timeout=timeout)
        except BusClosed:
            raise
        except BusError as error:
            return error
        return replies


class _Told(Told):
    """A `Told` that also gets the answer to the call; ``outcome`` is what its caller awaits."""

    __slots__ = ("_answer", "_awaited", "_outcome")

    def __init__(self, route: Route, job: str, outcome: asyncio.Future[bytes | None]) -> None:
        super().__init__(route, job)
        self._outcome = outcome
        self._answer: list[Any] | BaseException | None = None
        self._awaited: Sent | None = None

    def done(self) -> bool:
        return False

    def set_result(self, replies: list[Any], /) -> None:
        """Note when the job was queued; where it was not, have its caller wait no longer."""
        self._answer = replies
        if type(replies[0]) is int:
            self.queued(replies[0])
        elif not self._outcome.done():
            self._outcome.set_result(None)
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(replies)

    def set_exception(self, error: BaseException, /) -> None:
        self._answer = error
        if not self._outcome.done():
            self._outcome.set_result(None)
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_exception(error)

    def answered(self) -> Sent:
        """Return the answer, to be awaited; for callers who have to look at it."""
        self._awaited = asyncio.get_running_loop().create_future()
        if isinstance(self._answer, BaseException):
            self._awaited.set_exception(self._answer)
        elif self._answer is not None:
            self._awaited.set_result(self._answer)
        return self._awaited
