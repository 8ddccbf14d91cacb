"""What Redis was asked, by its own count."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import redis

OUR_OWN = ("info", "config|resetstat")


def counted(client: redis.Redis) -> Counter[str]:
    """Return how often Redis was sent each command so far, without the asking itself."""
    stats = client.info("commandstats")
    names = {name.removeprefix("cmdstat_"): fields for name, fields in stats.items()}
    return Counter({name: f["calls"] for name, f in names.items() if name not in OUR_OWN})


@contextlib.contextmanager
def sent(client: redis.Redis) -> Iterator[Counter[str]]:
    """Give a counter that holds, after the block, the commands that were sent in it.

    What scripts call counts too.
    """
    found: Counter[str] = Counter()
    before = counted(client)
    yield found
    found.update(counted(client) - before)
