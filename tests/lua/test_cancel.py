from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from redis_bus.protocol.entries import Mode
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
def test_in_time_it_leaves_the_queue_and_its_outcome_says_so(
    lua: Driver, key: bytes | None, mode: Mode
) -> None:
    job = lua.queued(mode=mode, key=key)
    assert lua.cancel(job, key) == b"cancelled"
    assert lua.reply(job) == [CANCELLED]
    assert within(lua.reply_ttl(job), KEEP_MS)
    assert (lua.pending(), lua.length()) == ({}, 0)
    assert lua.take() is None
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
    assert lua.pending() == {other: b""}
    assert lua.taken().id == other


# -- where it waits -------------------------------------------------------------------------------


def later(lua: Driver, **options: Any) -> str:
    """Enqueue a job in another millisecond than the one before it."""
    lua.pass_by(lua.now_ms())
    return lua.queued(**options)


@pytest.mark.parametrize("queued", [later, Driver.queued])
@pytest.mark.parametrize("place", [0, 1, 3, 5, 6])
def test_it_leaves_the_queue_wherever_it_waits_and_the_others_stay(
    lua: Driver, place: int, queued: Callable[..., str]
) -> None:
    jobs = [queued(lua, mode=MODES[number % 2]) for number in range(7)]
    assert lua.cancel(jobs[place]) == b"cancelled"
    assert lua.waiting() == jobs[:place] + jobs[place + 1 :]
    assert lua.pending().keys() == set(lua.waiting())


def test_a_job_that_was_put_back_leaves_it_too(lua: Driver) -> None:
    jobs = [later(lua, mode=Mode.RUN) for _ in range(5)]
    for _ in range(3):
        lua.taken()
    for job in (jobs[1], jobs[2], jobs[0]):
        lua.release(job)
    for job in (jobs[2], jobs[0], jobs[1]):
        assert lua.cancel(job) == b"cancelled"
    assert lua.waiting() == jobs[3:]


def test_it_is_found_among_very_many_by_when_it_was_enqueued(lua: Driver) -> None:
    before = [lua.queued(budget_ms=600_000) for _ in range(1500)]  # none is to die meanwhile
    job = later(lua, mode=Mode.RUN)
    behind = [later(lua) for _ in range(10)]
    assert lua.cancel(job) == b"cancelled"
    assert lua.waiting() == before + behind


def test_jobs_in_no_order_and_bytes_that_are_none_are_passed_over(lua: Driver) -> None:
    jobs = [later(lua, mode=Mode.RUN) for _ in range(5)]
    queue = lua.route().queue
    entries = lua.client.lrange(queue, 0, -1)
    lua.client.delete(queue)
    lua.client.rpush(queue, *FOREIGN, entries[4], *FOREIGN, *entries[:4], *FOREIGN)
    for job in jobs:
        assert lua.cancel(job) == b"cancelled"
    assert lua.client.lrange(queue, 0, -1) == FOREIGN * 3


@pytest.mark.parametrize("note", [b"", b"kk", b"9" * 400, b"0"])
def test_without_a_time_in_its_note_it_is_looked_for_at_the_head(lua: Driver, note: bytes) -> None:
    jobs = [later(lua, mode=Mode.RUN) for _ in range(3)]
    lua.client.hset(lua.route().pending, jobs[1], note)
    assert lua.cancel(jobs[1]) == b"cancelled"
    assert lua.waiting() == [jobs[0], jobs[2]]


def hidden(lua: Driver) -> str:
    """Enqueue a job that is not found in its queue: behind very many, with another time."""
    job = lua.queued(mode=Mode.RUN)
    entry = lua.client.lpop(lua.route().queue)
    for _ in range(1001):
        lua.queued()
    lua.client.rpush(lua.route().queue, entry)
    lua.client.hset(lua.route().pending, job, b"1")
    return job


def test_one_that_is_not_found_is_passed_over(lua: Driver) -> None:
    job = hidden(lua)
    assert lua.cancel(job) == b"cancelled"
    assert lua.pending() == {job: b"-"}
    assert [lua.cancel(job), lua.reply(job)] == [b"late", [CANCELLED]]
    lua.client.ltrim(lua.route().queue, -1, -1)
    assert lua.waiting() == [job]
    assert lua.take() is None
    assert lua.pending() == {}


