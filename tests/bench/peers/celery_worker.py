"""Celery: Redis as broker and result backend.

Started with ``--pool solo``: runs tasks inline in the worker, the fastest pool where there is one
process ("solo: blocking, inline, fast"); and without gossip, mingle and heartbeat, which only
matter to several workers.
"""

import os

from celery import Celery

app = Celery(broker=os.environ["REDIS_BUS_URL"], backend=os.environ["REDIS_BUS_URL"])
app.conf.update(
    # "Optimizing": messages not written to disk, no rate limits looked at, a pool of connections
    # as large as the threads that use it.
    task_default_delivery_mode="transient",
    worker_disable_rate_limits=True,
    broker_pool_limit=32,
    broker_connection_retry_on_startup=True,
)


@app.task
def add(a: int, b: int) -> int:
    return a + b
