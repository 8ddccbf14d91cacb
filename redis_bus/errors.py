"""Every error that the bus raises of its own: one sentence a class."""

from __future__ import annotations

from .printable import printable


class BusError(Exception):
    """The base of every error of the bus itself."""


class CallTimeout(BusError, TimeoutError):
    """No reply came within the call's time budget."""


class NoWorkers(CallTimeout):
    """Nobody alive serves the method."""


class WorkerLost(BusError):
    """The worker that ran the call died before it replied."""


class JobLost(BusError):
    """Redis knows nothing of the job any more: it lost its data, or the key is gone."""


class Deadlock(BusError):
    """A job calls a method that only its own worker serves, which is busy with that job."""


class QueueFull(BusError):
    """The method's queue holds ``max_queue`` jobs already; nothing was enqueued."""


class NotConfirmed(BusError):
    """Too few replicas confirmed in time what a durable method wrote, or there are too few."""


class Cancelled(BusError):
    """The job was cancelled before a worker started it."""


class ConnectionLost(BusError, ConnectionError):
    """Redis cannot be reached, or was cut off where it is unknown whether the call ran."""


class SerializationError(BusError, TypeError):
    """A value cannot make the round trip exactly; the message names the path to it."""


class ProtocolError(BusError):
    """Bytes in Redis that this library did not write."""


class RemoteError(BusError):
    """An exception of a type that the caller did not allow was raised by the remote method.

    ``type_name`` is its qualified type name there, ``remote_args`` its arguments where they
    could be encoded (else their ``repr``), ``remote_traceback`` the text of the remote traceback.
    """

    def __init__(
        self,
        message: str,
        type_name: str = "",
        remote_args: tuple[object, ...] = (),
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_args = remote_args
        self.remote_traceback = remote_traceback

    def __reduce__(self) -> tuple[type[RemoteError], tuple[object, ...]]:
        return type(self), (str(self), self.type_name, self.remote_args, self.remote_traceback)


class RemoteTraceback(Exception):
    """The ``__cause__`` of an exception of a remote method: the callee's traceback, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{printable(self.text.rstrip())}\n"
