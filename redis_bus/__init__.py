"""A bus for the internal API of many small services, over the Redis they have already."""

from .bus import Bus
from .errors import (
    BusError,
    CallTimeout,
    Cancelled,
    ConnectionLost,
    NoWorkers,
    ProtocolError,
    QueueFull,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    WorkerLost,
)
from .method import Method
from .result import AsyncResult

__all__ = [
    "AsyncResult",
    "Bus",
    "BusError",
    "CallTimeout",
    "Cancelled",
    "ConnectionLost",
    "Method",
    "NoWorkers",
    "ProtocolError",
    "QueueFull",
    "RemoteError",
    "RemoteTraceback",
    "SerializationError",
    "WorkerLost",
]
__version__ = "0.1.0"
