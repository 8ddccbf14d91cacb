"""arq: it polls for jobs, every 500 ms unless told otherwise; here every millisecond."""

import os
from typing import Any

from arq.connections import RedisSettings


async def add(context: dict[str, Any], a: int, b: int) -> int:
    return a + b


# Given to --custom-log-dict: no line of log for each job.
QUIET = {"version": 1}


class WorkerSettings:
    functions = (add,)
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_BUS_URL"])
    poll_delay = 0.001
    max_jobs = 32
    keep_result = 60
