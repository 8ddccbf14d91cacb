"""Runs ``redis-bus`` in forks of this process, which has imported it once.

Each is a process with its own arguments, environment, folder and output. See `tests.command_line`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from redis_bus.cli import entry

# Imported for the forks, which find them here.
from redis_bus.cli import group as cli  # noqa: F401
from redis_bus.cli import serving as cli_serving  # noqa: F401
from redis_bus.supervisor import supervisor  # noqa: F401

LONGEST_ORDER = 1024 * 1024


def main() -> None:
    """Take orders from the socket that the first argument names, until the other end is closed."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = str(Path(sys.executable).parent)  # as the installed script has it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    while True:
        order, files, _, _ = socket.recv_fds(orders, LONGEST_ORDER, 3)
        reap()
        if not order:
            return
        if os.fork() == 0:
            orders.close()
            attend(json.loads(order), *files)
            return
        for file in files:
            os.close(file)


def reap() -> None:
    """Forget those that have attended; what they took counts as this process's from then on."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def attend(order: dict[str, Any], out: int, err: int, answers: int) -> None:
    """Run one command in another fork, and tell its process id, then its exit code."""
    pid = os.fork()
    if pid:
        os.write(answers, b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(answers, b"%d\n" % code)
        os._exit(0)
    os.close(answers)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(file, number)
        os.close(file)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["redis-bus", *order["arguments"]]
    entry.main()


if __name__ == "__main__":
    main()
