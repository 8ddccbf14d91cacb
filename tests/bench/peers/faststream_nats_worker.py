"""FastStream on Nats, without its line of log for each message."""

import asyncio
import os

from faststream import FastStream
from faststream.nats import NatsBroker

broker = NatsBroker(os.environ["NATS_URL"], logger=None)
app = FastStream(broker, logger=None)


@broker.subscriber("peers.faststream")
async def add(a: int, b: int) -> int:
    return a + b


asyncio.run(app.run())
