"""One process of the stampede in tests/test_stampede.py: many threads that call at once.

Says ``ready`` and waits for a line; then prints what its threads got, and when, as JSON. Times
are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import threading
import time
from collections import Counter

from redis_bus import Bus

BUS = "stampede"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("threads", type=int)
    parser.add_argument("timeout", type=float)
    args = parser.parse_args()
    start = threading.Event()
    ends: list[float] = []
    values: Counter[str] = Counter()
    lock = threading.Lock()

    def call() -> None:
        start.wait()
        try:
            value = bus.method(1)
            found = f"{len(value)} {hashlib.sha256(value).hexdigest()}"
        except Exception as error:  # noqa: BLE001 - the test shows it
            found = repr(error)
        with lock:
            ends.append(time.monotonic())
            values[found] += 1

    with Bus(BUS, timeout=args.timeout) as bus:
        assert bus.method.cache_key
        threads = [threading.Thread(target=call) for _ in range(args.threads)]
        for thread in threads:
            thread.start()
        print("ready", flush=True)  # noqa: T201
        sys.stdin.readline()
        start.set()
        for thread in threads:
            thread.join()
    print(json.dumps({"ends": ends, "values": values}))  # noqa: T201


if __name__ == "__main__":
    main()
