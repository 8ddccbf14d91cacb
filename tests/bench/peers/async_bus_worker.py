"""Our worker of ``async def`` functions, as it comes: ``-c`` is for functions that wait."""

import os

from redis_bus import Bus

bus = Bus("peers-async", url=os.environ["REDIS_BUS_URL"])


@bus.register()
async def add(a: int, b: int) -> int:
    return a + b


@bus.register(cache_key="{a}/{b}")
async def cached(a: int, b: int) -> int:
    return a + b


bus.serve()
