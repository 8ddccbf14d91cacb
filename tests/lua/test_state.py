from __future__ import annotations

import pytest
import redis

from tests.lua.driver import FOREIGN, Driver


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_at_the_head_tell_nothing_of_the_job(lua: Driver, found: bytes) -> None:
    lua.client.rpush(lua.route().queue, found)
    _, job, now = lua.call()
    assert lua.state(job.decode(), now) == [0, 2, b"queued"]


def test_a_queue_of_another_type_is_refused_by_redis(lua: Driver) -> None:
    lua.client.set(lua.route().queue, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.state("job", 1)


def test_of_nothing_it_tells_nothing(bare: Driver) -> None:
    assert bare.state("job", 1) == [0, 0, b"unknown"]
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
    assert lua.state(job.decode(), now)[2] == b"queued"


def test_a_job_that_came_after_the_head_waits(lua: Driver) -> None:
    lua.queued()
    lua.pass_by(lua.now_ms())
    _, job, now = lua.call()
    assert lua.state(job.decode(), now)[2] == b"queued"


def test_a_job_that_is_taken_does_not_wait(lua: Driver) -> None:
    _, job, now = lua.call()
    lua.taken()
    assert lua.state(job.decode(), now)[2] == b"unknown"
    lua.pass_by(lua.now_ms())
    lua.queued()
    assert lua.state(job.decode(), now)[2] == b"unknown"


@pytest.mark.parametrize("listed", [["w"], ["w", "other"], ["other", "w"]])
def test_a_job_that_a_worker_holds_is_claimed(lua: Driver, listed: list[str]) -> None:
    _, job, now = lua.call()
    lua.queued()
    lua.taken()
    assert lua.state(job.decode(), now, workers=listed) == [0, 1, b"claimed"]
    lua.finish(lua.taken())
    assert lua.state(job.decode(), now, workers=["w"])[2] == b"claimed"
    lua.client.hdel(lua.service.running("w"), job)
    assert lua.state(job.decode(), now, workers=["w"])[2] == b"unknown"


def test_a_worker_that_holds_another_job_has_not_claimed_it(lua: Driver) -> None:
    lua.queued()
    lua.taken()
    _, job, now = lua.call()
    assert lua.state(job.decode(), now, workers=["w"])[2] == b"queued"


def test_jobs_that_came_at_the_same_time_wait(lua: Driver) -> None:
    lua.queued()
    _, job, now = lua.call()
    first = lua.client.lindex(lua.route().queue, 0).split(b" ")
    first[4] = b"%d" % now
    lua.client.lset(lua.route().queue, 0, b" ".join(first))
    assert lua.state(job.decode(), now)[2] == b"queued"


def test_a_job_waits_behind_later_ones_that_were_put_back(lua: Driver) -> None:
    calls = []
    for _ in range(3):
        calls.append(lua.call(tries=3)[1:3])
        lua.pass_by(lua.now_ms())
        lua.taken()
    lua.end_lease()
    for job, _ in calls:
        lua.reclaim(job.decode())
    assert lua.client.lindex(lua.route().queue, 0).startswith(calls[-1][0])
    for job, now in calls:
        assert lua.state(job.decode(), now)[2] == b"queued"
    job, now = calls[0]
    lua.client.rpop(lua.route().queue)
    assert lua.state(job.decode(), now)[2] == b"unknown"


@pytest.mark.parametrize("found", FOREIGN)
def test_a_job_waits_behind_foreign_bytes(lua: Driver, found: bytes) -> None:
    _, job, now = lua.call()
    lua.client.lpush(lua.route().queue, found)
    assert lua.state(job.decode(), now)[2] == b"queued"
    lua.client.rpop(lua.route().queue)
    assert lua.state(job.decode(), now)[2] == b"unknown"


def test_of_no_job_it_tells_nothing(lua: Driver) -> None:
    lua.queued()
    assert lua.state("", 0) == [0, 1, b"unknown"]


def test_a_job_that_was_given_back_waits(lua: Driver) -> None:
    _, job, now = lua.call()
    lua.taken()
    lua.release(job.decode())
    assert lua.state(job.decode(), now)[2] == b"queued"


def test_of_a_job_enqueued_nobody_knows_when_it_claims_nothing(lua: Driver) -> None:
    lua.queued()
    assert lua.state("unknown", 0) == [0, 1, b"unknown"]


def test_a_job_at_the_head_waits_though_nobody_knows_since_when(lua: Driver) -> None:
    job = lua.queued()
    assert lua.state(job, 0) == [0, 1, b"queued"]


def test_sent_twice_it_says_the_same_and_changes_nothing(lua: Driver) -> None:
    _, job, now = lua.call()
    lua.beat()
    before = lua.all_keys()
    assert lua.state(job.decode(), now) == lua.state(job.decode(), now) == [1, 1, b"queued"]
    assert lua.all_keys() == before
