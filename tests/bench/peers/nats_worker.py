"""nats-py: a subscription whose callback responds to the request."""

import asyncio
import json
import os

import nats
from nats.aio.msg import Msg


def add(a: int, b: int) -> int:
    return a + b


async def answer(message: Msg) -> None:
    await message.respond(json.dumps(add(*json.loads(message.data))).encode())


async def main() -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    await client.subscribe("peers.add", cb=answer)
    await asyncio.Event().wait()


asyncio.run(main())
