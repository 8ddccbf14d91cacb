from __future__ import annotations

import hashlib

import pytest
import redis

from tests.lua.driver import FOREIGN, Driver


def digest(entry: bytes) -> str:
    return hashlib.sha1(entry).hexdigest()


@pytest.mark.parametrize("entry", FOREIGN)
def test_what_could_not_be_read_is_forgotten(lua: Driver, entry: bytes) -> None:
    cache = lua.route().cache(b"k")
    lua.client.set(cache, entry)
    assert lua.discard(b"k", digest(entry)) == 1
    assert not lua.client.exists(cache)


def test_of_all_who_could_not_read_it_one_forgets_it(lua: Driver) -> None:
    lua.client.set(lua.route().cache(b"k"), b"foreign")
    assert [lua.discard(b"k", digest(b"foreign")) for _ in range(3)] == [1, 0, 0]


def test_what_was_written_since_is_left_alone(lua: Driver) -> None:
    cache = lua.route().cache(b"k")
    lua.client.set(cache, b"newer")
    assert lua.discard(b"k", digest(b"foreign")) == 0
    assert lua.client.get(cache) == b"newer"


def test_a_flight_goes_on(lua: Driver) -> None:
    job = lua.queued(key=b"k")
    lua.client.set(lua.route().cache(b"k"), b"foreign")
    lua.discard(b"k", digest(b"foreign"))
    assert lua.flight(b"k")[0] == job


def test_a_key_of_another_type_is_refused_by_redis(lua: Driver) -> None:
    lua.client.rpush(lua.route().cache(b"k"), b"foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.discard(b"k", digest(b"foreign"))
