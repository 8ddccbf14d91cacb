"""What is on a bus: the steps that list, look up, publish, count and delete."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from ..errors import BusError, ConnectionLost, ProtocolError
from ..printable import in_one_line
from ..protocol.commands import (
    METHOD_NAME,
    ROLE,
    Command,
    Route,
    Service,
    bus_of_methods_key,
    bus_pattern,
    methods_key,
    read_span,
)
from ..protocol.descriptor import Descriptor, from_json
from ..protocol.slots import by_slot
from ..protocol.target import Target
from .partitions import announce, count_partitions
from .steps import READ_SECONDS, Steps, ask

logger = logging.getLogger("redis_bus.directory")
# How many methods are asked for in one write.
COUNTED_AT_ONCE = 100
SCAN_COUNT = 1000


class UnknownMethod(BusError):
    """The bus has no method of that name, or has it no longer."""


def _read_registry(command: Command, timeout: float = READ_SECONDS) -> Steps[Any]:
    """Return the reply to a command that reads the registry.

    Where there is nothing, that counts if a master says it: a replica may not have its data yet.
    """
    reply = (yield ask(command, timeout=timeout))[0]
    if reply:
        return reply
    try:
        # What has no key goes where the key beside it is. From a replica, `ROLE` is an error.
        return (yield ask(ROLE, command, timeout=timeout))[1]
    except ConnectionLost:
        raise
    except BusError as error:
        logger.debug("bus: whether a master says that there is nothing is unknown: %s", error)
        return reply


def list_names(bus: str) -> Steps[list[str]]:
    """Return the names of all methods, in no order; not those that no method can have."""
    names = yield from _read_registry(("HKEYS", methods_key(bus)))
    texts = [name.decode("utf-8", "replace") for name in names]
    return [text for text in texts if METHOD_NAME.match(text)]


def no_such_method(bus: str, name: str, known: Collection[str]) -> str:
    """Say that there is no method of that name, and which are like it."""
    text = f"bus {bus!r} has no method {name!r}"
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    if close:
        return f"{text}; did you mean {' or '.join(map(repr, close))}?"
    others = f"it has {len(known)} other{'' if len(known) == 1 else 's'}"
    return f"{text}; {others}" if known else f"{text}, nor any other yet"


def list_descriptors(bus: str) -> Steps[list[Descriptor]]:
    """Return all that is published, sorted by name; what is not ours is left out, and logged."""
    fields = yield from _read_registry(("HGETALL", methods_key(bus)))
    found: dict[bytes, bytes] = dict(as_pairs(fields))
    descriptors = []
    for name in sorted(found):
        try:
            descriptors.append(from_json(name.decode("utf-8", "replace"), found[name]))
        except ProtocolError as error:
            logger.warning("bus %r: %s", bus, error)
    return descriptors


def list_services(bus: str) -> Steps[list[Service]]:
    """Return all services, sorted by name, with each of the partitions that there ever were."""
    partitions: dict[str, int] = {}
    for one in (yield from list_descriptors(bus)):
        partitions[one.service] = max(one.partitions, partitions.get(one.service, 1))
    services = []
    for prefix, least in sorted(partitions.items()):
        first = Service(bus, prefix)
        services += [first.at(n) for n in range((yield from count_partitions(first, least)))]
    return services


def look_up(bus: str, name: str, timeout: float = READ_SECONDS) -> Steps[Descriptor]:
    """Return what is published under a name. Raises UnknownMethod, ProtocolError."""
    data = yield from _read_registry(("HGET", methods_key(bus), name), timeout)
    if data is None:
        raise UnknownMethod(f"bus {bus!r} has no method {name!r}")
    return from_json(name, data)


def publish(bus: str, targets: list[Target], descriptors: list[Descriptor]) -> Steps[None]:
    """Publish registrations; the last one to publish a name wins, and the log says over whom."""
    key = methods_key(bus)
    names = [descriptor.name for descriptor in descriptors]
    before = (yield ask(("HMGET", key, *names)))[0]
    pairs: list[str] = []
    commands: list[Command] = []
    for target, descriptor, old in zip(targets, descriptors, before, strict=True):
        if old is not None:
            commands += yield from _replace(bus, target, descriptor, old)
        pairs += [descriptor.name, descriptor.to_json()]
        service = target.route.service
        if len(target.routes) == 1:
            commands.append(service.publish(descriptor.name, target.etag, target.shape))
    # The descriptor first: a caller whom the script tells of a new etag finds it there.
    answers = yield ask(("HSET", key, *pairs), *commands)
    told = [answer[0] for answer in answers if isinstance(answer, list)]
    for target in targets:
        if len(target.routes) > 1 or b"spread" in told:
            yield from announce(target)


def _replace(bus: str, target: Target, descriptor: Descriptor, old: bytes) -> Steps[list[Command]]:
    """Say whose registration is replaced; return what else that takes."""
    try:
        other = from_json(descriptor.name, old)
    except ProtocolError as error:
        logger.warning("bus %r: %s; it is replaced", bus, error)
        return []
    if other.etag == target.etag:
        return []
    place = Service(bus, other.service)
    route = Route(place, other.name)
    alive = (yield ask(route.state("", 0)))[0][0]
    logger.log(
        logging.WARNING if alive else logging.INFO,
        "method %s was published differently by %s; %s replaces it",
        descriptor.name,
        in_one_line(other.publisher),
        descriptor.publisher,
    )
    if other.service == descriptor.service:
        return []
    span = yield from count_partitions(place, other.partitions)
    return [("HDEL", place.at(part).meta, other.name) for part in range(span)]


class _Tally:
    """What is known of one method, over all partitions that there ever were."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.queued = self.alive = self.dead = 0

    def add(self, part: int, fields: Any, state: list[Any], letters: int) -> None:
        pairs = as_pairs(fields)
        self.counted.update({name.decode(errors="replace"): _as_count(n) for name, n in pairs})
        if part == 0:  # whoever is alive there is so in the others
            self.alive = state[0]
        self.queued += state[1]
        self.dead += letters

    def as_stats(self) -> dict[str, float]:
        counted = self.counted
        hits, joins, runs = counted["hits"], counted["joins"], counted["runs"]
        return {
            "calls": hits + joins + counted["queued"],
            "hits": hits,
            "joins": joins,
            "errors": counted["errors"],
            "lost": counted["lost"],
            "dead": self.dead,
            "queued": self.queued,
            "workers": self.alive,
            "latency": round(counted["run_us"] / runs / 1e6, 6) if runs else 0.0,
        }


