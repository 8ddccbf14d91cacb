"""What the benches of scale share: what a Redis says that it spent, and a load of commands.

CPU is that of Redis's main thread, of which there is one, as INFO tells it. The us of INFO
commandstats are no CPU: they go on while another process has the core.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import redis

from redis_bus import Bus
from redis_bus.protocol import scripts
from redis_bus.protocol.commands import Command, Route, pack

BUS = "scale"
BATCH = 500
MIB = 2**20


@dataclass(frozen=True)
class Spent:
    """What a Redis spent: CPU in us, bytes over the wire, bytes of memory, and by command."""

    cpu_us: float
    bytes_in: int
    bytes_out: int
    memory: int
    commands: dict[str, int]  # how many; what a script calls is told as well

    def __sub__(self, before: Spent) -> Spent:
        return Spent(
            self.cpu_us - before.cpu_us,
            self.bytes_in - before.bytes_in,
            self.bytes_out - before.bytes_out,
            self.memory - before.memory,
            {name: now - before.commands.get(name, 0) for name, now in self.commands.items()},
        )

    def calls(self, command: str) -> int:
        return self.commands.get(command, 0)


def read(client: redis.Redis) -> Spent:
    """Return what a Redis has spent since it started."""
    info: dict[str, Any] = client.info("all")
    prefix = "cmdstat_"
    return Spent(
        1e6 * (info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]),
        info["total_net_input_bytes"],
        info["total_net_output_bytes"],
        info["used_memory"],
        {
            name.removeprefix(prefix): value["calls"]
            for name, value in info.items()
            if name.startswith(prefix)
        },
    )


class Gauge:
    """What Redis servers spend from now on, less what they spend on being asked."""

    def __init__(self, *clients: redis.Redis) -> None:
        self._clients = clients
        self._before = [read(client) for client in clients]
        self._begin = [read(client) for client in clients]

    def stop(self) -> list[Spent]:
        """Return what each has spent until now."""
        now = [read(client) for client in self._clients]
        readings = zip(self._before, self._begin, now, strict=True)
        return [(end - begin) - (begin - before) for before, begin, end in readings]


def spent(client: redis.Redis, action: Callable[[], object]) -> Spent:
    """Do something, and return what Redis spent on it."""
    gauge = Gauge(client)
    action()
    return gauge.stop()[0]


def send(client: redis.Redis, commands: Iterable[Command]) -> None:
    """Send many commands, a batch in one write. Raises the first error that is answered."""
    connection: Any = client.connection_pool.get_connection()
    try:
        for batch in batches(commands):
            connection.send_packed_command([pack(*batch)])
            for _ in batch:
                connection.read_response()
    finally:
        client.connection_pool.release(connection)


def batches(commands: Iterable[Command]) -> Iterator[list[Command]]:
    rest = iter(commands)
    while batch := list(islice(rest, BATCH)):
        yield batch


def load_scripts(client: redis.Redis) -> None:
    """Have Redis know every script of the bus."""
    for script in scripts.load().values():
        client.script_load(script.source)


def publish(bus: Bus) -> list[Route]:
    """Publish what was registered on a bus, with no worker; return its routes."""
    core = bus._core
    registrations = list(core.registrations.values())
    core.drive(core.publish(registrations))
    return [core.compile(registration).route for registration in registrations]


def open_files(count: int) -> None:
    """Let this process, and the servers that it starts, have so many files and sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
