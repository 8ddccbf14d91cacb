from __future__ import annotations

import pytest
import redis

from tests.lua.driver import FOREIGN, OTHER_ETAG, OTHER_VALUE, VALUE, Driver


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_cache_are_no_value_and_vanish(lua: Driver, found: bytes) -> None:
    lua.client.set(lua.route().cache(b"k"), found)
    assert lua.clear(b"k") == b"nothing"
    assert lua.entry(b"k") is None


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_flight_vanish(lua: Driver, found: bytes) -> None:
    lua.client.set(lua.route().flight(b"k"), found)
    assert lua.clear(b"k") == b"nothing"
    assert lua.client.exists(lua.route().flight(b"k")) == 0


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_registry_are_stale(lua: Driver, found: bytes) -> None:
    lua.client.hset(lua.service.meta, "m", found)
    assert lua.clear(b"k") == b"stale"


def test_a_cache_of_another_type_is_refused_by_redis(lua: Driver) -> None:
    lua.client.rpush(lua.route().cache(b"k"), "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.clear(b"k")


def test_a_value_is_forgotten_and_its_neighbour_is_not(lua: Driver) -> None:
    lua.fill(b"k")
    lua.fill(b"kk")
    assert lua.clear(b"k") == b"cleared"
    assert lua.call(key=b"k")[0] == b"queued"
    assert lua.call(key=b"kk")[0] == b"hit"


def test_sent_twice_it_finds_nothing_the_second_time(lua: Driver) -> None:
    lua.fill(b"k")
    assert lua.clear(b"k") == b"cleared"
    assert lua.clear(b"k") == b"nothing"


def test_a_value_past_its_soft_expiry_would_have_been_served(lua: Driver) -> None:
    lua.fill(b"k", stale_ms=10_000)
    lua.make_stale(b"k")
    assert lua.clear(b"k") == b"cleared"


def test_a_value_of_an_old_generation_would_not_have_been_served(lua: Driver) -> None:
    lua.fill(b"k")
    lua.clear_all()
    assert lua.clear(b"k") == b"nothing"
    assert lua.entry(b"k") is None


def test_another_etag_is_told_so_and_clears_nothing(lua: Driver) -> None:
    lua.fill(b"k")
    assert lua.clear(b"k", etag=OTHER_ETAG) == b"stale"
    assert lua.outcome(b"k") == VALUE


def test_a_method_that_is_not_published_is_stale(bare: Driver) -> None:
    assert bare.clear(b"k") == b"stale"


def test_clear_during_a_flight_never_stores_the_old_value(lua: Driver) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    assert lua.clear(b"k") == b"nothing"
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]
    assert lua.entry(b"k") is None


def test_a_call_after_a_clear_does_not_join_the_old_flight(lua: Driver) -> None:
    old = lua.queued(key=b"k")
    lua.clear(b"k")
    assert lua.queued(key=b"k") != old


def test_after_a_clear_the_new_flight_is_left_to_its_own_job(lua: Driver) -> None:
    lua.queued(key=b"k")
    old = lua.taken()
    lua.clear(b"k")
    lua.queued(key=b"k")
    new = lua.taken()
    assert lua.finish(old, VALUE) == b"done"
    assert lua.entry(b"k") is None
    assert lua.flight(b"k") == (new.id, lua.generation(), "0")
    assert lua.finish(new, OTHER_VALUE) == b"done"
    assert lua.outcome(b"k") == OTHER_VALUE


def test_the_old_value_does_not_replace_one_that_was_computed_after_the_clear(lua: Driver) -> None:
    lua.queued(key=b"k")
    old = lua.taken()
    lua.clear(b"k")
    lua.queued(key=b"k")
    lua.finish(lua.taken(), OTHER_VALUE)
    lua.finish(old, VALUE)
    assert lua.outcome(b"k") == OTHER_VALUE
