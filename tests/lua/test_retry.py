from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.entries import MAX_ATTEMPTS, Mode, parse_job, parse_letter, retried
from tests.lua.driver import FOREIGN, LOST, VALUE, Driver


@pytest.fixture
def letter(lua: Driver) -> bytes:
    """The dead letter of a run that was lost."""
    return lose(lua)


def lose(lua: Driver, key: bytes | None = None, tries: int = 1) -> bytes:
    job = lua.queued(key=key, mode=Mode.RUN, tries=tries, budget_ms=0)
    for _ in range(tries):
        lua.take("dies")
        lua.leave("dies")
        lua.reclaim(job, key, worker="dies")
    return lua.letters()[-1]


def send(lua: Driver, letter: bytes) -> object:
    entry = parse_letter(letter).entry
    return lua.retry(letter, retried(entry), parse_job(entry).id)


@pytest.mark.parametrize("found", FOREIGN)
def test_a_foreign_letter_is_put_in_the_queue_as_it_is_told(lua: Driver, found: bytes) -> None:
    lua.client.rpush(lua.route().dead, found)
    assert lua.retry(found, found, "job") == 1
    assert lua.letters() == []
    assert lua.client.lrange(lua.route().queue, 0, -1) == [found]
    claim = lua.take()
    assert claim is not None
    assert claim.foreign


def test_letters_of_another_type_are_refused_by_redis(lua: Driver) -> None:
    lua.client.set(lua.route().dead, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.retry(b"foreign", b"foreign", "job")


@pytest.mark.parametrize("key", [None, b"k"])
@pytest.mark.parametrize("tries", [1, 3])
def test_a_lost_job_is_tried_again_as_often(lua: Driver, key: bytes | None, tries: int) -> None:
    assert MAX_ATTEMPTS == 3
    letter = lose(lua, key, tries)
    assert send(lua, letter) == 1
    assert lua.letters() == []
    job = lua.taken()
    assert (job.attempt, job.tries) == (tries + 1, 2 * tries)
    assert (job.mode, job.key, job.body, job.deadline_ms) == (Mode.RUN, key, b"body", 0)
    if key is not None:
        assert lua.admit(job) == b"run"
    assert lua.finish(job) == b"done"
    assert lua.reply(job.id) == [VALUE]


def test_that_it_was_lost_is_forgotten(lua: Driver, letter: bytes) -> None:
    job = parse_job(parse_letter(letter).entry).id
    assert lua.reply(job) == [LOST]
    send(lua, letter)
    assert lua.reply(job) == []


def test_it_comes_to_the_head_with_a_token_and_may_be_cancelled(lua: Driver, letter: bytes) -> None:
    assert (lua.length(), lua.tokens()) == (0, 0)
    later = lua.queued(mode=Mode.RUN)
    lua.client.delete(lua.route().wake, lua.route().queue)
    send(lua, letter)
    job = parse_job(parse_letter(letter).entry).id
    assert (lua.length(), lua.tokens()) == (1, 1)
    assert lua.pending() == {job: b""}
    assert later not in lua.pending()
    assert lua.cancel(job) == b"cancelled"


def test_it_waits_for_ever_in_a_queue_that_had_an_end(lua: Driver, letter: bytes) -> None:
    lua.queued(mode=Mode.RUN)
    assert lua.ttl(lua.route().queue) > 0
    send(lua, letter)
    assert [lua.ttl(key) for key in (lua.route().queue, lua.route().pending)] == [-1, -1]


def test_one_of_two_equal_letters_is_taken(lua: Driver, letter: bytes) -> None:
    lua.client.rpush(lua.route().dead, letter)
    assert send(lua, letter) == 1
    assert lua.letters() == [letter]


def test_sent_twice_it_is_tried_once(lua: Driver, letter: bytes) -> None:
    assert [send(lua, letter), send(lua, letter)] == [1, 0]
    assert lua.length() == 1


def test_without_the_letter_nothing_changes(lua: Driver, letter: bytes) -> None:
    lua.client.delete(lua.route().dead)
    before = lua.all_keys()
    assert send(lua, letter) == 0
    assert lua.all_keys() == before
    assert lua.reply(parse_job(parse_letter(letter).entry).id) == [LOST]


def test_it_is_tried_where_memory_is_full(lua: Driver, letter: bytes) -> None:
    with lua.memory_full():
        assert send(lua, letter) == 1
    assert (lua.length(), lua.tokens()) == (1, 1)
