"""Nested: what the job that runs here means for the calls that it makes."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

from ..protocol.commands import Route, Service


class Host(NamedTuple):
    """The worker that runs a job, as far as that says what else can run meanwhile."""

    worker: str | None  # None: it can run other jobs beside this one
    service: Service  # its partition 0
    methods: frozenset[str]
    expects_others: Callable[[], bool]  # a supervisor sees to it that there are others beside it


# The worker that runs a job, and the job's id.
_here: ContextVar[tuple[Host, str] | None] = ContextVar("redis_bus_host", default=None)


def runs_on(host: Host, job: str) -> None:
    """Note for the calls made from here on which worker waits for them, and for which job."""
    _here.set((host, job))


def current_job() -> str | None:
    """The id of the job on whose behalf this code runs."""
    here = _here.get()
    return None if here is None else here[1]


def busy_worker(route: Route) -> str | None:
    """The worker that serves a method and is busy with the job that calls it, if there is one."""
    here = _here.get()
    if here is None:
        return None
    host = here[0]
    if route.method not in host.methods or host.service != route.service.at(0):
        return None
    # Where another is not alive now, its successor comes.
    return None if host.expects_others() else host.worker
