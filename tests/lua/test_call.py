from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.commands import FLIGHT_CAP_MS, LEASE_MS
from redis_bus.protocol.entries import Mode, parse_job
from tests.lua.driver import (
    BUDGET_MS,
    ERROR,
    ETAG,
    EXPIRE_MS,
    FOREIGN,
    KEEP_MS,
    OTHER_ETAG,
    VALUE,
    Driver,
    Waiter,
    within,
)
from tests.support import eventually

ODD_BYTES = [b"", b"\n", b"{a}", b"a b  c", b"\0", b"\xff\x00\xfe", b"%d %s", b"-", b"\r\n\r\n"]
EVERY_BYTE = bytes(range(256))


# -- what strangers left --------------------------------------------------------------------------


@pytest.mark.parametrize("found", [*FOREIGN, ETAG.encode(), f"{ETAG} shape".encode()])
def test_foreign_bytes_in_the_registry_are_stale(bare: Driver, found: bytes) -> None:
    bare.client.hset(bare.service.meta, "m", found)
    assert bare.call() == [b"stale"]
    assert bare.call(key=b"k") == [b"stale"]
    assert bare.length() == 0


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_cache_are_a_miss(lua: Driver, found: bytes) -> None:
    lua.client.set(lua.route().cache(b"k"), found)
    assert lua.call(key=b"k")[0] == b"queued"


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_flight_are_flown_over(lua: Driver, found: bytes) -> None:
    lua.client.set(lua.route().flight(b"k"), found)
    job = lua.queued(key=b"k")
    assert lua.flight(b"k") == (job, lua.generation(), "0")


def test_a_key_of_another_type_in_place_of_the_token_stops_no_call(lua: Driver) -> None:
    lua.client.set(lua.route().wake, "foreign")
    job = lua.queued(mode=Mode.RUN)
    assert lua.client.pttl(lua.route().queue) > 0
    assert lua.client.hexists(lua.route().pending, job)
    assert lua.taken().id == job


@pytest.mark.parametrize("found", FOREIGN)
@pytest.mark.parametrize("counter", ["hits", "joins", "queued"])
def test_foreign_bytes_in_a_counter_stop_no_call(lua: Driver, found: bytes, counter: str) -> None:
    lua.client.hset(lua.route().stats, counter, found)
    assert lua.call(key=b"k")[0] == b"queued"
    assert lua.call(key=b"k")[0] == b"joined"
    lua.finish(lua.taken())
    assert lua.call(key=b"k")[0] == b"hit"
    assert lua.client.hget(lua.route().stats, counter) == found


def test_a_flight_of_another_type_is_flown_over(lua: Driver) -> None:
    lua.client.zadd(lua.route().flight(b"k"), {"foreign": 1})
    job = lua.queued(key=b"k")
    assert lua.flight(b"k") == (job, lua.generation(), "0")


@pytest.mark.parametrize("place", ["meta", "queue", "cache"])
def test_a_key_of_another_type_is_refused_by_redis_and_nothing_is_enqueued(
    lua: Driver, place: str
) -> None:
    route = lua.route()
    places = {"cache": route.cache(b"k"), "queue": route.queue}
    key = places.get(place, lua.service.meta)
    lua.client.delete(key)
    lua.client.zadd(key, {"foreign": 1})
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.call(key=b"k")
    assert lua.tokens() == 0
    assert place == "queue" or lua.length() == 0


# -- stale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, b"k"])
def test_another_etag_is_stale_and_nothing_is_enqueued(lua: Driver, key: bytes | None) -> None:
    before = lua.all_keys()
    assert lua.call(key=key, mode=Mode.CALL, etag=OTHER_ETAG) == [b"stale"]
    assert lua.all_keys() == before


def test_a_method_that_is_not_published_is_stale(bare: Driver) -> None:
    assert bare.call(mode=Mode.CALL) == [b"stale"]
    assert bare.all_keys() == set()


def test_a_value_is_not_served_to_the_holder_of_another_etag(lua: Driver) -> None:
    lua.fill(b"k")
    assert lua.call(key=b"k", etag=OTHER_ETAG) == [b"stale"]


