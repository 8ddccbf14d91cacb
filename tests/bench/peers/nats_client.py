"""nats-py: `request`, whose answers share one subscription."""

import contextlib
import json
import os
from collections.abc import AsyncIterator

import nats
from common import CALL_SECONDS, AsyncCall, serve_async


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    client = await nats.connect(os.environ["NATS_URL"])

    async def call() -> int:
        request = json.dumps([1, 2]).encode()
        return json.loads((await client.request("peers.add", request, CALL_SECONDS)).data)

    yield call
    await client.close()


serve_async(connected)
