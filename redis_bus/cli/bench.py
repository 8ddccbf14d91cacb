"""``redis-bus bench``: what a bus costs on a Redis, as a table of ratios."""

from __future__ import annotations

import contextlib
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..supervisor.exits import Exit
from ..supervisor.words import count
from .common import Seconds, fail, json_option, option, print_json, print_table, url_option

if TYPE_CHECKING:
    from ..bench.run import Bench

ROUNDS = 7
STRETCH_SECONDS = 0.2


@click.command(short_help="Measure calls on a Redis, beside that Redis alone.")
@option(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="N",
    default=ROUNDS,
    show_default=True,
    help="How often each is measured, in turn; figures are medians over the rounds.",
)
@option(
    "--seconds",
    type=Seconds(min=0.01, max=10),
    metavar="SECONDS",
    default=STRETCH_SECONDS,
    show_default=True,
    help="How long each is measured in a round.",
)
@json_option
@url_option
@option("--embedded", is_flag=True, help="Start a private Redis first, and measure on that.")
@click.pass_context
def bench(
    context: click.Context,
    /,
    rounds: int,
    seconds: float,
    as_json: bool,
    url: str | None,
    embedded: bool,
) -> None:
    """Measure what a call costs on a Redis, beside the least that it takes with redis-py.

    It takes about half a minute. It makes a bus of its own, bench-..., and starts workers; at the
    end, also at ctrl-C, its processes are ended and its keys are deleted.

    Each ratio is the median of those of the rounds, and beside it are the least and the most. Of
    calls/s more is better, of all else less. Redis counts the time that its commands take, and
    their number, of all its clients: on one that others use now, these figures are too high.
    """
    if embedded and context.get_parameter_source("url") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--embedded brings its own Redis: leave out --url")
    # Imported here: the other commands need none of it.
    from ..embedded import EmbeddedRedis
    from ..supervisor.signals import EndingSignals

    # Each step is short: a signal waits for its end, so it never comes in the middle of anything.
    with EndingSignals() as signals, signals.held(), contextlib.ExitStack() as stack:
        if embedded:
            url = stack.enter_context(EmbeddedRedis()).url
        found = _measure(url, rounds, seconds, signals)
    if as_json:
        print_json({**found, "figures": [asdict(figure) for figure in found["figures"]]})
    else:
        _print(found)


def _measure(url: str | None, rounds: int, seconds: float, signals: Any) -> dict[str, Any]:
    from ..bench.report import figures
    from ..bench.run import Bench
    from ..bench.start import heaviest_imports

    try:
        made = Bench(url, seconds, signals)
    except ValueError as error:
        fail(str(error), Exit.USAGE)
    with made as running:
        running.warm_up()
        for number in range(1, rounds + 1):
            _tell_progress(f"round {number} of {rounds}")
            running.round()
        _tell_progress("")
        imports = heaviest_imports("from redis_bus import Bus")
        about = _about(running)
    return {
        **about,
        "rounds": rounds,
        "seconds": seconds,
        "figures": figures(made.seen, made.refused),
        "imports_ms": imports,
        "other_clients": made.others,
        "left": made.left,
    }


def _tell_progress(text: str) -> None:
    """Show on a terminal what is being done, in place of what was shown before."""
    if sys.stderr.isatty():
        click.echo(f"\r{text:30}\r", err=True, nl=False)


def _about(running: Bench) -> dict[str, Any]:
    from .look import server_version

    server, number = server_version(running.bus)
    return {
        "address": running.bus._core.transport.address,
        "server": server,
        "version": number,
        "python": platform.python_version(),
        "redis_py": version("redis"),
    }


def _print(found: dict[str, Any]) -> None:
    from ..bench.report import TEXTS, rows

    where = f"{found['server']} {found['version']} at {found['address']}"
    click.echo(f"{where}, Python {found['python']}, redis-py {found['redis_py']}\n")
    print_table(rows(found["figures"]), TEXTS)
    imports = ", ".join(f"{name} {ms:.0f} ms" for name, ms in found["imports_ms"].items())
    click.echo(f"\nof the import of Bus, with what Python adds to tell it: {imports}")
    if found["other_clients"]:
        others = count(found["other_clients"], "other client")
        click.echo(f"{others} had a connection: what they sent is among what Redis counted")
    left = found["left"]
    line = f"left of it in Redis: {count(left['keys'], 'key')}"
    if left["used_memory"] is not None:
        grown = left["used_memory"] / 1000
        # Redis keeps scripts, and since 7.0 a histogram of each command that it ever got.
        line += f"; used_memory {grown:+.0f} kB, with what it keeps of scripts and commands"
    click.echo(line)
