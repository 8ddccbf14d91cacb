"""A service on an empty Redis, with one method published."""

from __future__ import annotations

import pytest
import redis

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
