"""huey: `Result.get` that blocks."""

from common import CALL_SECONDS, serve
from huey_worker import add

serve(lambda: lambda: add(1, 2).get(blocking=True, timeout=CALL_SECONDS))
