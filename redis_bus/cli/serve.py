"""``redis-bus TARGET``: the options of serving, and which of them do not go together."""

from __future__ import annotations

import importlib.util
from typing import Any

import click
from click.core import ParameterSource

from .common import Seconds, option, url_option
from .completion import complete_targets
from .serving import DEFAULT_PORT, ServeOptions, run

SHUTDOWN_SECONDS = 30.0


@click.command(short_help="Serve a bus of a module (the default command).")
@click.argument("target", shell_complete=complete_targets)
@option("-p", "--pattern", metavar="GLOB", help="Only the methods that match, such as 'math_*'.")
@option(
    "-w",
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Serve in N processes, started again when they die; else in this process alone.",
)
@option(
    "-c",
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Run N jobs at a time in each process: in threads, async functions on one event loop.",
)
@option(
    "--max-jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="End each process once it has run N jobs; with --workers, another takes its place.",
)
@option("-r", "--reload", is_flag=True, help="Start again when a Python file changes.")
@option("-d", "--debug", is_flag=True, help="On an exception, open pdb in the frame that raised.")
@option("-b", "--burst", is_flag=True, help="Run what is queued now, then exit.")
@option(
    "--shutdown-timeout",
    type=Seconds(min=0),
    metavar="SECONDS",
    default=SHUTDOWN_SECONDS,
    show_default=True,
    help="How long running jobs may go on after the first SIGTERM or ctrl-C.",
)
@url_option
@option("--embedded", is_flag=True, help="Start a private Redis first, at the default address.")
@click.option("--embedded-port", type=int, default=DEFAULT_PORT, hidden=True)
@option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="warning",
    show_default=True,
    help="The least serious messages to print.",
)
@option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How messages are printed, on stderr.",
)
@option(
    "--log-arguments",
    is_flag=True,
    help="Have the arguments of its call in the message of a job that failed.",
)
@click.pass_context
def serve(context: click.Context, /, **given: Any) -> None:
    """Serve TARGET, a bus such as simple_math.bus in the current folder.

    It runs until SIGTERM or ctrl-C: the first lets running jobs finish, a second stops at
    once. `redis-bus TARGET` means the same: serve is the default command.
    """
    options = ServeOptions(**given)
    if options.embedded and context.get_parameter_source("url") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--embedded brings its own Redis: leave out --url")
    _check_together(options)
    run(options)


def _check_together(options: ServeOptions) -> None:
    """Raise UsageError for options that do not go together."""
    debug, burst = options.debug, options.burst
    if options.workers and debug:
        raise click.UsageError("--debug needs one process, for its pdb: leave out --workers")
    if options.concurrency > 1 and (debug or burst):
        name = "--debug needs" if debug else "--burst runs"
        raise click.UsageError(f"{name} one job at a time: leave out --concurrency")
    if options.max_jobs and burst:
        raise click.UsageError("--burst ends with what is queued: leave out --max-jobs")
    if not options.reload:
        return
    if debug:
        raise click.UsageError("--debug needs the terminal, for its pdb: leave out --reload")
    if burst:
        raise click.UsageError("--burst ends with what is queued: leave out --reload")
    if importlib.util.find_spec("watchfiles") is None:
        raise click.UsageError(
            "--reload needs the package watchfiles: pip install 'redis_bus[reload]' "
            "(in a clone: pip install '.[reload]')"
        )