def test_who_blocks_already_gets_the_refusal_on_its_reply_list(lua: Driver) -> None:
    assert lua.call(job="mine", mode=Mode.WAIT, etag=OTHER_ETAG) == [b"stale"]
    assert lua.reply("mine") == [b"stale"]
    assert within(lua.reply_ttl("mine"), LEASE_MS)


def test_call_and_wait_in_one_write_always_end(lua: Driver) -> None:
    waiter = Waiter(lua, lua.service.wait_alone("mine", 20))
    lua.call(job="mine", mode=Mode.WAIT, etag=OTHER_ETAG)
    assert waiter.reply() == [lua.service.reply("mine").encode(), b"stale"]
    assert lua.reply("mine") == []


@pytest.mark.parametrize("mode", [Mode.CALL, Mode.RUN])
def test_who_does_not_block_gets_no_refusal_there(lua: Driver, mode: Mode) -> None:
    assert lua.call(job="mine", mode=mode, etag=OTHER_ETAG) == [b"stale"]
    assert lua.reply("mine") == []
    assert lua.pending() == {}


# -- hit ------------------------------------------------------------------------------------------


def test_a_value_is_served_without_a_worker(lua: Driver) -> None:
    lua.fill(b"k")
    assert lua.call(key=b"k") == [b"hit", f"{lua.generation()} 0\n".encode() + VALUE]
    assert (lua.length(), lua.tokens(), lua.flight(b"k")) == (0, 0, None)


@pytest.mark.parametrize("outcome", [b"m", b"m\n1 2\n", EVERY_BYTE])
def test_a_value_is_served_byte_for_byte(lua: Driver, outcome: bytes) -> None:
    lua.fill(b"k", outcome)
    assert lua.call(key=b"k")[1].partition(b"\n")[2] == outcome


def test_a_value_of_an_old_generation_is_a_miss(lua: Driver) -> None:
    lua.fill(b"k")
    lua.clear_all()
    assert lua.call(key=b"k")[0] == b"queued"


def test_a_hit_needs_no_room_and_no_worker(lua: Driver) -> None:
    lua.fill(b"k")
    lua.queued()
    assert lua.call(key=b"k", max_queue=1, fail_fast=True)[0] == b"hit"


def test_a_run_keeps_the_outcome_of_a_hit_on_its_reply_list(lua: Driver) -> None:
    lua.fill(b"k")
    assert lua.run(key=b"k", job="mine")[0] == b"hit"
    assert lua.reply("mine") == [VALUE]
    assert within(lua.reply_ttl("mine"), KEEP_MS)
    assert lua.pending() == {}


def test_a_call_leaves_nothing_behind_a_hit(lua: Driver) -> None:
    lua.fill(b"k")
    before = lua.all_keys()
    lua.call(key=b"k")
    assert lua.all_keys() == before


# -- miss -----------------------------------------------------------------------------------------


def test_a_miss_is_enqueued_with_a_token_and_the_time(lua: Driver) -> None:
    before = lua.now_ms()
    status, job, now = lua.call(key=b"k", job="mine")
    assert (status, job) == (b"queued", b"mine")
    assert before <= now <= lua.now_ms()
    assert (lua.length(), lua.tokens()) == (1, 1)
    assert lua.flight(b"k") == ("mine", lua.generation(), "0")
    assert lua.reply("mine") == []


def test_however_many_jobs_wait_there_is_one_token(lua: Driver) -> None:
    for _ in range(20):
        lua.queued()
    assert (lua.length(), lua.tokens()) == (20, 1)


def test_a_call_on_a_queue_whose_token_was_popped_adds_none(lua: Driver) -> None:
    lua.queued()
    assert lua.pop_token()
    lua.queued()
    assert lua.tokens() == 0


def test_a_token_that_a_lost_queue_left_behind_is_not_doubled(lua: Driver) -> None:
    lua.queued()
    lua.client.delete(lua.route().queue)
    lua.queued()
    assert lua.tokens() == 1


