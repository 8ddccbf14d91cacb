"""Celery: `AsyncResult.get`, which with Redis waits for a message and does not poll."""

from celery_worker import add
from common import CALL_SECONDS, serve

serve(lambda: lambda: add.delay(1, 2).get(timeout=CALL_SECONDS))
