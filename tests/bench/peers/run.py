"""Measure all contenders in turns, and write what was found. Runs in the environment of peers."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # side_by_side

import figures
import options
import plot
import table
from contenders import CONTENDERS, INSTALLED, Contender, project
from crew import Crew, FailedError, find_nats_server, python
from figures import Entry, Results

from redis_bus.transport.servers import find_server

Entries = dict[Contender, Entry]


def versions(contender: Contender) -> dict[str, str]:
    """Return the versions of what it needs; raise FailedError where that is not installed."""
    names = [project(need) for need in contender.needs]
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    try:
        found = _output(python(contender), "-c", code, *names).split()
    except OSError:
        found = []
    if len(found) < len(names):
        raise FailedError(f"not installed: {_why(contender)}")
    return dict(zip(names, found, strict=True))


def _why(contender: Contender) -> str:
    try:
        failures = json.loads((Path(sys.prefix) / INSTALLED).read_text(encoding="utf-8"))
    except OSError:
        failures = {}
    return failures.get(contender.needs[0]) or "python tests/bench/peers installs it"


def about(chosen: argparse.Namespace) -> dict[str, str]:
    """Return what figures depend on."""
    servers = [server for server in (find_server(), find_nats_server()) if server is not None]
    return {
        "rounds": f"{chosen.rounds}, {chosen.seconds:g} s of each measurement",
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began",
        "Python": platform.python_version(),
        "servers": "; ".join(_output(server, "--version") for server in servers),
    }


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip()


def start(crew: Crew, chosen: argparse.Namespace) -> Entries:
    """Start all that were chosen, one after another; whoever does not start is an entry, too."""
    only = chosen.only.split(";") if chosen.only else [one.name for one in CONTENDERS]
    entries = {one: Entry(one.name, one.group) for one in CONTENDERS if one.name in only}
    for contender, entry in entries.items():
        try:
            found = versions(contender)
            entry.version = found.pop(project(contender.needs[0])) if contender.needs else ""
            entry.libraries = found
            crew.start(contender)
        except FailedError as error:
            entry.failure = str(error)
        print(f"{contender.name}: {entry.failure or 'started'}", flush=True)
    return entries


def measure(crew: Crew, entries: Entries, rounds: int, seconds: float) -> None:
    """Measure each for a short while, in turn; one that fails is out."""
    order = list(entries)
    for number in range(rounds):
        print(f"round {number + 1}", flush=True)
        for contender in order:
            entry = entries[contender]
            try:
                for kind in contender.kinds if not entry.failure else ():
                    figure = crew.ask(contender, kind, seconds)
                    entry.rounds.setdefault(kind, []).append(figure)
            except FailedError as error:
                entry.failure = str(error)
                print(f"{contender.name}: {error}", flush=True)
        order.reverse()  # so that nobody always follows the same one


def idle(crew: Crew, entries: Entries, seconds: float = 5.0) -> None:
    """Print how much CPU the workers use that stay up while others are measured."""
    alive = [one for one in entries if one.worker and not one.polls and not entries[one].failure]
    waiting = {one: crew.worker(one) for one in alive}
    before = {one: worker.cpu_seconds() for one, worker in waiting.items()}
    time.sleep(seconds)
    for one, worker in waiting.items():
        share = (worker.cpu_seconds() - before[one]) / seconds
        print(f"{one.name:28} {share:6.1%} of a core")


def write(results: Results, chosen: argparse.Namespace) -> None:
    """Print the table, and write it, the plot and, where asked for, the figures."""
    text = table.render(results, chosen.format)
    print(f"\n{text}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    suffix = {"rst": "rst", "markdown": "md"}[chosen.format]
    (chosen.out / f"results.{suffix}").write_text(text, encoding="utf-8")
    if chosen.json:
        results.write(chosen.out / "results.json")
    plot.draw(results, chosen.out / "results.png")


def main() -> None:
    chosen = options.parse()
    if chosen.again:
        write(figures.read(chosen.again), chosen)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    found = about(chosen)
    with Crew() as crew:
        entries = start(crew, chosen)
        if chosen.idle:
            idle(crew, entries)
            return
        measure(crew, entries, chosen.rounds, chosen.seconds)
    write(Results(found, list(entries.values())), chosen)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("ended by ctrl-C")
