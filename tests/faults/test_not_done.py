"""What was not done, for certain, is done later: at maxclients, and where a master is replaced."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_bus import Bus, ConnectionLost
from tests.faults.door import Door
from tests.faults.place import BOTH, FACES, Place, RedisServer
from tests.faults.test_redis import (
    CODE,
    GRACE_SECONDS,
    RECOVERY_SECONDS,
    assert_none_ran_twice,
    calling,
    of_kind,
    passed,
    runs_file,
)

CALLERS = 12
# As many as they need: an `AsyncBus` has two.
FREED = 30
# Its values are read from files, which the test writes.
VERSIONS = """
    @bus.register(cache_key="{file}")
    def version(file):
        with open(file) as source:
            return int(source.read())
"""


def serve(place: Place, url: str | None = None, *args: str) -> Any:
    env = {"RUNS": str(runs_file(place))}
    if url is not None:
        env["REDIS_BUS_URL"] = url
    return place.serve(CODE + VERSIONS, env=env, args=("--log-level", "info", *args))


# -- no connection is free ------------------------------------------------------------------------


@contextlib.contextmanager
def taken(place: Place) -> Any:
    """Take all connections that Redis has; gives them, the latest last."""
    held: list[redis.Redis] = []
    limit = int(place.client.info("clients")["connected_clients"]) + FREED
    place.client.config_set("maxclients", limit)
    try:
        with contextlib.suppress(redis.ConnectionError):
            while True:
                one = place.server.client(single_connection_client=True)
                one.ping()
                held.append(one)
        yield held
    finally:
        for one in held:
            one.close()
        place.client.config_set("maxclients", 10_000)


def call_at_once(buses: list[Bus], call: Callable[[Bus, int], object]) -> list[Any]:
    """Have each bus make a call at the same time; return what they returned or raised."""
    barrier = threading.Barrier(len(buses))

    def one(number: int) -> object:
        barrier.wait(20)
        try:
            return call(buses[number], number)
        except Exception as error:  # noqa: BLE001 - it is looked at
            return error

    with ThreadPoolExecutor(len(buses)) as pool:
        return list(pool.map(one, range(len(buses))))


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("kind", ["plain", "kept", "run"])
def test_a_call_that_finds_no_connection_free_waits_for_one(place: Place, kind: str) -> None:
    serve(place)
    buses = [place.bus(timeout=15) for _ in range(CALLERS)]

    def call(bus: Any, number: int) -> object:
        return bus.plain.run(f"a{number}").get() if kind == "run" else bus[kind](f"a{number}")

    with taken(place) as held:
        freeing = place.apart(free, place, held)
        answers = call_at_once(buses, call)
        freeing.result(20)
    assert answers == [f"<a{number}>" for number in range(CALLERS)]
    assert_none_ran_twice(place)


def free(place: Place, held: list[redis.Redis]) -> None:
    """Free connections one by one, within about a second."""
    while held:
        passed(place, 1 / FREED)
        held.pop().close()


@pytest.mark.together(over=FACES)
def test_a_call_that_finds_no_connection_free_in_its_time_names_the_limit(place: Place) -> None:
    serve(place)
    buses = [place.bus(timeout=2) for _ in range(4)]
    begun = time.monotonic()
    with taken(place):
        errors = call_at_once(buses, lambda bus, number: bus.plain(f"a{number}"))
        lasted = time.monotonic() - begun
    assert lasted < 2 + GRACE_SECONDS
    for error in errors:
        assert isinstance(error, ConnectionLost)
        assert "maxclients" in str(error)
        assert "unknown whether it ran" not in str(error)
    assert not runs_file(place).exists()


@pytest.mark.together(over=BOTH)
def test_a_worker_that_finds_no_connection_free_comes_back(place: Place) -> None:
    worker = serve(place)
    bus = place.bus(timeout=20)
    assert bus.plain("before") == "<before>"
    with taken(place) as held:
        # What the worker had goes to others, as after a restart of a proxy.
        for one in place.client.client_list():
            if "b" in one["flags"]:
                place.client.client_kill_filter(_id=one["id"])
                with contextlib.suppress(redis.ConnectionError):
                    other = place.server.client(single_connection_client=True)
                    other.ping()
                    held.append(other)
        place.eventually(lambda: "tries again until it can serve" in place.log(worker))
        passed(place, 1)
    assert bus.plain("after") == "<after>"
    assert worker.poll() is None


# -- a master is replaced -------------------------------------------------------------------------


def versions_of(place: Place, bus: Any) -> Callable[[str], None]:
    """Return a step that changes a value, clears it, and must not see the old one."""
    numbers, bus = itertools.count(1), bus
    file = Path(place.folder) / f"version{id(numbers)}"
    file.write_text("0")

    def step(a: str) -> None:
        number = next(numbers)
        assert bus.version(str(file)) == number - 1  # as a rule a hit
        file.write_text(str(number))
        bus.version.clear_cache(str(file))
        assert bus.version(str(file)) == number
        assert bus.version(str(file)) == number

    return step


def looks_anew(url: str) -> Callable[[str], None]:
    """Return a step that looks a method up on connections of its own, and calls it."""

    def step(a: str) -> None:
        with Bus("test", url=url, timeout=10) as bus:
            assert bus.get_method("plain") is not None
            assert {"plain", "kept"} <= set(bus.all_methods())
            assert bus.plain(a) == f"<{a}>"

    return step


@pytest.mark.together(over=BOTH)
def test_a_master_that_is_a_replica_for_two_seconds_fails_no_call_of_five(place: Place) -> None:
    worker = serve(place)
    bus = place.bus(timeout=5)
    kinds = [of_kind(bus, kind) for kind in ("plain", "kept", "run", "run_kept", "clear")]
    with calling(place, *kinds, looks_anew(place.server.url), pause=0.01) as calls:
        for _ in range(2):
            before = len(calls.answered)
            place.eventually(lambda before=before: len(calls.answered) > before + 30)
            place.client.execute_command("REPLICAOF", "127.0.0.1", "1")
            passed(place, 2)
            place.client.execute_command("REPLICAOF", "NO", "ONE")
        before = len(calls.answered)
        place.eventually(lambda: len(calls.answered) > before + 100, RECOVERY_SECONDS)
    assert calls.errors == []
    assert calls.slowest < 5
    assert_none_ran_twice(place)
    assert worker.poll() is None


def replicate(place: Place) -> tuple[RedisServer, redis.Redis]:
    """Start a replica of the place's server, and return it once it has all data."""
    new = place.new_server()
    client = new.client()
    client.execute_command("REPLICAOF", "127.0.0.1", place.server.port)
    place.eventually(lambda: client.info("replication")["master_link_status"] == "up")
    return new, client


