"""The kinds of servers that clusters and sentinels are made of."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.support import find_servers

VALKEY = "valkey"


def find_valkey() -> str | None:
    """Return the path of the system's Valkey."""
    return shutil.which("valkey-server")


def executables() -> dict[str, str]:
    """Return the servers of each kind that is here, by its name."""
    valkey = find_valkey()
    found = {name: path for name, path in find_servers().items() if path != valkey}
    return {**found, VALKEY: valkey} if valkey else found


def kinds() -> list[Any]:
    """Return what to parametrize with. Valkey's tests say where it is missing."""
    found = sorted(executables())
    if VALKEY in found:
        return found
    missing = pytest.mark.skip(reason="not run on Valkey: no valkey-server on PATH")
    return [*found, pytest.param(VALKEY, marks=missing)]
