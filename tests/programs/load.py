"""The service of tests/cluster/test_under_load.py: ``redis-bus tests.programs.load:bus``.

What must outlive the servers that fail is in a Redis of its own: counters, clock, and what ran.
"""

from __future__ import annotations

import itertools
import os
import time

import redis

from redis_bus import Bus
from redis_bus.protocol.slots import slot_of
from tests.parted_cluster import from_island
from tests.programs import race

STEADY = "LOAD_STEADY_URL"
PARTITIONS = "LOAD_PARTITIONS"
# Where those on the island of a cluster find its nodes: see tests/parted_cluster.py.
ISLAND = "LOAD_ISLAND"
RUNS = "runs"
# `redis-cli --cluster reshard` moves the first slots of a master: the service is in one of these.
FIRST_SLOTS = 4


def _name() -> str:
    names = (f"load{number}" for number in itertools.count())
    return next(name for name in names if slot_of(f"{{{name}:}}") < FIRST_SLOTS)


BUS = _name()
TAG = f"rb:{{{BUS}:}}:"


def answer(call: str) -> str:
    return call[::-1]


def make(steady: redis.Redis) -> Bus:
    """Return the bus, with what it serves."""
    places = os.environ.get(ISLAND)
    conn = from_island(places) if places else None
    bus = Bus(BUS, conn=conn, partitions=int(os.environ.get(PARTITIONS, "1")))
    race.register(bus, steady)

    @bus.register()
    def once(call: str, ms: int) -> str:
        steady.rpush(RUNS, f"{call} {os.getpid()}")
        time.sleep(ms / 1000)
        return answer(call)

    return bus


if STEADY in os.environ:
    bus = make(redis.Redis.from_url(os.environ[STEADY]))
