from __future__ import annotations

import pytest
import redis

from redis_bus.protocol.commands import GAP_MS, LEASE_MS
from tests.lua.driver import FOREIGN, Driver, within


@pytest.fixture
def swept(lua: Driver) -> Driver:
    """A service that somebody has looked after just now."""
    assert lua.sweep() == (-1, [])
    return lua


# -- what strangers left --------------------------------------------------------------------------


@pytest.mark.parametrize("found", FOREIGN)
def test_a_stranger_among_the_workers_is_found_like_them(swept: Driver, found: bytes) -> None:
    swept.client.zadd(swept.service.workers, {found: 1})
    assert swept.sweep() == (-1, [found])


@pytest.mark.parametrize("kind", ["string", "list", "hash"])
def test_what_strangers_left_as_the_mark_counts_as_the_mark(lua: Driver, kind: str) -> None:
    put = {
        "string": ("SET", lua.service.swept, "foreign"),
        "list": ("RPUSH", lua.service.swept, "foreign"),
        "hash": ("HSET", lua.service.swept, "foreign", "foreign"),
    }
    lua.send(*put[kind])
    lua.end_lease()
    assert lua.sweep() == (-1, [b"w"])
    assert within(lua.ttl(lua.service.swept), GAP_MS)


def test_workers_of_another_type_are_refused_by_redis(swept: Driver) -> None:
    swept.client.set(swept.service.workers, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        swept.sweep()


# -- leases ---------------------------------------------------------------------------------------


def test_of_no_workers_it_finds_nothing_and_leaves_only_its_mark(bare: Driver) -> None:
    assert bare.sweep() == (-1, [])
    assert bare.all_keys() == {bare.service.swept.encode()}
    assert within(bare.ttl(bare.service.swept), GAP_MS)


def test_a_worker_alive_is_not_found(swept: Driver) -> None:
    swept.beat()
    left, ended = swept.sweep()
    assert ended == []
    assert within(left, LEASE_MS)


def test_it_says_when_the_next_lease_ends(swept: Driver) -> None:
    swept.beat("late")
    swept.end_lease("soon", swept.now_ms() + 3_000)
    swept.end_lease("dead")
    left, ended = swept.sweep()
    assert ended == [b"dead"]
    assert within(left, 3_000)


def test_a_worker_whose_lease_ended_is_found_until_it_is_forgotten(swept: Driver) -> None:
    swept.beat("alive")
    swept.end_lease("dead")
    assert [swept.sweep()[1] for _ in range(2)] == [[b"dead"]] * 2
    assert swept.held("dead") == {}
    assert swept.sweep()[1] == []
    assert list(swept.lease_ends()) == ["alive"]


def test_a_worker_that_beats_again_is_not_found_any_more(swept: Driver) -> None:
    swept.end_lease()
    assert swept.sweep()[1] == [b"w"]
    swept.beat()
    assert swept.sweep()[1] == []


def test_a_lease_that_ends_in_this_moment_has_not_ended(swept: Driver) -> None:
    ends = swept.now_ms() + 50
    swept.end_lease(ends_ms=ends)
    while True:
        before = swept.now_ms()
        ended = swept.sweep()[1]
        if swept.now_ms() <= ends:
            assert ended == []
        if before > ends:
            assert ended == [b"w"]
            return


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_than_wanted_are_found_at_once(swept: Driver, most: int) -> None:
    for number, worker in enumerate("abc"):
        swept.end_lease(worker, swept.now_ms() - 100 + number)
    swept.beat("alive")
    left, ended = swept.sweep(most=most)
    assert ended == [b"a", b"b", b"c"][:most]
    assert left == 0  # there may be more
    assert within(swept.sweep(most=4)[0], LEASE_MS)


# -- after Redis stood still ----------------------------------------------------------------------


def test_after_a_gap_a_lease_that_ended_is_renewed_for_half_of_one(swept: Driver) -> None:
    swept.end_lease()
    swept.client.delete(swept.service.swept)
    before = swept.now_ms()
    left, ended = swept.sweep()
    assert ended == []
    assert within(left, LEASE_MS // 2)
    ends = swept.lease_ends()["w"]
    assert before + LEASE_MS / 2 <= ends <= swept.now_ms() + LEASE_MS / 2


def test_it_is_renewed_once(swept: Driver) -> None:
    swept.end_lease()
    swept.client.delete(swept.service.swept)
    assert swept.sweep()[1] == []
    swept.end_lease()
    assert swept.sweep()[1] == [b"w"]


def test_a_worker_that_is_known_to_be_dead_is_not_renewed(swept: Driver) -> None:
    swept.end_lease("dead", 0)
    swept.end_lease("stalled")
    swept.client.delete(swept.service.swept)
    assert swept.sweep()[1] == [b"dead"]
    assert swept.lease_ends()["dead"] == 0


def test_leases_that_have_not_ended_are_left_as_they_are_after_a_gap(swept: Driver) -> None:
    soon = swept.now_ms() + 2_000
    swept.end_lease("soon", soon)
    swept.client.delete(swept.service.swept)
    swept.sweep()
    assert swept.lease_ends() == {"soon": soon}


def test_the_gap_is_counted_from_the_last_sweep(lua: Driver) -> None:
    lua.sweep(gap_ms=1)
    lua.pass_by(lua.now_ms() + 1)
    lua.end_lease()
    assert lua.sweep(gap_ms=60_000)[1] == []
    assert within(lua.ttl(lua.service.swept), 60_000)
    lua.end_lease()
    assert lua.sweep()[1] == [b"w"]
    assert within(lua.ttl(lua.service.swept), GAP_MS)


# -- leases of another clock ----------------------------------------------------------------------


@pytest.mark.parametrize("gap", [True, False])
@pytest.mark.parametrize("ends", [float("inf"), 1e30, 1e13])
def test_a_lease_that_ends_too_late_is_cut(swept: Driver, ends: float, gap: bool) -> None:
    swept.client.zadd(swept.service.workers, {"w": ends})
    if gap:
        swept.client.delete(swept.service.swept)
    left, ended = swept.sweep()
    assert ended == []
    assert within(left, LEASE_MS)
    assert swept.lease_ends()["w"] <= swept.now_ms() + LEASE_MS


@pytest.mark.parametrize("ends", [float("-inf"), -1])
def test_a_lease_that_ended_before_all_time_is_of_a_dead_worker(lua: Driver, ends: float) -> None:
    lua.client.zadd(lua.service.workers, {"w": ends})
    assert lua.sweep() == (-1, [b"w"])


# -- where memory is full -------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [True, False])
def test_it_sweeps_where_memory_is_full(swept: Driver, gap: bool) -> None:
    swept.end_lease("stalled")
    swept.end_lease("dead", 0)
    if gap:
        swept.client.delete(swept.service.swept)
    with swept.memory_full():
        assert swept.sweep()[1] == ([b"dead"] if gap else [b"dead", b"stalled"])
    assert within(swept.ttl(swept.service.swept), GAP_MS)
