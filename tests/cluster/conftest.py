"""A cluster, and servers under sentinels, that live as long as the test run; each test finds them
empty and whole, whatever the one before did to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from redis_bus.embedded import EmbeddedRedis
from tests.cluster.load import Load, Loaded, MakeLoad
from tests.cluster.support import Servers, Service, served
from tests.cluster_servers import Cluster
from tests.conftest import SERVERS, Tell
from tests.sentinel_servers import Sentinels
from tests.support import Processes


@pytest.fixture(scope="session", params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def cluster(kind: str) -> Iterator[Cluster]:
    """A cluster of three masters, each with a replica."""
    with Cluster(SERVERS[kind]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def sentinels(kind: str) -> Iterator[Sentinels]:
    """A master and two replicas under three sentinels."""
    with Sentinels(SERVERS[kind]) as sentinels:
        yield sentinels


@pytest.fixture(params=["cluster", "sentinels"])
def servers(request: pytest.FixtureRequest, kind: str) -> Servers:
    """A cluster, and a master under sentinels."""
    found: Servers = request.getfixturevalue(request.param)
    found.flush()  # it is not among the names that `_flushed` looks at
    return found


@pytest.fixture
def service(servers: Servers) -> Iterator[Service]:
    """A bus that is served on them."""
    with served(servers.address) as service:
        yield service


@pytest.fixture
def on_cluster(cluster: Cluster) -> Iterator[Service]:
    """A bus that is served on the cluster."""
    with served(cluster.address) as service:
        yield service


@pytest.fixture(autouse=True)
def _flushed(request: pytest.FixtureRequest) -> None:
    for name in ("cluster", "sentinels"):
        if name in request.fixturenames:
            request.getfixturevalue(name).flush()


@pytest.fixture
def loaded(one_server: EmbeddedRedis, tmp_path: Path, tell: Tell, kind: str) -> Loaded:
    """Puts a load on servers, and checks at its end what always holds."""

    @contextmanager
    def loaded(servers: Servers, what: str, make: MakeLoad = Load) -> Iterator[Load]:
        processes = Processes(servers.address, tmp_path)
        with redis.Redis.from_url(one_server.url) as steady:
            steady.flushall()
            try:
                with make(processes, steady, one_server.url) as load:
                    yield load
                    load.goes_on()
            finally:
                processes.end()
            tell(f"{what} ({kind})", load.figures())
            assert load.hung() == []
            assert load.wrong() == []
            assert load.stale() == []
            assert load.unexcused() == []

    return loaded
