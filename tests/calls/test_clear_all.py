"""clear_all_cache: the same few commands however much is cached; what was, is dead and expires."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from redis_bus import Bus
from tests.commands import sent
from tests.conftest import Tell
from tests.support import eventually, serving

CACHE = "rb:{test:}:cache:number:*"
FEW, MANY = 10, 10_000


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


def keys_of(client: redis.Redis) -> list[bytes]:
    return list(client.scan_iter(CACHE, count=1000))


def test_clearing_ten_thousand_values_takes_the_commands_of_clearing_ten(
    bus: Bus,
    caller: Bus,
    client: redis.Redis,
    tell: Tell,
) -> None:
    numbers = iter(range(10**6))
    bus.register("number", cache_key="{a}", cache_expire=1000)(lambda a: next(numbers))
    commands: dict[int, Counter[str]] = {}
    with serving(bus):
        caller.number(0)  # looks the method up
        caller.number.clear_all_cache()
        for count in (FEW, MANY):
            client.delete(*keys_of(client))
            before = [caller.number(a) for a in range(count)]
            assert len(keys_of(client)) == count
            with sent(client) as commands[count]:
                caller.number.clear_all_cache()
            # They are all there still, and none is served.
            assert len(keys_of(client)) == count
            assert all(0 < ttl <= 1_000_000 for ttl in map(client.pttl, keys_of(client)))
            some = range(0, count, max(1, count // 100))
            after = [caller.number(a) for a in some]
            assert min(after) > max(before)
            assert [caller.number(a) for a in some] == after
    tell(f"clear_all_cache of {FEW} and of {MANY} values", commands[MANY])
    assert commands[FEW] == commands[MANY]
    assert commands[MANY]["evalsha"] == 1
    assert sum(commands[MANY].values()) < 10


def test_old_values_are_not_served_by_a_caller_that_has_not_heard_of_the_clear(
    bus: Bus, caller: Bus, client: redis.Redis
) -> None:
    numbers = iter(range(1000))
    bus.register("number", cache_key="{a}")(lambda a: next(numbers))
    with serving(bus):
        assert [caller.number(a) for a in range(3)] == [0, 1, 2]
        for clears in range(1, 4):
            bus.number.clear_all_cache()
            first = 3 * clears
            assert [caller.number(a) for a in range(3)] == [first, first + 1, first + 2]
            # A key has one value, of whichever generation: what is computed anew replaces it.
            assert len(keys_of(client)) == 3


def test_old_values_vanish_by_their_expiry(bus: Bus, caller: Bus, client: redis.Redis) -> None:
    bus.register("number", cache_key="{a}", cache_expire=0.2, stale=0.2)(lambda a: a)
    with serving(bus):
        for a in range(20):
            caller.number(a)
        caller.number.clear_all_cache()
        assert all(client.pttl(key) <= 400 for key in keys_of(client))
        eventually(lambda: not keys_of(client))


def test_a_clear_of_all_leaves_other_methods_and_other_buses_alone(
    url: str, bus: Bus, caller: Bus
) -> None:
    numbers = iter(range(1000))
    with Bus("other", url=url, timeout=20) as other:
        for one, name in ((bus, "number"), (bus, "numbers"), (bus, "numbe"), (other, "number")):
            one.register(name, cache_key="{a}")(lambda a: next(numbers))
        with serving(bus), serving(other):
            asked = [caller.numbers, caller.numbe, other.number]
            kept = [method(1) for method in asked]
            dead = caller.number(1)
            caller.number.clear_all_cache()
            assert [method(1) for method in asked] == kept
            assert caller.number(1) > dead


def test_a_clear_of_all_needs_no_worker_and_may_be_repeated(bus: Bus, caller: Bus) -> None:
    numbers = iter(range(1000))
    bus.register("number", cache_key="{a}")(lambda a: next(numbers))
    with serving(bus):
        assert caller.number(1) == 0
    for _ in range(3):
        caller.number.clear_all_cache()
    assert caller.number.clear_cache(1) is False
    with serving(bus):
        assert caller.number(1) == 1
