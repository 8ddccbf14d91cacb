"""A service in many partitions, on one master and on more: the CPU that a call takes of each.

    python tests/bench/scale.py masters [--masters N,N,...] [--partitions N]

Each line runs a cluster of its own, with no replicas. Callers are an `AsyncBus` with many calls in
flight, or a `Bus` with one; workers are connections of a crew (see `scale_crew`), one for each
partition. Partitions are spread over the masters by the hashes of their names, not evenly: so what
is told of each master is its share of the partitions, too. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import redis
from scale_crew import Crew
from scale_meter import BUS, Gauge, Spent, load_scripts, publish, send

from redis_bus import AsyncBus, Bus
from redis_bus.protocol.commands import Post
from redis_bus.transport.servers import find_server

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.cluster_servers import Cluster

CREW = 4  # for each partition
KEYS = 1_000
ROUNDS = 3


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--masters", default="1,2,3", help="how many, in turn")
    parser.add_argument("--partitions", type=int, default=48)
    parser.add_argument("--calls", type=int, default=10_000, help="a round")
    parser.add_argument("--flight", type=int, default=200, help="calls in flight")


def run(options: argparse.Namespace) -> None:
    for masters in map(int, options.masters.split(",")):
        with Cluster(find_server(), masters, replicas=0) as cluster:
            _measure(cluster, options)


def _measure(cluster: Cluster, options: argparse.Namespace) -> None:
    clients = {node.port: redis.Redis.from_url(node.url) for node in cluster.masters}
    nodes = [*clients.values()]
    with Bus(BUS, url=cluster.address, partitions=options.partitions) as bus:
        bus.register(name="echo")(_echo)
        bus.register(name="cached", cache_key="{a}/{b}")(_echo)
        routes = list(
            zip(*(first.spread(options.partitions) for first in publish(bus)), strict=True)
        )
        places = [cluster.master_of(part[0].queue).port for part in routes]
        shares = [places.count(port) / len(places) for port in clients]
        for client in nodes:
            load_scripts(client)
        told = ", ".join(f"{share:.0%}" for share in shares)
        print(f"\n{len(clients)} masters, which have {told} of {len(places)} partitions")
        posts = [
            (port, Post(part[0].service, f"w{number}", part))
            for number in range(CREW)
            for port, part in zip(places, routes, strict=True)
        ]
        for port, post in posts:
            send(clients[port], [post.beat([])])
        with Crew(posts) as crew:
            for method in ("echo", "cached"):
                few, many = options.calls // 10, options.calls
                one_by_one = [_one_by_one(nodes, bus, method, few) for _ in range(ROUNDS)]
                _tell(f"{method}, 1 in flight", few, one_by_one)
                in_flight = [
                    asyncio.run(_in_flight(nodes, cluster.address, method, options))
                    for _ in range(ROUNDS)
                ]
                _tell(f"{method}, {options.flight} in flight", many, in_flight)
                crew.check()
    for client in nodes:
        client.close()


def _echo(a: object, b: object) -> object:
    return a


def _tell(name: str, calls: int, rounds: list[list[Spent]]) -> None:
    """Print medians over the rounds, of what each node spent on a call."""
    nodes = [_median(node.cpu_us / calls for node in one) for one in zip(*rounds, strict=True)]
    total = _median(sum(node.cpu_us for node in one) / calls for one in rounds)
    bytes_in = _median(sum(node.bytes_in for node in one) / calls for one in rounds)
    bytes_out = _median(sum(node.bytes_out for node in one) / calls for one in rounds)
    each = ", ".join(f"{node:.1f}" for node in nodes)
    print(
        f"  {name + ':':22} a call takes {each} us of CPU, {total:.1f} in all: "
        f"{1e6 / max(nodes):,.0f} calls for a second of the busiest; {bytes_in:.0f} bytes in, "
        f"{bytes_out:.0f} out",
        flush=True,
    )


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _one_by_one(clients: Sequence[redis.Redis], bus: Bus, method: str, calls: int) -> list[Spent]:
    for n in range(KEYS):
        bus[method](n, n)
    gauge = Gauge(*clients)
    for n in range(calls):
        bus[method](n % KEYS, n % KEYS)
    return gauge.stop()


async def _in_flight(
    clients: Sequence[redis.Redis], address: str, method: str, options: argparse.Namespace
) -> list[Spent]:
    async with AsyncBus(BUS, url=address) as bus:

        async def call(first: int, end: int) -> None:
            for n in range(first, end, options.flight):
                await bus[method](n % KEYS, n % KEYS)

        async def call_all(calls: int) -> None:
            await asyncio.gather(*(call(n, calls) for n in range(options.flight)))

        await call_all(KEYS)
        gauge = Gauge(*clients)
        await call_all(options.calls)
        return gauge.stop()
