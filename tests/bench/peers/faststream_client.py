"""FastStream: `request`, with Redis to a channel, with NATS to a subject."""

import contextlib
import json
from collections.abc import AsyncIterator

from common import CALL_SECONDS, AsyncCall, serve_async
from faststream_worker import make_broker


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    async with make_broker() as broker:

        async def call() -> int:
            message = {"a": 1, "b": 2}
            answer = await broker.request(message, "peers.faststream", timeout=CALL_SECONDS)
            return json.loads(answer.body)

        yield call


serve_async(connected)
