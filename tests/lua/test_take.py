from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import redis

from redis_bus.errors import ProtocolError
from redis_bus.protocol.commands import LEASE_MS, MOST_TAKEN, Claim
from redis_bus.protocol.entries import Mode, parse_job
from tests.lua.driver import ETAG, FOREIGN, Driver

HEAD = f"job 1 1 0 1 {ETAG} run 1"
# Entries that a worker could not run: each part of the line, and the key, broken in turn.
BROKEN = [
    *FOREIGN,
    b"body without a line",
    f"{HEAD}\n".encode(),
    f"{HEAD} - m".encode(),
    f"{HEAD} 3 m\nab".encode(),
    f"{HEAD} 1-2 m\nab".encode(),
    f"{HEAD} -1 m\nab".encode(),
    f"{HEAD} -- m\nab".encode(),
    f"{HEAD} x m\nab".encode(),
    f"job one 1 0 1 {ETAG} run 1 - m\n".encode(),
    f"job 1 1 soon 1 {ETAG} run 1 - m\n".encode(),
    f"job 1 1 -1 1 {ETAG} run 1 - m\n".encode(),
    f"job 1 1 0 1 {ETAG} fly 1 - m\n".encode(),
    f"job 1 1 0 1 {ETAG}  1 - m\n".encode(),
    f" 1 1 0 1 {ETAG} run 1 - m\n".encode(),
    f"\xff 1 1 0 1 {ETAG} run 1 - m\n".encode("latin-1"),
    b"job 1 1 0 1 \xff run 1 - m\n",
    f"job 1 1 0 1 {ETAG} run 1 - two words\n".encode(),
    f"job 1 0 1 {ETAG} run 1 -\n".encode(),
]


@pytest.fixture
def three(lua: Driver) -> Driver:
    """A service with the methods 'a', 'b' and 'c' published."""
    for method in "abc":
        lua.publish(method)
    return lua


@st.composite
def broken_entries(draw: st.DrawFn) -> bytes:
    """A good entry with some of its bytes replaced."""
    entry = f"job 1 3 0 1 {ETAG} call 1 12 m\na/key/of/12.body".encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(entry)))
        end = draw(st.integers(start, min(start + 4, len(entry))))
        entry = entry[:start] + draw(st.binary(max_size=3)) + entry[end:]
    return entry


def put(lua: Driver, *entries: bytes) -> None:
    lua.client.rpush(lua.route().queue, *entries)
    lua.client.rpush(lua.route().wake, 1)


# -- what strangers left --------------------------------------------------------------------------


@pytest.mark.parametrize("entry", BROKEN)
def test_foreign_bytes_come_back_and_are_not_claimed(lua: Driver, entry: bytes) -> None:
    put(lua, entry)
    claim = lua.take()
    assert claim is not None
    assert (claim.foreign, claim.entry, claim.route.method) == (True, entry, "m")
    assert lua.claims() == []
    assert (lua.length(), lua.tokens()) == (0, 0)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(entry=broken_entries())
def test_what_take_claims_a_worker_can_read(lua: Driver, entry: bytes) -> None:
    lua.client.delete(lua.route().queue, lua.route().wake, lua.service.running("w"))
    put(lua, entry)
    claim = lua.take()
    if claim is not None and not claim.foreign:
        assert [parse_job(claim.entry).id] == lua.claims()


def test_jobs_behind_foreign_bytes_are_taken_next(lua: Driver) -> None:
    put(lua, b"foreign", b"foreign")
    job = lua.queued()
    assert [claim.foreign for claim in [lua.take(), lua.take()] if claim] == [True, True]
    assert lua.tokens() == 1
    assert lua.taken().id == job


def test_foreign_bytes_say_in_which_queue_they_were(three: Driver) -> None:
    route = three.route("b")
    three.client.rpush(route.queue, b"foreign")
    claim = three.take(methods="abc")
    assert claim is not None
    assert (claim.foreign, claim.route.method) == (True, "b")


