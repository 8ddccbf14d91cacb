"""Folders of a clone's top level that are installed as packages below ours: ``lua``, ``sample``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable

_CLONE = Path(__file__).resolve().parents[2]


def find(name: str) -> Traversable:
    """Return such a folder. Raises ModuleNotFoundError where there is none.

    Python finds the package in a clone, and nothing installed below it, where it starts in the
    clone's root and the clone was not installed as editable.
    """
    try:
        return files(f"redis_bus.{name}")
    except ModuleNotFoundError:
        beside = _CLONE / name
        if not beside.is_dir():
            raise
        return beside
