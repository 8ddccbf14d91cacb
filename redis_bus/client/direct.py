"""Direct: a call on a `Bus`, in one function as long as all is well.

What comes of its first write is the value, as a rule. Whatever else it is, the steps of `calls` go
on from there, as they do for each call that is not made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..calls import calls, context, nested
from ..calls.calls import ODD, Begun
from ..calls.waiting import FIRST_SLICE_SECONDS, slice_of
from ..errors import BusError, ProtocolError, SerializationError
from ..protocol import codec, outcome
from ..protocol.deadline import Deadline
from ..protocol.entries import Mode, parse_entry

if TYPE_CHECKING:
    from ..protocol.target import Args, Kwargs, Options, Target
    from .core import Core
    from .method import Method

_WAIT, _CALL = Mode.WAIT, Mode.CALL


def call(
    core: Core, method: Method[..., Any], args: Args, kwargs: Kwargs, options: Options
) -> object:
    """Call a method and wait for its value, or raise what it raised. See `calls.call`."""
    __tracebackhide__ = True
    target = method.target
    deadline = Deadline(options.timeout if options.has_timeout else target.timeout)
    try:
        values = target.bind(*args, **kwargs)
    except TypeError:
        values = None
    if values is None or deadline.budget == 0.0 or target.route.durable:
        return core.drive(calls.call(method, args, kwargs, options))
    key = None if target.key is None else target.key(values)
    body = target.encode(args, kwargs, context.current())
    job, route = calls.new_job_id(), target.route_for(key)
    begun = Begun(target, route, key, body, job, deadline)
    command = route.call(
        job,
        body,
        mode=_WAIT if key is None else _CALL,
        budget_ms=deadline.left_ms(),
        key=key,
        fail_fast=options.fail_fast,
        but=nested.busy_worker(route),
    )
    seconds, timeout = slice_of(deadline, FIRST_SLICE_SECONDS)
    try:
        if key is None:
            wait = route.service.wait_alone(job, seconds)
            status, found = core.transport.exchange(command, wait, timeout=timeout)
            reply = found[1] if found else None
            begun.got([status, reply])
        else:
            status = core.transport.exchange(command, timeout=timeout)[0]
            reply = status[1] if status[0] == b"hit" else None
            begun.got([status])
    except BusError as error:
        begun.got(error)
    else:
        value = ODD if reply is None else read(reply, target, is_entry=key is not None)
        if value is not ODD:
            return value
    return core.drive(calls.call(method, args, kwargs, options, begun=begun))


def read(reply: bytes, target: Target, *, is_entry: bool) -> object:
    """Return the value of an outcome, or of an entry of the cache.

    ODD for an error, and for bytes that cannot be read: they are looked at again.
    """
    try:
        found = parse_entry(reply) if is_entry else reply
        return ODD if outcome.is_error(found) else codec.decode(found, target.serializer)
    except (ProtocolError, SerializationError):
        return ODD
