from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.commands import ALONE_MS, LEASE_MS, pack
from redis_bus.protocol.entries import Job, Mode
from tests.lua.driver import (
    ERROR,
    ETAG,
    EXPIRE_MS,
    FOREIGN,
    KEEP_MS,
    OTHER_VALUE,
    VALUE,
    Driver,
    Waiter,
    within,
)
from tests.support import eventually

BRIEF_MS = 60_000
WAITERS = 20


@pytest.fixture
def job(lua: Driver) -> Job:
    """A claimed job with the cache key 'k'."""
    lua.queued(key=b"k")
    return lua.taken()


# -- what strangers left --------------------------------------------------------------------------


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_flight_are_not_its_own(lua: Driver, job: Job, found: bytes) -> None:
    lua.client.set(lua.route().flight(b"k"), found)
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]
    assert lua.entry(b"k") is None
    assert lua.client.get(lua.route().flight(b"k")) == found


def test_a_flight_of_another_type_is_not_its_own(lua: Driver, job: Job) -> None:
    lua.client.delete(lua.route().flight(b"k"))
    lua.client.rpush(lua.route().flight(b"k"), "foreign")
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]
    assert lua.entry(b"k") is None


@pytest.mark.parametrize("found", [None, *FOREIGN])
def test_without_a_registration_of_its_method_nothing_is_stored(
    lua: Driver, job: Job, found: bytes | None
) -> None:
    lua.client.delete(lua.service.meta)
    if found is not None:
        lua.client.hset(lua.service.meta, "m", found)
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]
    assert lua.entry(b"k") is None


@pytest.mark.parametrize("found", FOREIGN)
@pytest.mark.parametrize("counter", ["runs", "run_us", "errors"])
def test_foreign_bytes_in_a_counter_stop_no_outcome(
    lua: Driver, job: Job, found: bytes, counter: str
) -> None:
    lua.client.hset(lua.route().stats, counter, found)
    assert lua.finish(job, ERROR) == b"done"
    assert lua.reply(job.id) == [ERROR]
    assert lua.client.hget(lua.route().stats, counter) == found


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_cache_are_replaced(lua: Driver, job: Job, found: bytes) -> None:
    lua.client.set(lua.route().cache(b"k"), found)
    assert lua.finish(job) == b"done"
    assert lua.outcome(b"k") == VALUE


