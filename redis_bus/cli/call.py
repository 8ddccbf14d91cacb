"""The commands that act on a bus: call, clear-cache, cleanup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ..bus import Bus
from ..calls import calls
from ..client.method import Method
from ..errors import BusError, RemoteError, RemoteTraceback
from ..protocol.codec import to_json
from ..protocol.commands import Command
from ..protocol.rendering import parse_int, shown
from ..protocol.target import Args, Kwargs, ShownCall
from ..supervisor.exits import Exit
from .common import (
    Seconds,
    confirm,
    describe,
    echo,
    exit_code,
    fail,
    find_method,
    hide_passwords,
    json_option,
    opened,
    option,
    print_json,
    url_option,
    yes_option,
)
from .completion import complete_buses, complete_methods

# Negative numbers are arguments, not options.
# What ctrl-C came to, by what the script `cancel` answers.
WITHDRAWN = {
    b"cancelled": "withdrawn, no worker had taken it",
    b"late": "not withdrawn, a worker has taken it already",
    b"shared": "not withdrawn, others wait for it too",
}
TAKES_VALUES = {"ignore_unknown_options": True}


@click.command(short_help="Call a method and print what it returns.", context_settings=TAKES_VALUES)
@click.argument("bus", shell_complete=complete_buses)
@click.argument("method", shell_complete=complete_methods)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@option(
    "--timeout",
    type=Seconds(min=0),
    metavar="SECONDS",
    help="How long to wait; else the method's own, else 30.",
)
@option("--fail-fast", is_flag=True, help="Fail at once if no worker is alive.")
@json_option
@url_option
def call(
    bus: str,
    method: str,
    args: Sequence[str],
    timeout: float | None,
    fail_fast: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Call METHOD of BUS and print what it returns.

    ARGS are read as JSON, else as text: 1 is a number, '"1"' and one are texts, [1,2] is a list,
    and b=2 is the keyword argument b. After -- everything is an argument.

    At ctrl-C the call is withdrawn, if no worker has taken it.

    Exit codes: 1 it raised (its traceback is on stderr; with --json it is an object on stdout,
    {"error": {"type": ..., "message": ..., "traceback": ...}}), 2 the call is wrong, 3 no worker
    serves it, 4 timeout, 5 no Redis.
    """
    values, keywords = _parse_arguments(args)
    with opened(bus, url) as opened_bus:
        remote = find_method(opened_bus, method).options(fail_fast=fail_fast)
        if timeout is not None:
            remote = remote.options(timeout=timeout)
        try:
            result = _call(opened_bus, remote, values, keywords)
        except Exception as error:  # noqa: BLE001 - a remote function may raise anything
            _fail_for(error, as_json=as_json)
    if as_json:
        print_json(to_json(result))
    else:
        echo(result if isinstance(result, str) else shown(result))


def _call(bus: Bus, remote: Method[..., Any], args: Args, kwargs: Kwargs) -> object:
    """Call a method; at ctrl-C withdraw the job, if no worker has taken it, and say so."""
    remote.listens = True  # so it can be withdrawn

    def gone(withdraw: Command) -> None:
        echo(err=True)
        try:
            status = bus._core.transport.exchange(withdraw)[0]
        except BusError as error:
            why = f"it may still run: {describe(error)}"
        else:
            why = WITHDRAWN.get(status, status)
        fail(f"{ShownCall(remote.__name__, args, kwargs)}: {why}", Exit.INTERRUPTED)

    return bus._core.drive(calls.call(remote, args, kwargs, remote._options), gone)


