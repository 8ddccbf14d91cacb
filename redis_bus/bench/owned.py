"""Owned: a process that a command starts for itself, and that ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ..embedded import die_with_parent
from ..errors import BusError

STOP_SECONDS = 5.0


class EndedEarly(BusError):
    """A process that a command needs has ended; the message has its last words."""


class OwnedProcess:
    """A Python process on a Redis; its output goes to a file that has no name.

    ``arguments`` are Python's, ``title`` is what people know it by. Nothing is written beside what
    it runs, not even bytecode. It is started in the main thread, with which it ends on Linux.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        title: str,
        url: str,
        folder: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.title = title
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `wait`
        kept = {name: v for name, v in os.environ.items() if not name.startswith("REDIS_BUS_")}
        own = {"REDIS_BUS_URL": url, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**kept, **own},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal is for its owner, who stops it.
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )

    def check(self) -> None:
        """Raise EndedEarly where the process has ended."""
        if self._process.poll() is not None:
            self._output.seek(0)
            said = self._output.read().decode("utf-8", "replace").strip() or "it said nothing"
            raise EndedEarly(f"{self.title} ended: {said.splitlines()[-1]}")

    def ask_to_stop(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        """Wait until it has ended, and end it where that takes too long."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
