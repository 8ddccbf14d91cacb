"""Calls over several servers: a cluster whose slots move, masters that are replaced."""

from __future__ import annotations

import concurrent.futures
import logging
import time

import pytest

from redis_bus import Bus, ConnectionLost, as_completed
from redis_bus.calls.failures import NotNow
from redis_bus.protocol.commands import methods_key
from redis_bus.protocol.slots import slot_of
from tests.cluster.support import (
    Servers,
    Service,
    away_from,
    blocked,
    in_thread,
    kill_master,
    replace_master,
)
from tests.cluster_servers import Cluster
from tests.sentinel_servers import Sentinels
from tests.support import eventually

# -- calls ------------------------------------------------------------------------------------


def test_all_kinds_of_calls(service: Service, servers: Servers) -> None:
    caller = service.caller
    assert caller.all_methods() == ["cached", "echo", "held"]
    assert caller.echo(1) == 1
    assert [caller.cached(2), caller.cached(2)] == [2, 2]
    assert caller.cached.clear_cache(2)
    assert caller.cached(2) == 2
    assert list(caller.echo.map(range(100))) == list(range(100))
    results = [caller.echo.run(n) for n in range(5)]
    assert sorted(result.get() for result in as_completed(results)) == list(range(5))
    assert service.ran.count(2) == 4
    assert caller.stats()["echo"]["calls"] == 106
    assert caller.cleanup() > 3
    assert caller.all_methods() == []


def test_commands_of_several_services_are_answered_in_their_order(cluster: Cluster) -> None:
    with Bus("test", url=cluster.address) as bus:
        transport = bus._core.transport
        keys = [f"{{{n}}}" for n in range(20)]
        assert len({cluster.master_of(key).port for key in keys}) == 3
        puts = transport.exchange(*(("SET", key, n) for n, key in enumerate(keys)))
        assert puts == [b"OK"] * 20
        both = [command for key in keys for command in (("PING",), ("GET", key))]
        assert transport.ask(*both)[1::2] == [str(n).encode() for n in range(20)]
        replies = transport.exchange_each(*(("INCR", key) for key in keys), ("LPUSH", keys[3], 1))
        assert replies[:-1] == list(range(1, 21))
        assert "WRONGTYPE" in str(replies[-1])


def test_a_cleanup_looks_on_every_node_and_spares_other_buses(cluster: Cluster) -> None:
    with Bus("test", url=cluster.address) as bus, Bus("test2", url=cluster.address) as other:
        for n in range(20):
            bus._core.transport.exchange(("SET", f"rb:{{test:{n}}}:meta", n))
        other._core.transport.exchange(("SET", "rb:{test2:}:meta", 1))
        assert bus.cleanup() == 20
        assert other.cleanup() == 1


# -- slots that move --------------------------------------------------------------------------


def test_a_slot_that_moved_is_found_by_callers_and_workers_with_no_warning(
    cluster: Cluster, on_cluster: Service, caplog: pytest.LogCaptureFixture
) -> None:
    assert on_cluster.caller.echo(1) == 1
    with caplog.at_level(logging.WARNING):
        for target in away_from(cluster, on_cluster.tag):
            cluster.move_slot(slot_of(on_cluster.tag), target)
            assert on_cluster.caller.echo(target.port) == target.port
        for target in away_from(cluster, methods_key("test")):
            cluster.move_slot(slot_of(methods_key("test")), target)
            assert on_cluster.caller.get_method("echo") is not None
    assert not caplog.records
    assert len(on_cluster.ran) == 3


@pytest.mark.parametrize("name", ["echo", "cached"])
def test_a_call_waits_while_its_slot_moves_and_runs_once(
    cluster: Cluster, on_cluster: Service, name: str
) -> None:
    """A script with keys that are not there runs on neither node meanwhile."""
    method = on_cluster.caller[name]
    assert method(1) == 1
    move = cluster.start_move(slot_of(on_cluster.tag), away_from(cluster, on_cluster.tag)[0])
    with in_thread(method, 2) as answer:
        move.move_keys()
        with pytest.raises(concurrent.futures.TimeoutError):
            answer.result(0.3)
        move.move_keys()
        move.finish()
        assert answer.result(30) == 2
    assert on_cluster.ran == [1, 2]


