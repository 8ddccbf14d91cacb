"""SAQ: one worker process, up to 32 jobs at a time."""

import os
from typing import Any

from saq import Queue

queue = Queue.from_url(os.environ["REDIS_BUS_URL"], name="peers")


async def add(context: dict[str, Any], *, a: int, b: int) -> int:
    return a + b


settings = {"queue": queue, "functions": [add], "concurrency": 32}
