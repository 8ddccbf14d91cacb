"""What the benches of calls share: workers, the bare pair, and ratios of rounds that took turns.

Each round measures every contender for a short while, in turn, so that a noisy machine is noisy for
all. What is compared is compared within a round; figures and ratios are medians over the rounds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from redis_bus import Bus
from redis_bus.bench.meter import ratios
from redis_bus.bench.names import NAME_VARIABLE, PAIR, reply_list, request_list

BUS = "bench"
REQUEST, REPLY = request_list(BUS, PAIR), reply_list(BUS, PAIR)
# The least that a request and a reply over Redis take with redis-py, on both sides. A request says
# where its reply is waited for.
BARE_WORKER = f"from redis_bus.bench.bare import main; main({PAIR!r})"


def worker(prefix: str = "", concurrency: int = 1) -> str:
    """Return the program of a worker process of ``echo`` and ``cached``."""
    return f"""
import redis_bus
bus = redis_bus.Bus("{BUS}", prefix="{prefix}")
@bus.register()
def echo(a, b):
    return a + b
@bus.register(cache_key="{{a}}/{{b}}")
def cached(a, b):
    return a + b
bus.serve(concurrency={concurrency})
"""


@contextlib.contextmanager
def processes(*codes: str, url: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run programs beside the block, on one Redis; give their processes."""
    env = {**os.environ, "REDIS_BUS_URL": url, NAME_VARIABLE: BUS}
    # Elsewhere than in a clone: there, `-c` would find its redis_bus before the installed one.
    children = [subprocess.Popen([sys.executable, "-c", code], env=env, cwd="/") for code in codes]
    try:
        yield children
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()


def wait_for_workers(
    url: str, children: Sequence[subprocess.Popen[bytes]], *methods: str, count: int = 1
) -> None:
    """Return once so many workers serve each of the methods; exit where a process ended instead."""
    with Bus(BUS, url=url) as bus:
        while any(bus.stats().get(name, {}).get("workers", 0) < count for name in methods):
            if any(child.poll() is not None for child in children):
                sys.exit("a process of this bench ended before it served")
            time.sleep(0.01)


def connections(clients: list[dict[str, str]], name: str) -> int:
    """Return how many of those that CLIENT LIST shows have that name."""
    return sum(one["name"] == name for one in clients)


def resident_mb() -> float:
    """Return how much memory this process has resident now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, str]:
    """Return the median of the ratios of each round, and between which they were."""
    median, least, most = ratios(ours, theirs)
    return median, f"rounds {least:.2f} to {most:.2f}"
