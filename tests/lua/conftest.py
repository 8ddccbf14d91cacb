"""A service on an empty Redis, with one method published."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.declared_keys import watched
from tests.lua.driver import Driver


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
