"""Start: how long a worker takes to its first job, and imports, each in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..client.method import Method
from ..errors import BusError, CallTimeout
from .owned import OwnedProcess
from .service import FIRST

# A process waits that long for its start to have come about, and says meanwhile if it ended.
LOOK_SECONDS = 0.5
READY_SECONDS = 20.0
HEAVIEST = 5

_IMPORT = """
import time
start = time.perf_counter()
{}
print((time.perf_counter() - start) * 1000)
"""


class NotReady(BusError):
    """A worker of the bench did not serve in time."""


def first_job_ms(method: Method[[], Any], start: Callable[[str], OwnedProcess]) -> float:
    """Return how long it takes from the start of a worker to the outcome of the job that waits."""
    result = method.run()
    began = time.perf_counter()
    worker = start(FIRST)
    try:
        while True:
            with contextlib.suppress(CallTimeout):
                result.get(LOOK_SECONDS)
                return (time.perf_counter() - began) * 1000
            worker.check()
            if time.perf_counter() - began > READY_SECONDS:
                raise NotReady(f"a worker ran no job within {READY_SECONDS:g} s of its start")
    finally:
        worker.ask_to_stop()
        worker.wait()


def python_ms(statement: str) -> float:
    """Return how long Python takes from its start to its end, with a statement in between."""
    began = time.perf_counter()
    _run("-c", statement)
    return (time.perf_counter() - began) * 1000


def import_ms(statement: str) -> float:
    """Return how long a statement takes in a new Python, by its own clock."""
    return float(_run("-c", _IMPORT.format(statement)).stdout)


def heaviest_imports(statement: str) -> dict[str, float]:
    """Return in which packages a statement spends most of its imports, in ms, the most first."""
    spent: Counter[str] = Counter()
    for line in _run("-X", "importtime", "-c", statement).stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdecimal():
            spent[parts[2].strip().partition(".")[0]] += int(parts[0])
    return {name: us / 1000 for name, us in spent.most_common(HEAVIEST)}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Elsewhere than in a clone: there, `-c` would find its redis_bus before the installed one.
    return subprocess.run(
        [sys.executable, *arguments], cwd=Path("/"), check=True, capture_output=True, text=True
    )
