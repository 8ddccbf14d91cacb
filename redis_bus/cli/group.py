"""The command line: ``redis-bus TARGET`` serves; the other commands look at a bus and act on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from .. import __version__
from ..errors import BusError
from ..supervisor.exits import Exit
from .bench import bench
from .buses import buses
from .call import call, cleanup, clear_cache
from .common import describe, exit_code, fail, hide_passwords, opened, url_option
from .completion import complete_buses, complete_targets, is_asked_for, prepare
from .dead import dead
from .look import ls, ping, stats
from .serve import serve
from .target import perhaps_target

HELP = """Serve and call functions over Redis.

A service registers functions on a bus and serves them. Any other process on the same Redis finds
them by name, calls them as if they were its own, and gets cached answers without a worker.

\b
Examples:
  redis-bus demo                              see all of it in a second or two
  redis-bus simple_math.bus                   serve the object `bus` of simple_math.py
  redis-bus --embedded simple_math.bus        the same, with a Redis of its own
  redis-bus --debug simple_math.bus           the same, with pdb on an exception
  redis-bus ls sample_playground              what is on a bus?
  redis-bus call sample_playground math_sum 1 b=2
  redis-bus shell sample_playground           a Python console with `bus` ready

`redis-bus TARGET` is short for `redis-bus serve TARGET`: see `redis-bus serve --help`.
Redis is looked for at --url, REDIS_BUS_URL, REDIS_URL, then redis://localhost:6379/0.

\b
Exit codes: 0 ok, 1 the remote function or the bus raised an error, 2 usage,
3 no workers, 4 timeout, 5 no Redis, 130 interrupted.
"""


class Commands(click.Group):
    """The commands, of which serve is the default; errors are told in words for people."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if is_asked_for():
            prepare()
        return super().main(*args, **kwargs)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete what serve takes, too: it is the default command."""
        found = super().shell_complete(ctx, incomplete)
        with serve.make_context("serve", [], parent=ctx, resilient_parsing=True) as of_serve:
            known = {item.value for item in found}
            more = serve.shell_complete(of_serve, incomplete)
            found += [item for item in more if item.value not in known]
            if not incomplete.startswith("-"):
                found += complete_targets(of_serve, serve.params[0], incomplete)
        return found

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = self._url_behind_command(args)
        if args and self._means_serve(args[0]):
            args = ["serve", *args]
        with _without_passwords():
            return super().parse_args(ctx, args)

    def _url_behind_command(self, args: list[str]) -> list[str]:
        """Let --url stand before a command as well: every command on Redis has it."""
        length = 1 if args and args[0].startswith("--url=") else 2
        if args and args[0].startswith("--url") and args[length : length + 1]:
            name = args[length]
            if name in self.commands:
                return [name, *args[:length], *args[length + 1 :]]
        return args

    def _means_serve(self, first: str) -> bool:
        """Whether the first argument is an option of serve, or a target and not a command."""
        if first.startswith("--"):
            return first.partition("=")[0] in _options_of(serve)
        if first.startswith("-"):
            return first[:2] in _options_of(serve) and first not in ("-h", "--help")
        return first not in self.commands and any(mark in first for mark in ".:/")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            target = perhaps_target(args[0]) or "simple_math.bus"
            perhaps = "perhaps" if perhaps_target(args[0]) else "such as"
            hint = f"To serve a bus, name its module too, {perhaps} {target}."
            raise click.UsageError(f"{error.format_message()} {hint}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _without_passwords():
                return super().invoke(ctx)
        except BusError as error:
            fail(describe(error), exit_code(error))
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            raise click.exceptions.Exit(Exit.INTERRUPTED) from None


@contextlib.contextmanager
def _without_passwords() -> Iterator[None]:
    """Have no password in what is said of a wrong command line."""
    try:
        yield
    except click.UsageError as error:
        message = error.format_message()
        if hide_passwords(message) == message:
            raise
        raise click.UsageError(hide_passwords(message), error.ctx) from None


def _options_of(command: click.Command) -> set[str]:
    return {name for one in command.params if isinstance(one, click.Option) for name in one.opts}


@click.group(
    cls=Commands,
    help=HELP,
    subcommand_metavar="TARGET | COMMAND [ARGS]...",
    context_settings={
        "auto_envvar_prefix": "REDIS_BUS",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, "-V", "--version", prog_name="redis-bus")
def main() -> None:
    """The entry point; the help that people see is HELP."""


@click.command(short_help="See all of it in a second or two.")
def demo() -> None:
    """Show discovery, calls, the cache and errors, on a Redis of its own."""
    from .demo import run

    run()


@click.command(short_help="Open a Python console with a bus ready.")
@click.argument("bus", default="redis_bus", shell_complete=complete_buses)
@url_option
def shell(bus: str, url: str | None) -> None:
    """Open a Python console in which `bus` is BUS (redis_bus if left out)."""
    from .console import open_console

    with opened(bus, url) as opened_bus:
        open_console(opened_bus)


LOOKING = (buses, ls, stats, dead, ping)
for command in (serve, demo, *LOOKING, call, clear_cache, cleanup, shell, bench):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="redis-bus")
