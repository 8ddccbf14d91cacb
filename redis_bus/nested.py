"""Nested: what the job that runs here means for the calls that it makes."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

from .protocol import Route, Service


class Host(NamedTuple):
    """The worker that runs a job, as far as that says what else can run meanwhile."""

    worker: str | None  # None: it can run other jobs beside this one
    service: Service  # its partition 0
    methods: frozenset[str]
    job: str
    expects_others: Callable[[], bool]  # a supervisor sees to it that there are others beside it


_host: ContextVar[Host | None] = ContextVar("redis_bus_host", default=None)


def runs_on(host: Host) -> None:
    """Note for the calls made from here on which worker waits for them."""
    _host.set(host)


def current_job() -> str | None:
    """The id of the job on whose behalf this code runs."""
    host = _host.get()
    return None if host is None else host.job


def busy_worker(route: Route) -> str | None:
    """The worker that serves a method and is busy with the job that calls it, if there is one."""
    host = _host.get()
    if host is None or route.method not in host.methods or host.service != route.service.at(0):
        return None
    # Where another is not alive now, its successor comes.
    return None if host.expects_others() else host.worker