@pytest.mark.parametrize("name", ["held", "run"])
def test_waits_go_on_where_the_slot_went(cluster: Cluster, on_cluster: Service, name: str) -> None:
    """Of a caller that waits alone, and of one that is one of many, while the job runs."""
    held = on_cluster.caller.held
    with in_thread(held if name == "held" else lambda n: held.run(n).get(), 5) as answer:
        assert on_cluster.entered.wait(30)
        eventually(lambda: blocked(cluster, on_cluster.tag))
        cluster.move_slot(slot_of(on_cluster.tag), away_from(cluster, on_cluster.tag)[0])
        eventually(lambda: blocked(cluster, on_cluster.tag))
        on_cluster.go.set()
        assert answer.result(30) == 5
    assert on_cluster.ran == [5]


def test_what_does_not_come_to_pass_in_its_time_is_said_to_be_undone(cluster: Cluster) -> None:
    with Bus("test", url=cluster.address) as bus:
        transport = bus._core.transport
        transport.exchange(("SET", "{a}1", 1))
        move = cluster.start_move(slot_of("{a}"), away_from(cluster, "{a}")[0])
        with pytest.raises(NotNow, match="cannot do this now"):
            transport.exchange(("MSET", "{a}1", 1, "{a}2", 1), timeout=0.3)
        replies = transport.exchange_each(("MSET", "{a}1", 1, "{a}2", 1), ("PING",), timeout=0.3)
        assert isinstance(replies[0], NotNow)
        assert replies[1] == b"PONG"
        # What is there already is had at the target; and what is not, at the source.
        assert transport.exchange(("INCR", "{a}1"), ("INCR", "{a}2")) == [2, 1]
        assert move.keys() == ["{a}1"]
        with pytest.raises(ConnectionLost) as error:
            transport.exchange(("INCR", "{a}1"), ("MSET", "{a}1", 1, "{a}3", 1), timeout=0.3)
        assert not isinstance(error.value, NotNow)


# -- masters that are replaced ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["held", "run"])
def test_waits_go_on_at_the_new_master(servers: Servers, service: Service, name: str) -> None:
    held = service.caller.held
    with in_thread(held if name == "held" else lambda n: held.run(n).get(), 5) as answer:
        assert service.entered.wait(30)
        eventually(lambda: blocked(servers, service.tag))
        replace_master(servers, service.tag)
        service.go.set()
        assert answer.result(30) == 5
    assert service.ran == [5]
    assert service.caller.echo(6) == 6


def test_calls_go_on_after_a_master_was_killed(servers: Servers, service: Service) -> None:
    assert service.caller.cached(1) == 1
    kill_master(servers, service.tag)
    assert service.caller.cached(2) == 2
    assert service.caller.echo(3) == 3
    assert service.ran.count(3) == 1


def test_an_old_master_that_knows_no_better_is_left_within_a_second(sentinels: Sentinels) -> None:
    with Bus("test", url=sentinels.address) as bus:
        transport = bus._core.transport
        assert transport.exchange(("SET", "key", 1)) == [b"OK"]
        old = sentinels.switch_master()
        time.sleep(1.1)  # which is what is promised
        transport.exchange(("SET", "key", 2))
        assert old.call("GET", "key") == "1"
        assert sentinels.master().call("GET", "key") == "2"


def test_no_server_at_all_is_told_at_once() -> None:
    for url in ("redis+cluster://127.0.0.1:1,127.0.0.1:2", "redis+sentinel://127.0.0.1:1/name"):
        with Bus("test", url=url) as bus, pytest.raises(ConnectionLost, match=r"^no Redis at"):
            bus.all_methods()
