"""What the workers of ``redis-bus bench`` are started with: ``redis_bus.bench.worker.bus``."""

import os

from redis_bus import Bus

from .names import NAME_VARIABLE
from .service import register_on

bus = register_on(Bus(os.environ[NAME_VARIABLE]))
