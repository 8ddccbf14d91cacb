"""The steps of durable methods, with no I/O in them: what replicas confirm before it counts.

A confirmation narrows what a failover loses, and no more: `WAIT` is no consensus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import BusError, ConnectionLost, NotConfirmed
from ..protocol.commands import SLICE_SECONDS, Command, Route
from ..protocol.confirm import Confirm
from ..protocol.deadline import Deadline
from ..protocol.target import ShownCall
from .steps import READ_SECONDS, Request, Steps, Withdrawal, ask
from .waiting import slice_of

# The statuses of `call` by which a job was enqueued. Who joined one and waits for it makes the call
# again where it gets lost; who was served a value needs no job.
ENQUEUED = (b"queued",)
# A run does not wait, so what it will come back for is to be there, whoever enqueued it.
KEPT = (b"queued", b"joined", b"hit")


def enqueue(
    route: Route,
    command: Command,
    withdraw: Withdrawal,
    shown: ShownCall | str,
    deadline: Deadline,
    only_if: tuple[bytes, ...] = ENQUEUED,
) -> Steps[list[Any]]:
    """Send the script `call`, and return its status once enough replicas have the job.

    Raises NotConfirmed where they do not in time, with the job withdrawn, if that can be.
    """
    yield from _check_replicas(route, shown, slice_of(deadline, SLICE_SECONDS)[1])
    seconds, timeout = slice_of(deadline, SLICE_SECONDS)
    confirm = Confirm(route.durable, seconds, only_if)
    try:
        request = Request((command,), timeout, withdraw=withdraw, confirm=confirm)
        status, count = yield request
    except ConnectionLost:
        route.has_replicas = False
        raise
    if count is not None:
        route.has_replicas = count >= confirm.replicas
    if count is None or route.has_replicas:
        return list(status)
    text = f"{shown}: not accepted, {_too_few(count, confirm)}"
    if status[0] != b"queued":
        raise NotConfirmed(f"{text}; the job that it joined, or the value, is there still")
    try:
        done = (yield Request((withdraw(),)))[0]
    except BusError as error:
        raise NotConfirmed(f"{text}; it may run, as it could not be withdrawn ({error})") from error
    if done == b"cancelled":
        raise NotConfirmed(f"{text}; it was withdrawn before a worker took it")
    why = "others have joined it" if done == b"shared" else "a worker has taken it already"
    raise NotConfirmed(f"{text}; it may run, as {why}")


def clear(route: Route, command: Command) -> Steps[Any]:
    """Send what clears values, and return the reply once enough replicas have forgotten them.

    Raises NotConfirmed where they have not in time.
    """
    if not route.durable:
        return (yield ask(command))[0]
    yield from _check_replicas(route, f"{route.method}: clear")
    confirm = Confirm(route.durable, SLICE_SECONDS)
    reply, count = yield ask(command, confirm=confirm)
    route.has_replicas = count >= route.durable
    if not route.has_replicas and reply != b"stale":  # which cleared nothing
        text = f"{route.method}: cleared, but {_too_few(count, confirm)}"
        raise NotConfirmed(f"{text}; after a failover old values may be back, so clear again then")
    return reply


def clear_all(routes: Sequence[Route]) -> Steps[list[Any]]:
    """Clear a method in all its partitions, and return the replies: see `clear`.

    Each is confirmed by itself, as they may be on several servers. All are cleared first, whatever
    replicas say of one of them.
    """
    if not routes[0].durable:
        return (yield ask(*(route.clear_all() for route in routes)))
    replies: list[Any] = []
    failure: NotConfirmed | None = None
    for route in routes:
        try:
            replies.append((yield from clear(route, route.clear_all())))
        except NotConfirmed as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return replies


def _check_replicas(
    route: Route, shown: ShownCall | str, timeout: float = READ_SECONDS
) -> Steps[None]:
    """Raise NotConfirmed where there are too few replicas; asked only where that is in doubt."""
    if route.has_replicas:
        return
    # What has no key goes where the key beside it is.
    role, _ = yield ask(("ROLE",), ("EXISTS", route.service.meta), timeout=timeout)
    attached = len(role[2]) if role[0] == b"master" else 0
    if attached < route.durable:
        there = {0: "no replica", 1: "only 1 replica"}.get(attached, f"only {attached} replicas")
        raise NotConfirmed(
            f"{shown}: not sent, as {route.method} is durable={route.durable} and its Redis has "
            f"{there} to confirm that"
        )


def _too_few(count: int, confirm: Confirm) -> str:
    return f"{count} of {confirm.replicas} replicas confirmed it in {confirm.seconds:.3g} s"
