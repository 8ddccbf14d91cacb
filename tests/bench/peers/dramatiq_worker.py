"""dramatiq: Redis as broker and result backend; with one process and 8 threads, its default.

Only the middleware that results need: the others (time limits, retries, ...) cost time.
"""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

url = os.environ["REDIS_BUS_URL"]
broker = RedisBroker(url=url, middleware=[Results(backend=RedisBackend(url=url))])
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def add(a: int, b: int) -> int:
    return a + b
