"""``python -m tests.versions [--brief]``: the bus on each version of the clients that it promises.

Each row has a fresh virtual environment, and the server of the wheel. ``--brief``: the lowest and
the newest versions only, without the tests of hooks.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# redis-py, hiredis, msgpack, click; the first row is the floors of setup.py, the last the newest.
ROWS = {
    "lowest": ("redis==5.0.0", "hiredis==3.2.0", "msgpack==1.1.0", "click==8.1.0"),
    "redis 5.0": ("redis==5.0.*", "hiredis", "msgpack", "click"),
    "redis 6.4": ("redis==6.4.*", "hiredis==3.2.0", "msgpack", "click"),
    "redis 7": ("redis==7.*", "hiredis", "msgpack", "click"),
    "newest": ("redis", "hiredis", "msgpack", "click"),
}
BRIEF = ("lowest", "newest")
SUITES = {
    "calls": "tests/calls/test_calls.py",
    "cache": "tests/test_cache.py",
    "AsyncBus": "tests/client/test_async_bus.py",
    "links": "tests/transport/test_link.py",
    "addresses": "tests/transport/test_address.py",
    "hooks": "tests/transport/test_hooks.py",
}
NEEDED = ("pytest-xdist", "valkey", "fakeredis", "uvloop", "docutils", "fastapi", "uvicorn")
COUNT = re.compile(r"(\d+) (passed|failed|error)")


def install(folder: Path, pins: tuple[str, ...]) -> str:
    """Make a virtual environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "-e", f"{ROOT}[testing]", *NEEDED, *pins], check=True)
    return python


def run(python: str, suite: str) -> tuple[str, str]:
    """Return how many tests passed and failed, and what pytest said where one did."""
    command = [python, "-m", "pytest", suite, "-q", "-n", "2", "-p", "no:cacheprovider"]
    env = {**os.environ, "TEST_SERVERS": "valkey-9.1"}
    shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    found = {word: int(count) for count, word in COUNT.findall(shown.stdout[-300:])}
    failed = found.get("failed", 0) + found.get("error", 0) + (shown.returncode > 1)
    is_well = shown.returncode == 0 and failed == 0
    cell = f"{found.get('passed', 0)}/{failed}"
    return cell, "" if is_well else shown.stdout[-8000:] + shown.stderr[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brief", action="store_true", help="the lowest and the newest only")
    is_brief = parser.parse_args().brief
    suites = {name: path for name, path in SUITES.items() if not is_brief or name != "hooks"}
    print(f"passed/failed{'':15}" + "".join(f"{name:>12}" for name in suites), flush=True)
    problems = []
    for row in BRIEF if is_brief else tuple(ROWS):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            python = install(Path(folder), ROWS[row])
            cells = [run(python, suite) for suite in suites.values()]
        line = "".join(f"{cell:>12}" for cell, _ in cells)
        print(f"{row:28}{line}  ({time.monotonic() - began:.0f} s)", flush=True)
        problems += [said for _, said in cells if said]
    for said in problems:
        print(said)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
