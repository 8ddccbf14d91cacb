"""taskiq: `wait_result` polls, every 200 ms unless told otherwise; see common.POLL_SECONDS."""

import contextlib
from collections.abc import AsyncIterator

from common import CALL_SECONDS, AsyncCall, poll_seconds, serve_async
from taskiq_worker import add, broker


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    await broker.startup()

    async def call() -> int:
        task = await add.kiq(1, 2)
        result = await task.wait_result(check_interval=poll_seconds(), timeout=CALL_SECONDS)
        return result.return_value

    yield call
    await broker.shutdown()


serve_async(connected)
