"""What a cached hit is compared with: GET of the same bytes, with redis-py; threads share one."""

import os

import redis
from common import serve

client = redis.Redis.from_url(os.environ["REDIS_BUS_URL"])
client.set("get", b"3")
serve(lambda: lambda: int(client.get("get")))