def test_one_that_was_not_found_leaves_no_less_room_once_it_is_at_the_head(lua: Driver) -> None:
    job = hidden(lua)
    lua.cancel(job)
    lua.client.ltrim(lua.route().queue, -1, -1)
    new = lua.queued(mode=Mode.RUN, max_queue=1)
    assert lua.waiting() == [new]
    assert lua.pending() == {new: b""}


def test_a_queue_of_another_type_stops_it_not(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN)
    lua.client.delete(lua.route().queue)
    lua.client.set(lua.route().queue, "foreign")
    assert lua.cancel(job) == b"cancelled"
    assert lua.reply(job) == [CANCELLED]


@pytest.mark.parametrize("key", [None, b"k"])
def test_it_withdraws_where_memory_is_full(lua: Driver, key: bytes | None) -> None:
    job = lua.queued(mode=Mode.RUN, key=key)
    with lua.memory_full():
        assert lua.cancel(job, key) == b"cancelled"
    assert (lua.length(), lua.reply(job)) == (0, [CANCELLED])


def test_it_makes_room_for_another(lua: Driver) -> None:
    jobs = [lua.queued(mode=Mode.ASYNC) for _ in range(3)]
    assert lua.call(max_queue=3) == [b"full"]
    lua.cancel(jobs[1])
    assert lua.call(max_queue=3)[0] == b"queued"
    assert lua.call(max_queue=3) == [b"full"]


def test_the_last_one_takes_the_token_along_and_no_other_does(lua: Driver) -> None:
    jobs = [lua.queued(mode=Mode.RUN) for _ in range(2)]
    lua.cancel(jobs[1])
    assert lua.tokens() == 1
    lua.cancel(jobs[0])
    assert lua.tokens() == 0
    lua.queued()
    assert lua.tokens() == 1


def test_nothing_is_noted_of_a_job_whose_queue_was_lost(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN)
    lua.client.delete(lua.route().queue)
    assert lua.cancel(job) == b"cancelled"
    assert not lua.client.exists(lua.route().pending)


def test_the_note_that_it_is_to_be_passed_over_does_not_stay_for_ever(lua: Driver) -> None:
    job = hidden(lua)
    assert lua.client.hlen(lua.route().pending) == 1
    lua.client.pexpire(lua.route().queue, 60_000)
    lua.cancel(job)
    assert lua.client.hvals(lua.route().pending) == [b"-"]
    assert within(lua.ttl(lua.route().pending), 60_000)


def test_one_that_is_deep_in_a_very_long_queue_is_passed_over(lua: Driver) -> None:
    job = lua.queued(mode=Mode.RUN)
    queue = lua.route().queue
    entry = lua.client.lindex(queue, 0)
    assert entry is not None
    since = entry.split(b" ")[4]
    earlier, later = (b"%d" % (int(since) + step) for step in (-1, 1))
    for push, when in ((lua.client.lpush, earlier), (lua.client.rpush, later)):
        push(queue, *[entry.replace(job.encode(), b"other").replace(since, when)] * 20_001)
    assert lua.cancel(job) == b"cancelled"
    assert lua.length() == 40_003
    assert lua.pending()[job] == b"-"


# -- jobs of which nothing is noted ---------------------------------------------------------------


def told(lua: Driver, **options: Any) -> tuple[str, int]:
    """Enqueue a job in mode 'told'; return its id and when that was."""
    number = lua.new_id().rpartition("-")[2]
    _, job, now = lua.call(mode=Mode.TOLD, **{"job": f"token.{number}", **options})
    return job.decode(), now


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("queued", [later, Driver.queued])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_told_it_leaves_the_queue_by_when_it_was_enqueued(
    lua: Driver, place: int, queued: Callable[..., str], is_known: bool
) -> None:
    before = [queued(lua) for _ in range(place)]
    job, now = told(lua)
    behind = [queued(lua) for _ in range(6 - place)]
    assert lua.cancel(job, enqueued_ms=now if is_known else 0) == b"cancelled"
    assert lua.waiting() == before + behind
    assert lua.pending() == {}
    assert lua.reply(job) == [CANCELLED]
    assert lua.cancel(job, enqueued_ms=now) == b"late"


