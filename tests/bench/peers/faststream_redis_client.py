"""FastStream on Redis: `request`, to a channel, as its documents show it."""

import contextlib
import json
import os
from collections.abc import AsyncIterator

from common import CALL_SECONDS, AsyncCall, serve_async
from faststream.redis import RedisBroker


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    async with RedisBroker(os.environ["REDIS_BUS_URL"], logger=None) as broker:

        async def call() -> int:
            message = {"a": 1, "b": 2}
            answer = await broker.request(message, "peers.faststream", timeout=CALL_SECONDS)
            return json.loads(answer.body)

        yield call


serve_async(connected)
