from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.entries import Mode, parse_job
from tests.lua.driver import FOREIGN, Driver
from tests.lua.test_take import BROKEN

# -- what strangers left --------------------------------------------------------------------------


@pytest.mark.parametrize("entry", BROKEN)
def test_what_is_no_job_is_deleted_and_said(lua: Driver, entry: bytes) -> None:
    job = lua.queued()
    lua.take()
    lua.client.hset(lua.service.running("w"), "job", entry)
    lua.end_lease()
    held = lua.held()
    assert held.pop(b"job") == b""
    assert list(held) == [job.encode()]
    assert lua.claims() == [job]


@pytest.mark.parametrize("field", FOREIGN)
def test_a_job_that_is_claimed_as_another_is_deleted(lua: Driver, field: bytes) -> None:
    lua.queued()
    claim = lua.take()
    assert claim is not None
    lua.client.delete(lua.service.running("w"))
    lua.client.hset(lua.service.running("w"), field, claim.entry)
    lua.end_lease()
    assert lua.held() == {field: b""}
    assert lua.claims() == []


def test_a_worker_that_held_nothing_but_that_is_forgotten_by_the_next_look(lua: Driver) -> None:
    lua.client.hset(lua.service.running("w"), "job", "foreign")
    lua.end_lease()
    assert lua.held() == {b"job": b""}
    assert list(lua.lease_ends()) == ["w"]
    assert lua.held() == {}
    assert lua.lease_ends() == {}


def test_claims_of_another_type_are_none(lua: Driver) -> None:
    lua.client.set(lua.service.running("w"), "foreign")
    lua.end_lease()
    assert lua.held() == {}
    assert lua.lease_ends() == {}
    assert lua.client.get(lua.service.running("w")) == b"foreign"


def test_workers_of_another_type_are_refused_by_redis(lua: Driver) -> None:
    lua.client.set(lua.service.workers, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.held()


# -- what it returns ------------------------------------------------------------------------------


def test_of_a_worker_alive_it_says_nothing(lua: Driver) -> None:
    job = lua.queued()
    lua.take()
    assert lua.held() == {}
    assert lua.claims() == [job]
    assert list(lua.lease_ends()) == ["w"]


@pytest.mark.parametrize("mode", [Mode.CALL, Mode.RUN])
@pytest.mark.parametrize("key", [None, b"", b"k", b"a\nb\0\xff{} "])
def test_a_head_is_the_entry_without_the_arguments(
    lua: Driver, key: bytes | None, mode: Mode
) -> None:
    job = lua.queued(key=key, mode=mode, body=b"\n{}\0" * 1000)
    claim = lua.take()
    assert claim is not None
    lua.end_lease()
    head = lua.held()[job.encode()]
    assert claim.entry == head + b"\n{}\0" * 1000
    assert parse_job(head) == parse_job(claim.entry)._replace(body=b"")


def test_it_says_all_that_the_worker_holds_and_of_nobody_else(lua: Driver) -> None:
    jobs = {lua.queued().encode() for _ in range(3)}
    for _ in jobs:
        lua.take("w")
    lua.queued()
    lua.take("other")
    lua.end_lease("w")
    lua.end_lease("other")
    assert set(lua.held("w")) == jobs


@pytest.mark.parametrize("listed", [True, False])
def test_sent_twice_it_reads_twice(lua: Driver, listed: bool) -> None:
    lua.queued()
    lua.take()
    lua.end_lease()
    if not listed:
        lua.client.delete(lua.service.workers)
    before = lua.all_keys()
    first = lua.held()
    assert len(first) == 1
    assert lua.held() == first
    assert lua.all_keys() == before


# -- forgetting a worker --------------------------------------------------------------------------


@pytest.mark.parametrize("ends_ms", [None, 0])
def test_a_worker_that_holds_nothing_is_forgotten(lua: Driver, ends_ms: int | None) -> None:
    lua.beat("alive")
    lua.end_lease("w", ends_ms)
    assert lua.held() == {}
    assert list(lua.lease_ends()) == ["alive"]


def test_a_worker_that_holds_something_is_not(lua: Driver) -> None:
    job = lua.queued()
    lua.take()
    lua.end_lease()
    lua.held()
    assert list(lua.lease_ends()) == ["w"]
    lua.reclaim(job)
    assert lua.held() == {}
    assert lua.lease_ends() == {}


def test_a_worker_that_is_alive_and_holds_nothing_is_not(lua: Driver) -> None:
    lua.beat()
    assert lua.held() == {}
    assert list(lua.lease_ends()) == ["w"]


def test_a_worker_that_was_forgotten_and_takes_again_is_known_again(lua: Driver) -> None:
    lua.end_lease()
    lua.held()
    lua.queued()
    lua.take()
    assert list(lua.lease_ends()) == ["w"]


def test_it_looks_where_memory_is_full(lua: Driver) -> None:
    job = lua.queued()
    lua.take()
    lua.client.hset(lua.service.running("w"), "job", "foreign")
    lua.end_lease()
    with lua.memory_full():
        assert set(lua.held()) == {job.encode(), b"job"}
        assert lua.claims() == [job]
        lua.reclaim(job)
        lua.held()
    assert lua.lease_ends() == {}
