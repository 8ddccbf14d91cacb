"""The bare pair with redis-py: LPUSH a request, BLPOP its reply; a connection for each thread."""

import itertools
import os

import redis
from common import Call, serve
from side_by_side import REPLY, bare_pair

numbers = itertools.count()


def make() -> Call:
    client = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])
    pair = bare_pair(client, f"{REPLY}:{next(numbers)}")
    return lambda: int(pair()[1])


serve(make)
