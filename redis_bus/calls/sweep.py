"""Sweep: give away, or fail, the jobs of workers whose lease has ended; steps with no I/O.

Workers sweep with each heartbeat, and callers while they wait: so a job is missed within its
worker's lease and one sweep, by whoever is left (leases: Gray and Cheriton, SOSP'89).
"""

from __future__ import annotations

import logging
import time

from ..errors import BusError, ConnectionLost, ProtocolError, WorkerLost
from ..protocol import outcome
from ..protocol.commands import Route, Service, methods_key
from ..protocol.descriptor import from_json
from ..protocol.entries import Job, parse_job
from .steps import READ_SECONDS, Steps, ask

logger = logging.getLogger("redis_bus.sweep")

# How long the outcome of a lost job is kept where its registration is gone, which would say it.
KEEP_MS = 3_600_000


def sweep(bus: str, service: Service, timeout: float = READ_SECONDS) -> Steps[float | None]:
    """Look after the workers of a service whose lease has ended.

    Returns the seconds until the next lease ends, None where there is none. After ``timeout`` (s)
    it looks after no other: who sweeps next does.
    """
    deadline = time.monotonic() + timeout
    left, *ended = (yield ask(service.sweep(), timeout=timeout))[0]
    for raw in ended:
        timeout = deadline - time.monotonic()
        if timeout <= 0:
            break
        try:
            worker = raw.decode("ascii")
        except UnicodeDecodeError:
            logger.error("bus %r: %r is listed as a worker and cannot be one", bus, raw[:60])
            yield ask(("ZREM", service.workers, raw), timeout=timeout)
            continue
        try:
            yield from _take_over(bus, service, worker, timeout)
        except ConnectionLost:
            raise
        except BusError as error:
            # One that cannot be helped does not keep the others from it.
            logger.warning("the jobs of lost worker %s cannot be given away: %s", worker, error)
    return None if left < 0 else left / 1000


def _take_over(bus: str, service: Service, worker: str, timeout: float) -> Steps[None]:
    """Give away or fail each job that a worker holds; then it is forgotten."""
    claims = service.claims(worker)
    found = (yield ask(claims, timeout=timeout))[0]
    for field, head in zip(found[::2], found[1::2], strict=True):
        try:
            job = parse_job(head)
        except ProtocolError:
            logger.error("worker %s held %r, which is no job; it is deleted", worker, field[:60])
            yield ask(("HDEL", service.running(worker), field), timeout=timeout)
            continue
        yield from _reclaim(bus, service, worker, job, timeout)
    if found:
        yield ask(claims, timeout=timeout)


def _reclaim(bus: str, service: Service, worker: str, job: Job, timeout: float) -> Steps[None]:
    data = (yield ask(("HGET", methods_key(bus), job.method), timeout=timeout))[0]
    route = Route(service, job.method, keep_ms=_keep_ms(job.method, data))
    lost = outcome.encode_error(WorkerLost(_describe(job, worker)), trace="")
    command = route.reclaim(worker, job.id, job.key, lost)
    status = (yield ask(command, timeout=timeout))[0]
    if status == b"requeued":
        again = f"it is run again, attempt {job.attempt + 1} of {job.tries}"
        logger.warning("%s (job %s): worker %s is lost; %s", job.method, job.id, worker, again)
    elif status == b"lost":
        logger.error("job %s of %s", job.id, _describe(job, worker))


def _keep_ms(method: str, data: bytes | None) -> int:
    try:
        seconds = KEEP_MS / 1000 if data is None else from_json(method, data).result_expire
    except ProtocolError:
        return KEEP_MS
    return max(1, round(seconds * 1000))


def _describe(job: Job, worker: str) -> str:
    if job.tries > 1:
        return (
            f"{job.method}: {job.attempt} workers were lost while they ran it, "
            f"the last one {worker}; it is given up, and kept in the dead letters"
        )
    return (
        f"{job.method}: its worker {worker} was lost while it ran; "
        f"how far it came is unknown, so it is not run again"
    )
