"""What is imported, and so how soon a process begins: nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest
import redis

from redis_bus import Bus


def imported(statement: str) -> set[str]:
    """Return the modules that a statement imports in a new Python."""
    code = f"import sys; known = set(sys.modules); {statement}; print(*sys.modules.keys() - known)"
    # Isolated: what a tool has put on the path for every Python is not ours.
    line = [sys.executable, "-I", "-c", code]
    return set(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split())


def test_the_package_alone_needs_no_redis() -> None:
    found = imported("import redis_bus")
    assert "redis_bus" in found and not found & {"redis", "msgpack", "redis_bus.bus"}


@pytest.mark.parametrize(
    ("statement", "needless"),
    [
        (
            "from redis_bus import Bus",
            {"worker.worker", "worker.slot", "async_bus", "cli", "embedded", "bench"},
        ),
        (
            "from redis_bus import AsyncBus",
            {"worker.worker", "worker.slot", "cli", "embedded", "bench"},
        ),
        (
            "import redis_bus.cli.group",
            {
                "async_bus",
                "supervisor.supervisor",
                "supervisor.watcher",
                "transport.layout",
                "cli.demo",
                "bench",
            },
        ),
    ],
)
def test_nothing_is_imported_that_others_need(statement: str, needless: set[str]) -> None:
    found = imported(statement)
    assert "redis_bus.transport.transport" in found
    assert not found & {f"redis_bus.{name}" for name in needless}
    assert not found & {"difflib", "ctypes", "zoneinfo", "statistics"}


def test_a_connection_introduces_itself_as_those_of_redis_py_do() -> None:
    info = pytest.importorskip("redis.driver_info").DriverInfo
    connect = Bus("test", url="redis://localhost")._deployment.endpoint.connect
    assert connect().driver_info == redis.Connection().driver_info
    assert connect().driver_info is connect().driver_info  # it is not looked up again

    mine = info(name="mine", lib_version="1")
    given = Bus("test", url="redis://localhost", driver_info=mine)
    assert given._deployment.endpoint.connect().driver_info is mine
