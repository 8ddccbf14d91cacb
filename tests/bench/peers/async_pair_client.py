"""The bare pair with redis.asyncio, whose pool gives each call in flight a connection."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator

import redis.asyncio
from common import AsyncCall, serve_async
from side_by_side import BUS, REQUEST

from redis_bus.bench.names import PAIR, reply_list

numbers = itertools.count()


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    async with redis.asyncio.Redis.from_url(os.environ["REDIS_BUS_URL"]) as client:

        async def call() -> int:
            reply = reply_list(BUS, PAIR, next(numbers))
            await client.lpush(REQUEST, reply)
            return int((await client.blpop([reply]))[1])

        yield call


serve_async(connected)