def test_claims_of_another_type_are_refused_by_redis(lua: Driver, job: Job) -> None:
    lua.client.delete(lua.service.running("w"))
    lua.client.set(lua.service.running("w"), "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.finish(job)
    assert lua.reply(job.id) == []
    assert lua.flight(b"k") is not None


# -- fenced ---------------------------------------------------------------------------------------


def test_a_claim_that_is_gone_fences_the_outcome(lua: Driver, job: Job) -> None:
    lua.client.hdel(lua.service.running("w"), job.id)
    before = lua.all_keys()
    assert lua.finish(job) == b"fenced"
    assert lua.all_keys() == before
    assert lua.flight(b"k") == (job.id, lua.generation(), "0")
    assert "runs" not in lua.stats()


def test_the_claim_of_another_worker_fences_the_outcome(lua: Driver, job: Job) -> None:
    assert lua.finish(job, worker="other") == b"fenced"
    assert lua.entry(b"k") is None
    assert lua.claims("w") == [job.id]


def test_a_job_that_was_given_back_is_fenced(lua: Driver, job: Job) -> None:
    lua.release(job.id)
    assert lua.finish(job) == b"fenced"
    assert lua.taken("other").id == job.id


def test_sent_twice_the_second_is_fenced(lua: Driver, job: Job) -> None:
    assert lua.finish(job) == b"done"
    assert lua.finish(job, OTHER_VALUE) == b"fenced"
    assert lua.reply(job.id) == [VALUE]
    assert lua.outcome(b"k") == VALUE
    assert lua.stats()["runs"] == 1


def test_finish_releases_its_own_claim_only(lua: Driver, job: Job) -> None:
    lua.queued()
    other = lua.taken()
    lua.finish(job)
    assert lua.claims() == [other.id]


# -- storing --------------------------------------------------------------------------------------


def test_a_value_is_stored_with_its_generation_and_its_expiry(lua: Driver, job: Job) -> None:
    lua.finish(job)
    assert lua.entry(b"k") == f"{lua.generation()} 0\n".encode() + VALUE
    assert within(lua.ttl(lua.route().cache(b"k")), EXPIRE_MS)
    assert lua.flight(b"k") is None


def test_a_value_with_a_stale_time_is_kept_that_much_longer(lua: Driver, job: Job) -> None:
    before = lua.now_ms()
    lua.finish(job, expire_ms=60_000, stale_ms=30_000)
    entry = lua.entry(b"k")
    assert entry is not None
    soft = int(entry.partition(b"\n")[0].split(b" ")[1])
    assert before + 60_000 <= soft <= lua.now_ms() + 60_000
    assert within(lua.ttl(lua.route().cache(b"k")), 90_000)


@pytest.mark.parametrize("stale_ms", [0, 10_000])
def test_an_expiry_of_never_is_for_ever(lua: Driver, job: Job, stale_ms: int) -> None:
    lua.finish(job, expire_ms=-1, stale_ms=stale_ms)
    assert lua.entry(b"k") == f"{lua.generation()} 0\n".encode() + VALUE
    assert lua.ttl(lua.route().cache(b"k")) == -1


def test_a_value_for_ever_loses_its_end_where_it_had_one(lua: Driver) -> None:
    lua.fill(b"k", stale_ms=10_000)
    lua.make_stale(b"k")
    lua.call(key=b"k")
    lua.finish(lua.taken(), OTHER_VALUE, expire_ms=-1)
    assert lua.outcome(b"k") == OTHER_VALUE
    assert lua.ttl(lua.route().cache(b"k")) == -1


@pytest.mark.parametrize("stale_ms", [0, 10_000])
def test_an_expiry_of_zero_stores_nothing_and_ends_the_flight(
    lua: Driver, job: Job, stale_ms: int
) -> None:
    lua.finish(job, expire_ms=0, stale_ms=stale_ms)
    assert lua.entry(b"k") is None
    assert lua.flight(b"k") is None
    assert lua.reply(job.id) == [VALUE]


def test_an_error_is_delivered_and_never_stored(lua: Driver, job: Job) -> None:
    lua.finish(job, ERROR)
    assert lua.reply(job.id) == [ERROR]
    assert lua.entry(b"k") is None
    assert lua.flight(b"k") is None


@pytest.mark.parametrize("outcome", [b"", b"m", b"me", b"\xff", bytes(range(256))])
def test_any_outcome_that_is_no_error_is_stored_byte_for_byte(
    lua: Driver, job: Job, outcome: bytes
) -> None:
    lua.finish(job, outcome)
    assert lua.outcome(b"k") == outcome
    assert lua.reply(job.id) == [outcome]


def test_a_flight_of_another_job_is_left_alone(lua: Driver, job: Job) -> None:
    theirs = f"theirs {lua.generation()} 0"
    lua.client.set(lua.route().flight(b"k"), theirs)
    lua.finish(job)
    assert lua.entry(b"k") is None
    assert lua.client.get(lua.route().flight(b"k")) == theirs.encode()


def test_without_a_flight_nothing_is_stored(lua: Driver, job: Job) -> None:
    lua.client.delete(lua.route().flight(b"k"))
    lua.finish(job)
    assert lua.entry(b"k") is None
    assert lua.reply(job.id) == [VALUE]


def test_a_job_of_an_old_generation_stores_nothing_though_it_flies(lua: Driver, job: Job) -> None:
    lua.clear_all()
    assert lua.flight(b"k") is not None
    lua.finish(job)
    assert lua.entry(b"k") is None
    assert lua.flight(b"k") is None


def test_a_job_without_a_cache_key_stores_nothing(lua: Driver) -> None:
    lua.queued()
    taken = lua.taken()
    before = lua.all_keys() - {lua.service.running("w").encode()}
    lua.finish(taken)
    assert lua.all_keys() - before == {lua.service.reply(taken.id).encode()}


# -- how long the outcome is kept -----------------------------------------------------------------


def test_the_outcome_is_kept_a_while_for_calls_that_joined(lua: Driver, job: Job) -> None:
    lua.call(key=b"k")
    lua.finish(job)
    assert within(lua.reply_ttl(job.id), BRIEF_MS)


def test_the_outcome_is_kept_long_for_runs_that_joined(lua: Driver, job: Job) -> None:
    for mode in (Mode.RUN, Mode.CALL):
        lua.call(key=b"k", mode=mode)
    lua.finish(job)
    assert within(lua.reply_ttl(job.id), KEEP_MS)


def test_a_refresh_that_was_joined_is_kept_for_who_joined(lua: Driver, job: Job) -> None:
    lua.finish(job, stale_ms=1000)
    lua.make_stale(b"k")
    assert lua.call(key=b"k")[0] == b"hit"
    lua.client.delete(lua.route().cache(b"k"))
    assert lua.call(key=b"k")[0] == b"joined"
    refresh = lua.taken()
    lua.finish(refresh)
    assert within(lua.reply_ttl(refresh.id), BRIEF_MS)


def test_the_outcome_is_kept_where_somebody_may_have_joined(lua: Driver, job: Job) -> None:
    lua.clear(b"k")
    lua.finish(job)
    assert within(lua.reply_ttl(job.id), KEEP_MS)


def test_the_outcome_for_one_caller_is_not_kept_beyond_its_deadline(lua: Driver) -> None:
    for key in (None, b"k"):
        lua.queued(key=key, budget_ms=3000)
        job = lua.taken()
        lua.finish(job)
        assert within(lua.reply_ttl(job.id), 3000, slack=3000)


@pytest.mark.parametrize("budget_ms", [0, 600_000])
@pytest.mark.parametrize(("key", "most"), [(None, ALONE_MS), (b"k", LEASE_MS)])
def test_the_outcome_for_one_caller_is_kept_as_long_as_it_may_be_cut_off(
    lua: Driver, budget_ms: int, key: bytes | None, most: int
) -> None:
    lua.queued(key=key, budget_ms=budget_ms)
    job = lua.taken()
    lua.finish(job)
    assert within(lua.reply_ttl(job.id), most)


def test_nobody_is_answered_whose_time_is_up(lua: Driver) -> None:
    lua.queued(budget_ms=200)
    job = lua.taken()
    lua.pass_by(job.deadline_ms)
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == []
    assert lua.stats()["runs"] == 1


@pytest.mark.parametrize(("left_ms", "kept"), [(1_000, True), (0, False), (-1_000, False)])
def test_who_finishes_may_say_what_is_left_of_its_callers_time(
    lua: Driver, left_ms: int, kept: bool
) -> None:
    lua.queued()
    job = lua.taken()
    assert lua.finish(job, now_ms=job.deadline_ms - left_ms) == b"done"
    assert bool(lua.reply_ttl(job.id) > 0) == kept
    if kept:
        assert within(lua.reply_ttl(job.id), left_ms)


@pytest.mark.parametrize("key", [None, b"k"])
def test_the_outcome_of_a_run_is_kept_beyond_its_deadline(lua: Driver, key: bytes | None) -> None:
    lua.queued(mode=Mode.RUN, key=key, budget_ms=200)
    job = lua.taken()
    lua.pass_by(job.deadline_ms)
    lua.finish(job)
    assert lua.reply(job.id) == [VALUE]
    assert within(lua.reply_ttl(job.id), KEEP_MS)


def test_a_refresh_that_somebody_joined_answers_them(lua: Driver) -> None:
    lua.fill(b"k", stale_ms=10_000)
    lua.make_stale(b"k")
    lua.call(key=b"k")
    job = lua.taken()
    lua.client.delete(lua.route().cache(b"k"))  # it expires while it is refreshed
    assert lua.call(key=b"k") == [b"joined", job.id.encode()]
    lua.finish(job)
    assert lua.reply(job.id) == [VALUE]


# -- who waits ------------------------------------------------------------------------------------


def test_one_caller_takes_its_outcome_and_leaves_nothing(lua: Driver) -> None:
    lua.queued(job="mine")
    waiter = Waiter(lua, lua.service.wait_alone("mine", 20))
    eventually(lambda: lua.blocked() == 1)
    lua.finish(lua.taken())
    assert waiter.reply() == [lua.service.reply("mine").encode(), VALUE]
    assert lua.reply("mine") == []


def test_every_waiter_is_answered_by_one_push(lua: Driver) -> None:
    leader = lua.queued(key=b"k")
    waiters = []
    for _ in range(WAITERS):
        lua.call(key=b"k")
        waiters.append(Waiter(lua, lua.service.wait_shared(leader, 20)))
    eventually(lambda: lua.blocked() == WAITERS)
    lua.finish(lua.taken())
    assert [waiter.reply() for waiter in waiters] == [VALUE] * WAITERS
    assert lua.reply(leader) == [VALUE]
    assert within(lua.reply_ttl(leader), BRIEF_MS)


def test_a_waiter_who_comes_later_is_answered_at_once(lua: Driver, job: Job) -> None:
    lua.call(key=b"k")
    lua.finish(job)
    for _ in range(3):
        assert lua.send(*lua.service.wait_shared(job.id, 1)) == VALUE
    assert within(lua.reply_ttl(job.id), BRIEF_MS)


@pytest.mark.parametrize("key", [None, b"k"])
def test_it_answers_and_stores_where_memory_is_full(lua: Driver, key: bytes | None) -> None:
    lua.queued(key=key)
    job = lua.taken()
    with lua.memory_full():
        assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]
    assert key is None or lua.outcome(key) == VALUE
    assert lua.stats()["runs"] == 1


# -- statistics -----------------------------------------------------------------------------------


def test_runs_errors_and_their_time_are_counted(lua: Driver) -> None:
    for outcome in (VALUE, ERROR, VALUE):
        lua.queued()
        lua.finish(lua.taken(), outcome, spent_us=1000)
    assert lua.stats() == {"queued": 3, "runs": 3, "errors": 1, "run_us": 3000}


@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.ASYNC, Mode.RUN])
@pytest.mark.parametrize("key", [None, b"k"])
@pytest.mark.parametrize("outcome", [VALUE, b"", b"%s\r\n$1\r\n"])
def test_what_is_packed_beforehand_is_what_redis_py_would_pack(
    lua: Driver, mode: Mode, key: bytes | None, outcome: bytes
) -> None:
    job, route = lua.new_id(), lua.route()
    call = route.call(job, b"body %d", mode=mode, budget_ms=1234, key=key, but="worker")
    taken = Job(job, "m", 1, 1, 0, 1, ETAG, mode, "1", key, b"")
    finish = lua.post("w", ["m"]).finish(
        route, taken, outcome, spent_us=7, expire_ms=-1, stale_ms=0
    )
    for command in (call, finish):
        assert pack(command) == pack(tuple(command))