def test_the_entry_says_all_that_a_worker_needs(lua: Driver) -> None:
    now = lua.call(key=b"k", body=b"arguments", budget_ms=1234)[2]
    entry = lua.client.lindex(lua.route().queue, 0)
    expected = f"job-1 1 1 {now + 1234} {now} {ETAG} call {lua.generation()} 1 m\nkarguments"
    assert entry == expected.encode()


@pytest.mark.parametrize("key", [*ODD_BYTES, EVERY_BYTE, None])
@pytest.mark.parametrize("body", [*ODD_BYTES, EVERY_BYTE])
def test_odd_bytes_survive_in_the_queue(lua: Driver, key: bytes | None, body: bytes) -> None:
    lua.queued(key=key, body=body)
    job = lua.taken()
    assert (job.key, job.body) == (key, body)


@pytest.mark.parametrize("key", [*ODD_BYTES, EVERY_BYTE])
def test_odd_keys_have_values_of_their_own(lua: Driver, key: bytes) -> None:
    lua.fill(key, b"m" + key)
    assert lua.outcome(key) == b"m" + key
    assert lua.call(key=key)[0] == b"hit"
    assert lua.call(key=key + b"x")[0] == b"queued"
    assert lua.call(key=b"x" + key)[0] in (b"queued", b"joined")


@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.CALL, Mode.RUN])
def test_the_mode_of_the_caller_travels(lua: Driver, mode: Mode) -> None:
    lua.queued(mode=mode)
    assert lua.taken().mode is mode


def test_no_budget_is_no_deadline(lua: Driver) -> None:
    lua.queued(budget_ms=0)
    assert lua.taken().deadline_ms == 0


@pytest.mark.parametrize("budget_ms", [1, 10**9, 10**13, 10**16, 10**22])
def test_a_budget_of_any_size_is_a_deadline(lua: Driver, budget_ms: int) -> None:
    now = lua.call(budget_ms=budget_ms)[2]
    budget_ms = min(budget_ms, 10**13)  # three hundred years
    job = parse_job(lua.client.lindex(lua.route().queue, 0))
    assert job.deadline_ms == now + budget_ms
    claim = lua.take()
    assert budget_ms == 1 or (claim is not None and not claim.foreign)


@pytest.mark.parametrize(
    ("budget_ms", "life_ms"),
    [
        (1, 1 + LEASE_MS),
        (BUDGET_MS, BUDGET_MS + LEASE_MS),
        (FLIGHT_CAP_MS, FLIGHT_CAP_MS + LEASE_MS),
        (FLIGHT_CAP_MS * 10, FLIGHT_CAP_MS + LEASE_MS),
        (10**22, FLIGHT_CAP_MS + LEASE_MS),
        (0, FLIGHT_CAP_MS + LEASE_MS),
    ],
)
def test_a_flight_never_blocks_a_key_for_long(lua: Driver, budget_ms: int, life_ms: int) -> None:
    lua.queued(key=b"k", budget_ms=budget_ms)
    assert within(lua.ttl(lua.route().flight(b"k")), life_ms)


def test_a_method_without_a_cache_key_has_no_flight(lua: Driver) -> None:
    lua.queued()
    lua.queued()
    assert not [key for key in lua.all_keys() if b":flight:" in key]


@pytest.mark.parametrize("mode", [Mode.RUN, Mode.ASYNC])
def test_what_can_be_cancelled_is_pending(lua: Driver, mode: Mode) -> None:
    plain, keyed = lua.queued(mode=mode), lua.queued(mode=mode, key=b"k:{}\n")
    assert lua.pending() == {plain: b"", keyed: b"kk:{}\n"}


@pytest.mark.parametrize("budgets", [[BUDGET_MS], [0], [0, 1000], [1000, 0], [2000, 1000]])
def test_a_job_is_pending_for_as_long_as_its_queue_lives(lua: Driver, budgets: list[int]) -> None:
    for budget_ms in budgets:
        lua.run(budget_ms=budget_ms)
    life_ms = lua.ttl(lua.route().queue)
    assert (life_ms == -1) == (0 in budgets)
    assert abs(lua.ttl(lua.route().pending) - life_ms) < 1000


