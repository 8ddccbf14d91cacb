from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.entries import parse_letter
from tests.lua.driver import FOREIGN, Driver
from tests.lua.test_take import BROKEN


@pytest.mark.parametrize("entry", BROKEN)
def test_a_letter_is_a_line_and_the_bytes(lua: Driver, entry: bytes) -> None:
    before = lua.now_ms()
    assert lua.bury(entry, worker="host:1:ab") == b"buried"
    letter = parse_letter(lua.letters()[0])
    assert before <= letter.when_ms <= lua.now_ms()
    assert (letter.why, letter.worker, letter.entry) == ("foreign", "host:1:ab", entry)


def test_letters_of_another_type_are_refused_by_redis(lua: Driver) -> None:
    lua.client.set(lua.route().dead, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.bury(b"foreign")


@pytest.mark.parametrize("job", FOREIGN)
def test_what_was_claimed_is_claimed_no_more(lua: Driver, job: bytes) -> None:
    lua.client.hset(lua.service.running("w"), job, "foreign")
    other = lua.queued()
    lua.take()
    assert lua.bury(b"foreign", job) == b"buried"
    assert lua.claims() == [other]
    assert len(lua.letters()) == 1


def test_without_the_claim_nothing_is_buried(lua: Driver) -> None:
    lua.client.hset(lua.service.running("other"), "job", "foreign")
    assert lua.bury(b"foreign", "job") == b"fenced"
    assert lua.letters() == []
    assert lua.claims("other") == ["job"]


def test_sent_twice_what_was_claimed_is_buried_once(lua: Driver) -> None:
    lua.client.hset(lua.service.running("w"), "job", "foreign")
    assert [lua.bury(b"foreign", "job"), lua.bury(b"foreign", "job")] == [b"buried", b"fenced"]
    assert len(lua.letters()) == 1


def test_sent_twice_what_was_not_claimed_is_buried_twice(lua: Driver) -> None:
    assert [lua.bury(b"foreign"), lua.bury(b"foreign")] == [b"buried", b"buried"]
    assert len(lua.letters()) == 2


@pytest.mark.parametrize("kept", [1, 3])
def test_the_last_letters_are_kept(lua: Driver, kept: int) -> None:
    for number in range(5):
        lua.bury(b"%d" % number, letters=kept)
    found = [parse_letter(letter).entry for letter in lua.letters()]
    assert found == [b"0", b"1", b"2", b"3", b"4"][-kept:]


@pytest.mark.parametrize("claimed", [True, False])
def test_it_buries_where_memory_is_full(lua: Driver, claimed: bool) -> None:
    lua.client.hset(lua.service.running("w"), "job", "foreign")
    with lua.memory_full():
        assert lua.bury(b"foreign", "job" if claimed else None) == b"buried"
    assert len(lua.letters()) == 1
