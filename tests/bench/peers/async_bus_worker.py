"""Our worker of ``async def`` functions: as many at once as there are calls in flight."""

import os

from redis_bus import Bus

bus = Bus("peers-async", url=os.environ["REDIS_BUS_URL"])


@bus.register()
async def add(a: int, b: int) -> int:
    return a + b


@bus.register(cache_key="{a}/{b}")
async def cached(a: int, b: int) -> int:
    return a + b


bus.serve(concurrency=32)
