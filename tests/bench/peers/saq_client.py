"""SAQ: `Queue.apply` polls, every 500 ms unless told otherwise; see common.POLL_SECONDS.

`Job.refresh` would be told by a message, and misses one that comes while it subscribes.
"""

import contextlib
from collections.abc import AsyncIterator

from common import CALL_SECONDS, AsyncCall, poll_seconds, serve_async
from saq_worker import queue


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    await queue.connect()
    yield lambda: queue.apply("add", timeout=CALL_SECONDS, poll_interval=poll_seconds(), a=1, b=2)
    await queue.disconnect()


serve_async(connected)
