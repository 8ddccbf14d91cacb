"""What the commands share: options, exit codes, and errors in words for people."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import click

from ..bus import Bus
from ..calls.failures import NO_REDIS, WAYS_OUT
from ..client.method import Method
from ..errors import BusError, CallTimeout, ConnectionLost, NoWorkers
from ..printable import in_one_line, printable, printable_json
from ..supervisor.exits import Exit
from ..transport.address import hide_password
from ..transport.servers import EmbeddedUnavailable, how_to_install

F = TypeVar("F", bound=Callable[..., Any])

# What stands before the @ of a URL, wherever that turns up in a text, also without a scheme.
_CREDENTIALS = re.compile(
    r"(\w://)[^\s'\"]*@|(?<![^\s'\"(=,])[^\s'\"@:]*:(?!//)[^\s'\"]+@(?=[\w\[/])"
)
_PASSWORD_ARGUMENT = re.compile(r"([?&]\w*password=)[^\s'\"&]+", re.IGNORECASE)
_NO_REDIS = re.compile(f"{NO_REDIS} (?P<where>.*); {re.escape(WAYS_OUT)}", re.DOTALL)


class Seconds(click.FloatRange):
    """A time, of 0 seconds at least."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            is_number = math.isfinite(float(value))
        except ValueError:
            is_number = False
        if not is_number:
            self.fail(f"{value!r} is not a number", param, ctx)
        return float(super().convert(value, param, ctx))


option = functools.partial(click.option, show_envvar=True)


def url_option(command: F) -> F:
    """Add --url, which has one environment variable for all commands."""
    decorate = option(
        "--url",
        envvar="REDIS_BUS_URL",
        metavar="URL",
        help="Where Redis is; else REDIS_URL, else redis://localhost:6379/0.",
    )
    return decorate(command)


def json_option(command: F) -> F:
    """Add --json."""
    return option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def yes_option(command: F) -> F:
    """Add --yes."""
    return option("-y", "--yes", is_flag=True, help="Do it without asking first.")(command)


@contextlib.contextmanager
def opened(name: str, url: str | None) -> Iterator[Bus]:
    """Open a bus; what is wrong with its name or URL is exit code 2."""
    try:
        bus = Bus(name, url=url)
    except ValueError as error:
        fail(str(error), Exit.USAGE)
    with bus:
        yield bus


def confirm(question: str) -> bool:
    """Ask before something is destroyed; where nobody can answer, say how to do without."""
    try:
        return click.confirm(question, err=True)
    except click.Abort as error:
        if isinstance(error.__context__, EOFError):
            click.echo(err=True)
            fail("nothing is deleted: nobody answered; --yes does it without asking", Exit.USAGE)
        raise


def echo(text: str = "", *, head: str = "", err: bool = False) -> None:
    """Print text, in which somebody else's may be: what does not print is escaped.

    ``head`` comes before it, in bold on a terminal.
    """
    shown = click.style(printable(head), bold=True) if head else ""
    click.echo(f"{shown}{printable(text)}", err=err)


def print_json(value: object) -> None:
    """Print a value that JSON has, for people and programs alike."""
    click.echo(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_table(rows: Sequence[Sequence[str]], texts: Collection[int] = (0,)) -> None:
    """Print rows in columns: those of texts to the left, the others to the right."""
    rows = [[in_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        echo("  ".join(cells).rstrip())


def find_method(bus: Bus, name: str) -> Method[..., Any]:
    """Return a method of a bus; a name that it does not have is exit code 2."""
    try:
        return bus[name]
    except KeyError as error:
        fail(str(error.args[0]), Exit.USAGE)


def first_line(text: str | None) -> str:
    """Return the first line of a docstring."""
    return in_one_line((text or "").strip().partition("\n")[0].strip())


def fail(text: str, code: Exit) -> NoReturn:
    """Say in one line what is wrong, and exit."""
    echo(f"redis-bus: {hide_passwords(text)}", err=True)
    raise click.exceptions.Exit(code)


def hide_passwords(text: str) -> str:
    """Return a text in which no URL shows its password."""
    for name in ("REDIS_BUS_URL", "REDIS_URL"):
        url = os.environ.get(name)
        if url and "@" in url:
            text = text.replace(url, hide_password(url))
    return _PASSWORD_ARGUMENT.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))


def describe(error: BusError) -> str:
    """Return what a person needs to know of an error of the bus, in one line."""
    nowhere = _NO_REDIS.search(str(error))
    if not isinstance(error, ConnectionLost) or nowhere is None:
        return " ".join(str(error).split())
    return (
        f"{NO_REDIS} {nowhere['where']}. Three ways out: "
        "redis-bus --embedded TARGET brings its own; "
        f"start one ({how_to_install()}); "
        "or say where yours is with --url or REDIS_BUS_URL"
    )


def exit_code(error: BusError) -> Exit:
    """Return the exit code that an error of the bus ends a command with."""
    if isinstance(error, NoWorkers):
        return Exit.NO_WORKERS
    if isinstance(error, CallTimeout):
        return Exit.TIMEOUT
    if isinstance(error, (ConnectionLost, EmbeddedUnavailable)):
        return Exit.NO_REDIS
    return Exit.REMOTE_ERROR
