"""What one call takes, beside the same commands from bare sockets on both sides.

    python tests/bench/wall.py [--rounds N] [--seconds S]

``scripts, bare sockets`` is a caller and a worker that send what a `Bus` and its worker do, byte
for byte but for the job's id, and decide nothing: no arguments are bound or packed, nothing is
looked up, no function is called, no lease is kept. It is the least that a call by these scripts can
take from Python. What a call takes above that is Python of ours, on both sides. Medians over the
rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import redis
from side_by_side import BARE_WORKER, BUS, processes, ratio, wait_for_workers, worker

from redis_bus import Bus
from redis_bus.bench.bare import Wire, client_of, endpoint_of, floor, pair
from redis_bus.bench.meter import timed
from redis_bus.bench.names import FLOOR, PAIR, reply_list, request_list
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol import scripts
from redis_bus.protocol.commands import Post, Route, Service, pack
from redis_bus.protocol.entries import Mode, parse_job

ETAG, JOB = "e" * 16, "0123456789abcdef"
BODY, VALUE = b"m\x92\x92\x01\x02\x80", b"m\x03"
SERVICE = Service("wall", "")
ROUTE = Route(SERVICE, "plain", ETAG)
FLOOR_WORKER = f"from redis_bus.bench.bare import main; main({FLOOR!r})"
SCRIPTS_WORKER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import wall
wall.serve()
"""


def serve() -> None:
    """Answer each job with the same outcome, for ever: finish, wait and take in one write."""
    wire = Wire(endpoint_of(os.environ["REDIS_BUS_URL"], SERVICE.bus))
    post, now = Post(SERVICE, "host:1:abcdefgh", [ROUTE]), round(time.time() * 1000)
    line = f"{JOB} 1 1 {now + 60_000} {now} {ETAG} wait {now} - plain\n"
    finish = post.finish(
        ROUTE, parse_job(line.encode()), VALUE, spent_us=5, expire_ms=-1, stale_ms=0, now_ms=now
    )
    told = pack(finish).split(JOB.encode())
    wait = pack(post.wait([ROUTE], 5), post.take([ROUTE]))
    found, asked, replies = None, wait, 2
    while True:
        found = wire.exchange(asked, replies)[-1]
        asked, replies = wait, 2
        if found is not None:
            asked, replies = found[1][: len(JOB)].join(told) + wait, 3


def scripted(wire: Wire) -> Callable[[], object]:
    """Return what sends the call and the wait of a `Bus` in one write, and reads the outcome."""
    call = ROUTE.call(JOB, BODY, mode=Mode.WAIT, budget_ms=60_000)
    parts = pack(call, SERVICE.wait_alone(JOB, 1.0)).split(JOB.encode())
    number = 0

    def one() -> object:
        nonlocal number
        number += 1
        return wire.exchange((b"%016d" % number).join(parts), 2)[1]

    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.4)
    options = parser.parse_args()
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        for script in scripts.load().values():
            client.script_load(script.source)
        client.execute_command(*SERVICE.publish(ROUTE.method, ETAG, "s" * 16))
        codes = (worker(), BARE_WORKER, FLOOR_WORKER, SCRIPTS_WORKER)
        with processes(*codes, url=server.url) as children, Bus(BUS, url=server.url) as bus:
            wait_for_workers(server.url, children, "echo")
            endpoint = endpoint_of(server.url, BUS)
            wires = [Wire(endpoint), Wire(endpoint)]
            calls: dict[str, Callable[[], object]] = {
                "redis-py LPUSH/BLPOP pair": pair(
                    client_of(endpoint), request_list(BUS, PAIR), reply_list(BUS, PAIR)
                ),
                "the same, bare sockets": floor(
                    wires[0], request_list(BUS, FLOOR), reply_list(BUS, FLOOR)
                ),
                "scripts, bare sockets": scripted(wires[1]),
                "Bus": lambda: bus.echo(1, 2),
            }
            took = measure(calls, options.rounds, options.seconds)
            for wire in wires:
                wire.close()
    first = next(iter(took.values()))
    for name, values in took.items():
        median, spread = ratio(values, first)
        us = statistics.median(values)
        print(f"{name:26} {us:5.0f} us, {median:.2f} x the first ({spread})")


def measure(
    calls: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    for call in calls.values():
        timed(call, seconds)
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            took[name].append(statistics.median(timed(call, seconds)))
    return took


if __name__ == "__main__":
    main()