def test_notes_of_a_queue_that_is_gone_are_forgotten(lua: Driver) -> None:
    lua.run()
    lua.client.delete(lua.route().queue)
    job = lua.queued(mode=Mode.RUN, budget_ms=0)
    assert lua.pending() == {job: b""}
    assert lua.ttl(lua.route().pending) == -1
    lua.client.delete(lua.route().queue)
    lua.queued(mode=Mode.TOLD)
    assert lua.pending() == {}


def test_who_is_told_on_an_inbox_gets_a_brief_answer_and_refusals_nowhere_else(
    lua: Driver,
) -> None:
    route, before = lua.route(), lua.now_ms()
    now = lua.send(*route.call("token.1", b"body", mode=Mode.TOLD, budget_ms=0))
    assert before <= now <= lua.now_ms()
    job = lua.taken()
    assert (job.id, job.mode, job.enqueued_ms) == ("token.1", Mode.TOLD, now)
    for options in ({"etag": "?"}, {"fail_fast": True}):
        assert lua.call(mode=Mode.TOLD, job="token.2", **options) != [b"queued"]
    assert lua.reply("token.2") == []


@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.CALL, Mode.TOLD])
def test_what_its_caller_waits_for_is_not_pending(lua: Driver, mode: Mode) -> None:
    lua.queued(mode=mode)
    assert lua.pending() == {}


# -- a queue that nobody takes from ---------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.ASYNC, Mode.RUN])
def test_the_note_of_a_job_that_is_dropped_for_room_goes_with_it(lua: Driver, mode: Mode) -> None:
    lua.late(mode=mode)
    job = lua.queued(mode=mode, max_queue=1)
    assert lua.length() == 1
    assert lua.pending() == {job: b""}


def test_a_queue_expires_with_its_last_job(lua: Driver) -> None:
    grace = LEASE_MS + FLIGHT_CAP_MS
    lua.queued(budget_ms=60_000)
    assert within(lua.ttl(lua.route().queue), 60_000 + grace)
    lua.queued(budget_ms=1_000)
    assert within(lua.ttl(lua.route().queue), 60_000 + grace)
    lua.queued(budget_ms=600_000)
    assert within(lua.ttl(lua.route().queue), 600_000 + grace)


@pytest.mark.parametrize("budgets", [[0], [0, 1000], [1000, 0], [1000, 0, 2000]])
def test_a_queue_in_which_a_job_waits_for_ever_does_not_expire(
    lua: Driver, budgets: list[int]
) -> None:
    for budget_ms in budgets:
        lua.queued(budget_ms=budget_ms)
    assert lua.ttl(lua.route().queue) == -1


def test_a_queue_of_calls_that_were_given_up_does_not_grow(lua: Driver) -> None:
    for _ in range(150):
        lua.queued(budget_ms=1)
    assert lua.length() <= 102
    assert lua.tokens() == 1


def test_calls_that_were_given_up_take_no_room_under_the_limit(lua: Driver) -> None:
    for _ in range(3):
        lua.queued(budget_ms=1)
    last = parse_job(lua.client.lindex(lua.route().queue, -1))
    eventually(lambda: lua.now_ms() > last.deadline_ms)
    assert lua.call(max_queue=3)[0] == b"queued"
    assert lua.length() == 1
    assert lua.call(max_queue=1)[0] == b"full"


def test_who_still_waits_is_not_dropped_for_room(lua: Driver) -> None:
    lua.queued(budget_ms=60_000)
    lua.queued(budget_ms=0)
    lua.queued(key=b"k", budget_ms=1)  # it may have been joined
    assert lua.call(max_queue=3)[0] == b"full"
    assert lua.length() == 3


# -- join -----------------------------------------------------------------------------------------


def test_a_second_caller_joins_the_flight(lua: Driver) -> None:
    leader = lua.queued(key=b"k")
    assert lua.call(key=b"k") == [b"joined", leader.encode()]
    assert lua.flight(b"k") == (leader, lua.generation(), "1")
    assert (lua.length(), lua.tokens()) == (1, 1)


