"""The suite says which servers it runs on, and leaves none out that it was told to use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix import matrix
from tests.servers import BRIEF, all_servers
from tests.support import ROOT, Processes

REDIS_8 = ROOT / "tests" / "servers" / "redis-8"
FAKE = "#!/bin/sh\necho '{} server v={} sha=00000000:0 malloc=libc bits=64 build=0'\n"


@pytest.fixture
def folder(some: Processes) -> Path:
    """A folder with a server between the oldest and the newest, which only tells its version."""
    some.write("servers/redis-server", FAKE.format("Redis", "7.2.5")).chmod(0o755)
    return some.folder / "servers"


def asked(some: Processes, folder: Path, code: str, wanted: str = "") -> str:
    """Return what a new process prints that has that folder, and that TEST_SERVERS."""
    environment = some.environment(
        TEST_SERVER_FOLDERS=str(folder), TEST_SERVERS=wanted, PYTHONPATH=str(ROOT)
    )
    code = f"from tests.servers import *; {code}"
    done = some.run(sys.executable, "-c", code, env=environment, cwd=ROOT)
    return done.stdout + done.stderr


def test_the_oldest_and_the_newest_run_everything(some: Processes, folder: Path) -> None:
    shown = asked(some, folder, "[print(n, brief) for n, brief in depths().items()]")
    found = [line.split() for line in shown.splitlines()]
    assert ["redis-7.2.5", str("redis-7.2.5" not in (found[0][0], found[-1][0]))] in found
    assert [brief for _, brief in (found[0], found[-1])] == ["False", "False"]
    assert all(brief == "True" for _, brief in found[1:-1])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("redis-7.2", {"redis-7.2.5": False}),
        ("redis-7.2:brief", {"redis-7.2.5": True}),
        ("redis-7.2.5", {"redis-7.2.5": False}),
    ],
)
def test_servers_are_chosen_by_what_their_names_begin_with(
    some: Processes, folder: Path, wanted: str, found: dict[str, bool]
) -> None:
    assert asked(some, folder, "print(depths())", wanted) == f"{found}\n"
    assert asked(some, folder, "print(*find_servers())", wanted) == "redis-7.2.5\n"


@pytest.mark.parametrize("wanted", ["redis-7.2 redis-5.0", "redis-7.2:short", "dragonfly"])
def test_a_server_that_is_asked_for_and_not_here_ends_the_run(
    some: Processes, folder: Path, wanted: str
) -> None:
    environment = some.environment(TEST_SERVER_FOLDERS=str(folder), TEST_SERVERS=wanted)
    line = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q")
    done = some.run(*line, "tests/test_cache.py", env=environment, cwd=ROOT)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"TEST_SERVERS asks for {wanted.split()[-1]}; there are: " in done.stderr
    assert "redis-7.2.5" in done.stderr


def test_a_brief_server_runs_the_brief_tests_alone(some: Processes) -> None:
    first = next(iter(all_servers()))
    environment = some.environment(TEST_SERVERS=f"{first}:brief")
    line = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q")
    done = some.run(*line, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    tests = [line for line in done.stdout.splitlines() if f"{first}" in line and "::" in line]
    others = {test for test in tests if not test.startswith(BRIEF)}
    assert all(any(test.startswith(brief) for test in tests) for brief in BRIEF)
    assert {test.partition("/test_")[0] for test in others} == {"tests/faults", "tests/cluster"}
    assert len([test for test in others if "cluster" in test]) == 1


def test_the_table_counts_what_passed_on_each_server() -> None:
    class Report:
        def __init__(self, nodeid: str, when: str = "call", passed: bool = True) -> None:
            self.nodeid, self.when, self.passed = nodeid, when, passed

    reports = [
        Report("tests/test_cache.py::test_a[redis-6.2.14]"),
        Report("tests/test_cache.py::test_a[redis-6.2.14]", "setup"),
        Report("tests/test_cache.py::test_b[redis-6.2.14-x]", passed=False),
        Report("tests/faults/test_x.py::test_c[valkey-9.1.2-asyncio]"),
        Report("tests/protocol/test_codec.py::test_d[1]"),
    ]
    table = matrix(reports, {"redis-6.2.14": False, "valkey-9.1.2": True})
    suites = ["scripts", "faults", "clusters", "calls", "cache", "access", "other"]
    assert [row.split() for row in table] == [
        ["server", "runs", *suites, "all"],
        ["redis-6.2.14", "everything", "0", "0", "0", "0", "1", "0", "0", "1"],
        ["valkey-9.1.2", "brief", "0", "1", "0", "0", "0", "0", "0", "1"],
        ["any", "server", "0", "0", "0", "0", "0", "0", "1", "1"],
    ]


def test_where_redis_8_cannot_be_had_the_script_says_why(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "env", "mkdir"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}" if tool != "bash" else "/bin/bash")
    done = subprocess.run(
        [str(REDIS_8), str(tmp_path / "redis")],
        env={**os.environ, "PATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "redis-8: there is no apt-get: this works on Debian 12 and newer only\n"
