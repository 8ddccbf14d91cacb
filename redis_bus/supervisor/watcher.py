"""Watcher: tells which Python files of a service change, to one who waits for other things, too."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import watchfiles

logger = logging.getLogger("redis_bus")

# Changes belong together until none came for so long.
QUIET_MS = 100
# Each is a look at what the system noted meanwhile, not at the files.
LOOK_MS = 200


class Watcher:
    """Watches the current folder, and where the module lies if that is elsewhere.

    From the moment it is made no change is missed. Raises OSError or RuntimeError where files
    cannot be watched.
    """

    def __init__(self, module: str) -> None:
        import watchfiles

        # It tells each change itself, at level info.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        folders = folders_of(module)
        self._found: queue.SimpleQueue[set[str]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._changes: Iterator[set[Any]] = watchfiles.watch(
            *folders,
            watch_filter=_Sources(folders),
            step=QUIET_MS,
            rust_timeout=LOOK_MS,
            yield_on_timeout=True,
            stop_event=self._ended,
            raise_interrupt=False,
            ignore_permission_denied=True,
        )
        first = next(self._changes)  # until then it is a generator that has not begun
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._note(first)
        self._thread = threading.Thread(target=self._run, name="redis_bus watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """The descriptor that can be read where a file changed."""
        return self._reader

    def read(self) -> list[str]:
        """Return the files that changed since the last time, without a wait."""
        try:
            os.read(self._reader, 4096)
        except BlockingIOError:
            return []
        found: set[str] = set()
        while not self._found.empty():
            found |= self._found.get()
        return sorted(_shown(path) for path in found)

    def _run(self) -> None:
        try:
            for changes in self._changes:
                self._note(changes)
        except Exception as error:  # noqa: BLE001 - the workers serve on
            logger.error("files are not watched any more: %s", error)

    def _note(self, changes: Iterable[tuple[Any, str]]) -> None:
        paths = {path for _, path in changes}
        if not paths:
            return
        self._found.put(paths)
        with contextlib.suppress(BlockingIOError):  # who has not read yet was told before
            os.write(self._writer, b"\n")


class _Sources:
    """Which changes count: those of Python files that a person may have written."""

    def __init__(self, folders: Sequence[str]) -> None:
        import watchfiles

        self._folders = [Path(folder) for folder in folders]
        self._is_python = watchfiles.PythonFilter()

    def __call__(self, change: watchfiles.Change, path: str) -> bool:
        return any(
            self._is_source(change, folder, Path(path).relative_to(folder))
            for folder in self._folders
            if Path(path).is_relative_to(folder)
        )

    def _is_source(self, change: watchfiles.Change, folder: Path, path: Path) -> bool:
        # What the folder itself is called does not matter: one's work may be in a hidden one.
        if not self._is_python(change, str(path)):
            return False
        if any(part.startswith(".") for part in path.parts):
            return False
        parents = [parent for parent in path.parents if parent.parts]
        return not any((folder / parent / "pyvenv.cfg").exists() for parent in parents)


def folders_of(module: str) -> list[str]:
    """Return the folders to watch for a module, without its import."""
    here = os.getcwd()
    elsewhere = [
        os.path.abspath(folder)
        for folder in _source_folders(module.partition(".")[0], here)
        if os.path.isdir(folder)
    ]
    return [here, *(folder for folder in elsewhere if not Path(folder).is_relative_to(here))]


def _source_folders(name: str, here: str) -> list[str]:
    """Return the folders of a package, or the one that a module lies in."""
    try:
        spec = PathFinder.find_spec(name, [here, *sys.path]) or importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return list(spec.submodule_search_locations)
    if not spec.has_location or spec.origin is None:
        return []
    folder = os.path.dirname(spec.origin)
    # Beside a module that was installed lie all the others that were.
    return [] if os.path.basename(folder) in ("site-packages", "dist-packages") else [folder]


def _shown(path: str) -> str:
    here = os.getcwd()
    return os.path.relpath(path, here) if Path(path).is_relative_to(here) else path
