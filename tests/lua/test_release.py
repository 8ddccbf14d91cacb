from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.commands import FLIGHT_CAP_MS, LEASE_MS
from redis_bus.protocol.entries import Mode
from tests.lua.driver import FOREIGN, Driver, within


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_a_claim_go_back_as_they_are(lua: Driver, found: bytes) -> None:
    lua.client.hset(lua.service.running("w"), "job", found)
    assert lua.release("job") == 1
    assert lua.client.lrange(lua.route().queue, 0, -1) == [found]
    assert (lua.claims(), lua.pending(), lua.tokens()) == ([], {}, 1)


def test_claims_of_another_type_are_refused_by_redis(lua: Driver) -> None:
    lua.client.set(lua.service.running("w"), "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.release("job")


def test_a_job_that_is_not_claimed_is_not_given_back(lua: Driver) -> None:
    job = lua.queued()
    assert lua.release(job) == 0
    assert lua.length() == 1


def test_the_claim_of_another_worker_is_not_given_back(lua: Driver) -> None:
    lua.queued()
    job = lua.taken("w1").id
    assert lua.release(job, worker="w2") == 0
    assert lua.claims("w1") == [job]
    assert lua.length() == 0


def test_it_goes_back_unchanged_to_the_head(lua: Driver) -> None:
    jobs = [lua.queued(key=b"k", body=b"\0\n\xff"), lua.queued()]
    before = lua.client.lrange(lua.route().queue, 0, -1)
    lua.taken()
    assert lua.release(jobs[0]) == 1
    assert lua.client.lrange(lua.route().queue, 0, -1) == before
    assert lua.claims() == []
    assert [lua.taken().id, lua.taken().id] == jobs


def test_an_empty_queue_gets_a_token_with_it(lua: Driver) -> None:
    job = lua.queued()
    assert lua.pop_token()
    lua.taken()
    assert lua.tokens() == 0
    lua.release(job)
    assert lua.tokens() == 1


def test_a_queue_that_has_a_token_gets_no_second(lua: Driver) -> None:
    job = lua.queued()
    lua.queued()
    lua.taken()
    lua.release(job)
    assert (lua.length(), lua.tokens()) == (2, 1)


def test_sent_twice_it_goes_back_once(lua: Driver) -> None:
    job = lua.queued()
    lua.taken()
    assert [lua.release(job), lua.release(job)] == [1, 0]
    assert lua.length() == 1


@pytest.mark.parametrize("mode", [Mode.RUN, Mode.ASYNC])
@pytest.mark.parametrize("key", [None, b"", b"k", b"a\nb\0\xff{} "])
def test_what_could_be_cancelled_can_be_again(lua: Driver, key: bytes | None, mode: Mode) -> None:
    job = lua.queued(mode=mode, key=key, body=b"line\nbody")
    before = lua.pending()
    lua.taken()
    assert lua.pending() == {}
    lua.release(job)
    assert lua.pending() == before
    assert lua.cancel(job, key) == b"cancelled"
    assert lua.take() is None


@pytest.mark.parametrize("key", [None, b"k"])
def test_a_run_that_was_given_back_is_taken_again(lua: Driver, key: bytes | None) -> None:
    job = lua.queued(mode=Mode.RUN, key=key)
    lua.taken()
    lua.release(job)
    assert lua.taken("other").id == job


@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.CALL])
def test_who_waits_is_not_made_pending(lua: Driver, mode: Mode) -> None:
    job = lua.queued(mode=mode)
    lua.taken()
    lua.release(job)
    assert lua.pending() == {}


def test_a_run_that_waits_for_ever_does_so_again_in_a_queue_that_had_an_end(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN, budget_ms=0)
    lua.taken()
    lua.queued(mode=Mode.RUN, budget_ms=1_000)
    assert lua.ttl(lua.route().queue) > 0
    lua.release(job)
    assert [lua.ttl(key) for key in (lua.route().queue, lua.route().pending)] == [-1, -1]


@pytest.mark.parametrize("others", [[], [1_000], [1_000, 2_000]])
def test_a_queue_lives_as_long_as_the_job_given_back(lua: Driver, others: list[int]) -> None:
    job = lua.queued(mode=Mode.RUN, budget_ms=60_000)
    lua.taken()
    for budget_ms in others:
        lua.queued(mode=Mode.RUN, budget_ms=budget_ms)
    lua.release(job)
    for key in (lua.route().queue, lua.route().pending):
        assert within(lua.ttl(key), 60_000 + FLIGHT_CAP_MS + LEASE_MS)


def test_a_job_given_back_shortens_the_life_of_no_queue(lua: Driver) -> None:
    job = lua.queued(budget_ms=1_000)
    lua.taken()
    lua.queued(budget_ms=60_000)
    lua.release(job)
    assert within(lua.ttl(lua.route().queue), 60_000 + FLIGHT_CAP_MS + LEASE_MS)


def test_a_job_that_nobody_waits_for_any_more_goes_back_to_be_dropped(lua: Driver) -> None:
    lua.queued(budget_ms=50)
    job = lua.taken()
    lua.pass_by(job.deadline_ms)
    assert lua.release(job.id) == 1
    assert lua.take() is None
    assert lua.length() == 0


def test_it_gives_back_where_memory_is_full(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN, key=b"k")
    lua.taken()
    with lua.memory_full():
        assert lua.release(job) == 1
    assert (lua.length(), lua.tokens(), lua.pending()) == (1, 1, {job: b"kk"})


def test_the_flight_of_a_job_given_back_is_still_its_own(lua: Driver) -> None:
    job = lua.queued(key=b"k")
    lua.taken()
    lua.release(job)
    assert lua.call(key=b"k") == [b"joined", job.encode()]
    lua.finish(lua.taken())
    assert lua.entry(b"k") is not None
