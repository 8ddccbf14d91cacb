from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.commands import HOLD_MS, LEASE_MS
from tests.lua.driver import FOREIGN, VALUE, Driver, within


def lease_ends(lua: Driver, key: str) -> dict[str, float]:
    return {worker.decode(): end for worker, end in lua.client.zrange(key, 0, -1, withscores=True)}


# -- what strangers left --------------------------------------------------------------------------


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_a_flight_are_not_renewed(lua: Driver, found: bytes) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    lua.client.set(lua.route().flight(b"k"), found)
    assert lua.beat(flights=[job]) == 0
    assert lua.ttl(lua.route().flight(b"k")) == -1


@pytest.mark.parametrize("found", FOREIGN)
def test_strangers_among_the_workers_die_like_them(lua: Driver, found: bytes) -> None:
    lua.client.zadd(lua.route().serving, {found: 1})
    assert lua.beat() == 0
    assert list(lease_ends(lua, lua.route().serving)) == ["w"]


def test_workers_of_another_type_are_refused_by_redis(lua: Driver) -> None:
    lua.client.set(lua.route().serving, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.beat()


# -- leases ---------------------------------------------------------------------------------------


def test_a_worker_is_alive_for_a_lease(lua: Driver) -> None:
    lua.publish("other")
    before = lua.now_ms()
    assert lua.beat(methods=["m", "other"]) == 0
    after = lua.now_ms()
    places = [lua.service.workers, lua.route().serving, lua.route("other").serving]
    for key in places:
        ends = lease_ends(lua, key)
        assert list(ends) == ["w"]
        assert before + LEASE_MS <= ends["w"] <= after + LEASE_MS


def test_sent_twice_it_renews_twice(lua: Driver) -> None:
    lua.beat()
    first = lease_ends(lua, lua.route().serving)["w"]
    lua.pass_by(lua.now_ms() + 1)
    lua.beat()
    assert lease_ends(lua, lua.route().serving)["w"] > first
    assert lease_ends(lua, lua.service.workers)["w"] > first


def test_a_worker_that_leaves_is_gone_at_once(lua: Driver) -> None:
    lua.beat("stays")
    lua.beat("leaves")
    assert lua.leave("leaves") == 0
    assert list(lease_ends(lua, lua.route().serving)) == ["stays"]
    assert list(lease_ends(lua, lua.service.workers)) == ["stays"]


def test_the_last_worker_that_leaves_leaves_no_keys(lua: Driver) -> None:
    before = lua.all_keys()
    lua.beat()
    lua.leave()
    assert lua.all_keys() == before


def test_a_worker_that_leaves_while_it_holds_jobs_is_given_up_at_once(lua: Driver) -> None:
    job = lua.queued()
    lua.beat()
    lua.take()
    lua.leave()
    assert lease_ends(lua, lua.service.workers) == {"w": 0}
    assert lease_ends(lua, lua.route().serving) == {}
    lua.client.delete(lua.service.swept)
    assert lua.sweep()[1] == [b"w"]  # there is no grace for it
    assert set(lua.held()) == {job.encode()}


def test_a_worker_that_left_and_beats_again_is_alive(lua: Driver) -> None:
    lua.queued()
    lua.take()
    lua.leave()
    lua.beat()
    assert lease_ends(lua, lua.service.workers)["w"] > lua.now_ms()


def test_what_nobody_serves_any_more_is_forgotten(lua: Driver) -> None:
    lua.beat()
    assert within(lua.ttl(lua.route().serving), HOLD_MS)
    lua.client.pexpire(lua.route().serving, 1_000)
    lua.leave("other")
    assert lua.ttl(lua.route().serving) <= 1_000
    lua.beat("other")
    assert within(lua.ttl(lua.route().serving), HOLD_MS)


def test_it_renews_where_memory_is_full(lua: Driver) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    lua.queued()
    lua.pop_token()
    lua.end_lease()
    lua.client.pexpire(lua.route().flight(b"k"), 1_000)
    with lua.memory_full():
        assert lua.beat(flights=[job]) == 1
        assert lua.beat("new") == 0
    assert lua.tokens() == 1
    assert within(lua.ttl(lua.route().flight(b"k")), HOLD_MS)
    for key in (lua.service.workers, lua.route().serving):
        assert all(ends > lua.now_ms() for ends in lease_ends(lua, key).values())
        assert set(lease_ends(lua, key)) == {"w", "new"}
    with lua.memory_full():
        lua.leave()
    assert lease_ends(lua, lua.service.workers)["w"] == 0


def test_dead_workers_are_dropped_from_what_is_served(lua: Driver) -> None:
    now = lua.now_ms()
    lua.client.zadd(lua.route().serving, {"dead": now - 1, "alive": now + 60_000})
    lua.beat()
    assert sorted(lease_ends(lua, lua.route().serving)) == ["alive", "w"]


def test_only_what_a_worker_serves_is_said_to_be_served(lua: Driver) -> None:
    lua.publish("other")
    lua.beat(methods=["other"])
    assert lease_ends(lua, lua.route().serving) == {}


# -- wake tokens ----------------------------------------------------------------------------------


def test_a_lost_token_is_put_back_and_counted(lua: Driver) -> None:
    for method in "abc":
        lua.publish(method)
        lua.queued(method)
    lua.pop_token("a")
    lua.pop_token("c")
    assert lua.beat(methods="abc") == 2
    assert [lua.tokens(method) for method in "abc"] == [1, 1, 1]
    assert lua.beat(methods="abc") == 0
    assert [lua.tokens(method) for method in "abc"] == [1, 1, 1]


def test_an_empty_queue_gets_no_token(lua: Driver) -> None:
    assert lua.beat() == 0
    assert lua.tokens() == 0


def test_who_leaves_puts_lost_tokens_back_too(lua: Driver) -> None:
    lua.queued()
    lua.pop_token()
    assert lua.leave() == 1
    assert lua.tokens() == 1


# -- flights --------------------------------------------------------------------------------------


def test_the_flight_of_a_running_job_lives_on(lua: Driver) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    lua.client.pexpire(lua.route().flight(b"k"), 1000)
    lua.beat(flights=[job])
    assert within(lua.ttl(lua.route().flight(b"k")), HOLD_MS)
    assert lua.ttl(lua.route().flight(b"k")) > 1000


def test_the_flight_of_another_job_is_not_renewed(lua: Driver) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    lua.clear(b"k")
    lua.queued(key=b"k")
    lua.client.pexpire(lua.route().flight(b"k"), 1000)
    lua.beat(flights=[job])
    assert lua.ttl(lua.route().flight(b"k")) <= 1000


def test_each_flight_is_matched_with_its_own_job(lua: Driver) -> None:
    lua.publish("other")
    keys = [b"k1", b"k2", b"k3"]
    for key in keys:
        lua.queued(key=key)
    jobs = [lua.taken() for _ in keys]
    lua.clear(b"k2")
    lua.queued(key=b"k2")
    for key in keys:
        lua.client.pexpire(lua.route().flight(key), 1000)
    lua.beat(methods=["m", "other"], flights=jobs)
    assert [lua.ttl(lua.route().flight(key)) > 1000 for key in keys] == [True, False, True]


def test_a_flight_that_was_cleared_does_not_come_back(lua: Driver) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    lua.clear(b"k")
    lua.beat(flights=[job])
    assert lua.flight(b"k") is None
    lua.finish(job)
    assert lua.entry(b"k") is None
    assert lua.reply(job.id) == [VALUE]
