"""Our blocking client: `Bus`, which threads share. ``python bus_client.py add`` or ``cached``."""

import functools
import os
import sys

from common import serve

from redis_bus import Bus

with Bus("peers", url=os.environ["REDIS_BUS_URL"]) as bus:
    serve(lambda: functools.partial(bus[sys.argv[1]], 1, 2))
