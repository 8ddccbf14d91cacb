from __future__ import annotations

import pytest

from redis_bus.protocol.commands import HOLD_MS, LEASE_MS, MOVED_TAG, needs_admission
from redis_bus.protocol.entries import Job, Mode
from tests.lua.driver import (
    FOREIGN,
    KEEP_MS,
    OTHER_ETAG,
    OTHER_SHAPE,
    OTHER_VALUE,
    VALUE,
    Driver,
    within,
)


@pytest.fixture
def job(lua: Driver) -> Job:
    """A claimed job with the cache key 'k', past its deadline."""
    lua.late(key=b"k")
    return lua.taken()


@pytest.fixture
def lost(lua: Driver, job: Job) -> Job:
    """The same, whose flight has expired."""
    lua.lose_flight(b"k")
    return job


def assert_released(lua: Driver, job: Job) -> None:
    assert job.id not in lua.claims()
    assert lua.finish(job) == b"fenced"


# -- what strangers left --------------------------------------------------------------------------


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_flight_are_flown_over(lua: Driver, job: Job, found: bytes) -> None:
    lua.client.set(lua.route().flight(b"k"), found)
    assert lua.admit(job) == b"run"
    assert lua.flight(b"k") == (job.id, lua.generation(), "2")


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_cache_are_no_answer(lua: Driver, lost: Job, found: bytes) -> None:
    lua.client.set(lua.route().cache(b"k"), found)
    assert lua.admit(lost) == b"run"
    assert lua.reply(lost.id) == []


@pytest.mark.parametrize("found", [None, *FOREIGN])
@pytest.mark.parametrize("cached", [None, b"foreign", b"1 0\nmvalue"])
def test_without_a_registration_of_its_method_it_runs_and_owns_nothing(
    lua: Driver, lost: Job, found: bytes | None, cached: bytes | None
) -> None:
    lua.client.delete(lua.service.meta)
    if found is not None:
        lua.client.hset(lua.service.meta, "m", found)
    if cached is not None:
        lua.client.set(lua.route().cache(b"k"), cached)
    assert lua.admit(lost) == b"run"
    assert lua.flight(b"k") is None
    assert lua.claims() == [lost.id]


def test_a_flight_of_another_type_is_flown_over(lua: Driver, lost: Job) -> None:
    lua.client.rpush(lua.route().flight(b"k"), "foreign")
    assert lua.admit(lost) == b"run"
    assert lua.flight(b"k") == (lost.id, lua.generation(), "2")


# -- run ------------------------------------------------------------------------------------------


def test_a_late_job_needs_admission(lua: Driver, job: Job) -> None:
    assert needs_admission(job, lua.now_ms())


def test_a_late_job_that_others_joined_runs(lua: Driver) -> None:
    lua.late(key=b"k")
    lua.call(key=b"k")
    job = lua.taken()
    assert lua.admit(job) == b"run"
    assert lua.claims() == [job.id]
    assert lua.finish(job) == b"done"
    assert lua.outcome(b"k") == VALUE


def test_a_job_in_time_whose_flight_is_its_own_runs(lua: Driver) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    assert lua.admit(job) == b"run"
    assert lua.flight(b"k") == (job.id, lua.generation(), "0")
    assert within(lua.ttl(lua.route().flight(b"k")), HOLD_MS)


def test_a_job_without_a_deadline_is_not_late(lua: Driver) -> None:
    lua.queued(key=b"k", budget_ms=0)
    assert lua.admit(lua.taken()) == b"run"


def test_where_nobody_flies_it_owns_the_flight_again(lua: Driver, lost: Job) -> None:
    assert lua.admit(lost) == b"run"
    assert lua.flight(b"k") == (lost.id, lua.generation(), "2")
    assert within(lua.ttl(lua.route().flight(b"k")), HOLD_MS)
    assert lua.call(key=b"k") == [b"joined", lost.id.encode()]
    assert lua.finish(lost) == b"done"
    assert lua.outcome(b"k") == VALUE
    assert lua.reply(lost.id) == [VALUE]


def test_after_a_clear_it_runs_anew_and_may_store(lua: Driver, job: Job) -> None:
    lua.clear(b"k")
    assert lua.admit(job) == b"run"
    lua.finish(job)
    assert lua.outcome(b"k") == VALUE


def test_a_clear_after_it_was_admitted_keeps_it_from_storing(lua: Driver, lost: Job) -> None:
    lua.admit(lost)
    lua.clear(b"k")
    lua.finish(lost)
    assert lua.entry(b"k") is None
    assert lua.reply(lost.id) == [VALUE]


def test_a_job_of_an_old_generation_runs_and_owns_no_flight(lua: Driver, lost: Job) -> None:
    lua.clear_all()
    assert lua.admit(lost) == b"run"
    assert lua.flight(b"k") is None
    lua.finish(lost)
    assert lua.entry(b"k") is None
    assert lua.reply(lost.id) == [VALUE]


def test_a_flight_of_an_old_generation_does_not_keep_it(lua: Driver, lost: Job) -> None:
    lua.client.set(lua.route().flight(b"k"), "older 123 0")
    assert lua.admit(lost) == b"run"
    assert lua.flight(b"k") == (lost.id, lua.generation(), "2")


