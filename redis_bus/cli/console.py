"""A Python console with a bus ready: IPython where it is installed, else Python's own."""

from __future__ import annotations

import code
import importlib
from typing import Any

from ..bus import Bus
from ..errors import ConnectionLost
from ..supervisor.exits import Exit
from .common import describe, echo

TIPS = "bus.<tab> lists them, help(bus.NAME) explains one, bus.NAME(...) calls it"


def open_console(bus: Bus) -> None:
    """Open a console in which ``bus`` is the given bus, until the user leaves it.

    Names of methods are completed, also of those that come while it is open. Where Redis cannot
    be reached, it says so in a line and exits.
    """
    try:
        banner = make_banner(bus)
    except ConnectionLost as error:
        echo(f"redis-bus: {describe(error)}", err=True)
        raise SystemExit(Exit.NO_REDIS) from None
    ipython = _import_ipython()
    # Not within an `except`: what is typed in the console would be told as a result of it.
    if ipython is None:
        _open_standard(bus, banner)
    else:
        _open_ipython(ipython, bus, banner)


def make_banner(bus: Bus) -> str:
    """Return what a console says first: which bus it has, and what is on that."""
    names = bus.all_methods()
    where = f"bus {bus.name!r} at {bus._core.transport.address}"
    if not names:
        return f"{where} has no methods yet; those of workers that start later are found\n"
    methods = "1 method" if len(names) == 1 else f"{len(names)} methods"
    return f"{where} has {methods}: {TIPS}\n"


def _import_ipython() -> Any:
    try:
        return importlib.import_module("IPython")
    except ImportError:
        return None


def _open_ipython(ipython: Any, bus: Bus, banner: str) -> None:
    loader = importlib.import_module("traitlets.config")
    config = loader.Config()
    # jedi reads source code, and that of a remote method is not here; dir() knows its name.
    config.Completer.use_jedi = False
    config.TerminalInteractiveShell.banner1 = banner
    config.TerminalInteractiveShell.confirm_exit = False
    ipython.start_ipython(argv=[], user_ns={"bus": bus}, config=config)


def _open_standard(bus: Bus, banner: str) -> None:
    names: dict[str, Any] = {"bus": bus, "__name__": "__console__", "__doc__": None}
    _complete_names(names)
    code.interact(banner=banner.rstrip("\n"), local=names, exitmsg="")


def _complete_names(names: dict[str, Any]) -> None:
    try:
        readline: Any = importlib.import_module("readline")
    except ImportError:
        return  # this Python was built without it: a console without completion
    import rlcompleter

    readline.set_completer(rlcompleter.Completer(names).complete)
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