def test_however_many_join_one_job_runs(lua: Driver) -> None:
    leader = lua.queued(key=b"k")
    for _ in range(50):
        assert lua.call(key=b"k") == [b"joined", leader.encode()]
    assert lua.length() == 1
    assert lua.flight(b"k") == (leader, lua.generation(), "1")


def test_a_joiner_does_not_prolong_the_flight(lua: Driver) -> None:
    lua.queued(key=b"k", budget_ms=1000)
    lua.call(key=b"k", budget_ms=FLIGHT_CAP_MS)
    assert within(lua.ttl(lua.route().flight(b"k")), 1000 + LEASE_MS)


def test_a_run_joins_without_being_pending_itself(lua: Driver) -> None:
    leader = lua.queued(key=b"k")
    assert lua.run(key=b"k") == [b"joined", leader.encode()]
    assert lua.pending() == {}


def test_joining_needs_no_room(lua: Driver) -> None:
    lua.queued(key=b"k")
    assert lua.call(key=b"k", max_queue=1)[0] == b"joined"


def test_who_will_not_wait_for_a_worker_joins_nothing_where_there_is_none(lua: Driver) -> None:
    lua.queued(key=b"k")
    assert lua.call(key=b"k", fail_fast=True) == [b"no_workers"]
    assert lua.flight(b"k")[2] == "0"


def test_flights_of_other_keys_and_methods_are_not_joined(lua: Driver) -> None:
    lua.publish("other")
    lua.queued(key=b"k")
    assert lua.call(key=b"kk")[0] == b"queued"
    assert lua.call("other", key=b"k")[0] == b"queued"


def test_a_flight_of_an_old_generation_is_not_joined(lua: Driver) -> None:
    old = lua.queued(key=b"k")
    lua.clear_all()
    new = lua.queued(key=b"k")
    assert new != old
    assert lua.call(key=b"k") == [b"joined", new.encode()]


def test_a_flight_that_expired_is_not_joined(lua: Driver) -> None:
    lua.queued(key=b"k")
    lua.lose_flight(b"k")
    assert lua.call(key=b"k")[0] == b"queued"


def test_after_an_error_the_next_caller_runs_anew(lua: Driver) -> None:
    lua.queued(key=b"k")
    lua.finish(lua.taken(), ERROR)
    assert lua.call(key=b"k")[0] == b"queued"


# -- full, no workers -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, b"k"])
def test_a_full_queue_refuses_and_nothing_is_enqueued(lua: Driver, key: bytes | None) -> None:
    for _ in range(3):
        lua.queued(max_queue=3)
    before = lua.all_keys()
    assert lua.call(key=key, mode=Mode.CALL, max_queue=3) == [b"full"]
    assert lua.length() == 3
    assert lua.all_keys() == before


def test_a_full_queue_tells_who_blocks_already(lua: Driver) -> None:
    lua.queued()
    assert lua.call(job="mine", max_queue=1) == [b"full"]
    assert lua.reply("mine") == [b"full"]


def test_a_queue_that_was_full_takes_jobs_again(lua: Driver) -> None:
    lua.queued(max_queue=1)
    lua.taken()
    assert lua.call(max_queue=1)[0] == b"queued"


def test_a_run_that_is_refused_is_not_pending(lua: Driver) -> None:
    lua.queued()
    assert lua.run(max_queue=1, key=b"k") == [b"full"]
    assert lua.pending() == {}
    assert lua.flight(b"k") is None


@pytest.mark.parametrize("key", [None, b"k"])
def test_without_a_worker_fail_fast_refuses(lua: Driver, key: bytes | None) -> None:
    before = lua.all_keys()
    assert lua.call(key=key, mode=Mode.CALL, fail_fast=True) == [b"no_workers"]
    assert lua.all_keys() == before


def test_without_a_worker_who_blocks_already_is_told(lua: Driver) -> None:
    assert lua.call(job="mine", fail_fast=True) == [b"no_workers"]
    assert lua.reply("mine") == [b"no_workers"]


def test_without_a_worker_a_call_waits_unless_it_fails_fast(lua: Driver) -> None:
    assert lua.call()[0] == b"queued"


def test_with_a_worker_alive_fail_fast_is_enqueued(lua: Driver) -> None:
    lua.beat()
    assert lua.call(fail_fast=True)[0] == b"queued"


