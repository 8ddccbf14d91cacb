"""cleanup: this bus's keys and no others, however many there are."""

from __future__ import annotations

import threading

import pytest
import redis

from redis_bus import Bus, NoWorkers
from tests.commands import sent
from tests.support import serving

FOREIGN = 100_000
# Beside the bus "a": what a careless pattern would take for its keys.
NEAR = [
    *("rb:{a", "rb:a:methods", "rb:{a.}:methods", "rb:{abc:}:meta", "rb:{A:}:meta", "{a}:x"),
    *("rb:{a|:}:meta", "xrb:{a}:methods", "rb:{{a}}:x", "rb:[a}:x"),
]


def fill(url: str, name: str, prefix: str) -> set[bytes]:
    """Use all that leaves keys; return the keys of this bus, known by what was not there before."""
    with redis.Redis.from_url(url) as client, Bus(name, url=url, prefix=prefix) as bus:
        before = set(client.scan_iter(count=10_000))
        bus.register("plain")(lambda a: a)
        bus.register("keyed", cache_key="{a}")(lambda a: a)
        bus.register("waits")(lambda: None)
        client.rpush(f"rb:{{{name}:{prefix}}}:queue:plain", b"not ours")
        with serving(bus, "[pk]*"):
            for a in ("}", "{b}", "x:y", "*"):
                bus.plain(a)
                bus.keyed(a)
                bus.keyed.run(a + "!").get()
        for _ in range(3):
            bus.waits.run()
        with pytest.raises(NoWorkers):
            bus.waits.options(timeout=0.01)()
        return set(client.scan_iter(count=10_000)) - before


@pytest.mark.parametrize("prefix", ["", "b_", "b.", "a"])
def test_cleanup_removes_this_buss_keys_and_no_others_and_returns_how_many(
    url: str, client: redis.Redis, prefix: str
) -> None:
    kept: set[bytes] = set()
    for name, other_prefix in [("ab", ""), ("a.b", "x_"), ("b", "a"), ("a-", ""), ("aa", "a")]:
        kept |= fill(url, name, other_prefix)
    for key in NEAR:
        client.set(key, 1)
        kept.add(key.encode())
    mine = fill(url, "a", prefix)
    assert len(mine) > 15
    assert not kept & mine
    with Bus("a", url=url) as bus:
        assert bus.cleanup() == len(mine)
        assert set(client.scan_iter(count=10_000)) == kept
        assert bus.cleanup() == 0
        assert bus.all_methods() == []
    with Bus("ab", url=url) as other:
        assert other.all_methods() == ["keyed", "plain", "waits"]
        assert other.keyed("}") == "}"


def test_cleanup_finds_its_keys_among_100_000_others_by_scan_and_unlink(
    url: str, client: redis.Redis
) -> None:
    for start in range(0, FOREIGN, 10_000):
        client.mset({f"foreign:{{a}}:{i}": i for i in range(start, start + 10_000)})
    mine = fill(url, "a", "b_")
    # More of our own than one batch, of every shape of key.
    client.mset({f"rb:{{a:b_}}:cache:keyed:{i}": i for i in range(3000)})
    with Bus("a", url=url) as bus, sent(client) as commands:
        assert bus.cleanup() == len(mine) + 3000
    assert client.dbsize() == FOREIGN
    assert client.get(f"foreign:{{a}}:{FOREIGN - 1}") == str(FOREIGN - 1).encode()
    assert commands["scan"] >= 10
    assert commands["unlink"] >= 1
    assert set(commands) <= {"scan", "unlink", "hello", "client|setinfo", "client"}


def test_no_command_that_reads_all_keys_is_ever_sent(url: str, client: redis.Redis) -> None:
    with sent(client) as commands, Bus("a", url=url) as bus:
        bus.register("keyed", cache_key="{a}")(lambda a: a)
        with serving(bus):
            bus.keyed(1)
            bus.keyed.clear_cache(1)
            bus.keyed.clear_all_cache()
            bus.all_methods()
            dir(bus)
            bus.stats()
        bus.cleanup()
    for command in ("keys", "flushdb", "flushall", "del|keys", "monitor"):
        assert command not in commands


@pytest.mark.parametrize("name", ["a*", "*", "?", "[a]", "a[bc]", "{a}", "a\\", "^a", "a:b", "a}"])
def test_a_bus_whose_name_is_a_pattern_is_impossible(url: str, name: str) -> None:
    with pytest.raises(ValueError, match="bus name"):
        Bus(name, url=url)


def test_a_bus_is_used_on_after_its_cleanup(url: str) -> None:
    with Bus("a", url=url) as bus:
        done = threading.Event()
        bus.register("method", cache_key=True)(done.is_set)
        with serving(bus):
            assert bus.method() is False
        bus.cleanup()
        done.set()
        with serving(bus):
            assert bus.method() is True  # nothing of the old cache is left
        assert bus.stats()["method"]["calls"] == 1
