"""The README's two lines on every Python that is promised, with no Redis server on the PATH.

``python -m tests.pythons`` runs the first line in full, and the second with a brief selection of
tests, which it names; with ``--full 3.13`` that Python runs every test. It prints a table, and
ends with 1 where a line failed or a Python could not be had. Interpreters are looked for in
``TEST_PYTHONS`` (paths, separated as in PATH), on the PATH and in pyenv; Python 3.14 is brought
from Debian where there is none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.pythons import (
    BRIEF,
    ROOT,
    VERSIONS,
    NoSuchPython,
    bring_python,
    find_python,
    path_without_servers,
    readme_lines,
)

# What would have a line find another server, another Python, or other tests.
FOREIGN = ("REDIS", "TEST_", "PYTEST", "PYTHON", "VIRTUAL_ENV", "PYENV_VERSION")
LINE_SECONDS = 1800.0
SHOWN_LINES = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    version: str
    line: int
    code: int
    seconds: float
    output: str

    def __str__(self) -> str:
        return f"{'failed' if self.code else 'passed'}, {self.seconds:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("versions", nargs="*", help=f"of {', '.join(VERSIONS)}; default: all")
    parser.add_argument("--full", default="", metavar="VERSION", help="runs every test there")
    parser.add_argument("--jobs", type=int, default=2, help="Pythons at a time (default: 2)")
    options = parser.parse_args()
    versions = options.versions or VERSIONS
    unknown = [version for version in (*versions, options.full) if version not in (*VERSIONS, "")]
    if unknown:
        parser.error(f"no such Python is promised: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="redis_bus-pythons-") as folder:
        return run(versions, options.full, options.jobs, Path(folder))


def run(versions: tuple[str, ...], full: str, jobs: int, folder: Path) -> int:
    pythons, missing = {}, []
    for version in versions:
        try:
            pythons[version] = find_python(version) or bring_python(version, folder / version)
        except NoSuchPython as error:
            missing.append(str(error))
    path = path_without_servers(folder, os.environ["PATH"])
    selection = " ".join(f"tests/{name}.py" for name in BRIEF)
    for number, line in enumerate(readme_lines(), 1):
        print(f"line {number}: {line}")
    print(f"line 2 runs {selection}" + (f"; on {full} all tests" if full else ""), flush=True)

    def on_one(version: str) -> list[Outcome]:
        place = folder / f"on-{version}"
        make_python3(place, pythons[version])
        chosen = {} if version == full else {"PYTEST_ADDOPTS": selection}
        environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        environment |= {"PATH": f"{place}{os.pathsep}{path}", **chosen}
        return [run_line(version, number, place, environment) for number in (1, 2)]

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = [outcome for found in pool.map(on_one, pythons) for outcome in found]
    failed = [outcome for outcome in outcomes if outcome.code]
    for one in failed:
        print(f"\n-- Python {one.version}, line {one.line}: exit code {one.code}")
        print("\n".join(one.output.splitlines()[-SHOWN_LINES:]))
    print("\n".join(table(versions, outcomes)))
    for text in missing:
        print(f"error: {text}", file=sys.stderr)
    return 1 if failed or missing else 0


def make_python3(place: Path, interpreter: str) -> None:
    """Make a folder that has this interpreter as ``python3``. No link: venv would copy its path."""
    place.mkdir()
    script = place / "python3"
    script.write_text(f'#!/bin/sh\nexec "{interpreter}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)


def run_line(version: str, number: int, place: Path, environment: dict[str, str]) -> Outcome:
    """Run a line of the README in a copy of this tree."""
    copy = place / f"line-{number}"
    copy_tree(copy)
    start = time.monotonic()
    command = ["bash", "-euc", readme_lines()[number - 1]]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LINE_SECONDS,
            check=False,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = 124, f"{error.stdout}\nnot done in {LINE_SECONDS:.0f} s"
    shutil.rmtree(copy, ignore_errors=True)
    outcome = Outcome(version, number, code, time.monotonic() - start, output)
    print(f"Python {version}, line {number}: {outcome}", flush=True)
    return outcome


def copy_tree(target: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def table(versions: tuple[str, ...], outcomes: list[Outcome]) -> list[str]:
    found = {(one.version, one.line): str(one) for one in outcomes}
    lines = ["Python  line 1          line 2"]
    for version in versions:
        cells = [found.get((version, line), "no such Python") for line in (1, 2)]
        lines.append(f"{version:<6}  {cells[0]:<14}  {cells[1]}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
