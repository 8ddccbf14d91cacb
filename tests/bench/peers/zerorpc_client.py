"""zerorpc: one client, which greenlets share; what seems a thread here is a greenlet of gevent."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402

import zerorpc  # noqa: E402
from common import CALL_SECONDS, serve  # noqa: E402

client = zerorpc.Client(timeout=CALL_SECONDS)
client.connect(f"tcp://127.0.0.1:{os.environ['ZERORPC_PORT']}")
serve(lambda: lambda: client.add(1, 2))
