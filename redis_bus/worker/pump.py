"""Pump: asks for jobs on the loop that runs them, as long as nothing is out of the ordinary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import redis

from ..transport.link import Link
from ..transport.transport import READ_SECONDS
from .loop import LoopThread

# So often the thread that waits meanwhile looks around.
LOOK_SECONDS = 0.5
_REPLIES = 2  # to a wait and to a take


class Turn(Protocol):
    """Who decides what is asked for, and takes what came; both are called on the loop."""

    def ask(self) -> bytes | None:
        """Return a wait and a take, packed; None where nothing can be run now. Raises Leave."""

    def take(self, woken: object, taken: object) -> bool:
        """Take the replies to them. False: that is to be done in the thread."""


class Leave(Exception):
    """There is something to do that is not for the loop, as it may wait."""


class Pump:
    """Has a loop read the connection that a thread has made and watches over.

    So a job is begun where it was read, and no thread has to wake up another.
    """

    def __init__(self, loop: LoopThread, turn: Turn, is_over: Callable[[], bool]) -> None:
        self._loop, self._turn, self._is_over = loop, turn, is_over
        self._link: Link | None = None
        self._replies: list[object] = []
        self._asked: float | None = None  # when, for what was not answered yet
        self._is_due = False
        self._left = threading.Event()
        self._error: BaseException | None = None
        self._open: list[object] | None = None

    def run(self, link: Link) -> list[object] | None:
        """Have jobs asked for over a connection until there is something else to do.

        Returns replies that are not taken yet, if there are any. Raises what reading raised.
        """
        self._left.clear()
        self._error = self._open = None
        self._loop.post(self._enter, link)
        while not self._left.wait(LOOK_SECONDS):
            asked = self._asked
            late = asked is not None and time.monotonic() - asked > READ_SECONDS
            if late and not link.can_read(0.0):  # else the loop stands still
                link.cut()
            if self._is_over():
                self._loop.post(self._leave)
                break
        if self._error is not None:
            raise self._error
        return self._open

    def look(self) -> None:
        """See whether there is something to ask for; from any thread."""
        self._loop.post(self._look)

    # -- on the loop --------------------------------------------------------------------------

    def rested(self) -> None:
        """Ask once all is done that this turn of the loop has to do: more may have come to rest."""
        if not self._is_due and self._link is not None and self._asked is None:
            self._is_due = True
            self._loop.here.call_soon(self._look)

    def _enter(self, link: Link) -> None:
        self._link, self._replies, self._asked = link, [], None
        try:
            self._loop.here.add_reader(link.fileno(), self._read)
        except (OSError, ValueError) as error:  # it was closed
            self._link = None
            self._leave(redis.ConnectionError(str(error)))
            return
        self._look()

    def _look(self) -> None:
        self._is_due = False
        if self._link is None or self._asked is not None:
            return
        try:
            data = self._turn.ask()
            if data is not None:
                self._asked = time.monotonic()
                self._link.send(data)
        except Leave:
            self._leave()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread
            self._leave(error)

    def _read(self) -> None:
        if self._link is None:
            return
        try:
            self._replies += self._link.read_ready()
            due = 0 if self._asked is None else _REPLIES
            if len(self._replies) > due:
                raise redis.exceptions.InvalidResponse("a reply that nobody asked for")
            if len(self._replies) < _REPLIES:
                return
            replies, self._replies, self._asked = self._replies, [], None
            if not self._turn.take(*replies):
                self._leave(None, replies)
                return
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread
            self._leave(error)
            return
        self._look()

    def _leave(
        self, error: BaseException | None = None, replies: list[object] | None = None
    ) -> None:
        if self._link is not None:
            self._loop.here.remove_reader(self._link.fileno())
            self._link = None
        self._error, self._open = error, replies
        self._left.set()
