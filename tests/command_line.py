"""``redis-bus`` without its imports: they are most of what a short command costs, and there are
hundreds of those."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class CommandLine:
    """Runs commands in forks of one process, which ends with this one (see programs/)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: socket.socket | None = None

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run ``redis-bus`` to its end."""
        order = {"arguments": arguments, "folder": str(folder), "environment": environment}
        ours, theirs = socket.socketpair()
        with ours, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with theirs:
                files = [out.fileno(), err.fileno(), theirs.fileno()]
                socket.send_fds(self._started(), [json.dumps(order).encode()], files)
            ours.settimeout(seconds)
            with ours.makefile() as answers:
                pid = int(answers.readline())
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise
            said = [os.pread(f.fileno(), os.fstat(f.fileno()).st_size, 0) for f in (out, err)]
        return subprocess.CompletedProcess(
            ["redis-bus", *arguments], code, said[0].decode(), said[1].decode()
        )

    def _started(self) -> socket.socket:
        with self._lock:
            if self._orders is None:
                self._orders, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
                with theirs:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "tests.programs.command_line", str(theirs.fileno())],
                        cwd=ROOT,
                        env={**os.environ, "PYTHONUNBUFFERED": "1"},
                        stdin=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                    )
                atexit.register(self._end, self._orders, process)
            return self._orders

    @staticmethod
    def _end(orders: socket.socket, process: subprocess.Popen[bytes]) -> None:
        orders.shutdown(socket.SHUT_RDWR)
        process.wait()


command_line = CommandLine()
