"""What a shell completes: buses, methods and targets; nothing, where Redis does not answer soon."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from ..bus import Bus
from ..calls import directory

VARIABLE = "_REDIS_BUS_COMPLETE"
# Somebody waits at a prompt.
SECONDS = 1.0
# How deep, and how much of a file, is looked at for buses to serve.
FOLDERS_DEEP = 4
READ_BYTES = 256 * 1024
# What tools make, what holds others' code, and what is named by its folder.
PASSED_OVER = {"node_modules", "build", "dist", "__pycache__", "__init__"}
_MAKES_BUS = re.compile(rb"^(\w+)[ \t]*(?::[^=\n]+)?=[ \t]*(?:\w+\.)?(?:Async)?Bus\(", re.MULTILINE)
# Bash takes these for words of their own, amid a URL too.
_WORD_BREAKS = re.compile(r"[:=@]+")

Names = Callable[[set[str]], object]


def is_asked_for() -> bool:
    """Whether a shell started this process to be told completions, or how to get them."""
    return VARIABLE in os.environ


def prepare() -> None:
    """Have nothing but completions printed, and what bash cut at a colon be one word again."""
    logging.getLogger("redis_bus").addHandler(logging.NullHandler())
    add_completion_class(_Bash)


def complete_buses(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the buses whose names begin so."""

    def look(found: set[str]) -> None:
        with Bus(url=ctx.params.get("url")) as bus:
            masters = bus._core.transport.masters()
            bus._core.drive(directory.list_buses(masters, found))

    return _items(_in_time(look), incomplete)


def complete_methods(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the methods, of the bus that stands before, whose names begin so."""

    def look(found: set[str]) -> None:
        with Bus(ctx.params["bus"], url=ctx.params.get("url")) as bus:
            found.update(bus._core.drive(directory.list_names(bus.name)))

    return _items(_in_time(look), incomplete)


def complete_targets(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the buses that Python files of this folder make, and of folders in it, as targets."""
    mark = ":" if ":" in incomplete else "."
    wanted = tuple(incomplete.replace(":", ".").split("."))

    def look(found: set[str]) -> None:
        end = time.monotonic() + SECONDS
        for module, path in _modules(Path(), (), wanted):
            if time.monotonic() > end:
                return
            found.update(f"{'.'.join(module)}{mark}{name}" for name in _buses_of(path))

    return _items(_in_time(look), incomplete)


def _items(names: Collection[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _in_time(look: Names) -> set[str]:
    """Return what is found within a second, also where a server, or the DNS, does not answer."""
    found: set[str] = set()

    def run() -> None:
        try:
            look(found)
        except Exception as error:  # noqa: BLE001 - nobody reads it at a prompt
            logging.getLogger("redis_bus.cli_completion").debug(
                "nothing more is completed: %s", error
            )

    # It does not keep the process from its end.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found.copy()


def _modules(
    folder: Path, names: tuple[str, ...], wanted: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Give the modules of a folder, by their names, that a target that begins so may mean."""
    begins = wanted[0] if wanted else ""
    is_whole = len(wanted) > 1
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        name = path.stem if path.suffix == ".py" else path.name
        if not name.isidentifier() or name in PASSED_OVER:
            continue
        if not (name == begins if is_whole else name.startswith(begins)):
            continue
        if path.suffix == ".py":
            yield (*names, name), path
        elif len(names) < FOLDERS_DEEP and path.is_dir() and not (path / "pyvenv.cfg").exists():
            if (path / "__init__.py").is_file():
                yield (*names, name), path / "__init__.py"
            yield from _modules(path, (*names, name), wanted[1:])


def _buses_of(path: Path) -> list[str]:
    """Return the names of the buses that a file makes, as far as its text tells."""
    try:
        with path.open("rb") as file:
            text = file.read(READ_BYTES)
    except OSError:
        return []
    return [name.decode("ascii") for name in _MAKES_BUS.findall(text)]


class _Bash(BashComplete):
    """Bash: what it takes for several words, such as a URL, is one again."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        words: list[str] = []
        # How much of the last word bash keeps: all before what it takes for the last.
        self._kept = 0
        was_break = False
        for word in (*args, incomplete):
            is_break = _WORD_BREAKS.fullmatch(word) is not None
            if words and (is_break or (was_break and word)):
                self._kept = len(words[-1]) + (len(word) if is_break else 0)
                words[-1] += word
            else:
                self._kept = 0
                words.append(word)
            was_break = is_break
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        return super().format_completion(CompletionItem(item.value[self._kept :], item.type))
