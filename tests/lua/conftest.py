"""A service on an empty Redis, with one method published.

All servers but the oldest are in cluster mode here, so that what has keys of two slots is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from redis_bus.embedded import EmbeddedRedis
from tests.cluster_node import ClusterNode
from tests.cluster_servers import Cluster
from tests.conftest import SERVERS
from tests.declared_keys import watched
from tests.lua.driver import Driver
from tests.servers import oldest


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis | ClusterNode]:
    """A Redis of each kind in turn; all but the oldest are clusters of one node."""
    if request.param != oldest():
        with Cluster(SERVERS[request.param], masters=1, replicas=0) as cluster:
            yield cluster.masters[0]
    else:
        with EmbeddedRedis(SERVERS[request.param]) as embedded:
            yield embedded


@pytest.fixture
def bare(client: redis.Redis) -> Driver:
    """A service of which Redis knows nothing yet."""
    return Driver(client)


@pytest.fixture
def lua(bare: Driver) -> Driver:
    """A service with the method 'm' published."""
    bare.publish()
    return bare


@pytest.fixture(autouse=True)
def _scripts_declare_their_keys(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test has them do."""
    if "client" not in request.fixturenames:
        yield
        return
    with watched(request.getfixturevalue("client")) as watch:
        yield
    assert not watch.problems
