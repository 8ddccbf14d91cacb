"""The command that shows, retries and drops dead letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from ..bus import Bus
from ..client.dead_letters import DeadLetter
from ..errors import BusError
from ..supervisor.exits import Exit
from ..supervisor.words import count
from .common import (
    confirm,
    echo,
    fail,
    find_method,
    json_option,
    opened,
    option,
    print_json,
    url_option,
    yes_option,
)
from .completion import complete_buses, complete_methods

ALL = "all"


@click.command(short_help="Show, retry or drop jobs that were given up.")
@click.argument("bus", shell_complete=complete_buses)
@click.argument("method", required=False, shell_complete=complete_methods)
@option("--retry", multiple=True, metavar="ID", help="Run it again; 'all': each one shown.")
@option("--drop", multiple=True, metavar="ID", help="Delete it; 'all': each one shown.")
@yes_option
@json_option
@url_option
def dead(
    bus: str,
    method: str | None,
    retry: Sequence[str],
    drop: Sequence[str],
    yes: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Show the dead letters of BUS, or of one METHOD: jobs whose workers died of them.

    A method keeps its last 1,000. Those that are retried get as many tries as before.
    """
    if retry and drop:
        raise click.UsageError("either --retry or --drop")
    with opened(bus, url) as opened_bus:
        letters = _find_letters(opened_bus, method)
        if retry:
            _act(_chosen(letters, retry), lambda letter: letter.retry(), "queued again")
        elif drop:
            chosen = _chosen(letters, drop)
            if chosen and not yes and not confirm(f"Delete {count(len(chosen), 'dead letter')}?"):
                raise click.Abort
            _act(chosen, lambda letter: letter.drop(), "dropped")
        elif as_json:
            print_json([_as_json(letter) for letter in letters])
        elif letters:
            _print(letters)
        else:
            echo(f"{method or f'bus {bus!r}'} has no dead letters")


def _find_letters(bus: Bus, method: str | None) -> list[DeadLetter]:
    names = [method] if method else bus.all_methods()
    return [letter for name in names for letter in find_method(bus, name).dead_letters()]


def _chosen(letters: Sequence[DeadLetter], ids: Sequence[str]) -> list[DeadLetter]:
    if ALL in ids:
        return list(letters)
    known = {letter.id: letter for letter in letters}
    # The id of a result, which names the job too, will do.
    wanted = [one.rpartition(":")[2] for one in ids]
    for one in wanted:
        if one not in known:
            fail(f"there is no dead letter {one}; leave the option out to see all", Exit.USAGE)
    return [known[one] for one in wanted]


def _act(letters: Sequence[DeadLetter], act: Callable[[DeadLetter], object], done: str) -> None:
    """Do it to each letter; what cannot be done to one does not keep it from the next."""
    failed = False
    for letter in letters:
        try:
            act(letter)
        except BusError as error:
            echo(f"redis-bus: {error}", err=True)
            failed = True
        else:
            echo(f"{letter.id} {letter.call}: {done}")
    if failed:
        raise click.exceptions.Exit(Exit.REMOTE_ERROR)
    if not letters:
        echo("there are no dead letters")


def _print(letters: Sequence[DeadLetter]) -> None:
    for letter in letters:
        echo(f"  {letter.call}", head=letter.id)
        how = f"lost with {letter.worker}, attempt {letter.attempts}"
        if letter.why == "foreign":
            how = "no job of this library"
        echo(f"    {letter.time:%Y-%m-%d %H:%M:%S} UTC, {how}")


def _as_json(letter: DeadLetter) -> dict[str, object]:
    return {
        "id": letter.id,
        "method": letter.method,
        "call": letter.call,
        "why": letter.why,
        "time": letter.time.isoformat(),
        "worker": letter.worker,
        "attempts": letter.attempts,
    }
