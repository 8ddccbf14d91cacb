"""The command that lists the buses of a Redis, and what the others need to know of a bus."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click
import redis

from ..calls import directory
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Service
from ..supervisor.exits import Exit
from .common import describe, echo, fail, json_option, opened, print_json, print_table, url_option

if TYPE_CHECKING:
    from ..client.core import Core

UNKNOWN = "unknown"
HOW_TO_LIST = "to list buses takes the command SCAN; without it, name one: redis-bus ls BUS"


@dataclass(frozen=True, slots=True)
class Found:
    """A bus as `redis-bus buses` shows it; None: Redis refused to tell."""

    name: str
    methods: int | None
    workers: int | None


@click.command(short_help="List the buses of a Redis.")
@json_option
@url_option
def buses(as_json: bool, url: str | None) -> None:
    """List the buses of a Redis: how many methods each has, and how many workers are alive.

    It looks through the names of all keys with SCAN, on every master of a cluster. What Redis does
    not let the user look into is shown as unknown, and is null in JSON.
    """
    show_buses(url, as_json=as_json)


def show_buses(url: str | None, *, as_json: bool) -> None:
    """Print the buses that have methods, sorted by name."""
    refusals: list[BusError] = []
    with opened("redis_bus", url) as here:
        core = here._core
        found = [_look_into(core, name, refusals) for name in _list_names(core)]
        address = core.transport.address
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        rows = [[one.name, _show(one.methods), _show(one.workers)] for one in found]
        print_table([["bus", "methods", "workers"], *rows])
    else:
        echo(f"there is no bus at {address}: nothing was served there yet")
    if refusals:
        echo(f"redis-bus: not all is known: {describe(refusals[0])}", err=True)


def _list_names(core: Core) -> list[str]:
    try:
        return core.drive(directory.list_buses(core.transport.masters()))
    except BusError as error:
        if not isinstance(error.__cause__, redis.exceptions.NoPermissionError):
            raise
        fail(f"{describe(error)}; {HOW_TO_LIST}", Exit.REMOTE_ERROR)


def _look_into(core: Core, name: str, refusals: list[BusError]) -> Found:
    """Return what Redis tells of a bus; why it does not tell all of it is noted."""
    methods = workers = None
    try:
        methods = len(core.drive(directory.list_names(name)))
        workers = count_workers(core, name)
    except ConnectionLost:
        raise
    except BusError as error:
        refusals.append(error)
    return Found(name, methods, workers)


def _show(number: int | None) -> str:
    return UNKNOWN if number is None else str(number)


def count_workers(core: Core, bus: str) -> int:
    """Return how many workers are alive, each counted once, over all services of a bus."""
    descriptors = core.drive(directory.list_descriptors(bus))
    alive: set[bytes] = set()
    transport = core.transport
    for prefix in {descriptor.service for descriptor in descriptors}:
        key = Service(bus, prefix).workers
        # Of several servers, each has a clock of its own.
        seconds, micros = transport.ask(("TIME",), place=key)[0]
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        alive.update(transport.ask(("ZRANGEBYSCORE", key, now_ms, "+inf"))[0])
    return len(alive)
