"""What ``module.attr`` names: the bus of a user's module, or one line that says what is wrong."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ..bus import Bus
from ..worker.worker import ServedAtImport, importing

SHAPE = "a target is module.attr or module:attr"
_OWN_FOLDER = str(Path(__file__).parent.parent)
# rng, rng.py, rng.bus, rng.py:bus: what people write for rng.bus.
_SPELLING = re.compile(r"(?P<module>\w[\w.]*?)(?:\.py)?(?:[:.](?P<attribute>\w+))?")
_MAKES_BUS = re.compile(r"^(\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)?(?:Async)?Bus\(", re.MULTILINE)


class BadTarget(Exception):
    """A target that cannot be served; the message says why, in one line."""


def load_bus(target: str) -> Bus:
    """Import the bus that a target names, from the current folder first.

    Of an `AsyncBus` that is the blocking one behind it, which has its registrations and middleware.
    Raises BadTarget where there is none, or where nothing is registered on it.
    """
    module_name, attribute = split_target(target)
    folder = os.getcwd()
    if sys.path[0] != folder:
        sys.path.insert(0, folder)
    module = _import(module_name)
    bus = _find(module, module_name, attribute)
    if not isinstance(bus, Bus):
        from ..async_bus import AsyncBus  # a worker of a Bus needs nothing of it

        if not isinstance(bus, AsyncBus):
            raise BadTarget(f"{target} is no Bus, but {_with_article(type(bus).__name__)}")
        bus = bus._bus
    if not bus._core.registrations:
        raise BadTarget(
            f"{target} has nothing to serve: register functions with @{attribute}.register()"
        )
    return bus


def split_target(target: str) -> tuple[str, str]:
    """Return the module and the attribute of ``module.attr`` or ``module:attr``."""
    if os.sep in target or re.search(r"\.py(?:$|[:.])", target):
        raise BadTarget(f"{target!r} is a path; {SHAPE} ({_spell(target)})")
    module, mark, attribute = target.partition(":")
    if not mark:
        module, _, attribute = target.rpartition(".")
    names = [*module.split("."), *attribute.split(".")]
    if not all(name.isidentifier() for name in names):
        perhaps = perhaps_target(target)
        hint = f" (perhaps {perhaps})" if perhaps else ", such as simple_math.bus"
        raise BadTarget(f"{target!r} names no bus; {SHAPE}{hint}")
    return module, attribute


def perhaps_target(name: str) -> str | None:
    """Return the target that is likely meant where a module of this folder is named alone."""
    if not name.isidentifier():
        return None
    for path in (Path(f"{name}.py"), Path(name, "__init__.py")):
        if path.is_file():
            return f"{name}.{_attribute_in(path)}"
    return None


def _spell(path: str) -> str:
    """Return what to type for what was written as a path."""
    folder, _, name = path.rpartition(os.sep)
    found = _SPELLING.fullmatch(name)
    if found is None:
        return "such as simple_math.bus"
    attribute = found["attribute"] or _attribute_in(Path(folder, f"{found['module']}.py"))
    line = f"redis-bus {found['module']}.{attribute}"
    elsewhere = os.path.normpath(folder or ".")
    return f"here: {line}" if elsewhere == "." else f"cd {elsewhere}, then {line}"


def _attribute_in(path: Path) -> str:
    """Return the name of the first bus that a file makes, as far as its text tells."""
    try:
        found = _MAKES_BUS.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return "bus"
    return found[1] if found else "bus"


def _import(name: str) -> ModuleType:
    try:
        with importing():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise BadTarget(
                f"there is no module {missing!r} in {os.getcwd()} or on the Python path"
            ) from None
        raise BadTarget(_describe_failure(name, error)) from error
    except (Exception, SystemExit) as error:
        raise BadTarget(_describe_failure(name, error)) from error


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
    frames = [frame for frame in frames if str(Path(frame.filename).parent) != _OWN_FOLDER]
    own = [frame for frame in frames if _is_users(frame.filename)]
    where = ""
    if isinstance(error, ServedAtImport) and frames:
        path = _short_path((own or frames)[-1].filename)
        return (
            f"{path} serves by itself when it is imported: run `python {path}`, "
            "or put bus.serve() under if __name__ == '__main__'"
        )
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
            from ..async_bus import AsyncBus

            buses = [
                key for key, value in vars(module).items() if isinstance(value, (Bus, AsyncBus))
            ]
            hint = f"; it has {', '.join(f'{module_name}.{key}' for key in buses)}" if buses else ""
            raise BadTarget(f"module {module_name!r} has no {attribute!r}{hint}") from None
    return found


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
