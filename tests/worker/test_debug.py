"""Debugging a worker: pdb opens in the frame that raised, driven here through a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pexpect
import pytest

from redis_bus import AsyncResult, Bus, WorkerLost
from redis_bus.embedded import EmbeddedRedis
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


@pytest.fixture(scope="module")
def server(one_server: EmbeddedRedis) -> EmbeddedRedis:
    """Any: pdb and signals are not its doing."""
    return one_server


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


# -- told to stop while pdb is open -----------------------------------------------------------

TOLD = "leave pdb with q or c: the worker then finishes and stops; again: stop now\r\n\\(Pdb\\) "


def open_pdb(
    processes: Processes, bus: Bus, *options: str, service: str = SERVICE
) -> tuple[Any, AsyncResult]:
    """Have a worker at the prompt of pdb."""
    processes.write("service.py", service)
    terminal = start(processes, "redis-bus", "--debug", *options, "service.bus")
    eventually(lambda: workers(bus, "divide"))
    result = bus["divide"].run(7, 0)
    terminal.expect(r"\(Pdb\) ")
    return terminal, result


def expect_end(terminal: Any) -> None:
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert "Traceback" not in terminal.before


@pytest.mark.parametrize("leave", ["q", "c"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_in_pdb_is_noted_and_the_worker_stops_when_pdb_is_left(
    processes: Processes, client_bus: Bus, number: int, leave: str
) -> None:
    terminal, result = open_pdb(processes, client_bus)
    queued = client_bus["divide"].run(6, 3)
    terminal.kill(number)
    terminal.expect(TOLD)
    terminal.sendline("p inner")
    terminal.expect(r"\[7, 0\]\r\n\(Pdb\) ")
    assert not result.done()
    terminal.sendline(leave)
    with pytest.raises(ZeroDivisionError):
        result.get()
    expect_end(terminal)
    assert not queued.done()


def test_ctrl_c_twice_in_pdb_stops_now(processes: Processes, client_bus: Bus) -> None:
    terminal, result = open_pdb(processes, client_bus)
    terminal.sendintr()
    terminal.expect(TOLD)
    terminal.sendintr()
    with pytest.raises(WorkerLost):
        result.get()
    expect_end(terminal)


def test_the_second_signal_also_ends_a_command_of_pdb(
    processes: Processes, client_bus: Bus
) -> None:
    terminal, result = open_pdb(processes, client_bus)
    terminal.sendline("print('it begins'); import threading; threading.Event().wait()")
    terminal.expect("it begins\r\n")
    terminal.sendintr()
    terminal.expect(TOLD)
    terminal.sendintr()
    with pytest.raises(WorkerLost):
        result.get()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_pdb_of_an_async_function_is_ended_too(processes: Processes, client_bus: Bus) -> None:
    service = SERVICE.replace("def divide", "async def divide")
    terminal, result = open_pdb(processes, client_bus, service=service)
    terminal.sendintr()
    terminal.expect(TOLD)
    terminal.sendintr()
    with pytest.raises(WorkerLost):
        result.get()
    expect_end(terminal)


def test_shutdown_timeout_bounds_pdb(processes: Processes, client_bus: Bus) -> None:
    terminal, result = open_pdb(processes, client_bus, "--shutdown-timeout", "0.2")
    terminal.sendintr()
    with pytest.raises(WorkerLost):
        result.get()
    expect_end(terminal)


def test_ctrl_c_after_pdb_was_left_with_c_stops_the_worker(
    processes: Processes, client_bus: Bus
) -> None:
    terminal, result = open_pdb(processes, client_bus)
    terminal.sendline("c")
    with pytest.raises(ZeroDivisionError):
        result.get()
    assert client_bus["divide"](6, 3) == 2
    terminal.sendintr()
    expect_end(terminal)
