"""Debugging a worker: pdb opens in the frame that raised, driven here through a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pexpect
import pytest

from redis_bus import AsyncResult, Bus
from tests.support import PATIENCE_SECONDS, Processes, eventually, workers

SERVICE = """
    from redis_bus import Bus

    bus = Bus("debugged")

    @bus.register()
    def divide(a, b):
        secret = a * 111
        return helper(a, b)

    def helper(a, b):
        inner = [a, b]
        return inner[0] / inner[1]
"""


@pytest.fixture
def client_bus(url: str) -> Iterator[Bus]:
    with Bus("debugged", url=url, timeout=PATIENCE_SECONDS) as bus:
        yield bus


def start(processes: Processes, *command: str) -> Any:
    """Run a command in a terminal of its own."""
    return pexpect.spawn(
        command[0],
        list(command[1:]),
        cwd=str(processes.folder),
        env=processes.environment(TERM="dumb"),
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
        echo=False,
    )


def examine(terminal: Any, result: AsyncResult) -> None:
    """Look around where it raised, leave pdb, and see the exception at the caller."""
    terminal.expect("ZeroDivisionError: division by zero")
    terminal.expect(r"return inner\[0\] / inner\[1\]\r\n\(Pdb\) ")
    assert not result.done()
    terminal.sendline("p inner")
    terminal.expect(r"\[7, 0\]\r\n\(Pdb\) ")
    terminal.sendline("up")
    terminal.expect(r"\(Pdb\) ")
    terminal.sendline("p secret")
    terminal.expect(r"777\r\n\(Pdb\) ")
    terminal.sendline("q")
    with pytest.raises(ZeroDivisionError):
        result.get()


def test_redis_bus_debug_opens_pdb_in_the_frame_that_raised(
    processes: Processes, client_bus: Bus
) -> None:
    processes.write("service.py", SERVICE)
    terminal = start(processes, "redis-bus", "--debug", "service.bus")
    eventually(lambda: workers(client_bus, "divide"))
    examine(terminal, client_bus["divide"].run(7, 0))
    # The worker lives on, and debugs the next one too.
    assert client_bus["divide"](6, 3) == 2
    examine(terminal, client_bus["divide"].run(7, 0))
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_serve_with_debug_opens_pdb_in_a_script(processes: Processes, client_bus: Bus) -> None:
    processes.write("service.py", SERVICE + "\n    bus.serve(debug=True)\n")
    terminal = start(processes, "python", "service.py")
    eventually(lambda: workers(client_bus, "divide"))
    examine(terminal, client_bus["divide"].run(7, 0))
    assert client_bus["divide"](6, 3) == 2
    terminal.sendintr()
    terminal.expect(pexpect.EOF)


def test_serve_once_with_debug_opens_pdb_and_then_goes_on(
    processes: Processes, client_bus: Bus
) -> None:
    processes.write("service.py", SERVICE + "\n    print('ran', bus.serve_once(debug=True))\n")
    assert processes.run("python", "service.py").stdout == "ran 0\n"
    results = [client_bus["divide"].run(7, 0), client_bus["divide"].run(6, 3)]
    terminal = start(processes, "python", "service.py")
    examine(terminal, results[0])
    terminal.expect("ran 2")
    terminal.expect(pexpect.EOF)
    assert results[1].get() == 2


def test_burst_with_debug_opens_pdb(processes: Processes, client_bus: Bus) -> None:
    processes.write("service.py", SERVICE)
    assert processes.run("redis-bus", "-b", "service.bus").returncode == 0
    result = client_bus["divide"].run(7, 0)
    terminal = start(processes, "redis-bus", "-db", "service.bus")
    examine(terminal, result)
    terminal.expect("ran 1 job\r\n")
    terminal.expect(pexpect.EOF)


def test_a_debugged_worker_without_a_terminal_does_not_hang(
    processes: Processes, client_bus: Bus
) -> None:
    processes.write("service.py", SERVICE)
    assert processes.run("redis-bus", "-b", "service.bus").returncode == 0
    result = client_bus["divide"].run(7, 0)
    assert processes.run("redis-bus", "-db", "service.bus").returncode == 0
    with pytest.raises(ZeroDivisionError):
        result.get()
