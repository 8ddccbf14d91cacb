"""Lapse: the lease of a worker that died is ended from outside, by the one who saw it die.

The supervisor has none of the user's modules, and so no bus of theirs: a worker tells it of what
its bus was made, as far as that can be written down.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from typing import Any

import redis

from ..bus import Bus
from ..calls.partitions import count_partitions
from ..calls.patience import LEAST_SECONDS
from ..calls.sweep import sweep
from ..client.core import Core
from ..errors import BusError
from ..protocol.commands import Post, Route, Service
from ..transport.transport import NodeTransport
from ..worker.worker import Worker
from .signals import ENDING

logger = logging.getLogger("redis_bus")

# How long the whole of it may take.
LAPSE_SECONDS = 3.0
# What does not lead to Redis, and often cannot be written down.
NO_MATTER = ("serializer", "retry", "retry_on_error", "socket_keepalive_options")
# Classes of connections, and the URL that means one; what else is needed comes beside it.
URLS = {
    redis.Connection: "redis://localhost",
    redis.SSLConnection: "rediss://localhost",
    redis.UnixDomainSocketConnection: "unix:///path",
}
PLACE = ("host", "port", "path", "db", "username", "password")
# What lets a connection in, and is code of the user's.
CODE = ("credential_provider", "redis_connect_func")

# A worker, its service and its methods, and the arguments of its bus.
Lease = dict[str, Any]


def lease_of(worker: Worker) -> Lease | None:
    """Return what another process needs to end a worker's lease; None where it cannot be told."""
    core = worker.core
    arguments = core.arguments if core.arguments is not None else _arguments_of(core)
    if arguments is None:
        return None
    lease = {
        "worker": worker.id,
        "service": worker.service.prefix,
        "partitions": len(worker.lanes),
        "methods": sorted(worker.methods),
        "bus": {name: value for name, value in arguments.items() if name not in NO_MATTER},
    }
    try:
        json.dumps(lease)
    except (TypeError, ValueError):
        return None
    return lease


def _arguments_of(core: Core) -> dict[str, Any] | None:
    """Return the arguments of a bus that leads to where a client of the user's does."""
    transport = core.transport
    if not isinstance(transport, NodeTransport):
        return None
    settings = transport.endpoint.settings
    url = URLS.get(transport.endpoint.connection_class)
    if url is None or any(settings.get(name) is not None for name in CODE):
        return None
    known = {
        name: value
        for name, value in settings.items()
        if value is not None and (name in PLACE or name.startswith("ssl_"))
    }
    return {"name": core.name, "url": url, **known}


def end_lease(lease: Lease, seconds: float) -> None:
    """End a worker's lease, and give away or fail what it held. Raises BusError."""
    end = time.monotonic() + seconds
    with Bus(**lease["bus"]) as bus:
        core, service = bus._core, Service(bus.name, lease["service"])
        # What was asked for of a service that has, or once had, more partitions it served, too.
        span = core.drive(count_partitions(service, lease["partitions"], seconds))
        lost: BusError | None = None
        for one in map(service.at, range(span)):
            post = Post(one, lease["worker"], [Route(one, name) for name in lease["methods"]])
            try:
                left = max(LEAST_SECONDS, end - time.monotonic())
                core.transport.ask(*post.lapse(post.worker), timeout=left)
                core.drive(sweep(bus.name, one, max(0.0, end - time.monotonic())))
            except BusError as error:  # of several servers, the others may answer
                lost = error
        if lost is not None:
            raise lost


class Lapses:
    """Ends leases in threads, beside who has other things to do: Redis may be away."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def begin(self, lease: Lease) -> None:
        """Begin to end a lease."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(
            target=self._end, args=(lease,), name="redis_bus lapse", daemon=True
        )
        # It inherits the mask: signals are for the thread that waits for them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING, signal.SIGCHLD))
        try:
            thread.start()
        except RuntimeError as error:  # no memory for another
            self._fail(lease, error)
        else:
            self._threads.append(thread)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def wait(self) -> None:
        """Wait until what was begun has ended, or could have."""
        end = time.monotonic() + LAPSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _end(self, lease: Lease) -> None:
        try:
            end_lease(lease, LAPSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever a connection raises, here and now
            self._fail(lease, error)

    def _fail(self, lease: Lease, error: Exception) -> None:
        text = "worker %s is dead, and its lease cannot be ended: %s; it ends by itself, or by %s"
        logger.warning(text, lease["worker"], error, "the next worker in its place")
