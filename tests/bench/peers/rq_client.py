"""RQ: `Job.latest_result` with a timeout, which blocks in Redis rather than to poll."""

import os

import redis
from common import CALL_SECONDS, Call, serve
from rq import Queue
from rq_tasks import add

queue = Queue("peers", connection=redis.Redis.from_url(os.environ["REDIS_BUS_URL"]))


def make() -> Call:
    return lambda: queue.enqueue(add, 1, 2).latest_result(timeout=CALL_SECONDS).return_value


serve(make)
