"""huey: RedisHuey waits for jobs in BRPOP; ``notify_result`` makes a result known at once."""

import logging
import os

from huey import RedisHuey

logging.getLogger("huey").setLevel(logging.ERROR)
huey = RedisHuey("peers", url=os.environ["REDIS_BUS_URL"], notify_result=True)


@huey.task()
def add(a: int, b: int) -> int:
    return a + b