def test_a_value_of_an_old_generation_is_no_answer(lua: Driver) -> None:
    lua.fill(b"k")
    lua.clear_all()
    lua.late(key=b"k")
    job = lua.taken()
    lua.lose_flight(b"k")
    assert lua.admit(job) == b"run"


def test_it_is_not_moved_to_a_job_of_another_shape(lua: Driver, lost: Job) -> None:
    lua.publish(etag=OTHER_ETAG, shape=OTHER_SHAPE)
    lua.queued(key=b"k", etag=OTHER_ETAG)
    assert lua.admit(lost) == b"run"
    assert lua.finish(lost) == b"done"
    assert lua.reply(lost.id) == [VALUE]


def test_it_is_not_answered_with_a_value_of_another_shape(lua: Driver, lost: Job) -> None:
    lua.publish(etag=OTHER_ETAG, shape=OTHER_SHAPE)
    lua.queued(key=b"k", etag=OTHER_ETAG)
    lua.finish(lua.taken(), OTHER_VALUE)
    assert lua.admit(lost) == b"run"
    assert lua.finish(lost) == b"done"
    assert lua.reply(lost.id) == [VALUE]
    assert lua.outcome(b"k") == OTHER_VALUE


# -- dropped --------------------------------------------------------------------------------------


def test_a_late_job_that_nobody_joined_is_dropped(lua: Driver, job: Job) -> None:
    assert lua.admit(job) == b"dropped"
    assert lua.flight(b"k") is None
    assert lua.reply(job.id) == []
    assert_released(lua, job)


def test_after_it_was_dropped_the_next_caller_runs_anew(lua: Driver, job: Job) -> None:
    lua.admit(job)
    assert lua.call(key=b"k")[0] == b"queued"


# -- moved ----------------------------------------------------------------------------------------


def test_where_another_flies_the_waiters_are_told_to_wait_for_that_one(
    lua: Driver, lost: Job
) -> None:
    leader = lua.queued(key=b"k")
    assert lua.admit(lost) == b"moved"
    assert lua.reply(lost.id) == [MOVED_TAG + leader.encode()]
    assert within(lua.reply_ttl(lost.id), KEEP_MS)
    assert_released(lua, lost)


def test_the_flight_that_waiters_moved_to_is_shared(lua: Driver, lost: Job) -> None:
    leader = lua.queued(key=b"k", budget_ms=1000)
    lua.admit(lost)
    assert lua.flight(b"k") == (leader, lua.generation(), "2")
    assert within(lua.ttl(lua.route().flight(b"k")), 1000 + LEASE_MS)
    job = lua.taken()
    lua.finish(job)
    assert within(lua.reply_ttl(leader), KEEP_MS)


def test_a_run_that_others_moved_to_cannot_be_cancelled(lua: Driver, lost: Job) -> None:
    leader = lua.queued(key=b"k", mode=Mode.RUN)
    lua.admit(lost)
    assert lua.cancel(leader, b"k") == b"shared"


# -- answered -------------------------------------------------------------------------------------


def test_where_the_value_is_there_the_waiters_get_it(lua: Driver, lost: Job) -> None:
    lua.fill(b"k", OTHER_VALUE)
    assert lua.admit(lost) == b"answered"
    assert lua.reply(lost.id) == [OTHER_VALUE]
    assert within(lua.reply_ttl(lost.id), KEEP_MS)
    assert_released(lua, lost)
    assert lua.outcome(b"k") == OTHER_VALUE


def test_a_value_past_its_soft_expiry_is_an_answer(lua: Driver, lost: Job) -> None:
    lua.fill(b"k", stale_ms=10_000)
    lua.make_stale(b"k")
    assert lua.admit(lost) == b"answered"
    assert lua.reply(lost.id) == [VALUE]


# -- sent twice -----------------------------------------------------------------------------------


def test_sent_twice_a_dropped_job_is_fenced(lua: Driver, job: Job) -> None:
    assert [lua.admit(job), lua.admit(job)] == [b"dropped", b"fenced"]
    assert lua.flight(b"k") is None
    assert_released(lua, job)


def test_sent_twice_a_moved_job_is_moved_once(lua: Driver, lost: Job) -> None:
    leader = lua.queued(key=b"k")
    assert [lua.admit(lost), lua.admit(lost)] == [b"moved", b"fenced"]
    assert lua.reply(lost.id) == [MOVED_TAG + leader.encode()]


def test_sent_twice_an_answered_job_is_answered_once(lua: Driver, lost: Job) -> None:
    lua.fill(b"k")
    assert [lua.admit(lost), lua.admit(lost)] == [b"answered", b"fenced"]
    assert lua.reply(lost.id) == [VALUE]


def test_sent_again_after_a_clear_a_moved_job_owns_no_flight(lua: Driver, lost: Job) -> None:
    """Who joined it would be moved to a value from before the clear."""
    lua.queued(key=b"k")
    lua.admit(lost)
    lua.finish(lua.taken())
    lua.clear(b"k")
    assert lua.admit(lost) == b"fenced"
    assert lua.call(key=b"k")[0] == b"queued"


def test_sent_twice_a_job_that_runs_runs(lua: Driver, lost: Job) -> None:
    assert [lua.admit(lost), lua.admit(lost)] == [b"run", b"run"]
