"""FastStream, without its line of log for each message; ``redis`` or ``nats`` is its argument."""

import asyncio
import os
import sys
from typing import Any

from faststream import FastStream


def make_broker() -> Any:
    if sys.argv[1] == "nats":
        from faststream.nats import NatsBroker

        return NatsBroker(os.environ["NATS_URL"], logger=None)
    from faststream.redis import RedisBroker

    return RedisBroker(os.environ["REDIS_BUS_URL"], logger=None)


async def add(a: int, b: int) -> int:
    return a + b


if __name__ == "__main__":
    broker = make_broker()
    broker.subscriber("peers.faststream")(add)
    asyncio.run(FastStream(broker, logger=None).run())
