"""Ten thousand workers: what their heartbeats take, what it takes to list them, and to miss them.

    python tests/bench/scale.py workers [--workers N,N,...] [--methods N,N,...]

Workers are registered by the `beat` that they would send; there are no processes. A heartbeat is
what a worker's `Heart` sends each 2.5 s, in its three trips. ``redis-bus`` is run in this process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import redis
from click.testing import CliRunner
from scale_meter import BUS, load_scripts, publish, read, send, spent

from redis_bus import Bus
from redis_bus.calls.sweep import sweep
from redis_bus.cli.group import main as cli
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import Command, Post, Route, methods_key
from redis_bus.worker.heart import BEAT_SECONDS

HEARTBEATS = 500


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", default="100,1000,10000", help="how many, in turn")
    parser.add_argument("--methods", default="1,10", help="how many each serves, in turn")


def run(options: argparse.Namespace) -> None:
    counts = [int(count) for count in options.workers.split(",")]
    for methods in map(int, options.methods.split(",")):
        with EmbeddedRedis() as server, Bus(BUS, url=server.url) as bus:
            client = redis.Redis.from_url(server.url, socket_timeout=None)
            _measure(client, bus, server.url, counts, methods)
            client.close()


def _measure(client: redis.Redis, bus: Bus, url: str, counts: list[int], methods: int) -> None:
    load_scripts(client)
    for number in range(methods):
        bus.register_method(_echo, f"echo{number}")
    routes = publish(bus)
    start = read(client).memory
    for count in counts:
        posts = [Post(routes[0].service, f"worker{n:06}", routes) for n in range(count)]
        send(client, (post.beat([]) for post in posts))
        memory = (read(client).memory - start) / count
        print(f"\n{count:,} workers, each with {methods} methods: {memory:.0f} bytes each")
        _tell_heartbeats(client, bus, posts)
        _tell_looks(client, bus, url)
    _tell_standstill(client, bus, routes[0])


def _echo(value: object) -> object:
    return value


def _tell_heartbeats(client: redis.Redis, bus: Bus, posts: list[Post]) -> None:
    beats = [post.beat([]) for post in posts[:HEARTBEATS]]
    beat = spent(client, lambda: send(client, beats)).cpu_us / len(beats)
    looks: list[Command] = [posts[0].service.sweep()] * HEARTBEATS
    look = spent(client, lambda: send(client, looks)).cpu_us / len(looks)
    chosen = posts[:HEARTBEATS]

    def each(send_of: Callable[[Bus, Post], None]) -> Callable[[], None]:
        def send_all() -> None:
            for post in chosen:
                send_of(bus, post)

        return send_all

    registry = spent(client, each(_look_at_registry)).cpu_us / len(chosen)
    used = spent(client, each(_heartbeat))
    one = used.cpu_us / len(chosen)
    second = one * len(posts) / BEAT_SECONDS / 1e6
    print(f"  beat {beat:.0f} us, sweep {look:.0f} us, many in one write")
    print(
        f"  a heartbeat takes {one:.0f} us of CPU, {registry:.0f} of it for the registry, "
        f"{used.bytes_in / len(chosen):.0f} bytes in and "
        f"{used.bytes_out / len(chosen):.0f} out; all of them, each {BEAT_SECONDS} s: "
        f"{second:.1%} of a core"
    )


def _heartbeat(bus: Bus, post: Post) -> None:
    """Send what a `Heart` sends."""
    bus._core.transport.ask(post.beat([]), ("HKEYS", post.running))
    bus._core.drive(sweep(BUS, post.service))
    _look_at_registry(bus, post)


def _look_at_registry(bus: Bus, post: Post) -> None:
    """Send the last trip of a heartbeat: it goes to the master that has the list of methods."""
    names = [route.method for route in post.routes]
    commands: list[Command] = [
        ("HMGET", key, *names) for key in (methods_key(BUS), post.service.meta)
    ]
    bus._core.transport.ask(*commands)


def _tell_looks(client: redis.Redis, bus: Bus, url: str) -> None:
    def command(name: str) -> Callable[[], object]:
        return lambda: CliRunner().invoke(cli, [name, BUS, "--url", url], catch_exceptions=False)

    looks = {"bus.stats()": bus.stats, **{f"redis-bus {n}": command(n) for n in ("ls", "ping")}}
    told = []
    for name, look in looks.items():
        look()
        used = spent(client, look)
        told.append(f"{name} {used.cpu_us / 1000:.1f} ms, {used.bytes_out / 1000:.1f} kB")
    print(f"  {'; '.join(told)}")


def _tell_standstill(client: redis.Redis, bus: Bus, route: Route) -> None:
    """Let all leases have ended: first as if Redis had stood still, then as if all had died."""
    service = route.service
    count = client.zcard(service.workers)
    _end_leases(client, service.workers)
    client.delete(service.swept)
    took = spent(client, lambda: send(client, [service.sweep()])).cpu_us
    print(f"\nRedis stood still; one sweep renews the leases of {count:,}: {took / 1000:.1f} ms")
    _end_leases(client, service.workers)

    def forget_all() -> None:
        while client.zcard(service.workers):
            bus._core.drive(sweep(BUS, service))

    used = spent(client, forget_all)
    print(
        f"all {count:,} died idle; to forget them takes {used.calls('evalsha'):,} scripts and "
        f"{used.cpu_us / 1000:.0f} ms of CPU"
    )


def _end_leases(client: redis.Redis, workers: str) -> None:
    client.zunionstore(workers, {workers: 1e-3})
