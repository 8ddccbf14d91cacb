"""What a process is started with for SIGINT: the tests' own, and that of ``redis-bus``."""

from __future__ import annotations

import signal
import subprocess
import sys

from redis_bus import Bus
from tests.support import PATIENCE_SECONDS, ROOT, Processes, eventually, workers

BACKGROUND = "trap '' INT HUP; exec \"$@\""  # as a shell starts what it does not wait for
SERVICE = """
    import redis_bus

    bus = redis_bus.Bus("test")


    @bus.register()
    def add(a: int, b: int) -> int:
        return a + b
"""


def test_tests_that_are_started_in_the_background_heed_signals() -> None:
    code = """if True:
        import signal, subprocess, sys
        from tests import conftest, support
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        support.heed_signals()
        show = "import signal as s; print(s.getsignal(s.SIGINT) is s.default_int_handler, "
        show += "s.getsignal(s.SIGHUP) is s.SIG_DFL)"
        print(subprocess.check_output([sys.executable, "-c", show], text=True).strip())
    """
    done = subprocess.run(
        ["sh", "-c", BACKGROUND, "sh", sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr


def test_a_worker_that_is_started_in_the_background_of_a_shell_ends_at_sigint(
    processes: Processes, bus: Bus
) -> None:
    processes.write("service.py", SERVICE)
    for options in ((), ("-w", "2")):
        count = 2 if options else 1
        command = ("redis-bus", *options, "service.bus")
        process = processes.start("sh", "-c", BACKGROUND, "sh", *command)
        eventually(lambda n=count: workers(bus, "add") == n)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0
        assert workers(bus, "add") == 0
