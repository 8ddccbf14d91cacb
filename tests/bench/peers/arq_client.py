"""arq: `Job.result` polls, every 500 ms unless told otherwise; see common.POLL_SECONDS."""

import contextlib
from collections.abc import AsyncIterator

from arq import create_pool
from arq_worker import WorkerSettings
from common import CALL_SECONDS, AsyncCall, poll_seconds, serve_async


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AsyncCall]:
    pool = await create_pool(WorkerSettings.redis_settings)

    async def call() -> int:
        job = await pool.enqueue_job("add", 1, 2)
        return await job.result(timeout=CALL_SECONDS, poll_delay=poll_seconds())

    yield call


serve_async(connected)
