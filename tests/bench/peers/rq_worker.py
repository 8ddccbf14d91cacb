"""RQ: SimpleWorker, which does not fork for each job: "Notes on Performance" of its documents."""

import os

import redis
from rq import Queue, SimpleWorker

connection = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])
SimpleWorker([Queue("peers", connection=connection)], connection=connection).work(
    logging_level="ERROR"
)
