"""Slots: which node of a Redis Cluster holds a key, and so who is to be sent a command."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from .commands import Command

K = TypeVar("K", str, bytes)

SLOTS = 16384
# A node, as its address: where connections to it go.
Node = tuple[str, int]
# Commands that have no key; who sends one that concerns a node says which by its ``place``.
KEYLESS = {
    "CLIENT", "CLUSTER", "INFO", "PING", "PUBLISH", "QUIT", "ROLE", "SCAN", "SCRIPT", "SUBSCRIBE",
    "TIME", "WAIT",
}  # fmt: skip


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key: that of what stands between its first braces, if they hold any."""
    data = key.encode() if isinstance(key, str) else key
    start = data.find(b"{") + 1
    if start:
        end = data.find(b"}", start)
        if end > start:
            data = data[start:end]
    return crc_hqx(data, 0) % SLOTS


def slot_of_command(command: Command) -> int | None:
    """Return the slot of a command's keys, which share it; None where it has no key."""
    name = command[0]
    if name in KEYLESS:
        return None
    if name in ("EVALSHA", "EVAL"):
        if not int(command[2]):
            return None
        key = command[3]
    else:
        key = command[1]
    assert isinstance(key, (str, bytes)), command
    return slot_of(key)


def by_slot(keys: Iterable[K]) -> list[list[K]]:
    """Return keys in groups, each of one slot."""
    groups: dict[int, list[K]] = {}
    for key in keys:
        groups.setdefault(slot_of(key), []).append(key)
    return list(groups.values())


def run_of(commands: Sequence[Command], place: str | bytes | None) -> tuple[int | None, int]:
    """Return the slot of the first commands, and how many in a row are of that slot.

    Those without a key go with those around them, or to ``place``.
    """
    slot = None if place is None else slot_of(place)
    for count, command in enumerate(commands):
        other = slot_of_command(command)
        if other is None or other == slot:
            continue
        if slot is None or (place is not None and count == 0):
            slot = other
            continue
        return slot, count
    return slot, len(commands)


def runs_of(
    commands: Sequence[Command], place: str | bytes | None = None
) -> list[tuple[int | None, int]]:
    """Return the runs of commands that are in one slot each: the slot, and how many they are."""
    runs, done = [], 0
    while done < len(commands):
        slot, count = run_of(commands[done:], place)
        runs.append((slot, count))
        done += count
    return runs


class Topology:
    """Which master has which slots, as a cluster said last."""

    def __init__(self, ranges: Iterable[tuple[int, int, Node]] = ()) -> None:
        self._nodes: list[Node | None] = [None] * SLOTS
        self.masters: set[Node] = set()
        for first, last, node in ranges:
            self._nodes[first : last + 1] = [node] * (last + 1 - first)
            self.masters.add(node)

    def node(self, slot: int | None) -> Node | None:
        """Return the master of a slot, of whichever slot for None; None where it is not known."""
        if slot is not None:
            return self._nodes[slot]
        return min(self.masters, default=None)

    def heed(self, slot: int, node: Node) -> None:
        """Note where a slot is by now."""
        self._nodes[slot] = node
        self.masters.add(node)

    def ranges(self, of: Node) -> list[tuple[int, int]]:
        """Return the first and the last slot of each range that a master has."""
        found: list[tuple[int, int]] = []
        for slot, node in enumerate(self._nodes):
            if node != of:
                continue
            if found and found[-1][1] == slot - 1:
                found[-1] = (found[-1][0], slot)
            else:
                found.append((slot, slot))
        return found


def parse_slots(reply: Sequence[Any], asked: Node) -> Topology:
    """Return what ``CLUSTER SLOTS`` says. A node that does not know its own name is the one asked.

    Raises ValueError, TypeError or IndexError where it says something else.
    """
    ranges = []
    for first, last, master, *_ in reply:
        ranges.append((int(first), int(last), node_of(master[0], master[1], asked)))
    return Topology(ranges)


def node_of(host: bytes | str | None, port: int, asked: Node) -> Node:
    """Return a node as another one names it."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    return (text if text and text != "?" else asked[0]), int(port)
