"""One call: what it takes with many methods on the bus, in one worker, and with large arguments.

    python tests/bench/scale.py calls [--methods N,N,...] [--served N,N,...] [--bytes N,N,...]

A worker process serves; one caller calls, one call at a time. Shown is what Redis spends on an
uncached call from beginning to end, and the median of how long the caller waits for it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import redis
from scale_meter import BUS, load_scripts, publish, spent
from side_by_side import processes

from redis_bus import Bus
from redis_bus.embedded import EmbeddedRedis

SERVICES = 100  # over which the methods of the bus are spread
CALLS, LARGE = 300, 1_000_000  # fewer where a call carries as many bytes as that
WORKER = f"""
import redis_bus
prefix = "%s"
bus = redis_bus.Bus("{BUS}", prefix=prefix)
def size(value):
    return value
for number in range(%d):
    bus.register_method(size, f"{{bus.prefix}}size{{number}}")
bus.serve()
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", default="1,100,10000", help="on the bus, in turn")
    parser.add_argument("--served", default="1,10,100", help="by one worker, in turn")
    parser.add_argument("--bytes", default="10,1000,100000,10000000", help="of the argument")


def run(options: argparse.Namespace) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        load_scripts(client)
        made = 0
        print("\nmethods on the bus, of which the worker serves one")
        for count in map(int, options.methods.split(",")):
            _publish(server.url, made, count)
            made = count
            _serve(client, server.url, "on_", 1, {f"{count:,}": b"x" * 10})
        print("\nmethods that one worker serves")
        for count in map(int, options.served.split(",")):
            _serve(client, server.url, f"of{count}_", count, {f"{count:,}": b"x" * 10})
        print("\nbytes of the argument, and of the result")
        sizes = map(int, options.bytes.split(","))
        _serve(client, server.url, "sized_", 1, {f"{size:,}": b"x" * size for size in sizes})


def _publish(url: str, made: int, count: int) -> None:
    for service in range(SERVICES):
        with Bus(BUS, prefix=f"other{service}_", url=url) as bus:
            for number in range(made + service, count, SERVICES):
                bus.register_method(_nothing, f"other{service}_m{number}")
            if bus._core.registrations:
                publish(bus)


def _nothing(value: bytes) -> bytes:
    return value


def _serve(client: redis.Redis, url: str, prefix: str, served: int, rows: dict[str, bytes]) -> None:
    code = WORKER % (prefix, served)
    with processes(code, url=url), Bus(BUS, url=url) as bus:
        while (method := bus.get_method(f"{prefix}size{served - 1}")) is None:
            time.sleep(0.01)
        for title, value in rows.items():
            _tell(client, title, partial(method, value), len(value))


def _tell(client: redis.Redis, title: str, call: Callable[[], object], size: int) -> None:
    calls = CALLS if size < LARGE else 10
    call()
    times = []

    def many() -> None:
        for _ in range(calls):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e6)

    used = spent(client, many)
    print(
        f"  {title:>12} {used.cpu_us / calls:10,.0f} us of CPU in Redis "
        f"{statistics.median(times):10,.0f} us in all  {used.bytes_in / calls:12,.0f} bytes in"
    )
