"""What Redis says that it spends: time and number of commands, and the memory of keys.

The us of a script hold those of the commands that it calls, and these are counted on their own as
well. So what is told here is that of the commands that come over the wire, of which those that our
scripts call are none. Whatever other clients send in the meantime is counted, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import redis

from ..protocol import scripts

T = TypeVar("T")
_WORD = re.compile(r"['\"]([A-Z]{2,})['\"]")
# What the measuring itself sends, and what a connection begins with.
_OWN = ("info", "memory", "client", "hello", "script", "auth", "select", "ping", "command")
_PREFIX = "cmdstat_"


@dataclass(frozen=True, slots=True)
class Spent:
    """What Redis spent on commands: us, and how many there were."""

    us: float
    commands: float

    def each(self, calls: int) -> Spent:
        return Spent(self.us / calls, self.commands / calls)


def spent(client: redis.Redis, action: Callable[[], int], only: Iterable[str] = ()) -> Spent | None:
    """Do something that returns how often it was done; return what Redis spent on each.

    ``only``: on these commands; else on all that our scripts do not call. None where the user may
    not ask Redis for it.
    """
    before = _stats(client)
    calls = action()
    after = _stats(client)
    if before is None or after is None:
        return None
    names = frozenset(only) or after.keys() - _called_by_scripts()
    nothing = {"usec": 0, "calls": 0}
    found = [(after.get(name, nothing), before.get(name, nothing)) for name in names]
    total = Spent(
        sum(now["usec"] - then["usec"] for now, then in found),
        sum(now["calls"] - then["calls"] for now, then in found),
    )
    return total.each(calls)


def _stats(client: redis.Redis) -> dict[str, dict[str, int]] | None:
    info = allowed(lambda: client.info("commandstats"))
    if info is None:
        return None
    names = {name.removeprefix(_PREFIX): fields for name, fields in info.items()}
    return {name: fields for name, fields in names.items() if name.split("|")[0] not in _OWN}


@cache
def _called_by_scripts() -> frozenset[str]:
    """Return the commands that scripts call, and other words of theirs that are none."""
    found = (_WORD.findall(script.source) for script in scripts.load().values())
    return frozenset(word.lower() for words in found for word in words)


def bytes_of(client: redis.Redis, keys: Iterable[str]) -> int | None:
    """Return the memory of keys; None where the user may not ask for it."""

    def ask() -> int:
        usage: Any = client.memory_usage
        return sum(usage(key, samples=0) or 0 for key in keys)

    return allowed(ask)


def used_memory(client: redis.Redis) -> int | None:
    """Return the memory of all that is in Redis; None where the user may not ask for it."""
    return allowed(lambda: int(client.info("memory")["used_memory"]))


def connected(client: redis.Redis) -> int | None:
    """Return how many clients Redis has; None where the user may not ask for it."""
    return allowed(lambda: int(client.info("clients")["connected_clients"]))


def allowed(ask: Callable[[], T]) -> T | None:
    """Return what Redis answers; None where its access rules, or its owners, do not let it."""
    try:
        return ask()
    except redis.ResponseError:
        return None
