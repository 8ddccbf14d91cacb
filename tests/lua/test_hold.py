from __future__ import annotations

import pytest
import redis

from tests.lua.driver import FOREIGN, Driver


def test_a_claim_is_written_again_as_it_was(lua: Driver) -> None:
    job = lua.queued(key=b"k", body=b"\0\n\xff")
    lua.taken()
    before = lua.client.hgetall(lua.service.running("w"))
    assert lua.hold(job) == b"held"
    assert lua.client.hgetall(lua.service.running("w")) == before


def test_it_is_a_write_for_redis_each_time(lua: Driver) -> None:
    job = lua.queued()
    lua.taken()
    for _ in range(2):
        before = int(lua.client.info("persistence")["rdb_changes_since_last_save"])
        assert lua.hold(job) == b"held"
        assert int(lua.client.info("persistence")["rdb_changes_since_last_save"]) > before


def test_a_job_that_is_not_claimed_is_not_held(lua: Driver) -> None:
    job = lua.queued()
    assert lua.hold(job) == b"fenced"
    assert lua.claims() == []
    assert lua.length() == 1


def test_the_claim_of_another_worker_is_not_held(lua: Driver) -> None:
    job = lua.queued()
    lua.taken("w1")
    assert lua.hold(job, worker="w2") == b"fenced"
    assert (lua.claims("w1"), lua.claims("w2")) == ([job], [])


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_a_claim_stay_as_they_are(lua: Driver, found: bytes) -> None:
    lua.client.hset(lua.service.running("w"), "job", found)
    assert lua.hold("job") == b"held"
    assert lua.client.hget(lua.service.running("w"), "job") == found


def test_claims_of_another_type_are_refused_by_redis(lua: Driver) -> None:
    lua.client.set(lua.service.running("w"), "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.hold("job")


def test_a_claim_is_held_where_memory_is_full(lua: Driver) -> None:
    job = lua.queued()
    lua.taken()
    with lua.memory_full():
        assert lua.hold(job) == b"held"
    assert lua.claims() == [job]
