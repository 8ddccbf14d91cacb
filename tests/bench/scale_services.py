"""A thousand services on one bus: what it takes to find them, and to list them.

    python tests/bench/scale.py services [--services N,N,...]

Each service has a prefix and one method, with three parameters and a docstring of 200 characters.
``redis-bus ls`` is run in this process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import redis
from click.testing import CliRunner
from scale_meter import BUS, load_scripts, publish, read, spent

from redis_bus import Bus
from redis_bus.cli.group import main as cli
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import methods_key

DOC = "Return what a customer owes, with all that was paid. ".ljust(200, "x")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--services", default="10,100,1000", help="how many, in turn")


def run(options: argparse.Namespace) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        load_scripts(client)
        made = 0
        start = read(client).memory
        for count in map(int, options.services.split(",")):
            for number in range(made, count):
                _publish(server.url, number)
            memory = read(client).memory - start
            size = client.memory_usage(methods_key(BUS), samples=0) or 0
            print(
                f"\n{count:,} services: {memory / count:,.0f} bytes of memory each, "
                f"{size / count:,.0f} of them in the list of methods"
            )
            made = count
            with Bus(BUS, url=server.url) as bus:
                for name, action in _actions(bus, server.url).items():
                    _tell(client, name, action)


def _actions(bus: Bus, url: str) -> dict[str, Callable[[], object]]:
    command = ["ls", BUS, "--url", url]
    return {
        "first call's look-up": lambda: bus.get_method("s1_owed"),
        "all_methods()": bus.all_methods,
        "dir(bus)": lambda: dir(bus),
        "bus.stats()": bus.stats,
        "redis-bus ls": lambda: CliRunner().invoke(cli, command, catch_exceptions=False),
    }


def _publish(url: str, number: int) -> None:
    def owed(customer: str, since: str = "", currency: str = "EUR") -> int:
        return 0

    owed.__doc__ = DOC
    with Bus(BUS, prefix=f"s{number}_", url=url) as bus:
        bus.register(cache_key="{customer}")(owed)
        publish(bus)


def _tell(client: redis.Redis, name: str, action: Callable[[], object]) -> None:
    action()  # the first time connects, and loads scripts
    used = spent(client, action)
    asked = {"HGET", "HKEYS", "HGETALL", "EVALSHA", "LLEN"}
    calls = {command: used.calls(command.lower()) for command in sorted(asked)}
    sent = ", ".join(f"{count:,} {command}" for command, count in calls.items() if count)
    print(
        f"  {name:21} {used.cpu_us / 1000:7.2f} ms of CPU, {used.bytes_out / 1000:8.1f} kB answered"
        f"  ({sent})"
    )