@pytest.mark.parametrize("is_known", [True, False])
def test_told_it_is_found_among_very_many(lua: Driver, is_known: bool) -> None:
    before = [lua.queued(budget_ms=600_000) for _ in range(1500)]
    job, now = told(lua)
    assert lua.cancel(job, enqueued_ms=now if is_known else 0) == b"cancelled"
    assert lua.waiting() == before


def test_told_it_is_found_among_those_of_its_inbox_and_of_others(lua: Driver) -> None:
    inboxes = ("token", "other", "token-of", "tok")
    jobs = [f"{inbox}.{number}" for number in range(1, 500) for inbox in inboxes]
    for job in jobs:
        told(lua, job=job, budget_ms=600_000)
    withdrawn = random.Random(1).sample([job for job in jobs if job.startswith("token.")], 200)
    for job in withdrawn:
        assert lua.cancel(job, enqueued_ms=0) == b"cancelled"
    assert lua.waiting() == [job for job in jobs if job not in withdrawn]
    assert lua.pending() == {}


@pytest.mark.parametrize("waiting", [0, 1])
def test_told_it_is_late_once_it_is_taken_and_nothing_is_noted(lua: Driver, waiting: int) -> None:
    _, now = told(lua)
    for _ in range(waiting):
        lua.queued()
    job = lua.taken()
    assert lua.cancel(job.id, enqueued_ms=now) == b"late"
    assert lua.pending() == {}
    assert lua.tokens() == waiting
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]


def test_told_one_that_is_not_found_among_very_many_is_passed_over(lua: Driver) -> None:
    job, _ = told(lua)
    entry = lua.client.lpop(lua.route().queue)
    for _ in range(1001):
        lua.queued()
    lua.client.rpush(lua.route().queue, entry)
    lua.client.pexpire(lua.route().queue, 60_000)
    assert [lua.cancel(job, enqueued_ms=1) for _ in range(2)] == [b"late"] * 2
    assert lua.pending() == {job: b"-"}
    assert within(lua.ttl(lua.route().pending), 60_000)
    lua.client.ltrim(lua.route().queue, -1, -1)
    assert lua.waiting() == [job]
    assert lua.take() is None
    assert lua.pending() == {}


def test_told_one_that_is_deep_in_a_very_long_queue_is_passed_over(lua: Driver) -> None:
    job, now = told(lua)
    queue = lua.route().queue
    entry = lua.client.lindex(queue, 0)
    assert entry is not None
    for push, when in ((lua.client.lpush, now - 1), (lua.client.rpush, now + 1)):
        other = entry.replace(job.encode(), b"other").replace(b"%d" % now, b"%d" % when)
        push(queue, *[other] * 20_001)
    assert lua.cancel(job, enqueued_ms=now) == b"cancelled"
    assert (lua.length(), lua.pending()) == (40_003, {job: b"-"})
    assert lua.cancel(job, enqueued_ms=now) == b"late"


def test_told_it_withdraws_where_memory_is_full(lua: Driver) -> None:
    job, now = told(lua)
    with lua.memory_full():
        assert lua.cancel(job, enqueued_ms=now) == b"cancelled"
    assert (lua.length(), lua.reply(job)) == (0, [CANCELLED])


def test_told_a_queue_of_another_type_has_no_job_of_ours(lua: Driver) -> None:
    job, now = told(lua)
    lua.client.delete(lua.route().queue)
    lua.client.set(lua.route().queue, "foreign")
    assert lua.cancel(job, enqueued_ms=now) == b"late"
    assert lua.pending() == {}


def test_told_a_job_that_was_put_back_is_found_and_leaves_the_queue(lua: Driver) -> None:
    job, now = told(lua)
    others = [later(lua) for _ in range(3)]
    lua.taken()
    lua.release(job)
    assert lua.pending() == {}
    assert lua.cancel(job, enqueued_ms=now) == b"cancelled"
    assert lua.waiting() == others