def stats(bus: str) -> Steps[dict[str, dict[str, float]]]:
    """Return the counters of every method; see `Bus.stats`."""
    descriptors = yield from list_descriptors(bus)
    tallies = {descriptor.name: _Tally() for descriptor in descriptors}
    todo = [(one, part) for one in descriptors for part in range(one.partitions)]
    while todo:
        now, todo = todo[:COUNTED_AT_ONCE], todo[COUNTED_AT_ONCE:]
        commands: list[Command] = []
        for one, part in now:
            service = Service(bus, one.service).at(part)
            route = Route(service, one.name)
            commands += [("HGETALL", route.stats), route.state("", 0), ("LLEN", route.dead)]
            commands.append(service.span())
        replies = iter((yield ask(*commands)))
        for (one, part), (fields, state, letters, found) in zip(
            now, zip(*[replies] * 4, strict=True), strict=True
        ):
            tallies[one.name].add(part, fields, state, letters)
            if part == 0:
                todo += [(one, more) for more in range(one.partitions, read_span(found))]
    return {name: tally.as_stats() for name, tally in tallies.items()}


def _as_count(value: bytes) -> int:
    try:
        return int(value)
    except ValueError:
        return 0  # somebody else wrote it


def cleanup(bus: str, masters: Iterable[Any]) -> Steps[int]:
    """Delete every key of a bus and of no other, a batch at a time, never blocking Redis long.

    ``masters``: the transports of the servers that may have some.
    """
    deleted = 0
    for master in masters:
        cursor = b"0"
        while True:
            scan: Command = ("SCAN", cursor, "MATCH", bus_pattern(bus), "COUNT", SCAN_COUNT)
            cursor, keys = (yield ask(scan, at=master))[0]
            for some in by_slot(keys):
                deleted += (yield ask(("UNLINK", *some)))[0]
            if cursor == b"0":
                break
    return deleted


def list_buses(masters: Iterable[Any], found: set[str] | None = None) -> Steps[list[str]]:
    """Return the names of all buses that have methods, sorted.

    ``masters``: the transports of the servers that may have some. ``found`` is given the names as
    they are found, for those who may not await all.
    """
    names = set() if found is None else found
    for master in masters:
        cursor = b"0"
        while True:
            scan: Command = ("SCAN", cursor, "MATCH", methods_key("*"), "COUNT", SCAN_COUNT)
            cursor, keys = (yield ask((*scan, "TYPE", "hash"), at=master))[0]
            names.update(bus for bus in map(bus_of_methods_key, keys) if bus is not None)
            if cursor == b"0":
                break
    return sorted(names)


def as_pairs(fields: Any) -> list[tuple[bytes, bytes]]:
    """Return the fields of a hash: RESP3 answers with a map, RESP2 with a flat list."""
    if isinstance(fields, dict):
        return list(fields.items())
    return list(zip(fields[::2], fields[1::2], strict=True))