def test_a_worker_of_another_method_does_not_count(lua: Driver) -> None:
    lua.publish("other")
    lua.beat(methods=["other"])
    assert lua.call(fail_fast=True, mode=Mode.CALL) == [b"no_workers"]


def test_a_worker_whose_lease_ended_does_not_count(lua: Driver) -> None:
    lua.client.zadd(lua.route().serving, {"dead": lua.now_ms() - 1})
    assert lua.call(fail_fast=True, mode=Mode.CALL) == [b"no_workers"]


@pytest.mark.parametrize("key", [None, b"k"])
def test_one_worker_can_be_left_out_of_those_that_serve(lua: Driver, key: bytes | None) -> None:
    def call() -> object:
        return lua.call(key=key, mode=Mode.CALL, but="busy")[0]

    lua.beat("busy")
    before = lua.all_keys()
    assert call() == b"no_workers"
    assert lua.all_keys() == before
    lua.client.zadd(lua.route().serving, {"dead": lua.now_ms() - 1})
    assert call() == b"no_workers"
    lua.beat("other")
    assert call() == b"queued"


@pytest.mark.parametrize("others", [[], ["other"]])
def test_where_the_worker_left_out_is_not_listed_itself_others_may_be_alive(
    lua: Driver, others: list[str]
) -> None:
    """The list was evicted, or Redis stood still: it tells nothing."""
    lua.client.zadd(lua.route().serving, {"busy": lua.now_ms() - 1})
    for other in others:
        lua.client.zadd(lua.route().serving, {other: lua.now_ms() + 60_000})
    assert lua.call(mode=Mode.CALL, but="busy")[0] == b"queued"


def test_a_run_or_a_call_that_joins_keeps_the_queue_as_long_as_it_waits(lua: Driver) -> None:
    queue = lua.route().queue
    lua.queued(key=b"k", budget_ms=1000)
    first = lua.ttl(queue)
    lua.call(key=b"k", budget_ms=50_000)
    assert lua.ttl(queue) > first + 40_000
    lua.run(key=b"k", budget_ms=0)
    assert lua.ttl(queue) == -1


def test_a_worker_that_does_not_serve_it_may_be_left_out(lua: Driver) -> None:
    lua.beat("other")
    assert lua.call(but="busy")[0] == b"queued"


# -- where memory is full -------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, b"k"])
@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.CALL, Mode.RUN])
def test_what_would_be_enqueued_is_refused_where_memory_is_full_and_nothing_changes(
    lua: Driver, key: bytes | None, mode: Mode
) -> None:
    before = (lua.all_keys(), lua.stats())
    with lua.memory_full(), pytest.raises(redis.ResponseError, match="maxmemory"):
        lua.call(key=key, mode=mode, max_queue=1)
    assert (lua.all_keys(), lua.stats()) == before
    assert lua.call(key=key, mode=mode, max_queue=1)[0] == b"queued"


def test_what_would_be_joined_is_refused_where_memory_is_full_and_nothing_changes(
    lua: Driver,
) -> None:
    leader = lua.queued(key=b"k")
    before = (lua.all_keys(), lua.stats())
    with lua.memory_full(), pytest.raises(redis.ResponseError, match="maxmemory"):
        lua.call(key=b"k")
    assert (lua.all_keys(), lua.stats()) == before
    assert lua.flight(b"k") == (leader, lua.generation(), "0")


def test_a_hit_is_served_where_memory_is_full(lua: Driver) -> None:
    lua.fill(b"k")
    with lua.memory_full():
        assert lua.call(key=b"k")[0] == b"hit"


# -- past the soft expiry -------------------------------------------------------------------------


@pytest.fixture
def stale(lua: Driver) -> Driver:
    """The value of 'k' is past its soft expiry."""
    lua.fill(b"k", stale_ms=10_000)
    lua.make_stale(b"k")
    return lua


def test_before_the_soft_expiry_nothing_is_refreshed(lua: Driver) -> None:
    lua.fill(b"k", stale_ms=10_000)
    assert lua.call(key=b"k")[0] == b"hit"
    assert lua.length() == 0


