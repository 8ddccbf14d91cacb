"""What ``module.attr`` names: the bus of a user's module, or one line that says what is wrong."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from .bus import Bus


class BadTarget(Exception):
    """A target that cannot be served; the message says why, in one line."""


def load_bus(target: str) -> Bus:
    """Import the bus that a target names, from the current folder first.

    Raises BadTarget where there is none, or where nothing is registered on it.
    """
    module_name, attribute = split_target(target)
    folder = os.getcwd()
    if sys.path[0] != folder:
        sys.path.insert(0, folder)
    module = _import(module_name)
    bus = _find(module, module_name, attribute)
    if not isinstance(bus, Bus):
        raise BadTarget(f"{target} is no Bus, but {_with_article(type(bus).__name__)}")
    if not bus._core.registrations:
        raise BadTarget(
            f"{target} has nothing to serve: register functions with @{attribute}.register()"
        )
    return bus


def split_target(target: str) -> tuple[str, str]:
    """Return the module and the attribute of ``module.attr`` or ``module:attr``."""
    shape = "a target is module.attr or module:attr, such as simple_math.bus"
    if os.sep in target or target.endswith(".py"):
        stem = Path(target).stem if target.endswith(".py") else "module"
        raise BadTarget(f"{target!r} is a path; {shape} (here perhaps {stem}.bus)")
    module, mark, attribute = target.partition(":")
    if not mark:
        module, _, attribute = target.rpartition(".")
    names = [*module.split("."), *attribute.split(".")]
    if not all(name.isidentifier() for name in names):
        raise BadTarget(f"{target!r} names no bus; {shape}")
    return module, attribute


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise BadTarget(
                f"there is no module {missing!r} in {os.getcwd()} or on the Python path"
            ) from None
        raise BadTarget(_describe_failure(name, error)) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything
        raise BadTarget(_describe_failure(name, error)) from None


def _describe_failure(name: str, error: BaseException) -> str:
    """Say what the import of a user's module raised, and on which of its lines."""
    words = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    if isinstance(error, SyntaxError):
        # Its own text ends in the place already: "invalid syntax (service.py, line 3)".
        return f"the import of {name!r} failed: {words}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename != importlib.__file__
    ]
    frames = [frame for frame in frames if frame.filename != __file__]
    own = [frame for frame in frames if _is_users(frame.filename)]
    where = ""
    if frames:
        place = (own or frames)[-1]
        where = f" ({_short_path(place.filename)}, line {place.lineno})"
    return f"the import of {name!r} failed: {words}{where}"


def _is_users(filename: str) -> bool:
    return "site-packages" not in filename and Path(filename).is_relative_to(os.getcwd())


def _short_path(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(os.getcwd())) if path.is_relative_to(os.getcwd()) else filename


def _find(module: ModuleType, module_name: str, attribute: str) -> Any:
    found: Any = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            buses = [key for key, value in vars(module).items() if isinstance(value, Bus)]
            hint = f"; it has {', '.join(f'{module_name}.{key}' for key in buses)}" if buses else ""
            raise BadTarget(f"module {module_name!r} has no {attribute!r}{hint}") from None
    return found


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
