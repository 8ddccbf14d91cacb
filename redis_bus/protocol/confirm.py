"""Confirm: that replicas are to have what was just written, before anybody relies on it."""

from __future__ import annotations

from typing import NamedTuple

from .commands import Command


class Confirm(NamedTuple):
    """How many replicas are to have what was written on a connection, and within which time (s).

    Redis counts what the connection itself wrote: so it is sent on the same one, right behind.
    ``only_if``: where the reply begins with another word, nothing was written that matters.
    """

    replicas: int
    seconds: float
    only_if: tuple[bytes, ...] = ()

    @property
    def command(self) -> Command:
        """It blocks its connection. 0 ms would be for ever."""
        return ("WAIT", self.replicas, max(1, round(self.seconds * 1000)))

    def applies(self, reply: object) -> bool:
        """Whether replicas are to be waited for, after this reply."""
        word = reply[0] if isinstance(reply, list) and reply else reply
        return not self.only_if or word in self.only_if
