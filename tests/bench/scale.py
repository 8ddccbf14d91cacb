"""Measure what grows with a bus: calls, workers, connections, services, jobs that wait, masters.

    python tests/bench/scale.py PART [--help]

Each part runs servers of its own, for some minutes at most. All figures are counts, bytes, and CPU
inside Redis: they hold on a busy machine, and say nothing of how long anybody waits.
"""

from __future__ import annotations

import argparse

import scale_calls
import scale_connections
import scale_masters
import scale_queue
import scale_services
import scale_workers
from scale_meter import open_files

PARTS = {
    "calls": scale_calls,
    "workers": scale_workers,
    "connections": scale_connections,
    "services": scale_services,
    "queue": scale_queue,
    "masters": scale_masters,
}
FILES = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    for name, module in PARTS.items():
        part = parts.add_parser(
            name,
            help=str(module.__doc__).partition("\n")[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_options(part)
    options = parser.parse_args()
    open_files(FILES)
    PARTS[options.part].run(options)


if __name__ == "__main__":
    main()
