from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.commands import FLIGHT_CAP_MS, LEASE_MS, needs_admission
from redis_bus.protocol.entries import Mode, parse_job, parse_letter
from tests.lua.driver import (
    BUDGET_MS,
    FOREIGN,
    KEEP_MS,
    LOST,
    OTHER_VALUE,
    VALUE,
    Driver,
    Waiter,
    within,
)
from tests.lua.test_take import BROKEN
from tests.support import eventually

BRIEF_MS = 60_000
GRACE_MS = FLIGHT_CAP_MS + LEASE_MS


def lose(lua: Driver, key: bytes | None = None, *, tries: int = 1, **options: object) -> str:
    """Let a worker's lease end while it holds a job, and return the job's id."""
    job = lua.queued(key=key, tries=tries, **options)
    assert lua.taken().id == job
    lua.end_lease()
    return job


# -- what strangers left --------------------------------------------------------------------------


@pytest.mark.parametrize("entry", BROKEN)
@pytest.mark.parametrize("key", [None, b"k"])
def test_a_claim_of_bytes_that_are_no_job_is_dropped(
    lua: Driver, entry: bytes, key: bytes | None
) -> None:
    lua.client.hset(lua.service.running("w"), "job", entry)
    lua.end_lease()
    assert lua.reclaim("job", key) == b"gone"
    assert lua.claims() == []
    assert (lua.length(), lua.letters(), lua.reply("job"), lua.stats()) == (0, [], [], {})


@pytest.mark.parametrize("found", FOREIGN)
@pytest.mark.parametrize("tries", [1, 3])
def test_foreign_bytes_in_the_flight_are_not_its_own(lua: Driver, found: bytes, tries: int) -> None:
    job = lose(lua, b"k", tries=tries)
    lua.client.set(lua.route().flight(b"k"), found)
    assert lua.reclaim(job, b"k") == (b"lost" if tries == 1 else b"requeued")
    assert lua.client.get(lua.route().flight(b"k")) == found
    assert lua.ttl(lua.route().flight(b"k")) == -1


@pytest.mark.parametrize("found", FOREIGN)
@pytest.mark.parametrize(("tries", "counter"), [(1, "lost"), (3, "retries")])
def test_foreign_bytes_in_a_counter_stop_nothing(
    lua: Driver, found: bytes, tries: int, counter: str
) -> None:
    job = lose(lua, tries=tries)
    lua.client.hset(lua.route().stats, counter, found)
    assert lua.reclaim(job) in (b"lost", b"requeued")
    assert lua.client.hget(lua.route().stats, counter) == found


