from __future__ import annotations

import pytest
import redis

from tests.lua.driver import (
    ETAG,
    FOREIGN,
    OTHER_ETAG,
    OTHER_SHAPE,
    SHAPE,
    VALUE,
    Driver,
)

FUTURE = "9000000000000000"


@pytest.mark.parametrize("found", [*FOREIGN, ETAG.encode(), f"{ETAG} {SHAPE}".encode()])
def test_foreign_bytes_in_the_registry_are_replaced(bare: Driver, found: bytes) -> None:
    bare.client.hset(bare.service.meta, "m", found)
    assert bare.publish() == [b"published", b""]
    assert bare.publish() == [b"same"]
    assert int(bare.generation()) > 0


def test_a_registry_of_another_type_is_refused_by_redis(bare: Driver) -> None:
    bare.client.set(bare.service.meta, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        bare.publish()


def test_the_first_registration_begins_a_generation_of_the_time(bare: Driver) -> None:
    before = bare.now_ms()
    assert bare.publish() == [b"published", b""]
    assert before * 1000 <= int(bare.generation()) < (bare.now_ms() + 1) * 1000
    field = bare.client.hget(bare.service.meta, "m")
    assert field == f"{ETAG} {SHAPE} {bare.generation()}".encode()


def test_sent_twice_it_answers_same_and_changes_nothing(lua: Driver) -> None:
    before = lua.client.hgetall(lua.service.meta)
    assert lua.publish() == [b"same"]
    assert lua.client.hgetall(lua.service.meta) == before


def test_another_registration_learns_whose_place_it_takes(lua: Driver) -> None:
    assert lua.publish(etag=OTHER_ETAG) == [b"published", ETAG.encode()]
    assert lua.publish(etag=ETAG, shape=OTHER_SHAPE) == [b"published", OTHER_ETAG.encode()]


def test_the_same_shape_keeps_the_cached_values(lua: Driver) -> None:
    lua.fill(b"k")
    generation = lua.generation()
    lua.publish(etag=OTHER_ETAG)
    assert lua.generation() == generation
    assert lua.call(key=b"k", etag=OTHER_ETAG)[0] == b"hit"


def test_another_shape_forgets_the_cached_values(lua: Driver) -> None:
    lua.fill(b"k")
    lua.publish(shape=OTHER_SHAPE)
    assert lua.call(key=b"k")[0] == b"queued"


def test_a_value_of_the_old_shape_is_not_stored_under_the_new_one(lua: Driver) -> None:
    lua.queued(key=b"k")
    job = lua.taken()
    lua.publish(etag=OTHER_ETAG, shape=OTHER_SHAPE)
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]
    assert lua.entry(b"k") is None


def test_generations_grow_where_shapes_go_back_and_forth(lua: Driver) -> None:
    seen = [int(lua.generation())]
    for shape in [OTHER_SHAPE, SHAPE] * 10:
        lua.publish(shape=shape)
        seen.append(int(lua.generation()))
    assert seen == sorted(set(seen))


def test_generations_grow_where_the_clock_stands_still(lua: Driver) -> None:
    lua.client.hset(lua.service.meta, "m", f"{ETAG} {SHAPE} {FUTURE}")
    lua.publish(shape=OTHER_SHAPE)
    assert int(lua.generation()) == int(FUTURE) + 1


def test_a_lost_registry_never_brings_old_values_back(lua: Driver) -> None:
    lua.fill(b"k")
    before = int(lua.generation())
    lua.client.delete(lua.service.meta)
    assert lua.publish() == [b"published", b""]
    assert int(lua.generation()) > before
    assert lua.call(key=b"k")[0] == b"queued"


def test_methods_of_a_service_do_not_touch_each_other(lua: Driver) -> None:
    before = lua.client.hget(lua.service.meta, "m")
    lua.publish("other", OTHER_ETAG, OTHER_SHAPE)
    assert lua.client.hget(lua.service.meta, "m") == before
