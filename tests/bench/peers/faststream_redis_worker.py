"""FastStream on Redis, without its line of log for each message."""

import asyncio
import os

from faststream import FastStream
from faststream.redis import RedisBroker

broker = RedisBroker(os.environ["REDIS_BUS_URL"], logger=None)
app = FastStream(broker, logger=None)


@broker.subscriber("peers.faststream")
async def add(a: int, b: int) -> int:
    return a + b


asyncio.run(app.run())
