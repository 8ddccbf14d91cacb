"""A service of mathematics, whose answers are cached: ``redis-bus simple_math.bus``."""

import datetime

import redis_bus

bus = redis_bus.Bus("sample_playground", prefix="math_")


@bus.register(cache_key="{a}/{b}")
def sum(a: float, b: float) -> float:
    """Return a + b."""
    return a + b


@bus.register(cache_key="{seed}")
def now(seed: object) -> datetime.datetime:
    """Return the time at which this seed was first asked for; the cache remembers it."""
    return datetime.datetime.now()