def test_a_stale_value_is_served_and_one_refresh_is_enqueued(stale: Driver) -> None:
    for _ in range(10):
        assert stale.call(key=b"k")[1].endswith(VALUE)
    assert (stale.length(), stale.tokens()) == (1, 1)


def test_a_refresh_is_a_job_of_its_own_with_the_arguments(stale: Driver) -> None:
    stale.call(key=b"k", job="mine", body=b"arguments")
    job = stale.taken()
    assert (job.id, job.mode, job.key, job.body) == ("miner", Mode.REFRESH, b"k", b"arguments")
    assert stale.flight(b"k") == ("miner", stale.generation(), "0")
    assert stale.pending() == {}


def test_a_stale_hit_of_a_run_keeps_its_outcome_and_is_refreshed(stale: Driver) -> None:
    assert stale.run(key=b"k", job="mine")[0] == b"hit"
    assert stale.reply("mine") == [VALUE]
    assert stale.pending() == {}
    assert stale.taken().mode is Mode.REFRESH


def test_a_refresh_replaces_the_value_and_leaves_no_reply(stale: Driver) -> None:
    stale.call(key=b"k")
    job = stale.taken()
    assert stale.finish(job, b"mfresh", stale_ms=10_000) == b"done"
    assert stale.reply(job.id) == []
    assert stale.call(key=b"k")[1].endswith(b"mfresh")
    assert stale.length() == 0


def test_a_refresh_that_fails_keeps_the_stale_value_and_is_tried_again(stale: Driver) -> None:
    stale.call(key=b"k")
    stale.finish(stale.taken(), ERROR)
    assert stale.call(key=b"k")[1].endswith(VALUE)
    assert stale.length() == 1


def test_a_full_queue_serves_the_stale_value_without_a_refresh(stale: Driver) -> None:
    stale.queued()
    assert stale.call(key=b"k", max_queue=1)[0] == b"hit"
    assert stale.length() == 1
    assert stale.flight(b"k") is None


def test_without_a_worker_a_stale_value_is_served(stale: Driver) -> None:
    assert stale.call(key=b"k", fail_fast=True)[0] == b"hit"


def test_a_stale_value_whose_flight_is_of_an_old_generation_is_refreshed(stale: Driver) -> None:
    stale.client.set(stale.route().flight(b"k"), "old 123 0")
    assert stale.call(key=b"k")[0] == b"hit"
    assert stale.length() == 1


def test_a_stale_value_does_not_outlive_its_expiry(stale: Driver) -> None:
    stale.call(key=b"k")
    assert within(stale.ttl(stale.route().cache(b"k")), EXPIRE_MS + 10_000)


# -- statistics, and being sent twice -------------------------------------------------------------


def test_calls_are_counted_by_what_became_of_them(lua: Driver) -> None:
    lua.queued(key=b"k")
    lua.call(key=b"k")
    lua.call(key=b"k")
    lua.finish(lua.taken(), stale_ms=10_000)
    lua.call(key=b"k")
    lua.make_stale(b"k")
    lua.call(key=b"k")
    lua.call(key=b"k")
    counts = lua.stats()
    assert (counts["queued"], counts["joins"], counts["hits"]) == (1, 2, 3)


def test_refusals_are_not_counted_as_calls(lua: Driver) -> None:
    lua.call(etag=OTHER_ETAG)
    lua.call(fail_fast=True)
    assert lua.stats() == {}


def test_sent_twice_a_keyed_call_joins_its_own_flight(lua: Driver) -> None:
    lua.queued(key=b"k", job="mine")
    assert lua.call(key=b"k", job="mine") == [b"joined", b"mine"]
    assert lua.length() == 1


@pytest.mark.parametrize("found", [b"foreign", b"m\x03", b"", b"1 2 3\n", b"\xff\xfe"])
def test_who_finds_bytes_that_are_not_ours_is_told(lua: Driver, found: bytes) -> None:
    lua.client.set(lua.route().cache(b"k"), found)
    assert lua.call(key=b"k")[3:] == [1]
    assert lua.call(key=b"other")[3:] == []
