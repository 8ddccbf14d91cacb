"""The bare pair with redis-py: LPUSH a request, BLPOP its reply; a connection for each thread."""

import itertools
import os

import redis
from common import Call, serve
from side_by_side import BUS

from redis_bus.bench.bare import pair
from redis_bus.bench.names import PAIR, reply_list, request_list

numbers = itertools.count()


def make() -> Call:
    client = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])
    call = pair(client, request_list(BUS, PAIR), reply_list(BUS, PAIR, next(numbers)))
    return lambda: int(call()[1])


serve(make)
