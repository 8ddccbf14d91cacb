"""dramatiq: `Message.get_result` that blocks in Redis."""

from common import CALL_SECONDS, serve
from dramatiq_worker import add

serve(lambda: lambda: add.send(1, 2).get_result(block=True, timeout=CALL_SECONDS * 1000))
