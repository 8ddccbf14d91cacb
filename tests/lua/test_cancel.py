from __future__ import annotations

import pytest

from redis_bus.entries import Mode
from tests.lua.driver import CANCELLED, FOREIGN, KEEP_MS, VALUE, Driver, Waiter, within
from tests.support import eventually

KEYS = [None, b"", b"k", b"\n\0\xff"]
MODES = [Mode.RUN, Mode.ASYNC]


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_flight_tell_not_who_waits(lua: Driver, found: bytes) -> None:
    job = lua.queued(mode=Mode.RUN, key=b"k")
    lua.client.set(lua.route().flight(b"k"), found)
    assert lua.cancel(job, b"k") == b"shared"
    assert lua.taken().id == job


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_pending_do_not_matter(lua: Driver, found: bytes) -> None:
    job = lua.queued(mode=Mode.RUN)
    lua.client.hset(lua.route().pending, job, found)
    assert lua.cancel(job) == b"cancelled"


def test_a_flight_of_another_type_tells_not_who_waits(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN, key=b"k")
    flight = lua.route().flight(b"k")
    lua.client.delete(flight)
    lua.client.rpush(flight, "foreign")
    assert lua.cancel(job, b"k") == b"shared"
    assert job in lua.pending()
    assert lua.reply(job) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", KEYS)
def test_in_time_it_is_passed_over_and_its_outcome_says_so(
    lua: Driver, key: bytes | None, mode: Mode
) -> None:
    job = lua.queued(mode=mode, key=key)
    assert lua.cancel(job, key) == b"cancelled"
    assert lua.reply(job) == [CANCELLED]
    assert within(lua.reply_ttl(job), KEEP_MS)
    assert lua.pending() == {job: b"-"}
    assert lua.take() is None
    assert lua.pending() == {}
    assert (lua.length(), lua.tokens(), lua.claims()) == (0, 0, [])


def test_who_waits_for_it_gets_the_outcome(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN)
    waiters = [Waiter(lua, lua.service.wait_shared(job, 20)) for _ in range(3)]
    eventually(lambda: lua.blocked() == 3)
    lua.cancel(job)
    assert [waiter.reply() for waiter in waiters] == [CANCELLED] * 3


@pytest.mark.parametrize("key", KEYS)
def test_sent_twice_the_second_is_late(lua: Driver, key: bytes | None) -> None:
    job = lua.queued(mode=Mode.RUN, key=key)
    assert [lua.cancel(job, key), lua.cancel(job, key)] == [b"cancelled", b"late"]
    assert lua.reply(job) == [CANCELLED]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", KEYS)
def test_a_job_that_is_taken_is_late(lua: Driver, key: bytes | None, mode: Mode) -> None:
    lua.queued(mode=mode, key=key)
    job = lua.taken()
    assert lua.cancel(job.id, key) == b"late"
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]
    assert lua.cancel(job.id, key) == b"late"


@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.CALL])
def test_who_waits_for_a_call_cannot_have_it_cancelled(lua: Driver, mode: Mode) -> None:
    job = lua.queued(mode=mode)
    assert lua.cancel(job) == b"late"
    assert lua.taken().id == job


def test_a_job_that_never_was_is_late(lua: Driver) -> None:
    before = lua.all_keys()
    assert lua.cancel("nobody") == b"late"
    assert lua.cancel("nobody", b"k") == b"late"
    assert lua.all_keys() == before


@pytest.mark.parametrize("mode", MODES)
def test_a_job_that_others_wait_for_runs_on(lua: Driver, mode: Mode) -> None:
    job = lua.queued(mode=mode, key=b"k")
    lua.call(key=b"k")
    assert lua.cancel(job, b"k") == b"shared"
    assert lua.reply(job) == []
    assert lua.finish(lua.taken()) == b"done"
    assert lua.reply(job) == [VALUE]
    assert lua.outcome(b"k") == VALUE


def test_after_a_clear_those_who_joined_are_not_cancelled(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN, key=b"k")
    lua.call(key=b"k")
    lua.clear(b"k")
    assert lua.cancel(job, b"k") == b"shared"
    assert lua.taken().id == job


def test_when_its_flight_expired_those_who_joined_are_not_cancelled(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN, key=b"k")
    lua.call(key=b"k")
    lua.lose_flight(b"k")
    lua.queued(key=b"k")
    assert lua.cancel(job, b"k") == b"shared"


def test_a_new_caller_runs_anew(lua: Driver) -> None:
    old = lua.queued(mode=Mode.RUN, key=b"k")
    lua.cancel(old, b"k")
    assert lua.flight(b"k") is None
    new = lua.queued(key=b"k")
    assert lua.taken().id == new
    assert lua.claims() == [new]


def test_the_flight_of_another_job_is_left_alone(lua: Driver) -> None:
    old = lua.queued(mode=Mode.RUN, key=b"k")
    lua.clear(b"k")
    new = lua.queued(key=b"k")
    lua.cancel(old, b"k")
    assert lua.flight(b"k") == (new, lua.generation(), "0")


def test_other_jobs_of_the_service_are_left_alone(lua: Driver) -> None:
    cancelled, other = lua.queued(mode=Mode.RUN), lua.queued(mode=Mode.RUN)
    lua.cancel(cancelled)
    assert lua.pending() == {cancelled: b"-", other: b""}
    assert lua.taken().id == other
