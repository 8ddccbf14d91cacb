"""Layout: on which servers a bus is, which slots are its own, and how far replicas are behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import BusError
from ..protocol.commands import methods_key
from ..protocol.slots import slot_of

if TYPE_CHECKING:
    from ..protocol.commands import Service
    from .transport import NodeTransport, Transport

_REPLICA = re.compile(r"slave\d+")
REGISTRY = "the registry"


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as its master sees it: what was not sent to it, and since when it is silent."""

    address: str
    state: str
    behind_bytes: int
    silent_seconds: int


@dataclass(frozen=True, slots=True)
class Master:
    """A server that holds keys; ``slots``: the ranges it has of a cluster's."""

    address: str
    slots: list[tuple[int, int]]
    holds: dict[str, int]  # what of the bus, and in which slot
    replicas: list[Replica] = field(default_factory=list)
    is_known: bool = True  # whether it says what replicas it has


@dataclass(frozen=True, slots=True)
class Layout:
    """All servers of a bus."""

    kind: str
    masters: list[Master]

    @property
    def is_plain(self) -> bool:
        """Whether it is one server alone, of which there is nothing to say."""
        return self.kind == "node" and not any(master.replicas for master in self.masters)

    def lines(self) -> list[str]:
        """Say it in words, a line each."""
        return [line for master in self.masters for line in _describe(master, self.kind)]


def look(transport: Transport, bus: str | None, services: Iterable[Service] = ()) -> Layout:
    """Ask every server, and say where the keys of a bus and its services are.

    ``bus``: its name; None asks for the servers alone. Raises ConnectionLost where none can be
    reached.
    """
    places = {} if bus is None else {REGISTRY: methods_key(bus)}
    for service in services:
        places[f"service {service.label!r}"] = service.base
    masters = []
    for node in transport.masters():
        ranges = transport.ranges(node)
        holds = {what: slot_of(key) for what, key in places.items()}
        if transport.kind == "cluster":
            holds = {what: slot for what, slot in holds.items() if _is_in(slot, ranges)}
        replicas = _replicas_of(node)
        known = replicas is not None
        masters.append(Master(node.address, ranges, holds, replicas or [], known))
    return Layout(transport.kind, masters)


def _is_in(slot: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= slot <= last for first, last in ranges)


def _replicas_of(node: NodeTransport) -> list[Replica] | None:
    """Return the replicas of a master; None where it does not say."""
    try:
        reply = node.ask(("INFO", "replication"))[0]
    except BusError:
        # INFO needs a permission that a caller may not have.
        return None
    lines = bytes(reply).decode("utf-8", "replace").splitlines()
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    here = int(info.get("master_repl_offset", "0"))
    found = []
    for name, text in info.items():
        if _REPLICA.fullmatch(name):
            about = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
            behind = max(0, here - int(about.get("offset", "0")))
            address = f"{about.get('ip', '?')}:{about.get('port', '?')}"
            silent = int(about.get("lag", "0"))
            found.append(Replica(address, about.get("state", "?"), behind, silent))
    return sorted(found, key=lambda replica: replica.address)


def _describe(master: Master, kind: str) -> list[str]:
    lines = [f"master {master.address}"]
    if kind == "cluster":
        count = sum(last - first + 1 for first, last in master.slots)
        lines[0] += f": {count} slots ({_show_ranges(master.slots)})"
        if master.holds:
            shown = ", ".join(f"{what} in slot {slot}" for what, slot in master.holds.items())
            lines.append(f"    has {shown}")
    if not master.is_known:
        lines.append("    its replicas are not known: it refuses INFO")
    elif not master.replicas:
        lines.append("    no replica: what it holds is lost with it")
    for replica in master.replicas:
        lines.append(f"    replica {replica.address}: {_describe_lag(replica)}")
    return lines


def _describe_lag(replica: Replica) -> str:
    if replica.state != "online":
        return f"not ready yet ({replica.state})"
    text = f"{replica.behind_bytes} bytes behind" if replica.behind_bytes else "not behind"
    return f"{text}, last heard of {replica.silent_seconds} s ago"


def _show_ranges(ranges: Sequence[tuple[int, int]], most: int = 4) -> str:
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:most]]
    if len(ranges) > most:
        shown.append(f"and {len(ranges) - most} ranges more")
    return ", ".join(shown)
