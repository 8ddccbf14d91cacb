"""AsyncResult: the outcome of a job, from any process, any number of times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..calls import calls, waiting
from ..errors import BusError
from ..protocol import outcome
from ..protocol.commands import (
    MOST_PARTITIONS,
    Route,
    Service,
    check_job_id,
    check_method_name,
    check_prefix,
)
from ..protocol.deadline import Deadline

if TYPE_CHECKING:
    from .core import Core


class JobResult:
    """The result of a job, by its id: what both kinds of bus give for a ``run``."""

    def __init__(
        self, bus: str, route: Route, job: str, allow: tuple[type[BaseException], ...] = ()
    ) -> None:
        self._bus = bus
        self._route = route
        self._job = job
        self._allow = allow

    @property
    def id(self) -> str:
        """Text that names this result in any process: ``<service>:<method>:<job>``.

        The service with its partition, ``<service>#<partition>``, where that is not the first.
        """
        return f"{self._route.service.label}:{self._route.method}:{self._job}"

    def _ticket(self) -> waiting.Ticket:
        return waiting.Ticket(self._route, self._job, 0, f"{self._route.method} (job {self._job})")

    def __repr__(self) -> str:
        return f"<result {self.id!r} of bus {self._bus!r}>"


class AsyncResult(JobResult):
    """What `Method.run` returns; `Bus.get_async_result` makes the same of its ``id``."""

    def __init__(
        self, core: Core, route: Route, job: str, allow: tuple[type[BaseException], ...] = ()
    ) -> None:
        super().__init__(core.name, route, job, allow)
        self._core = core

    def get(self, timeout: float | None = None) -> Any:
        """Return the value, or raise what the function raised; again and again, if you like.

        Waits up to ``timeout`` seconds; None: as long as a call on this bus does. Raises
        CallTimeout where there is no outcome by then, and JobLost, after some 5 s, where Redis
        knows nothing of the job: it lost its data, or the result is no longer kept.
        """
        __tracebackhide__ = True
        deadline = Deadline(self._core.timeout if timeout is None else timeout)
        found = self._core.drive(waiting.outcome_of(self._ticket(), deadline))
        return outcome.decode(found, self._core.serializer, self._allow)

    def done(self) -> bool:
        """Whether `get` would return, or raise the function's exception, at once."""
        return self._core.drive(waiting.is_done(self._ticket()))

    def cancel(self) -> bool:
        """Withdraw the job; `get` then raises Cancelled, here and elsewhere.

        Returns whether that came in time: False where a worker has taken the job, or where other
        callers wait for the same cached value.
        """
        return self._core.drive(calls.cancel(self._ticket()))


def parse_id(bus: str, text: str, keep_ms: int) -> tuple[Route, str]:
    """Return where the result of that id is. Raises BusError for what is no id of a result."""
    parts = text.split(":")
    try:
        label, method, job = parts
        check_job_id(job)
        prefix, mark, number = label.partition("#")
        service = Service(bus, check_prefix(prefix), int(number) if mark else 0)
        if service.label != label or not 0 <= service.part < MOST_PARTITIONS:
            raise ValueError(label)
        route = Route(service, check_method_name(method), keep_ms=keep_ms)
    except ValueError:
        raise BusError(f"{text!r} is not the id of a result") from None
    return route, job
