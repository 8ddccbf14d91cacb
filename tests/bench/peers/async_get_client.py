"""What a cached hit is compared with: GET of the same bytes, with redis.asyncio."""

import contextlib
import os
from collections.abc import AsyncIterator

import redis.asyncio
from common import AsyncCall, serve_async


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    async with redis.asyncio.Redis.from_url(os.environ["REDIS_BUS_URL"]) as client:
        await client.set("get", b"3")

        async def call() -> int:
            return int(await client.get("get"))

        yield call


serve_async(connected)
