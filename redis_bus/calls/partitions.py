"""Partitions: one service in several slots; the steps that publish in all of them, with no I/O.

A change of their number is a registration like any other, but what a key's new partition caches
and what its old one did must not be served side by side: a clear reaches only one of them. So all
partitions are shut to callers before the first is opened, in the order of ballots (Paxos: Lamport,
"The Part-Time Parliament", TOCS'98) that partition 0 gives; and all means also those that the
service once had.
"""

from __future__ import annotations

import logging

from ..protocol.commands import Service, read_span
from ..protocol.target import Target
from .steps import READ_SECONDS, Steps, ask

logger = logging.getLogger("redis_bus.partitions")


def announce(target: Target) -> Steps[int]:
    """Make a registration the current one. Returns how many partitions there ever were.

    Whoever else publishes the name meanwhile, and comes later, has the last word. Another may
    finish what ends half-way: it gets the same ballot.
    """
    service, partitions = target.route.service, len(target.routes)
    name, etag, shape = target.name, target.etag, target.shape
    if partitions == 1:
        status = (yield ask(service.publish(name, etag, shape)))[0]
        if status[0] != b"spread":
            return 1
    return (yield from spread(target))


def spread(target: Target) -> Steps[int]:
    """Make a registration the current one in all partitions, of which there are or were several."""
    service, name = target.route.service, target.name
    shut = service.shut(name, target.etag, target.shape, len(target.routes))
    ballot, span = (yield ask(shut))[0]
    others = [service.at(part) for part in range(1, span)]
    commands = [one.shut(name, target.etag, target.shape, span, ballot) for one in others]
    if [b"later"] not in (yield ask(*commands)):
        commands = [one.open(name, target.etag, ballot) for one in (service, *others)]
        if b"later" not in (yield ask(*commands)):
            return int(span)
    logger.debug("method %s is published by somebody else meanwhile", name)
    return int(span)


def count_partitions(service: Service, least: int = 1, timeout: float = READ_SECONDS) -> Steps[int]:
    """Return how many partitions a service ever had: ``least``, or as many as partition 0 knows."""
    return max(least, read_span((yield ask(service.at(0).span(), timeout=timeout))[0]))
