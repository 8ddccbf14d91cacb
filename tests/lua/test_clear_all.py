from __future__ import annotations

import pytest
import redis

from tests.lua.driver import ETAG, FOREIGN, OTHER_ETAG, SHAPE, VALUE, Driver

FUTURE = "9000000000000000"


@pytest.mark.parametrize("found", [*FOREIGN, ETAG.encode(), f"{ETAG} {SHAPE}".encode()])
def test_foreign_bytes_in_the_registry_are_no_method(bare: Driver, found: bytes) -> None:
    bare.client.hset(bare.service.meta, "m", found)
    assert bare.clear_all() is None
    assert bare.client.hget(bare.service.meta, "m") == found


def test_a_registry_of_another_type_is_refused_by_redis(bare: Driver) -> None:
    bare.client.set(bare.service.meta, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        bare.clear_all()


def test_a_method_that_is_not_published_has_nothing_to_clear(bare: Driver) -> None:
    assert bare.clear_all() is None
    assert bare.all_keys() == set()


def test_who_knows_another_registration_clears_nothing(lua: Driver) -> None:
    lua.fill(b"k")
    assert lua.send(*lua.route(etag=OTHER_ETAG).clear_all()) == b"stale"
    assert lua.call(key=b"k")[0] == b"hit"


def test_every_value_is_forgotten_and_none_is_touched(lua: Driver) -> None:
    lua.fill(b"a")
    lua.fill(b"b")
    before = lua.client.get(lua.route().cache(b"a"))
    assert lua.clear_all() == lua.generation().encode()
    assert lua.client.get(lua.route().cache(b"a")) == before
    assert lua.call(key=b"a")[0] == b"queued"
    assert lua.call(key=b"b")[0] == b"queued"


def test_other_methods_keep_their_values(lua: Driver) -> None:
    lua.publish("other")
    lua.fill(b"k")
    lua.clear_all("other")
    assert lua.call(key=b"k")[0] == b"hit"


def test_what_is_published_stays(lua: Driver) -> None:
    lua.clear_all()
    assert lua.publish() == [b"same"]


def test_generations_grow_strictly(lua: Driver) -> None:
    seen = [int(lua.generation()), *(int(lua.clear_all()) for _ in range(50))]
    assert seen == sorted(set(seen))


def test_generations_grow_where_the_clock_stands_still(lua: Driver) -> None:
    lua.client.hset(lua.service.meta, "m", f"{ETAG} {SHAPE} {FUTURE}")
    assert [int(lua.clear_all()) - int(FUTURE) for _ in range(3)] == [1, 2, 3]


def test_generations_grow_where_the_registry_was_lost(lua: Driver) -> None:
    before = int(lua.clear_all())
    lua.client.delete(lua.service.meta)
    lua.publish()
    assert int(lua.generation()) > before


def test_clear_all_during_a_flight_never_stores_the_old_value(lua: Driver) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    lua.clear_all()
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]
    assert lua.entry(b"k") is None
    assert lua.flight(b"k") is None


def test_a_call_after_it_does_not_join_the_old_flight(lua: Driver) -> None:
    old = lua.queued(key=b"k")
    lua.clear_all()
    new = lua.queued(key=b"k")
    assert new != old
    assert lua.flight(b"k") == (new, lua.generation(), "0")


def test_the_old_flight_ends_without_touching_the_new_one(lua: Driver) -> None:
    lua.queued(key=b"k")
    old = lua.taken()
    lua.clear_all()
    new = lua.queued(key=b"k")
    lua.finish(old)
    assert lua.entry(b"k") is None
    assert lua.flight(b"k") == (new, lua.generation(), "0")
