"""The commands that look at a bus and change nothing: ls, stats, ping."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from ..bus import Bus
from ..calls import directory
from ..errors import BusError, ProtocolError
from ..protocol import signature
from ..protocol.commands import methods_key
from ..protocol.descriptor import Descriptor
from ..supervisor.exits import Exit
from ..supervisor.words import count
from ..transport.servers import product
from .buses import count_workers, show_buses
from .common import echo, fail, first_line, json_option, opened, print_json, print_table, url_option
from .completion import complete_buses, complete_methods

if TYPE_CHECKING:
    from ..client.core import Core
    from ..transport.layout import Layout

PINGS = 9


@dataclass(frozen=True, slots=True)
class Listed:
    """A method as `redis-bus ls` shows it."""

    name: str
    signature: str
    cache_key: str | bool | None
    doc: str
    workers: int
    queued: int
    partitions: int


@click.command(short_help="List the methods of a bus, or the buses.")
@click.argument("bus", required=False, shell_complete=complete_buses)
@click.argument("pattern", required=False, shell_complete=complete_methods)
@json_option
@url_option
def ls(bus: str | None, pattern: str | None, as_json: bool, url: str | None) -> None:
    """List the methods of BUS, or those that match PATTERN, such as 'math_*'.

    Without BUS it lists the buses, as `redis-bus buses` does.
    """
    if bus is None:
        show_buses(url, as_json=as_json)
        return
    with opened(bus, url) as opened_bus:
        listed = _list(opened_bus)
    chosen = [one for one in listed if _matches(one.name, pattern)]
    if as_json:
        print_json([asdict(one) for one in chosen])
    elif chosen:
        _print_methods(chosen)
    else:
        _say_nothing_found(bus, pattern, len(listed))


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is None or fnmatch.fnmatchcase(name, pattern)


def _say_nothing_found(bus: str, pattern: str | None, known: int) -> None:
    if known:
        echo(f"bus {bus!r}: none of its {count(known, 'method')} matches {pattern!r}")
    else:
        echo(_no_methods(bus))


def _no_methods(bus: str) -> str:
    return f"bus {bus!r} has no methods: nothing was served on it yet"


def _list(bus: Bus) -> list[Listed]:
    stats = bus.stats()
    nothing = {"workers": 0, "queued": 0}
    return [
        Listed(
            name=descriptor.name,
            signature=_signature(descriptor),
            cache_key=descriptor.cache_key,
            doc=first_line(descriptor.doc),
            workers=int(stats.get(descriptor.name, nothing)["workers"]),
            queued=int(stats.get(descriptor.name, nothing)["queued"]),
            partitions=descriptor.partitions,
        )
        for descriptor in bus._core.drive(directory.list_descriptors(bus.name))
    ]


def _signature(descriptor: Descriptor) -> str:
    try:
        return str(signature.restore(descriptor.signature))
    except ProtocolError:
        return "(?)"


def _print_methods(methods: Sequence[Listed]) -> None:
    """Two lines a method: signatures and docstrings are too long for columns of a table."""
    for one in methods:
        facts = [count(one.workers, "worker"), f"{one.queued} queued"]
        if one.cache_key is not None:
            facts.insert(0, f"cache_key={one.cache_key!r}")
        if one.partitions > 1:
            facts.append(count(one.partitions, "partition"))
        echo(f"{one.signature}  [{', '.join(facts)}]", head=one.name)
        if one.doc:
            echo(f"    {one.doc}")


@click.command(short_help="Show the counters of a bus.")
@click.argument("bus", shell_complete=complete_buses)
@click.argument("pattern", required=False, shell_complete=complete_methods)
@json_option
@url_option
def stats(bus: str, pattern: str | None, as_json: bool, url: str | None) -> None:
    """Show the counters of BUS: calls, cache hits, errors, lost jobs, queues, workers, latency.

    PATTERN chooses methods, such as 'math_*'. Latency is the mean of a run; in JSON, in seconds.
    """
    with opened(bus, url) as opened_bus:
        counted = opened_bus.stats()
        core = opened_bus._core
        # Of one server alone there is nothing to tell, and it takes a permission to ask.
        where = None if as_json or core.transport.kind == "node" else _layout(core)
    chosen = [(name, counted[name]) for name in sorted(counted) if _matches(name, pattern)]
    if as_json:
        exact = 6  # digits: what a worker measures, it measures in microseconds
        print_json(
            [
                {"name": name, **fields, "latency": round(fields["latency"], exact)}
                for name, fields in chosen
            ]
        )
        return
    if not chosen:
        _say_nothing_found(bus, pattern, len(counted))
        return
    heads = ["calls", "hits", "joins", "errors", "lost", "dead", "queued", "workers"]
    rows = [["method", *heads, "latency"]]
    for name, fields in chosen:
        numbers = [str(int(fields[head])) for head in heads]
        rows.append([name, *numbers, _show_latency(fields["latency"])])
    print_table(rows)
    _print_layout(where)


def _layout(core: Core, *, has_bus: bool = True) -> Layout:
    """Ask the servers of a bus where it is."""
    from ..transport import layout

    services = core.drive(directory.list_services(core.name)) if has_bus else []
    return layout.look(core.transport, core.name if has_bus else None, services)


def _print_layout(where: Layout | None) -> None:
    for line in [] if where is None or where.is_plain else where.lines():
        echo(line)


def _show_latency(seconds: float) -> str:
    if not seconds:
        return "-"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


@click.command(short_help="Show latency to Redis, its version, who is alive.")
@click.argument("bus", required=False, shell_complete=complete_buses)
@json_option
@url_option
def ping(bus: str | None, as_json: bool, url: str | None) -> None:
    """Show how far Redis is, which version it has, and who is alive on BUS.

    Of several servers it shows which there are, which slots of a cluster are BUS's own, and how far
    the replicas are behind. Exits with 3 where no worker of BUS is alive.
    """
    with opened(bus or "redis_bus", url) as opened_bus:
        address = opened_bus._core.transport.address
        latency_ms = _measure_ms(opened_bus)
        server, version = server_version(opened_bus)
        found: dict[str, object] = {
            "address": address,
            "server": server,
            "version": version,
            "latency_ms": round(latency_ms, 3),
        }
        where = _layout(opened_bus._core, has_bus=bus is not None)
        found |= {"kind": where.kind, "nodes": [asdict(master) for master in where.masters]}
        methods = workers = 0
        if bus is not None:
            methods = len(opened_bus.all_methods())
            workers = count_workers(opened_bus._core, bus)
            found |= {"bus": bus, "methods": methods, "workers": workers}
    if as_json:
        print_json(found)
    else:
        echo(f"{server} {version} at {address}: {latency_ms:.2f} ms")
        _print_layout(where)
    if bus is None:
        return
    if not methods:
        fail(f"{_no_methods(bus)}; redis-bus buses lists those that are there", Exit.NO_WORKERS)
    if not workers:
        text = f"bus {bus!r}: {count(methods, 'method')}, but no worker alive"
        fail(f"{text}: calls wait until one serves them", Exit.NO_WORKERS)
    if not as_json:
        echo(f"bus {bus!r}: {count(methods, 'method')}, {count(workers, 'worker')} alive")


def _measure_ms(bus: Bus) -> float:
    from statistics import median

    times = []
    for _ in range(PINGS + 1):
        start = time.perf_counter()
        bus._core.transport.exchange(("PING",), place=methods_key(bus.name))
        times.append(time.perf_counter() - start)
    # The first one makes the connection.
    return median(times[1:]) * 1000


def server_version(bus: Bus) -> tuple[str, str]:
    try:
        reply = bus._core.transport.exchange(("INFO", "server"))[0]
    except BusError:
        # INFO needs a permission that a caller may not have.
        return "Redis", "(version unknown)"
    lines = bytes(reply).decode("utf-8", "replace").splitlines()
    return product(dict(line.split(":", 1) for line in lines if ":" in line))
