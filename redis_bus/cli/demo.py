"""``redis-bus demo``: what the bus does, shown on a private Redis with real worker processes.

Each line that is shown is the very text that runs, and what follows is what came back.
"""

from __future__ import annotations

import contextlib
import inspect
import pydoc
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..bench.owned import OwnedProcess
from ..bus import Bus
from ..embedded import EmbeddedRedis
from ..errors import BusError
from ..protocol import folders
from ..supervisor.signals import EndingSignals

SERVICES = ("rng.bus", "simple_math.bus")
BUS = "sample_playground"
METHODS = 5
READY_SECONDS = 20.0
CALL_SECONDS = 10.0
POLL_SECONDS = 0.02

# Lines that begin with # are told, all others are run and shown.
STEPS = """
# Nothing of rng.py or simple_math.py is imported here. Their methods are found through Redis:
bus.all_methods()

# They are called as if they were local:
bus.random_uuid()
bus.random_password(20)
bus.math_sum(1, b=2)

# They look local, too: signature and docstring are the callee's.
inspect.signature(bus.random_password)
help(bus.math_sum)

# math_now is registered with cache_key='{seed}': one value for each seed, computed once.
bus.math_now(1)
bus.math_now(1)
bus.math_now(2)

# Forget one value; the next call computes a new one:
bus.math_now.clear_cache(1)
bus.math_now(1)

# An exception arrives as its own type, below the traceback of the worker that raised it:
bus.random_error()

# What was counted: three runs of math_now, one answer from the cache.
bus.stats()['math_now']

# Delete every key of this bus, and no other key:
bus.cleanup()
"""


class DemoFailed(BusError):
    """The samples were not served in time."""


def run() -> None:
    """Show the tour on standard output; leave no process and no file, however it ends."""
    # Every step is short: a signal waits for its end, so it never comes in the middle of anything.
    with EndingSignals() as signals, signals.held(), EmbeddedRedis() as server:
        _tell("# A private Redis is started, on a socket in a temporary folder.")
        _tell("# Two services are started on it, each in a process of its own:")
        with _workers(server.url) as workers, Bus(BUS, url=server.url, timeout=CALL_SECONDS) as bus:
            for target in SERVICES:
                click.echo(f"{_dim('$')} {click.style(f'redis-bus {target}', bold=True)}")
            _wait_for_workers(bus, workers, signals)
            click.echo()
            _show(STEPS, {"bus": bus, "inspect": inspect, "help": _help}, signals)
    _tell("\n# The workers and the Redis of this demo are stopped. To go on:")
    click.echo("  redis-bus --embedded simple_math.bus   serve, in the folder sample/")
    click.echo("  redis-bus shell sample_playground      call it, from another terminal")


def _show(steps: str, names: dict[str, Any], signals: EndingSignals) -> None:
    """Run steps as a console does, with what comes back below each."""
    for line in steps.strip().splitlines():
        signals.check()
        if line.startswith("#"):
            _tell(line)
        elif not line:
            click.echo()
        else:
            click.echo(f"{_dim('>>>')} {click.style(line, bold=True)}")
            _run_line(line, names)


def _run_line(line: str, names: dict[str, Any]) -> None:
    try:
        exec(compile(line, "<demo>", "single"), names)
    except Exception as error:  # noqa: BLE001 - shown, as a console would
        # Without the frames of this process: what matters is the worker's.
        lines = traceback.format_exception(error.with_traceback(None))
        click.echo("".join(lines).rstrip())


def _help(thing: object) -> None:
    """The built-in help(), without its pager: nobody shall have to press a key here."""
    click.echo(pydoc.plain(pydoc.render_doc(thing, "Help on %s:")).rstrip())


def _tell(text: str) -> None:
    click.secho(text, fg="green")


def _dim(text: str) -> str:
    return click.style(text, dim=True)


# -- the workers ------------------------------------------------------------------------------


@contextlib.contextmanager
def _workers(url: str) -> Iterator[list[OwnedProcess]]:
    """Serve the samples, each in a process of its own."""
    folder = Path(str(folders.find("sample")))
    workers: list[OwnedProcess] = []
    try:
        for target in SERVICES:
            line = ["-m", "redis_bus", "serve", target]
            workers.append(OwnedProcess(line, f"redis-bus {target}", url, folder))
        yield workers
    finally:
        for worker in workers:
            worker.ask_to_stop()
        for worker in workers:
            worker.wait()


def _wait_for_workers(bus: Bus, workers: list[OwnedProcess], signals: EndingSignals) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        signals.check()
        counted = bus.stats().values()
        if len(counted) == METHODS and all(fields["workers"] for fields in counted):
            return
        for worker in workers:
            worker.check()
        time.sleep(POLL_SECONDS)
    raise DemoFailed(f"the samples were not served within {READY_SECONDS:g} s")
