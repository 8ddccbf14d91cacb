"""Which keys commands have and scripts touch, as MONITOR tells them.

A cluster refuses a script that touches a key of another node, and nothing else: one of another slot
on the same node, or one that the script did not declare, goes well there until slots move.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence

import redis

from redis_bus.protocol import scripts
from redis_bus.protocol.slots import KEYLESS as OUR_KEYLESS
from redis_bus.protocol.slots import slot_of

KEYLESS = OUR_KEYLESS | {"COMMAND", "CONFIG", "ECHO", "FLUSHALL", "HELLO", "MONITOR", "SELECT"}
LINE = re.compile(r"[\d.]+ \[\d+ (lua|[^\]]*)\] (.*)", re.DOTALL)
WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Watch:
    """What one server was sent, and what is wrong with it."""

    def __init__(self) -> None:
        self.seen: set[str] = set()  # names of scripts, and slots of keys
        self.slots: set[int] = set()
        self.problems: list[str] = []
        self._names = {script.sha: name for name, script in scripts.load().items()}
        self._script, self._declared = "", frozenset[str]()

    def look(self, line: str) -> bool:
        """Look at a line of MONITOR. Returns whether it is of a script that runs."""
        match = LINE.match(line)
        assert match, line
        words = WORD.findall(match[2])
        if match[1] == "lua":
            undeclared = set(keys_of(words)) - self._declared
            if self._script and undeclared:
                self.problems.append(f"{self._script} touches {sorted(undeclared)}: {words[0]}")
            return True
        self._script, self._declared = "", frozenset()
        if words[0].upper() == "EVALSHA":
            keys = words[3 : 3 + int(words[2])]
            self._script, self._declared = self._names.get(words[1], ""), frozenset(keys)
            self.seen.add(self._script)
        else:
            keys = list(keys_of(words))
        slots = {slot_of(key) for key in keys}
        self.slots |= slots
        if len(slots) > 1:
            self.problems.append(f"keys of {len(slots)} slots: {words}")
        return False


def keys_of(words: Sequence[str]) -> Sequence[str]:
    """Return the keys of a command, of those that scripts and clients of ours send."""
    name = words[0].upper()
    if name in KEYLESS:
        return ()
    if name in ("DEL", "UNLINK", "EXISTS", "MGET"):
        return words[1:]
    if name in ("BLPOP", "BLMOVE"):
        return words[1:-1] if name == "BLPOP" else words[1:3]
    return words[1:2]


@contextlib.contextmanager
def watched(client: redis.Redis) -> Iterator[Watch]:
    """Watch a server in the block; what is wrong is known after it."""
    watch, end = Watch(), f"the end {os.urandom(8).hex()}"
    with client.monitor() as monitor:
        yield watch
        client.echo(end)
        while end not in (line := bytes(monitor.connection.read_response()).decode("ascii")):
            watch.look(line)
