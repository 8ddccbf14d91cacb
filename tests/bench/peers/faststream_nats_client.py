"""FastStream on Nats: `request`."""

import contextlib
import json
import os
from collections.abc import AsyncIterator

from common import CALL_SECONDS, AsyncCall, serve_async
from faststream.nats import NatsBroker


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    async with NatsBroker(os.environ["NATS_URL"], logger=None) as broker:

        async def call() -> int:
            message = {"a": 1, "b": 2}
            answer = await broker.request(message, "peers.faststream", timeout=CALL_SECONDS)
            return json.loads(answer.body)

        yield call


serve_async(connected)
