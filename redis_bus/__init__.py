"""A bus for the internal API of many small services, over the Redis they have already."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_bus import AsyncBus
    from .bus import Bus
    from .calls.context import headers, with_headers
    from .calls.middleware import Middleware
    from .client.completed import as_completed
    from .client.dead_letters import DeadLetter
    from .client.method import Method
    from .client.result import AsyncResult
    from .errors import (
        BusError,
        CallTimeout,
        Cancelled,
        ConnectionLost,
        Deadlock,
        JobLost,
        NotConfirmed,
        NoWorkers,
        ProtocolError,
        QueueFull,
        RemoteError,
        RemoteTraceback,
        SerializationError,
        WorkerLost,
    )

__all__ = [
    "AsyncBus",
    "AsyncResult",
    "Bus",
    "BusError",
    "CallTimeout",
    "Cancelled",
    "ConnectionLost",
    "DeadLetter",
    "Deadlock",
    "JobLost",
    "Method",
    "Middleware",
    "NoWorkers",
    "NotConfirmed",
    "ProtocolError",
    "QueueFull",
    "RemoteError",
    "RemoteTraceback",
    "SerializationError",
    "WorkerLost",
    "as_completed",
    "headers",
    "with_headers",
]
__version__ = "0.1.0"

_PLACES = {
    "AsyncBus": "async_bus",
    "AsyncResult": "client.result",
    "Bus": "bus",
    "DeadLetter": "client.dead_letters",
    "Method": "client.method",
    "Middleware": "calls.middleware",
    "headers": "calls.context",
    "with_headers": "calls.context",
    "as_completed": "client.completed",
}


if not TYPE_CHECKING:  # else a name that is not there would be one of type object

    def __getattr__(name: str) -> object:
        # Imported when first used: pytest loads redis_bus.testing in every run, Redis or not.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_PLACES.get(name, 'errors')}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
