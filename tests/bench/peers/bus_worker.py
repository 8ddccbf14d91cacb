"""Our worker of plain functions: one job at a time, in the main thread; the default."""

import os

from redis_bus import Bus

bus = Bus("peers", url=os.environ["REDIS_BUS_URL"])


@bus.register()
def add(a: int, b: int) -> int:
    return a + b


@bus.register(cache_key="{a}/{b}")
def cached(a: int, b: int) -> int:
    return a + b


bus.serve()