def hand_over(
    place: Place, new: RedisServer, replica: redis.Redis, turn: Callable[[], None]
) -> None:
    """Make the replica the master, as who does so with care; the old master is its replica then.

    ``turn`` repoints the address, in between.
    """
    old = place.client
    old.client_pause(10_000, all=False)  # writes; so nothing is lost

    def has_all() -> bool:
        wanted = old.info("replication")["master_repl_offset"]
        return bool(replica.info("replication")["slave_repl_offset"] == wanted)

    place.eventually(has_all)
    replica.execute_command("REPLICAOF", "NO", "ONE")
    turn()
    old.execute_command("REPLICAOF", "127.0.0.1", new.port)
    old.client_unpause()


@pytest.mark.together(over=BOTH, seconds=60)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_after_an_address_was_repointed_all_goes_on_at_the_new_master(
    place: Place, late: bool
) -> None:
    """The old master lives on, as its replica, or is one before the address leads elsewhere."""
    new, replica = replicate(place)
    with Door(place.server.port) as door, contextlib.ExitStack() as stack:
        workers = [serve(place, door.url) for _ in range(2)]
        bus, other = (place.bus(url=door.url, timeout=15) for _ in range(2))
        kinds = [of_kind(bus, kind) for kind in ("plain", "kept", "run", "run_kept", "clear")]
        kinds += [versions_of(place, bus), versions_of(place, other), looks_anew(door.url)]

        def repoint() -> None:
            door.port = new.port

        with calling(place, *kinds, pause=0.005) as calls:
            place.eventually(lambda: len(calls.answered) > 100, RECOVERY_SECONDS)
            hand_over(place, new, replica, (lambda: None) if late else repoint)
            if late:
                passed(place, 1)
                repoint()
            before = len(calls.answered)
            place.eventually(lambda: len(calls.answered) > before + 300, RECOVERY_SECONDS)
            there = stack.enter_context(Bus("test", url=new.url))
            place.eventually(lambda: there.stats()["plain"]["workers"] == 2, RECOVERY_SECONDS)
        assert [str(error) for error in calls.errors] == []
        assert_none_ran_twice(place)
        assert [worker.poll() for worker in workers] == [None, None]
        # Nobody waits at the old one.
        assert [c for c in place.client.client_list() if "b" in c["flags"]] == []
        assert not list(replica.scan_iter("rb:{test:}:queue:*"))
