"""What the services of the fault tests have in common: functions that say when they run."""

from __future__ import annotations

import subprocess
import textwrap

from tests.faults.place import Place

# `held` runs until it is let go. Each function notes in Redis when it begins, and when it ends.
HELD = """
    import os, redis_bus
    bus = redis_bus.Bus("test")

    def hold(a):
        bus.conn.rpush("began", a)
        # Again and again: a client of redis-py gives up a read after 5 s.
        while not bus.conn.blpop(["go", f"go:{os.getpid()}"], 2):
            pass
        bus.conn.rpush("ended", a)
        return f"{a} by {os.getpid()}"

    @bus.register()
    def held(a):
        return hold(a)

    @bus.register(idempotent=True)
    def held_idempotent(a):
        return hold(a)

    @bus.register(cache_key=True)
    def held_cached(a):
        return hold(a)

    @bus.register()
    def note(a):
        bus.conn.rpush("began", a)
        bus.conn.rpush("ended", a)
        return a
"""


def together(*codes: str) -> str:
    """Return the code of a service that is made of several pieces."""
    return "\n".join(textwrap.dedent(code) for code in codes)


def wait_until_begun(place: Place, *expected: object) -> None:
    """Wait until exactly these runs began, in this order."""
    place.eventually(lambda: len(begun(place)) >= len(expected))
    assert begun(place) == [str(value) for value in expected]


def begun(place: Place) -> list[str]:
    """Return the arguments of the runs that began, in their order."""
    return [value.decode() for value in place.client.lrange("began", 0, -1)]


def ended(place: Place) -> list[str]:
    """Return the arguments of the runs that came to their end."""
    return [value.decode() for value in place.client.lrange("ended", 0, -1)]


def let_go(place: Place, runs: int = 1) -> None:
    """Let so many runs of the held functions end."""
    place.client.rpush("go", *[1] * runs)


def let_go_of(place: Place, process: subprocess.Popen[str]) -> None:
    """Let the run of one worker end, and of no other."""
    place.client.rpush(f"go:{process.pid}", 1)


def queued(place: Place, method: str) -> int:
    """Return how many jobs wait for a method."""
    return place.client.llen(f"rb:{{test:}}:queue:{method}")


def all_late(place: Place, method: str) -> bool:
    """Whether the time of every job that waits is up to Redis, too.

    That is later than to its caller, by the time that the call was on its way.
    """
    entries = place.client.lrange(f"rb:{{test:}}:queue:{method}", 0, -1)
    return all(int(entry.split(b" ")[3]) / 1000 < place.now() for entry in entries)


def replies(place: Place) -> list[bytes]:
    """Return the keys of the outcomes that are in Redis."""
    return list(place.client.scan_iter("rb:{test:}:reply:*"))


def keys(place: Place) -> set[bytes]:
    """Return all keys that are in Redis, but those that live workers touch by themselves."""
    return {
        key for key in place.client.scan_iter() if b":serving:" not in key and b":wake:" not in key
    }
