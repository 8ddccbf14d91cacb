"""Signals of a command that owns processes and files: it ends, and cleans up after itself."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from .exits import Exit

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STOPPING = (signal.SIGTERM, signal.SIGINT)
ENDING = (*STOPPING, signal.SIGHUP)
# How long a destructor that swallowed what ends us may take to return.
AGAIN_SECONDS = 0.01


class EndingSignals:
    """Lets SIGTERM, SIGINT and SIGHUP end what runs in its ``with`` block.

    The first one raises; those that follow are ignored, for cleaning up takes seconds at most.
    Python swallows what is raised in a destructor, or in the callback of a weak reference, of which
    there are many in an import, and prints its traceback: here it is raised again, and not printed.
    Until Python 3.11 a RuntimeError is made of it where a class is made, as of each enum: that ends
    the block as the signal itself would.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._came: int | None = None
        self._held = False
        self._stop: Callable[[], None] | None = None
        self._raised: BaseException | None = None
        self._unraisable_before = sys.unraisablehook

    def __enter__(self) -> EndingSignals:
        self._before = {number: signal.getsignal(number) for number in ENDING}
        self._unraisable_before = sys.unraisablehook
        sys.unraisablehook = self._see_swallowed
        self._handle()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raised, self._raised = self._raised, None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if sys.unraisablehook == self._see_swallowed:  # not that of a user's module
            sys.unraisablehook = self._unraisable_before
        if raised is not None and error is not raised and _stems_from(error, raised):
            raise raised from None

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

        For blocks that start a process: what a handler raises inside a fork is lost, and a process
        must come into the hands of whoever stops it.
        """
        self.check()  # one that was swallowed came before the block
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
                self._raised = SystemExit(Exit.OK)
            elif self._came == signal.SIGINT:
                self._raised = KeyboardInterrupt()
            else:
                self._raised = SystemExit(Exit.TERMINATED)
            raise self._raised

    def _handle(self) -> None:
        for number in STOPPING:
            signal.signal(number, self._leave)
        if self._before[signal.SIGHUP] is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, self._pass_on)

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

    def _see_swallowed(self, swallowed: UnraisableHookArgs) -> None:
        if self._raised is None or swallowed.exc_value is not self._raised:
            self._unraisable_before(swallowed)
            return
        self._handle()
        # Raised from here it would be swallowed, too. A signal to this very process comes at once,
        # so another thread sends it; one of `threading` may need a lock that is held just now.
        _thread.start_new_thread(self._come_again, (self._raised,))

    def _come_again(self, swallowed: BaseException) -> None:
        time.sleep(AGAIN_SECONDS)
        if self._raised is swallowed:  # not raised again by a `check` meanwhile
            os.kill(os.getpid(), signal.SIGTERM)  # whichever came first counts

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        # A closed terminal ends a worker as SIGTERM does, whoever handles that just then.
        os.kill(os.getpid(), signal.SIGTERM)


def _stems_from(error: BaseException | None, cause: BaseException) -> bool:
    while error is not None and error is not cause:
        error = error.__cause__
    return error is cause


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
def bounded_shutdown(seconds: float, begun: Callable[[], None]) -> Iterator[None]:
    """So long after the first signal, send this process a second: the worker then stops at once.

    At the first one ``begun`` is called, in a thread: it may print and wait as no handler may.
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
        with contextlib.suppress(OSError):  # nobody reads what it says
            begun()
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
