"""Supervisor: starts worker processes, starts them again when they die, and ends them.

It imports nothing of the user's: what a worker process has to say of itself comes over a pipe.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Sequence

from .child import Backoff, Child, Place
from .exits import Exit
from .lapse import Lapses
from .signals import ENDING, SignalPipe
from .watcher import Watcher
from .words import finishing

logger = logging.getLogger("redis_bus")

# How long a process may take to end after it was told to stop at once.
KILL_SECONDS = 5.0
# Exit codes that another try would not change, where no worker has ever served.
HOPELESS = (Exit.REMOTE_ERROR, Exit.USAGE, Exit.NO_REDIS)
FILES_SHOWN = 3


class Supervisor:
    """Keeps ``count`` processes that serve, until a signal ends them and itself.

    ``arguments`` are those of ``redis-bus serve`` for each. What is to be said once goes to
    ``say``; ``first`` before all else, when the first process serves. Where files change of which
    ``watcher`` tells, all are ended and started again; what cannot be started waits for that.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        count: int,
        *,
        say: Callable[[str], None],
        first: Iterable[str] = (),
        burst: bool,
        shutdown_timeout: float,
        watcher: Watcher | None = None,
    ) -> None:
        self._arguments = arguments
        self._places = [Place() for _ in range(count)]
        self._say = say
        self._first = list(first)
        self._burst = burst
        self._shutdown_timeout = shutdown_timeout
        self._watcher = watcher
        self._selector = selectors.DefaultSelector()
        self._lapses = Lapses()
        self._signals: list[int] = []
        self._kill_at: float | None = None
        self._said_what_runs = False
        self._has_served = False
        self._has_waited = False  # for a file to change: what ends it then is no failure
        # Whether it was said that the processes of now serve.
        self._is_up = False
        self._is_restarting = False
        self._notes: set[str] = set()
        self._ran = 0
        self._code = 0

    def run(self) -> int:
        """Return the exit code, once all processes have ended.

        Raises KeyboardInterrupt where ctrl-C came before any process served.
        """
        # The first alone: what is wrong with all of them is said once.
        self._places[0].due = time.monotonic()
        with SignalPipe(*ENDING, signal.SIGCHLD) as signals, self._selector:
            self._selector.register(signals, selectors.EVENT_READ)
            if self._watcher is not None:
                self._selector.register(self._watcher, selectors.EVENT_READ)
            try:
                self._start_due()
                while self._children() or self._dues() or self._waits_for_change():
                    self._wait()
                    for number in signals.read():
                        if number != signal.SIGCHLD:
                            self._stop(number)
                    self._look_after_children()
                    self._say_what_runs()
                    self._look_after_files()
                    self._start_due()
                    self._kill_late()
            finally:
                self._send(signal.SIGTERM)  # to none, unless something is wrong here
            self._lapses.wait()
        if self._burst and self._has_served:
            self._say(f"ran {self._ran} job{'' if self._ran == 1 else 's'}")
        if self._signals and not (self._has_served or self._has_waited):
            if self._signals[0] == signal.SIGINT:
                raise KeyboardInterrupt
            return Exit.TERMINATED
        return self._code

    def _waits_for_change(self) -> bool:
        return self._watcher is not None and not self._signals

    def _children(self) -> list[Child]:
        return [place.child for place in self._places if place.child is not None]

    def _dues(self) -> list[float]:
        return [place.due for place in self._places if place.due is not None]

    def _wait(self) -> None:
        """Wait for a signal, for the end or the words of a child, or for what is due."""
        times = self._dues() + ([] if self._kill_at is None else [self._kill_at])
        now = time.monotonic()
        self._selector.select(max(0.0, min(times) - now) if times else None)

    # -- starting -----------------------------------------------------------------------------

    def _start_due(self) -> None:
        for place in self._places:
            if place.due is None or place.due > time.monotonic():
                continue
            try:
                place.child = Child(self._arguments, place.succeeds())
            except OSError as error:
                # No memory, or this Python is being replaced.
                wait = place.backoff.seconds(0.0, by_signal=False)
                place.due = time.monotonic() + wait
                text = "no worker process can be started: %s; the next try is in %.2g s"
                logger.warning(text, error, wait)
                continue
            place.due = None
            self._selector.register(place.child.pipe, selectors.EVENT_READ)
            logger.info("worker process %d is started", place.child.process.pid)

    def _hear(self, child: Child) -> None:
        for facts in child.hear():
            child.ran = facts.get("ran", child.ran)
            child.worker = facts.get("worker", child.worker)
            child.lease = facts.pop("lease", child.lease)
            child.has_left = facts.get("left", child.has_left)
            child.is_spent = facts.get("spent", child.is_spent)
            child.finishes = facts.get("finishes", child.finishes)
            if "worker" in facts:
                logger.info("worker process %d is worker %s", child.process.pid, child.worker)
                self._has_served = True
                if not (self._is_up or self._is_restarting or self._signals):
                    self._is_up = True
                    self._start_rest(**facts)
        if child.has_closed:
            self._ignore(child)

    def _ignore(self, child: Child) -> None:
        if child.pipe in self._selector.get_map():
            self._selector.unregister(child.pipe)

    def _start_rest(self, worker: str, banner: str, notes: list[str]) -> None:
        """The first process serves: start the others, and say so for all of them."""
        for place in self._places:
            if place.child is None:
                place.due = time.monotonic()
        self._start_due()
        pids = [str(child.process.pid) for child in self._children()]
        many = "s" if len(pids) > 1 else ""
        workers = f"{len(pids)} worker{many} (pid{many} {', '.join(pids)})"
        stop = "" if self._burst else "; ctrl-C stops"
        for text in self._first:
            self._say(text)
        self._first.clear()
        self._say(f"{banner} with {workers}{stop}")
        for text in notes:
            if text not in self._notes:
                self._say(text)
        self._notes.update(notes)

    # -- starting again when files change -----------------------------------------------------

    def _look_after_files(self) -> None:
        files = self._watcher.read() if self._watcher is not None else []
        if files and self._signals:
            logger.info("%s changed, but all ends", _shorten(files))
        elif files:
            self._say(f"{_shorten(files)} changed: workers are started again")
            self._is_restarting = True
            for place in self._places:
                place.due, place.backoff = None, Backoff()
            self._let_finish()
            self._kill_after(self._shutdown_timeout)
        if self._is_restarting and not self._children():
            self._is_restarting = self._is_up = False
            self._kill_at = None
            # As at first: what is wrong with all of them is said once.
            self._places[0].due = time.monotonic()

    # -- ending -------------------------------------------------------------------------------

    def _look_after_children(self) -> None:
        for place in self._places:
            child = place.child
            if child is None:
                continue
            has_ended = child.process.poll() is not None
            self._hear(child)
            if has_ended:
                place.child = None
                self._ignore(child)
                os.close(child.pipe)
                self._ran += child.ran
                self._follow(place, child)
                # Who waits for it hears of it now, not when another has been started.
                if child.lease is not None and not child.has_left:
                    self._lapses.begin(child.lease)

    def _follow(self, place: Place, child: Child) -> None:
        """Decide what comes after a process that ended."""
        code = child.process.returncode
        pid, how = child.process.pid, child.how_it_ended()
        if self._is_restarting and child.worker is not None and code:
            place.bury(child.worker)
        if self._signals or self._is_restarting or (self._burst and code == 0):
            logger.info("worker process %d %s", pid, how)
            return
        if child.is_spent and code == 0:
            place.backoff, place.due = Backoff(), time.monotonic()
            text = "worker process %d has run as many jobs as it may; another is started now"
            logger.info(text, pid)
            return
        # Redis may come back by itself; a file does not mend itself.
        if self._waits_for_change() and not self._is_up and code != Exit.NO_REDIS:
            if code not in HOPELESS:  # those said why
                logger.warning("worker process %d %s", pid, how)
            self._say("nothing is served until a file changes; ctrl-C stops")
            self._has_waited = True
            return
        if not self._has_served and self._watcher is None and code in HOPELESS:
            self._code = code  # it said why
            return
        if self._burst:
            self._code = self._code or (code if code > 0 else 128 - code)
            logger.warning("worker process %d %s", pid, how)
            return
        if child.worker is not None:
            place.bury(child.worker)
        wait = place.backoff.seconds(time.monotonic() - child.started, by_signal=code < 0)
        place.due = time.monotonic() + wait
        when = f"in {wait:.2g} s" if wait else "now"
        logger.warning("worker process %d %s; another is started %s", pid, how, when)

    def _stop(self, number: int) -> None:
        """The first signal lets jobs finish, those that follow end them."""
        self._signals.append(number)
        self._is_restarting = False
        is_first = len(self._signals) == 1
        for place in self._places:
            place.due = None
        self._kill_after(self._shutdown_timeout if is_first else 0.0)
        if is_first:
            self._let_finish()
        else:
            # Another number: of two equal signals, a process that is slow to see them sees one.
            self._send(signal.SIGINT)

    def _say_what_runs(self) -> None:
        """After the first signal, once all have told: say for all together what they finish."""
        told = [child.finishes for child in self._children()]
        if len(self._signals) != 1 or self._said_what_runs or None in told:
            return
        self._said_what_runs = True
        methods = [method for one in told if one is not None for method in one]
        if methods:
            self._say(finishing(methods, self._shutdown_timeout))

    def _let_finish(self) -> None:
        for child in self._children():
            child.tell_to_end()

    def _send(self, number: int) -> None:
        for child in self._children():
            child.process.send_signal(number)

    def _kill_after(self, seconds: float) -> None:
        bound = time.monotonic() + KILL_SECONDS + seconds
        self._kill_at = bound if self._kill_at is None else min(self._kill_at, bound)

    def _kill_late(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._kill_at = None
        for child in self._children():
            logger.warning("worker process %d does not end: it is killed", child.process.pid)
        self._send(signal.SIGKILL)


def _shorten(files: Sequence[str]) -> str:
    if len(files) <= FILES_SHOWN:
        return ", ".join(files)
    return f"{', '.join(files[:FILES_SHOWN])} and {len(files) - FILES_SHOWN} more"
