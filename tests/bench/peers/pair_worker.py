"""The bare pair's worker, with redis-py: BLPOP a request, LPUSH its reply."""

import os

from side_by_side import BARE_WORKER

# redis-py 8 ends a wait after 5 s unless told otherwise.
os.environ["REDIS_BUS_URL"] += "?socket_timeout=3600"
exec(BARE_WORKER)
