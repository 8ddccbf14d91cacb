"""The Pythons that are promised: which of them are here, and how the README's lines do on each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from redis_bus.transport.servers import SERVERS

ROOT = Path(__file__).resolve().parent.parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# Interpreters that are on no PATH, or folders of theirs; written as PATH is.
PYTHONS = "TEST_PYTHONS"
# A script beside this file, by the version that it brings.
BRINGS = {"3.14": "python-3.14"}
README_LINE = re.compile(r"^ *\$ (python3 -m venv .*)$", re.MULTILINE)
# What the second line runs where it is not to run everything: what differs between Pythons.
BRIEF = (
    "protocol/test_annotations",
    "protocol/test_signature",
    "client/test_fork",
    "cli/test_demo",
)
LOOK_SECONDS = 30.0


class NoSuchPython(Exception):
    """A Python that is promised cannot be had here."""


def readme_lines() -> list[str]:
    """Return the two lines with which the README begins."""
    return README_LINE.findall((ROOT / "README.rst").read_text(encoding="utf-8"))


def find_python(version: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the path of an interpreter: from ``TEST_PYTHONS``, the PATH, or pyenv."""
    folders = environment.get("PATH", "")
    candidates = [path for path in environment.get(PYTHONS, "").split(os.pathsep) if path]
    candidates = [str(p) for path in candidates for p in _interpreters(Path(path), version)]
    candidates += [str(Path(f) / f"python{version}") for f in folders.split(os.pathsep) if f]
    candidates += _of_pyenv(version, folders)
    return next((path for path in candidates if is_python(path, version)), None)


def is_python(path: str, version: str) -> bool:
    """Whether an interpreter is of a version, and can make environments with pip in them."""
    code = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [path, "-c", code], capture_output=True, text=True, timeout=LOOK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def bring_python(version: str, folder: Path) -> str:
    """Put an interpreter into a folder and return its path. Raises NoSuchPython."""
    script = BRINGS.get(version)
    if script is None:
        raise NoSuchPython(f"no python{version} on PATH, in pyenv or in {PYTHONS}")
    done = subprocess.run(
        [Path(__file__).with_name(script), folder], capture_output=True, text=True, check=False
    )
    path = str(folder / "bin" / f"python{version}")
    if done.returncode or not is_python(path, version):
        raise NoSuchPython(f"no python{version}, and {script} failed: {done.stderr.strip()}")
    return path


def path_without_servers(folder: Path, path: str) -> str:
    """Return a PATH on which all is found that is on ``path`` but a server of Redis or Valkey.

    A folder that has one is replaced by one of links to what else is in it, made in ``folder``.
    """
    kept = []
    for number, name in enumerate(part for part in path.split(os.pathsep) if part):
        original = Path(name)
        if not any((original / server).exists() for server in SERVERS):
            kept.append(name)
            continue
        links = folder / f"path-{number}"
        links.mkdir(parents=True)
        for entry in original.iterdir():
            if entry.name not in SERVERS:
                (links / entry.name).symlink_to(entry)
        kept.append(str(links))
    return os.pathsep.join(kept)


def _interpreters(path: Path, version: str) -> list[Path]:
    names = (f"python{version}", f"bin/python{version}")
    return [path / name for name in names] if path.is_dir() else [path]


def _of_pyenv(version: str, folders: str) -> list[str]:
    pyenv = shutil.which("pyenv", path=folders)
    if pyenv is None:
        return []
    listed = _said(pyenv, "versions", "--bare").split()
    of_version = [name for name in listed if re.fullmatch(rf"{re.escape(version)}\.\d+", name)]
    newest_first = sorted(of_version, key=lambda name: -int(name.rpartition(".")[2]))
    prefixes = [_said(pyenv, "prefix", name) for name in newest_first]
    return [str(Path(prefix) / "bin" / f"python{version}") for prefix in prefixes if prefix]


def _said(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LOOK_SECONDS, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