@click.command("clear-cache", short_help="Forget cached values.", context_settings=TAKES_VALUES)
@click.argument("bus", shell_complete=complete_buses)
@click.argument("method", shell_complete=complete_methods)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@option("--all", "all_values", is_flag=True, help="Forget all cached values of the method.")
@yes_option
@url_option
def clear_cache(
    bus: str, method: str, args: Sequence[str], all_values: bool, yes: bool, url: str | None
) -> None:
    """Forget the cached value of METHOD for ARGS, or all its values.

    ARGS are read as those of `redis-bus call`.
    """
    if all_values and args:
        raise click.UsageError("either --all or the arguments of one value")
    values, keywords = _parse_arguments(args)
    with opened(bus, url) as opened_bus:
        remote = find_method(opened_bus, method)
        try:
            if all_values:
                _clear_all(opened_bus, remote, yes=yes)
                return
            had = remote.clear_cache(*values, **keywords)
        except TypeError as error:
            more = "" if args or remote.cache_key is None else "; --all forgets all its values"
            fail(f"{error}{more}", Exit.USAGE)
    shown = ShownCall(method, values, keywords)
    echo(f"{shown} is forgotten" if had else f"{shown} was not cached")


def _clear_all(bus: Bus, remote: Method[..., Any], *, yes: bool) -> None:
    if remote.cache_key is None:
        raise TypeError(f"{remote.__name__}() has no cache_key: nothing of it is cached")
    name = remote.__name__
    if not yes and not confirm(f"Forget all cached values of {name} on bus {bus.name!r}?"):
        echo("nothing is forgotten")
        return
    remote.clear_all_cache()
    echo(f"all values of {name} are forgotten")


@click.command(short_help="Delete all keys of a bus.")
@click.argument("bus", shell_complete=complete_buses)
@yes_option
@url_option
def cleanup(bus: str, yes: bool, url: str | None) -> None:
    """Delete all keys of BUS: registrations, queues, results, cached values.

    Workers that live register their methods again within seconds.
    """
    with opened(bus, url) as opened_bus:
        address = opened_bus._core.transport.address
        # Before it asks: without a Redis there is nothing to ask.
        opened_bus._core.transport.exchange(("PING",))
        if not yes and not confirm(f"Delete all keys of bus {bus!r} at {address}?"):
            echo("nothing is deleted")
            return
        deleted = opened_bus.cleanup()
    echo(f"deleted {deleted} key{'' if deleted == 1 else 's'} of bus {bus!r}")


def _parse_arguments(args: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    values: list[Any] = []
    keywords: dict[str, Any] = {}
    for text in args:
        name, mark, value = text.partition("=")
        if not mark or not name.isidentifier():
            values.append(_parse_value(text))
        elif name in keywords:
            raise click.UsageError(f"{name}= is given twice")
        else:
            keywords[name] = _parse_value(value)
    return tuple(values), keywords


def _parse_value(text: str) -> Any:
    try:
        # NaN and Infinity are no JSON, whatever Python's parser says.
        return json.loads(text, parse_constant=_refuse_constant, parse_int=parse_int)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _fail_for(error: Exception, *, as_json: bool) -> NoReturn:
    """End the command as what a call raised demands: was it here, on the bus, or over there?"""
    if isinstance(error.__cause__, RemoteTraceback):
        _show_remote(error, error.__cause__.text.strip(), as_json=as_json)
        raise click.exceptions.Exit(Exit.REMOTE_ERROR) from None
    if isinstance(error, TypeError):
        fail(str(error), Exit.USAGE)
    if isinstance(error, BusError):
        fail(describe(error), exit_code(error))
    raise error


def _show_remote(error: Exception, trace: str, *, as_json: bool) -> None:
    """Show what came from a worker: of a user's function where it raised, of the bus the words."""
    kind, message = type(error).__name__, str(error)
    is_of_the_bus = isinstance(error, BusError)
    if isinstance(error, RemoteError):
        is_of_the_bus = False
        kind = error.type_name.removeprefix("builtins.")
        message = message.removeprefix(kind).removeprefix(": ")
    if as_json:
        shown = {"type": kind, "message": message, "traceback": trace}
        print_json({"error": {name: hide_passwords(text) for name, text in shown.items()}})
    elif is_of_the_bus:
        echo(f"redis-bus: {hide_passwords(' '.join(message.split()))}", err=True)
    else:
        echo(hide_passwords(trace or f"{kind}: {message}"), err=True)
