from __future__ import annotations

import pytest
import redis

from tests.lua.driver import FOREIGN, Driver


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_at_the_head_tell_nothing_of_the_job(lua: Driver, found: bytes) -> None:
    lua.client.rpush(lua.route().queue, found)
    _, job, now = lua.call()
    assert lua.state(job.decode(), now) == [0, 2, 0]


def test_a_queue_of_another_type_is_refused_by_redis(lua: Driver) -> None:
    lua.client.set(lua.route().queue, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.state("job", 1)


def test_of_nothing_it_tells_nothing(bare: Driver) -> None:
    assert bare.state("job", 1) == [0, 0, 0]
    assert bare.all_keys() == set()


def test_the_workers_alive_are_counted(lua: Driver) -> None:
    lua.publish("other")
    lua.beat("w1")
    lua.beat("w2")
    lua.beat("w3", ["other"])
    lua.client.zadd(lua.route().serving, {"dead": lua.now_ms() - 1})
    assert lua.state("job", 1)[0] == 2
    lua.leave("w1")
    assert lua.state("job", 1)[0] == 1


def test_the_jobs_that_wait_are_counted(lua: Driver) -> None:
    for length in range(3):
        assert lua.state("job", 1)[1] == length
        lua.queued()


def test_the_job_at_the_head_waits(lua: Driver) -> None:
    _, job, now = lua.call()
    lua.queued()
    assert lua.state(job.decode(), now)[2] == 1


def test_a_job_that_came_after_the_head_waits(lua: Driver) -> None:
    lua.queued()
    lua.pass_by(lua.now_ms())
    _, job, now = lua.call()
    assert lua.state(job.decode(), now)[2] == 1


def test_a_job_that_is_taken_does_not_wait(lua: Driver) -> None:
    _, job, now = lua.call()
    lua.taken()
    assert lua.state(job.decode(), now)[2] == 0
    lua.pass_by(lua.now_ms())
    lua.queued()
    assert lua.state(job.decode(), now)[2] == 0


def test_a_job_that_was_given_back_waits(lua: Driver) -> None:
    _, job, now = lua.call()
    lua.taken()
    lua.release(job.decode())
    assert lua.state(job.decode(), now)[2] == 1


def test_of_a_job_enqueued_nobody_knows_when_it_claims_nothing(lua: Driver) -> None:
    lua.queued()
    assert lua.state("unknown", 0) == [0, 1, 0]


def test_a_job_at_the_head_waits_though_nobody_knows_since_when(lua: Driver) -> None:
    job = lua.queued()
    assert lua.state(job, 0) == [0, 1, 1]


def test_sent_twice_it_says_the_same_and_changes_nothing(lua: Driver) -> None:
    _, job, now = lua.call()
    lua.beat()
    before = lua.all_keys()
    assert lua.state(job.decode(), now) == lua.state(job.decode(), now) == [1, 1, 1]
    assert lua.all_keys() == before
