"""The Lua scripts of ``lua/``, joined with what they share, and known by their SHA1.

A line ``-- include: NAME`` is replaced by ``lib/NAME.lua``, which may include others. One that is
indented is for its block alone: what is seldom needed is not made each time that a script runs. To
have the joined scripts as files, for a linter or a client in another language::

    python -m redis_bus.protocol.scripts FOLDER
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import folders

_FOLDER = "lua"
_INCLUDE = re.compile(r"^( *)-- include: (\w+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis gets it: ``source`` for SCRIPT LOAD, ``sha`` for EVALSHA."""

    name: str
    source: str
    sha: str


def make(name: str, source: str) -> Script:
    """Return a script with its SHA1, which is the name that Redis knows it by."""
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def read(name: str) -> Script:
    """Return the script of that name, its includes joined in, each once in a block."""
    folder = folders.find(_FOLDER)

    def join(text: str, joined: set[str]) -> str:
        def shared(match: re.Match[str]) -> str:
            indent, wanted = match.groups()
            if wanted in joined:
                return ""
            # What a block has is gone at its end.
            known = {*joined} if indent else joined
            known.add(wanted)
            return join((folder / "lib" / f"{wanted}.lua").read_text(encoding="utf-8"), known)

        return _INCLUDE.sub(shared, text)

    return make(name, join((folder / f"{name}.lua").read_text(encoding="utf-8"), set()))


@cache
def load() -> dict[str, Script]:
    """Return every script by its name."""
    names = sorted(entry.name for entry in folders.find(_FOLDER).iterdir())
    return {name[:-4]: read(name[:-4]) for name in names if name.endswith(".lua")}


def loading(sha: str) -> tuple[str, str, str]:
    """Return the command that loads the script of that SHA1."""
    return ("SCRIPT", "LOAD", next(s.source for s in load().values() if s.sha == sha))


def write_joined(folder: str) -> None:
    """Write each script, as Redis gets it, to a file of its name."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for script in load().values():
        Path(folder, f"{script.name}.lua").write_text(script.source, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m redis_bus.protocol.scripts FOLDER")
    write_joined(sys.argv[1])