@pytest.mark.parametrize("place", ["workers", "running"])
def test_a_key_of_another_type_is_refused_by_redis(lua: Driver, place: str) -> None:
    job = lose(lua, b"k")
    key = {"workers": lua.service.workers, "running": lua.service.running("w")}[place]
    lua.client.delete(key)
    lua.client.rpush(key, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.reclaim(job, b"k")
    assert (lua.length(), lua.reply(job)) == (0, [])


@pytest.mark.parametrize(("tries", "status"), [(1, b"lost"), (3, b"requeued")])
def test_a_flight_of_another_type_stops_nothing(lua: Driver, tries: int, status: bytes) -> None:
    job = lose(lua, b"k", tries=tries)
    lua.client.delete(lua.route().flight(b"k"))
    lua.client.rpush(lua.route().flight(b"k"), "foreign")
    assert lua.reclaim(job, b"k") == status
    assert lua.reply(job) == ([LOST] if tries == 1 else [])
    assert lua.length() == (tries > 1)


@pytest.mark.parametrize("attempt", [10**15, 10**20, 10**300])
def test_an_attempt_of_any_size_is_still_a_job(lua: Driver, attempt: int) -> None:
    entry = f"job {attempt} {10 * attempt} 0 1 etag wait 1 - m\n".encode()
    lua.client.hset(lua.service.running("w"), "job", entry)
    lua.end_lease()
    assert lua.reclaim("job") == b"requeued"
    assert lua.taken().id == "job"


@pytest.mark.parametrize("digits", [1, 14, 20, 400])
def test_a_deadline_of_any_size_is_still_one(lua: Driver, digits: int) -> None:
    entry = b"job 1 3 %s 1 etag run 1 - m\n" % (b"9" * digits)
    lua.client.hset(lua.service.running("w"), "job", entry)
    lua.end_lease()
    assert lua.reclaim("job") == b"requeued"
    assert lua.length() == 1
    assert lua.ttl(lua.route().queue) > 0


# -- alive, gone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tries", [1, 3])
def test_the_job_of_a_worker_alive_is_its_own(lua: Driver, tries: int) -> None:
    lua.queued(tries=tries)
    job = lua.taken()
    before = lua.all_keys()
    assert lua.reclaim(job.id) == b"alive"
    assert lua.all_keys() == before
    assert lua.claims() == [job.id]
    assert lua.finish(job) == b"done"


def test_a_beat_between_sweep_and_reclaim_keeps_the_job(lua: Driver) -> None:
    lua.sweep()
    job = lose(lua)
    assert lua.sweep()[1] == [b"w"]
    assert set(lua.held()) == {job.encode()}
    lua.beat()
    assert lua.reclaim(job) == b"alive"
    assert lua.claims() == [job]


@pytest.mark.parametrize("ends", ["past", "zero", "unlisted"])
def test_the_job_of_a_worker_whose_lease_ended_is_given_away(lua: Driver, ends: str) -> None:
    job = lose(lua, tries=3)
    if ends == "zero":
        lua.end_lease(ends_ms=0)
    elif ends == "unlisted":
        lua.client.delete(lua.service.workers)
    assert lua.reclaim(job) == b"requeued"
    assert lua.taken("other").id == job


@pytest.mark.parametrize("tries", [1, 3])
def test_sent_twice_the_second_finds_it_gone(lua: Driver, tries: int) -> None:
    job = lose(lua, tries=tries)
    lua.reclaim(job)
    before = (lua.all_keys(), lua.length(), lua.reply(job), lua.stats())
    assert lua.reclaim(job) == b"gone"
    assert (lua.all_keys(), lua.length(), lua.reply(job), lua.stats()) == before


def test_a_job_that_was_finished_meanwhile_is_gone(lua: Driver) -> None:
    lua.queued(tries=3)
    job = lua.taken()
    lua.end_lease()
    assert lua.finish(job) == b"done"
    assert lua.reclaim(job.id) == b"gone"
    assert lua.reply(job.id) == [VALUE]
    assert lua.length() == 0


def test_the_same_job_in_the_hands_of_another_is_left_there(lua: Driver) -> None:
    job = lose(lua, tries=3)
    lua.reclaim(job)
    lua.taken("other")
    assert lua.reclaim(job) == b"gone"
    assert lua.claims("other") == [job]


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize("key", [None, b"k"])
def test_the_outcome_of_the_worker_that_was_given_up_is_fenced(
    lua: Driver, tries: int, key: bytes | None
) -> None:
    lua.queued(key=key, tries=tries)
    job = lua.taken("slow")
    lua.end_lease("slow")
    lua.reclaim(job.id, key, worker="slow")
    replies = lua.reply(job.id)
    assert lua.finish(job, worker="slow") == b"fenced"
    assert lua.reply(job.id) == replies
    assert lua.entry(b"k") is None
    if tries == 3:
        again = lua.taken("quick")
        assert lua.finish(job, worker="slow") == b"fenced"
        assert lua.finish(again, OTHER_VALUE, worker="quick") == b"done"
        assert lua.reply(job.id) == [OTHER_VALUE]
        assert key is None or lua.outcome(key) == OTHER_VALUE


# -- requeued -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*Mode][:-1])
@pytest.mark.parametrize("key", [None, b"", b"k", b"a\nb\0\xff{} 1 2"])
def test_it_is_the_same_job_one_attempt_on(lua: Driver, key: bytes | None, mode: Mode) -> None:
    lua.queued(key=key, mode=mode, tries=3, body=b"1 2\n\0%1%d")
    first = lua.taken()
    lua.end_lease()
    assert lua.reclaim(first.id, key) == b"requeued"
    assert lua.claims() == []
    assert lua.taken("other") == first._replace(attempt=2)


def test_it_is_tried_as_often_as_it_may(lua: Driver) -> None:
    job = lua.queued(tries=3)
    for attempt, status in [(1, b"requeued"), (2, b"requeued"), (3, b"lost")]:
        assert lua.taken().attempt == attempt
        lua.end_lease()
        assert lua.reclaim(job) == status
    assert lua.length() == 0
    assert (lua.stats()["retries"], lua.stats()["lost"]) == (2, 1)


def test_it_comes_to_the_head_with_a_token(lua: Driver) -> None:
    lua.queued(tries=3)
    assert lua.pop_token()
    job = lua.taken()
    lua.end_lease()
    assert (lua.length(), lua.tokens()) == (0, 0)
    lua.reclaim(job.id)
    assert (lua.length(), lua.tokens()) == (1, 1)


def test_it_comes_before_what_waits_already(lua: Driver) -> None:
    job = lose(lua, tries=3)
    other = lua.queued()
    lua.reclaim(job)
    assert (lua.length(), lua.tokens()) == (2, 1)
    assert [lua.taken("other").id for _ in range(2)] == [job, other]


def test_a_waiting_worker_is_woken(lua: Driver) -> None:
    job = lua.queued(tries=3)
    assert lua.pop_token()
    lua.taken()
    lua.end_lease()
    waiter = Waiter(lua, ("BLPOP", lua.route().wake, 20))
    eventually(lambda: lua.blocked() == 1)
    lua.reclaim(job)
    assert waiter.reply() == [lua.route().wake.encode(), b"1"]


def test_a_run_can_be_cancelled_again(lua: Driver) -> None:
    for key in (None, b"k"):
        job = lose(lua, key, tries=3, mode=Mode.RUN)
        assert lua.pending() == {}
        lua.reclaim(job, key)
        assert lua.pending() == {job: b"" if key is None else b"kk"}
        assert lua.cancel(job, key) == b"cancelled"
        assert lua.take() is None


def test_who_waits_is_not_made_pending(lua: Driver) -> None:
    lua.reclaim(lose(lua, tries=3))
    assert lua.pending() == {}


def test_a_queue_lives_as_long_as_the_job_that_came_back(lua: Driver) -> None:
    lua.reclaim(lose(lua, tries=3, budget_ms=60_000))
    assert within(lua.ttl(lua.route().queue), 60_000 + GRACE_MS)


def test_a_late_job_that_others_joined_waits_as_long_as_its_flight(lua: Driver) -> None:
    job = lua.queued(key=b"k", tries=3)
    lua.call(key=b"k")
    claim = lua.take()
    assert claim is not None
    entry = claim.entry.split(b" ", 5)
    entry[3] = b"%d" % (lua.now_ms() - 1_000_000)
    lua.client.hset(lua.service.running("w"), job, b" ".join(entry))
    lua.end_lease()
    assert lua.reclaim(job, b"k") == b"requeued"
    assert within(lua.ttl(lua.route().queue), GRACE_MS + 1)
    again = lua.taken("other")
    assert lua.admit(again, worker="other") == b"run"


def test_a_job_without_a_deadline_comes_back_for_ever(lua: Driver) -> None:
    job = lose(lua, tries=3, mode=Mode.RUN, budget_ms=0)
    lua.queued(mode=Mode.RUN, budget_ms=1_000)
    assert lua.ttl(lua.route().queue) > 0
    lua.reclaim(job)
    assert [lua.ttl(key) for key in (lua.route().queue, lua.route().pending)] == [-1, -1]


def test_a_job_that_nobody_waits_for_any_more_is_dropped_by_take(lua: Driver) -> None:
    job = lua.queued(tries=3, budget_ms=50)
    deadline = lua.taken().deadline_ms
    lua.end_lease()
    lua.pass_by(deadline)
    assert lua.reclaim(job) == b"requeued"
    assert lua.take("other") is None
    assert (lua.length(), lua.tokens()) == (0, 0)


# -- its flight -----------------------------------------------------------------------------------


def test_its_own_flight_is_prolonged_and_can_be_joined(lua: Driver) -> None:
    job = lose(lua, b"k", tries=3)
    lua.client.pexpire(lua.route().flight(b"k"), 1_000)
    lua.reclaim(job, b"k")
    assert within(lua.ttl(lua.route().flight(b"k")), GRACE_MS)
    assert lua.call(key=b"k") == [b"joined", job.encode()]
    again = lua.taken("other")
    assert needs_admission(again, lua.now_ms())
    assert lua.admit(again, worker="other") == b"run"
    assert lua.finish(again, worker="other") == b"done"
    assert lua.outcome(b"k") == VALUE


@pytest.mark.parametrize(("tries", "status"), [(1, b"lost"), (3, b"requeued")])
def test_the_flight_of_another_job_is_left_alone(lua: Driver, tries: int, status: bytes) -> None:
    job = lose(lua, b"k", tries=tries)
    lua.clear(b"k")
    theirs = lua.queued(key=b"k")
    lua.client.pexpire(lua.route().flight(b"k"), 1_000)
    assert lua.reclaim(job, b"k") == status
    assert lua.flight(b"k") == (theirs, lua.generation(), "0")
    assert lua.ttl(lua.route().flight(b"k")) <= 1_000


@pytest.mark.parametrize("tries", [1, 3])
def test_a_flight_that_was_cleared_does_not_come_back(lua: Driver, tries: int) -> None:
    job = lose(lua, b"k", tries=tries)
    lua.clear(b"k")
    lua.reclaim(job, b"k")
    assert lua.flight(b"k") is None


def test_a_job_that_came_back_moves_its_waiters_where_another_flies(lua: Driver) -> None:
    job = lose(lua, b"k", tries=3)
    lua.clear(b"k")
    theirs = lua.queued(key=b"k")
    lua.reclaim(job, b"k")
    again = lua.taken("other")
    assert again.id == job
    assert lua.admit(again, worker="other") == b"moved"
    assert lua.reply(job) == [b">" + theirs.encode()]


def test_after_a_loss_the_next_call_runs_anew(lua: Driver) -> None:
    job = lose(lua, b"k")
    assert lua.reclaim(job, b"k") == b"lost"
    assert lua.flight(b"k") is None
    assert lua.entry(b"k") is None
    assert lua.call(key=b"k")[0] == b"queued"


# -- lost: the outcome ----------------------------------------------------------------------------


def test_the_only_waiter_is_told(lua: Driver) -> None:
    lua.queued(job="mine")
    waiter = Waiter(lua, lua.service.wait_alone("mine", 20))
    eventually(lambda: lua.blocked() == 1)
    lua.taken()
    lua.end_lease()
    assert lua.reclaim("mine") == b"lost"
    assert waiter.reply() == [lua.service.reply("mine").encode(), LOST]
    assert lua.reply("mine") == []


def test_every_waiter_is_told(lua: Driver) -> None:
    leader = lua.queued(key=b"k")
    waiters = []
    for _ in range(10):
        lua.call(key=b"k")
        waiters.append(Waiter(lua, lua.service.wait_shared(leader, 20)))
    eventually(lambda: lua.blocked() == 10)
    lua.taken()
    lua.end_lease()
    assert lua.reclaim(leader, b"k") == b"lost"
    assert [waiter.reply() for waiter in waiters] == [LOST] * 10
    assert lua.reply(leader) == [LOST]
    assert within(lua.reply_ttl(leader), BRIEF_MS)


def test_for_one_caller_it_is_not_kept_beyond_its_deadline(lua: Driver) -> None:
    for key in (None, b"k"):
        job = lose(lua, key, budget_ms=3_000)
        lua.reclaim(job, key)
        assert within(lua.reply_ttl(job), 3_000, slack=3_000)


@pytest.mark.parametrize("budget_ms", [0, 600_000])
def test_for_one_caller_it_is_kept_for_a_lease_at_most(lua: Driver, budget_ms: int) -> None:
    job = lose(lua, budget_ms=budget_ms)
    lua.reclaim(job)
    assert within(lua.reply_ttl(job), LEASE_MS)


def test_nobody_is_told_whose_time_is_up(lua: Driver) -> None:
    job = lua.queued(budget_ms=50)
    deadline = lua.taken().deadline_ms
    lua.end_lease()
    lua.pass_by(deadline)
    assert lua.reclaim(job) == b"lost"
    assert lua.reply(job) == []


@pytest.mark.parametrize("key", [None, b"k"])
def test_for_a_run_it_is_kept_for_long(lua: Driver, key: bytes | None) -> None:
    job = lose(lua, key, mode=Mode.RUN, budget_ms=BUDGET_MS)
    lua.reclaim(job, key)
    assert lua.reply(job) == [LOST]
    assert within(lua.reply_ttl(job), KEEP_MS)


@pytest.mark.parametrize("lost_flight", ["joined by a run", "cleared"])
def test_it_is_kept_for_long_where_a_run_may_come_for_it(lua: Driver, lost_flight: str) -> None:
    job = lose(lua, b"k")
    if lost_flight == "cleared":
        lua.clear(b"k")
    else:
        lua.run(key=b"k")
    lua.reclaim(job, b"k")
    assert within(lua.reply_ttl(job), KEEP_MS)


def test_a_refresh_that_is_lost_tells_nobody_and_the_value_stays(lua: Driver) -> None:
    lua.fill(b"k", stale_ms=10_000)
    lua.make_stale(b"k")
    lua.call(key=b"k")
    refresh = lua.taken()
    assert refresh.mode is Mode.REFRESH
    lua.end_lease()
    assert lua.reclaim(refresh.id, b"k") == b"lost"
    assert lua.reply(refresh.id) == []
    assert lua.outcome(b"k") == VALUE
    assert lua.call(key=b"k")[0] == b"hit"
    assert lua.length() == 1  # another refresh


def test_a_refresh_that_somebody_joined_tells_them(lua: Driver) -> None:
    lua.fill(b"k", stale_ms=10_000)
    lua.make_stale(b"k")
    lua.call(key=b"k")
    refresh = lua.taken()
    lua.client.delete(lua.route().cache(b"k"))
    assert lua.call(key=b"k") == [b"joined", refresh.id.encode()]
    lua.end_lease()
    lua.reclaim(refresh.id, b"k")
    assert lua.reply(refresh.id) == [LOST]
    assert within(lua.reply_ttl(refresh.id), BRIEF_MS)


def test_a_loss_is_counted_and_is_no_run(lua: Driver) -> None:
    lua.reclaim(lose(lua))
    assert lua.stats() == {"queued": 1, "lost": 1}


# -- dead letters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "key", "tries", "is_kept"),
    [
        (Mode.WAIT, None, 1, False),
        (Mode.CALL, b"k", 1, False),
        (Mode.WAIT, None, 3, True),
        (Mode.CALL, b"k", 3, True),
        (Mode.RUN, None, 1, True),
        (Mode.RUN, b"k", 1, True),
        (Mode.RUN, b"k", 3, True),
    ],
)
def test_a_letter_is_kept_of_what_was_tried_or_nobody_may_wait_for(
    lua: Driver, mode: Mode, key: bytes | None, tries: int, is_kept: bool
) -> None:
    job = lua.queued(mode=mode, key=key, tries=tries, body=b"\n\0 body")
    entry = b""
    for _ in range(tries):
        claim = lua.take()
        assert claim is not None
        entry = claim.entry
        lua.end_lease()
        before = lua.now_ms()
        lua.reclaim(job, key)
    letters = [parse_letter(raw) for raw in lua.letters()]
    assert len(letters) == is_kept
    for letter in letters:
        assert before <= letter.when_ms <= lua.now_ms()
        assert (letter.why, letter.worker, letter.entry) == ("lost", "w", entry)
        assert parse_job(letter.entry).attempt == tries


def test_the_last_letters_are_kept(lua: Driver) -> None:
    jobs = [lose(lua, mode=Mode.RUN) for _ in range(5)]
    for job in jobs:
        lua.reclaim(job, letters=3)
    assert [parse_job(parse_letter(raw).entry).id for raw in lua.letters()] == jobs[2:]


# -- where memory is full -------------------------------------------------------------------------


@pytest.mark.parametrize(("tries", "status"), [(1, b"lost"), (3, b"requeued")])
def test_it_gives_jobs_away_where_memory_is_full(lua: Driver, tries: int, status: bytes) -> None:
    job = lose(lua, b"k", mode=Mode.RUN, tries=tries)
    with lua.memory_full():
        assert lua.reclaim(job, b"k") == status
    if tries == 1:
        assert lua.reply(job) == [LOST]
        assert len(lua.letters()) == 1
    else:
        assert (lua.length(), lua.tokens()) == (1, 1)
        assert lua.pending() == {job: b"kk"}
