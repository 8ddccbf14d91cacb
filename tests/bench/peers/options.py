"""What the command takes. Only of Python itself: it is also read before there is a venv."""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).resolve().parent
DESCRIPTION = """\
Measure how fast a Python function is called through other tools, side by side with redis_bus.

It makes a virtual environment, installs this clone and all peers from PyPI, starts a Redis and a
NATS server of its own, and takes turns between all contenders. It writes results.rst (or .md),
results.json with --json, and results.png.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/bench/peers",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--venv", type=Path, help="make it here, or use it (default: a temporary)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a measurement in a round")
    parser.add_argument("--only", help="measure these contenders alone: their names, joined by ';'")
    parser.add_argument("--format", choices=("rst", "markdown"), default="rst", help="the table's")
    parser.add_argument("--json", action="store_true", help="write each round's figures, too")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go")
    parser.add_argument("--again", type=Path, metavar="JSON", help="only table and plot, from it")
    parser.add_argument("--idle", action="store_true", help="only say what CPU idle workers use")
    return parser.parse_args(arguments)
