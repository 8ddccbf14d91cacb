"""Thousands of workers that wait: what a connection takes, idle, and what a call among them takes.

    python tests/bench/scale.py connections [--connections N,N,...]

The connections are raw sockets in the wait of a worker: BLPOP and, behind it, `take`, again after
each slice of 5 s. They have no hearts (see ``workers``). Then one caller makes uncached calls, one
after the other, which one or the other of the connections answers.
"""

from __future__ import annotations

import argparse
import time

import redis
from scale_crew import Crew
from scale_meter import BUS, load_scripts, publish, read, send, spent
from side_by_side import processes, wait_for_workers, worker

from redis_bus import Bus
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import SLICE_SECONDS, Post
from redis_bus.worker.heart import BEAT_SECONDS

CALLS = 2_000
SPARE = 100  # connections of clients that look


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", default="100,1000,5000", help="how many, in turn")
    parser.add_argument("--seconds", type=float, default=15.0, help="of idleness, for each")


def run(options: argparse.Namespace) -> None:
    with EmbeddedRedis() as server:
        _tell_of_process(server.url)
    for count in map(int, options.connections.split(",")):
        with EmbeddedRedis(port=0) as server, Bus(BUS, url=server.url) as bus:
            client = redis.Redis.from_url(server.url)
            client.config_set("maxclients", count + SPARE)
            _measure(client, bus, count, options.seconds)
            client.close()


def _measure(client: redis.Redis, bus: Bus, count: int, seconds: float) -> None:
    load_scripts(client)
    bus.register(name="echo")(_echo)
    (route,) = publish(bus)
    # With what it holds by name, from `scale_workers`, this is what a worker takes.
    posts = [Post(route.service, f"worker{n:06}", [route]) for n in range(count)]
    send(client, (post.beat([]) for post in posts))
    start, resident = read(client).memory, _resident(client)
    port = int(client.connection_pool.connection_kwargs["port"])
    with Crew((port, post) for post in posts) as crew:
        while client.info("clients")["blocked_clients"] < count:
            crew.check()
            time.sleep(0.05)
        taken = []
        # What holds a write goes a while after it: over a slice, both are seen.
        end = time.monotonic() + 2 * SLICE_SECONDS
        while time.monotonic() < end:
            taken.append((read(client).memory - start) / count / 1000)
            time.sleep(0.25)
        print(
            f"\n{count:,} idle connections: from {min(taken):.1f} to {max(taken):.1f} kB each by "
            f"Redis's count, {(_resident(client) - resident) / count / 1000:.1f} kB resident"
        )
        waits, began = crew.waits, time.monotonic()
        used = spent(client, lambda: time.sleep(seconds))
        waits, took = crew.waits - waits, time.monotonic() - began
        wait_us = used.cpu_us / max(1, waits)
        print(
            f"  {waits:,} waits ended in {took:.0f} s: {wait_us:.0f} us of CPU each; that is, each "
            f"{SLICE_SECONDS:g} s, {count * wait_us / SLICE_SECONDS / 1e6:.2%} of a core for all"
        )
        used = spent(client, lambda: [bus.echo(1) for _ in range(CALLS)])
        crew.check()
        waits = used.calls("blpop") - 2 * CALLS  # each call has its caller's and its worker's
        print(
            f"  an uncached call among them, less the {waits:,} waits that ended meanwhile: "
            f"{(used.cpu_us - waits * wait_us) / CALLS:.0f} us of CPU, "
            f"{(used.calls('evalsha') - waits) / CALLS:.1f} scripts"
        )


def _tell_of_process(url: str) -> None:
    """Print how many connections a real worker has, once its heart has beaten more than once."""
    with processes(worker(), url=url) as children, redis.Redis.from_url(url) as client:
        wait_for_workers(url, children, "echo")
        time.sleep(2 * BEAT_SECONDS)
        print(f"a worker process, -c 1, has {len(client.client_list()) - 1} connections")


def _echo(value: object) -> object:
    return value


def _resident(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory_rss"])
