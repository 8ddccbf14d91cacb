"""The processes of the soak: each slot holds one, and another once that has ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import ROOT

RESTART_SECONDS = 0.5
LOG_LINES_SHOWN = 15
PR_SET_PDEATHSIG = 1


def _killed_with_us() -> Callable[[], None]:
    """What a child runs before exec: SIGKILL, for it may be stopped when the soak is killed."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return arrange


@dataclass(slots=True)
class Life:
    """One process, from its start to its end."""

    role: str
    name: str
    log: Path
    process: subprocess.Popen[bytes]
    memory: list[int] = field(default_factory=list)
    ready: bool = False
    killed: bool = False
    told_to_end: bool = False

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def sample_memory(self) -> None:
        """Note the resident set."""
        with contextlib.suppress(OSError, IndexError):
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
            self.memory.append(int(pages) * resource.getpagesize())

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(f"        {line}" for line in lines)

    def __str__(self) -> str:
        code = self.process.returncode
        return f"{self.role} {self.name}, which ended with {code}; it wrote:\n{self.last_words()}"


class Crew:
    """The processes of one role, a given number of which are to live at any time."""

    def __init__(
        self,
        role: str,
        size: int,
        command: Callable[[str], Sequence[str]],
        environment: Mapping[str, str],
        folder: Path,
        *,
        ready: str,
        excused: Sequence[int] = (),
    ) -> None:
        """``ready``: what is in the log of one that has started; ``excused``: exit codes of one
        that had not.
        """
        self.role = role
        self.lives: list[Life] = []
        self.ended_by_themselves: list[Life] = []
        self.not_started = 0
        self._command = command
        self._environment = dict(environment)
        self._folder = folder
        self._ready = ready
        self._excused = excused
        self._slots: list[Life | None] = [None] * size
        self._due = [0.0] * size
        self._arrange = _killed_with_us()

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, slot: int) -> Life | None:
        """Return who lives there, None where that one has ended and another is to come."""
        life = self._slots[slot]
        return life if life is not None and not life.has_ended() else None

    @property
    def living(self) -> list[Life]:
        """All who have not ended, also those that were told to and were replaced."""
        return [life for life in self.lives if not life.has_ended()]

    def fill(self) -> None:
        """Start a process in each slot whose own has ended, or was told to."""
        now = time.monotonic()
        for slot, life in enumerate(self._slots):
            if life is not None and life.has_ended():
                self._see_off(life)
                early = not (life.killed or life.told_to_end)
                self._due[slot] = now + RESTART_SECONDS if early else now
                self._slots[slot] = None
            elif life is not None and life.told_to_end:
                self._slots[slot] = None
            if self._slots[slot] is None and self._due[slot] <= now:
                self._slots[slot] = self._start(slot)

    def signal(self, life: Life, number: signal.Signals) -> None:
        life.killed |= number == signal.SIGKILL
        if number == signal.SIGTERM:
            self._is_ready(life)  # one that is just starting need not end well
            life.told_to_end = True
        life.process.send_signal(number)

    def end(self, seconds: float) -> list[Life]:
        """Tell all to end; return those that had not after so many seconds, and are killed."""
        for life in self.living:
            if not life.told_to_end:
                self.signal(life, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while self.living and time.monotonic() < deadline:
            time.sleep(0.05)
        late = self.living
        for life in late:
            with contextlib.suppress(ProcessLookupError):
                life.process.send_signal(signal.SIGUSR1)  # a caller tells where it is
            time.sleep(0.2)
        self.kill()
        return late

    def is_ready(self) -> bool:
        """Whether all have started."""
        return all(life is not None and self._is_ready(life) for life in self._slots)

    def ended_badly(self) -> list[Life]:
        """Return who ended by itself, and who was told to end while it worked, and failed to."""
        told = [
            life
            for life in self.lives
            if life.told_to_end and life.ready and not life.killed and life.process.returncode
        ]
        return [*self.ended_by_themselves, *told]

    def sample_memory(self) -> None:
        """Note how much memory each uses that has started; the soak runs on Linux."""
        for life in self.living:
            if self._is_ready(life):
                life.sample_memory()

    def kill(self) -> None:
        for life in self.living:
            self.signal(life, signal.SIGKILL)
            life.process.wait()

    def _start(self, slot: int) -> Life:
        name = f"{slot}.{len(self.lives)}"
        log = self._folder / f"{self.role}-{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command(name),
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=self._arrange,
            )
        self.lives.append(Life(self.role, name, log, process))
        return self.lives[-1]

    def _is_ready(self, life: Life) -> bool:
        life.ready = life.ready or self._ready in life.log.read_text(errors="replace")
        return life.ready

    def _see_off(self, life: Life) -> None:
        if life.killed or life.told_to_end:
            return
        if life.process.returncode in self._excused and not self._is_ready(life):
            self.not_started += 1
            return
        self.ended_by_themselves.append(life)


def environment(url: str, folder: Path) -> dict[str, str]:
    """What the processes find in their environment: their Redis, and where to note things."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("REDIS_")}
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join([scripts, kept.get("PATH", "")])
    return {**kept, "PATH": path, "REDIS_BUS_URL": url, "SOAK_FOLDER": str(folder)}