def test_what_take_claims_has_the_index_of_its_method(three: Driver) -> None:
    three.queued("c")
    post = three.post("w", "abc")
    assert three.send(*post.take(post.routes))[0] == 3


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("order", ["abc", "bca", "cab"])
def test_a_queue_of_another_type_counts_as_empty_and_hides_no_other(
    three: Driver, order: str, token: bool
) -> None:
    three.client.set(three.route("b").queue, "foreign")
    if token:
        three.client.rpush(three.route("b").wake, 1)
    assert three.take(methods=order) is None
    jobs = {three.queued("a"), three.queued("c")}
    assert {three.taken(methods=order).id for _ in jobs} == jobs
    assert three.take(methods=order) is None
    assert three.client.get(three.route("b").queue) == b"foreign"
    assert three.tokens("b") <= 1


def test_claims_of_another_type_are_refused_by_redis(lua: Driver) -> None:
    lua.queued()
    lua.client.set(lua.service.running("w"), "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.take()


# -- order and claims -----------------------------------------------------------------------------


def test_nothing_is_taken_where_nothing_waits(lua: Driver) -> None:
    before = lua.all_keys()
    assert lua.take() is None
    assert lua.all_keys() == before


def test_jobs_are_taken_in_the_order_they_came(lua: Driver) -> None:
    jobs = [lua.queued() for _ in range(5)]
    assert [lua.taken().id for _ in range(5)] == jobs
    assert lua.take() is None


def test_a_job_is_claimed_for_the_worker_that_took_it(lua: Driver) -> None:
    job = lua.queued()
    entry = lua.client.lindex(lua.route().queue, 0)
    claim = lua.take("w1")
    assert claim is not None
    assert claim.entry == entry
    assert lua.client.hgetall(lua.service.running("w1")) == {job.encode(): entry}
    assert lua.claims("w2") == []


def test_sent_twice_it_claims_a_second_job(lua: Driver) -> None:
    jobs = [lua.queued(), lua.queued()]
    lua.take()
    lua.take()
    assert lua.claims() == jobs


def test_it_tells_the_time_of_the_server(lua: Driver) -> None:
    lua.queued()
    before = lua.now_ms()
    claim = lua.take()
    assert claim is not None
    assert before <= claim.now_ms <= lua.now_ms()


def test_the_preferred_method_is_first(three: Driver) -> None:
    for method in "abc":
        three.queued(method)
    for order in ["bca", "cab"]:
        claim = three.take(methods=order)
        assert claim is not None
        assert claim.route.method == order[0]


def test_a_rotating_worker_lets_no_busy_queue_starve_the_rest(three: Driver) -> None:
    for _ in range(6):
        three.queued("a")
    three.queued("b")
    three.queued("c")
    taken = [three.taken(methods=order).etag and order for order in ["abc", "bca", "cab"]]
    assert taken == ["abc", "bca", "cab"]
    assert [three.length(method) for method in "abc"] == [5, 0, 0]


def test_methods_that_the_worker_does_not_serve_are_left(three: Driver) -> None:
    three.queued("a")
    assert three.take(methods="bc") is None
    assert (three.length("a"), three.tokens("a")) == (1, 1)


# -- several at a time ----------------------------------------------------------------------------


def methods_of(claims: list[Claim]) -> list[str]:
    return [claim.route.method for claim in claims]


def test_with_a_limit_it_claims_so_many_in_the_order_they_came(lua: Driver) -> None:
    jobs = [lua.queued() for _ in range(5)]
    claims = lua.take_many(3)
    assert [parse_job(claim.entry).id for claim in claims] == jobs[:3]
    assert sorted(lua.claims()) == sorted(jobs[:3])
    assert (lua.length(), lua.tokens()) == (2, 1)
    assert [parse_job(claim.entry).id for claim in lua.take_many(9)] == jobs[3:]
    assert (lua.length(), lua.tokens()) == (0, 0)
    assert lua.take_many(9) == []


def test_with_a_limit_it_goes_on_with_the_next_method_and_leaves_the_rest_a_token(
    three: Driver,
) -> None:
    for method in "aabbbcc":
        three.queued(method)
    for method in "abc":
        three.pop_token(method)
    assert methods_of(three.take_many(3, methods="abc")) == ["a", "a", "b"]
    assert [three.length(method) for method in "abc"] == [0, 2, 2]
    assert [three.tokens(method) for method in "abc"] == [0, 1, 1]
    assert methods_of(three.take_many(3, methods="cab")) == ["c", "c", "b"]
    assert [three.tokens(method) for method in "abc"] == [0, 1, 0]


def test_with_a_limit_queues_without_a_token_come_first(three: Driver) -> None:
    for method in "aabbc":
        three.queued(method)
    three.pop_token("b")
    assert methods_of(three.take_many(3, methods="abc")) == ["b", "b", "a"]
    assert [three.tokens(method) for method in "abc"] == [1, 0, 1]


def test_with_a_limit_foreign_bytes_are_among_the_jobs(three: Driver) -> None:
    three.queued("b")
    three.client.rpush(three.route("b").queue, b"foreign")
    job = three.queued("b")
    claims = three.take_many(9, methods="abc")
    assert [claim.foreign for claim in claims] == [False, True, False]
    assert methods_of(claims) == ["b", "b", "b"]
    assert job in three.claims() and len(three.claims()) == 2


def test_with_a_limit_late_and_cancelled_jobs_count_for_nothing(lua: Driver) -> None:
    lua.late()
    cancelled = lua.queued(mode=Mode.RUN)
    lua.client.hset(lua.route().pending, cancelled, "-")
    jobs = [lua.queued(), lua.queued()]
    assert [parse_job(claim.entry).id for claim in lua.take_many(2)] == jobs


def test_the_most_that_are_taken_at_a_time_can_be_taken(lua: Driver) -> None:
    jobs = [lua.queued() for _ in range(MOST_TAKEN)]
    assert len(lua.take_many(MOST_TAKEN)) == len(jobs)
    assert len(lua.claims()) == len(jobs)


@pytest.mark.parametrize("reply", [b"OK", 1, [b"x"], [[1, b"entry"]]])
def test_other_answers_to_a_take_are_refused(lua: Driver, reply: object) -> None:
    post = lua.post("w", ["m"])
    with pytest.raises(ProtocolError, match="take answered"):
        post.parse_taken(reply, post.routes)


# -- leases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends_ms", [None, 0])
def test_a_claim_renews_the_lease(lua: Driver, ends_ms: int | None) -> None:
    lua.end_lease("w", ends_ms)
    lua.queued()
    before = lua.now_ms()
    lua.taken()
    assert before + LEASE_MS <= lua.lease_ends()["w"] <= lua.now_ms() + LEASE_MS


def test_a_worker_that_nobody_knows_is_known_by_its_claim(lua: Driver) -> None:
    lua.queued()
    lua.taken("new")
    assert list(lua.lease_ends()) == ["new"]


def test_without_a_claim_no_lease_is_renewed(lua: Driver) -> None:
    lua.end_lease(ends_ms=1)
    assert lua.take() is None
    lua.client.rpush(lua.route().queue, "foreign")
    claim = lua.take()
    assert claim is not None
    assert claim.foreign
    assert lua.lease_ends() == {"w": 1}


def test_it_claims_where_memory_is_full(three: Driver) -> None:
    jobs = [three.queued("a", mode=Mode.RUN), three.queued("a"), three.queued("b")]
    three.pop_token("a")
    three.pop_token("b")
    with three.memory_full():
        assert [three.taken(methods="abc").id for _ in jobs] == jobs
    assert three.claims() == jobs
    assert [three.tokens(method) for method in "abc"] == [0, 0, 0]


# -- what is dropped on the way -------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.WAIT, Mode.ASYNC, Mode.TOLD, Mode.RUN])
def test_a_job_that_nobody_waits_for_any_more_is_dropped(lua: Driver, mode: Mode) -> None:
    lua.late(mode=mode)
    assert lua.take() is None
    assert (lua.claims(), lua.length(), lua.tokens(), lua.pending()) == ([], 0, 0, {})


def test_the_job_behind_late_ones_is_taken(lua: Driver) -> None:
    lua.late()
    lua.late()
    job = lua.queued()
    lua.queued()
    assert lua.taken().id == job
    assert (lua.length(), lua.tokens()) == (1, 1)


def test_a_late_job_that_others_may_have_joined_is_left_for_admit(lua: Driver) -> None:
    job = lua.late(key=b"k")
    assert lua.taken().id == job
    assert lua.claims() == [job]


def test_a_job_without_a_deadline_is_never_late(lua: Driver) -> None:
    job = lua.queued(budget_ms=0)
    assert lua.taken().id == job


@pytest.mark.parametrize("mode", [Mode.ASYNC, Mode.TOLD, Mode.RUN])
@pytest.mark.parametrize("key", [None, b"k"])
def test_a_cancelled_job_that_waits_still_is_passed_over(
    lua: Driver, key: bytes | None, mode: Mode
) -> None:
    cancelled = lua.queued(mode=mode, key=key)
    job = lua.queued()
    lua.client.hset(lua.route().pending, cancelled, "-")
    assert lua.taken().id == job
    assert lua.claims() == [job]
    assert lua.pending() == {}


@pytest.mark.parametrize("mode", [Mode.ASYNC, Mode.RUN])
def test_a_job_that_is_taken_cannot_be_cancelled_any_more(lua: Driver, mode: Mode) -> None:
    job = lua.queued(mode=mode)
    lua.taken()
    assert lua.pending() == {}
    assert lua.cancel(job) == b"late"


def test_a_run_whose_note_was_lost_still_runs(lua: Driver) -> None:
    jobs = [lua.queued(mode=Mode.RUN), lua.queued(mode=Mode.RUN, key=b"k")]
    lua.client.delete(lua.route().pending)
    assert [lua.taken().id for _ in jobs] == jobs


def test_who_only_waits_is_not_dropped_for_being_not_pending(lua: Driver) -> None:
    jobs = [lua.queued(), lua.queued(key=b"k")]
    assert [lua.taken().id for _ in jobs] == jobs


def test_queues_of_nothing_but_dropped_jobs_hide_no_other_queue(three: Driver) -> None:
    three.late("a")
    three.late("b")
    job = three.queued("c")
    assert three.taken(methods="abc").id == job
    assert [three.tokens(method) for method in "abc"] == [0, 0, 0]


# -- wake tokens ----------------------------------------------------------------------------------


def test_who_popped_the_token_puts_it_back_while_more_wait(lua: Driver) -> None:
    for _ in range(3):
        lua.queued()
    left = []
    for _ in range(3):
        assert lua.pop_token()
        lua.taken()
        left.append(lua.tokens())
    assert left == [1, 1, 0]


def test_who_took_without_a_token_takes_the_last_one_away(lua: Driver) -> None:
    lua.queued()
    lua.queued()
    lua.take()
    assert lua.tokens() == 1
    lua.take()
    assert lua.tokens() == 0


def test_a_queue_that_waits_without_a_token_is_preferred(three: Driver) -> None:
    for method in "abc":
        three.queued(method)
    assert three.pop_token("c")
    claim = three.take(methods="abc")
    assert claim is not None
    assert claim.route.method == "c"


def test_a_queue_that_another_worker_emptied_costs_nothing(three: Driver) -> None:
    three.queued("a")
    three.queued("b")
    assert three.pop_token("a")
    three.taken("quick", "a")
    assert three.taken("slow", "abc").id
    assert three.take("slow", "abc") is None


def test_a_worker_of_fewer_methods_never_strands_the_queue_of_another(three: Driver) -> None:
    for method in "ab":
        three.queued(method)
        three.queued(method)
    assert three.pop_token("b")  # a worker of both
    assert three.pop_token("a")  # a worker of 'a' only
    three.taken("both", "ab")
    three.taken("few", "a")
    for method in "ab":
        assert three.length(method) == 0 or three.tokens(method) == 1
