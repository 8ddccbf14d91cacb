"""taskiq: ListQueueBroker, the one without acknowledgements, started with one worker process."""

import os

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

# redis-py 8 ends a wait after 5 s unless told otherwise, and this worker with it.
url = os.environ["REDIS_BUS_URL"] + "?socket_timeout=3600"
broker = ListQueueBroker(url).with_result_backend(
    # Results that expire: its documents ask for it.
    RedisAsyncResultBackend(url, result_ex_time=60)
)


@broker.task
async def add(a: int, b: int) -> int:
    return a + b
