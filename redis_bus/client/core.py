"""Core: what one `Bus` knows and holds, for the modules behind its public face."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ..calls import directory
from ..calls.middleware import Chain
from ..calls.patience import GRACE_SECONDS
from ..calls.steps import Request, Steps, Wait, Withdrawal
from ..errors import BusError, ProtocolError
from ..protocol import codec
from ..protocol.commands import Command
from ..protocol.descriptor import Descriptor
from ..protocol.registration import Registration
from ..protocol.target import Target
from ..transport.transport import READ_SECONDS, Transport

if TYPE_CHECKING:
    from .method import Method

T = TypeVar("T")


class Core:
    """The connections of a bus, what was registered on it here, and what it has heard of others."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        serializer: codec.Serializer,
        timeout: float | None,
        middleware: Chain,
    ) -> None:
        self.name = name
        self.transport = transport
        self.serializer = serializer
        self.timeout = timeout
        self.middleware = middleware
        self.registrations: dict[str, Registration] = {}
        self.methods: dict[str, Method[..., Any]] = {}
        # What the bus was made of, for its copies in other processes; None: of a connection.
        self.arguments: dict[str, Any] | None = None
        # How many connections of asyncio the bus itself has to a server, beside a worker's.
        self.own_connections = 0
        # What makes a bus of them: a class above this module, which hands itself in.
        self.face: Callable[..., Any] | None = None
        self._unpublished: set[str] = set()

    def drive(self, steps: Steps[T], gone: Callable[[Command], None] | None = None) -> T:
        """Carry out steps over the bus's connections, and return what they return.

        ``gone`` is told, at a KeyboardInterrupt, what withdraws the job: see `Request.withdraw`.
        """
        __tracebackhide__ = True
        withdraw: Withdrawal | None = None
        try:
            request = next(steps)
            while True:
                withdraw = request.withdraw or withdraw
                if request.pause:
                    time.sleep(request.pause)
                try:
                    transport = request.at or self.transport
                    if request.wait is not None:
                        replies = self._wait(request, request.wait)
                    elif not request.commands:
                        replies = []
                    else:
                        send = transport.ask if request.may_repeat else transport.exchange
                        replies = send(
                            *request.commands, timeout=request.timeout, confirm=request.confirm
                        )
                except BusError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(replies)
        except StopIteration as stop:
            value: T = stop.value
            return value
        except KeyboardInterrupt:
            if withdraw is not None and gone is not None:
                gone(withdraw())
            raise
        except RuntimeError as error:
            # What Python makes of a StopIteration that a remote function raised.
            cause = error.__cause__
            if isinstance(cause, StopIteration):
                raise cause from cause.__cause__
            raise

    def _wait(self, request: Request, wait: Wait) -> list[Any]:
        """Send the commands and the blocking one for the outcome, all in one write.

        What can be withdrawn takes two: a refusal of it is not told where the second one waits.
        """
        if request.withdraw is not None and request.commands:
            replies = self.transport.exchange(*request.commands, timeout=request.timeout)
            if wait.only_if is not None and replies[0][0] != wait.only_if:
                return [*replies, None]
            return [*replies, *self._wait(request._replace(commands=()), wait)]
        if wait.alone:
            block = wait.service.wait_alone(wait.job, wait.seconds)
        else:
            block = wait.service.wait_shared(wait.job, wait.seconds)
        *replies, found = self.transport.exchange(*request.commands, block, timeout=request.timeout)
        return [*replies, found[1] if wait.alone and found else found]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "what holds connections cannot be pickled: hand on a bus, a method of one, or the id "
            "of a result"
        )

    def add(self, registration: Registration, method: Method[..., Any]) -> None:
        """Note what was registered; the last registration of a name counts."""
        self.registrations[registration.name] = registration
        self.methods[registration.name] = method
        self._unpublished.add(registration.name)

    def forget_published(self) -> None:
        """Note that nothing is published any more: own methods are published again when used."""
        self._unpublished.update(self.registrations)
        for name in set(self.methods) - set(self.registrations):
            del self.methods[name]

    def look_up(self, name: str, budget: float | None = None) -> Steps[Target]:
        """Ask what is published under a name; a method of our own is published first.

        ``budget``: the time (s) of the call that is behind it; None: that of the bus.
        """
        if name in self._unpublished:
            yield from self.publish([self.registrations[name]])
        # A call may be behind it, which is to end in its time.
        budget = self.timeout if budget is None else budget
        seconds = READ_SECONDS if budget is None else min(READ_SECONDS, budget + GRACE_SECONDS)
        try:
            descriptor = yield from directory.look_up(self.name, name, seconds)
        except directory.UnknownMethod:
            if name not in self.registrations:
                raise
            yield from self.publish([self.registrations[name]])
            descriptor = yield from directory.look_up(self.name, name, seconds)
        target = self._target(descriptor)
        if name in self.methods:
            # Copies of a method with other options are made from this one.
            self.methods[name].adopt(target)
        return target

    def first_target(self, name: str) -> Target:
        """Return what a method of this process, or else of the bus, is. Raises UnknownMethod."""
        if name in self.registrations:
            return self.compile(self.registrations[name])
        return self.drive(self.look_up(name))

    def publish(self, registrations: list[Registration]) -> Steps[None]:
        """Publish methods that were registered here."""
        targets = [self.compile(registration) for registration in registrations]
        published = [registration.published() for registration in registrations]
        yield from directory.publish(self.name, targets, published)
        self._unpublished.difference_update(registration.name for registration in registrations)

    def compile(self, registration: Registration) -> Target:
        """Return what a registration makes its calls. Raises ValueError for what cannot be."""
        try:
            return self._target(registration.descriptor)
        except ProtocolError as error:
            # Of our own making: what is wrong is what `register` was given.
            raise ValueError(str(error)) from None

    def _target(self, descriptor: Descriptor) -> Target:
        return Target(self.name, descriptor, self.serializer, self.timeout)
