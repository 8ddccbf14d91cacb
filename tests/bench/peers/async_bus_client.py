"""Our client on asyncio: `AsyncBus`. ``python async_bus_client.py add`` or ``cached``."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator

from common import AsyncCall, serve_async

from redis_bus import AsyncBus


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    async with AsyncBus("peers-async", url=os.environ["REDIS_BUS_URL"]) as bus:
        method = bus[sys.argv[1]]
        yield lambda: method(1, 2)


serve_async(connected)
