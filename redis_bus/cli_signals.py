"""Signals of a command that owns processes and files: it ends, and cleans up after itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from .cli_common import Exit

STOPPING = (signal.SIGTERM, signal.SIGINT)
ENDING = (*STOPPING, signal.SIGHUP)


class EndingSignals:
    """Lets SIGTERM, SIGINT and SIGHUP end what runs in its ``with`` block.

    The first one raises; those that follow are ignored, for cleaning up takes seconds at most.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._came: int | None = None
        self._held = False
        self._stop: Callable[[], None] | None = None

    def __enter__(self) -> EndingSignals:
        self._before = {number: signal.getsignal(number) for number in ENDING}
        for number in STOPPING:
            signal.signal(number, self._leave)
        if self._before[signal.SIGHUP] is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, self._pass_on)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """Ignore signals from now on: only cleaning up is left to do."""
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)

    def serving(self, stop: Callable[[], None]) -> None:
        """Have the first signal from now on call ``stop``, as the worker's own handler will do.

        One that came before, in a `held` block, ends with exit code 0 at the end of that.
        """
        self._stop = stop

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let signals wait for the end of a block, or for a `check` in it.

        For blocks that start a process: what a handler raises inside a fork or a destructor is
        printed and then lost, and a process must come into the hands of whoever stops it.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """End now where a signal came earlier."""
        if self._came is not None:
            self.ignore()
            if self._stop is not None:
                raise SystemExit(Exit.OK)
            interrupted = self._came == signal.SIGINT
            raise KeyboardInterrupt if interrupted else SystemExit(Exit.TERMINATED)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        is_first = self._came is None
        if is_first:
            self._came = number
        if self._held:
            return
        if is_first and self._stop is not None:
            self._stop()
        else:
            self.check()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        # A closed terminal ends a worker as SIGTERM does, whoever handles that just then.
        os.kill(os.getpid(), signal.SIGTERM)


class SignalPipe:
    """Takes signals as numbers to be read, for a loop that waits for other things, too.

    Nothing is raised anywhere. A SIGHUP that is ignored, as nohup has it, stays so.
    """

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._reader, self._writer = socket.socketpair()

    def __enter__(self) -> SignalPipe:
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        descriptor = self._writer.fileno()
        self._wakeup_before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        for number in self._numbers:
            before = signal.getsignal(number)
            if number != signal.SIGHUP or before is not signal.SIG_IGN:
                self._before[number] = before
                # Python tells the descriptor of signals that have a handler.
                signal.signal(number, lambda number, frame: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        """The descriptor that can be read where a signal came."""
        return self._reader.fileno()

    def read(self) -> list[int]:
        """Return the signals that came since the last time, without a wait."""
        try:
            return list(self._reader.recv(4096))
        except BlockingIOError:
            return []


@contextlib.contextmanager
def bounded_shutdown(seconds: float) -> Iterator[None]:
    """So long after the first signal, send this process a second: the worker then stops at once.

    Signals are seen through a wakeup socket, so the worker's own handlers stay as they are.
    """
    ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while True:
            numbers = reader.recv(64)
            if not numbers:
                return
            if any(number in STOPPING for number in numbers):
                break
        if not ended.wait(seconds):
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, name="redis-bus shutdown", daemon=True)
    # It inherits the mask: a signal that it took would not end what the main thread waits for.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    thread.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()
