"""A worker that runs several jobs at a time is lost: each of its callers is told, or answered."""

from __future__ import annotations

import time
from collections import Counter

import pytest

import redis_bus.worker.heart
from redis_bus import Bus, WorkerLost
from redis_bus.embedded import EmbeddedRedis
from tests.faults.cutting_proxy import CuttingProxy, Way
from tests.faults.place import FACES, Place
from tests.faults.services import HELD, begun, ended, let_go, together
from tests.faults.test_lost_workers import NOTICED_SECONDS, TIMEOUT_SECONDS, has_claims, kill
from tests.support import eventually, find_servers
from tests.worker.test_concurrency import running, serving

MANY = 4
HELD_ASYNC = """
    import asyncio

    @bus.register()
    async def held_async(a):
        return await asyncio.to_thread(hold, a)
"""
SERVICE = together(HELD, HELD_ASYNC)


@pytest.mark.together(over=FACES)
@pytest.mark.parametrize("alone", [False, True], ids=["another-alive", "the-only-one"])
def test_each_caller_of_a_killed_worker_that_ran_many_jobs_gets_worker_lost(
    place: Place, alone: bool
) -> None:
    worker = place.serve(SERVICE, args=("--concurrency", str(MANY)))
    bus = place.bus(timeout=TIMEOUT_SECONDS)
    methods = [bus.held, bus.held_async] * (MANY // 2)
    calls = [place.apart(method, a) for a, method in enumerate(methods)]
    place.eventually(lambda: len(begun(place)) == MANY)
    if not alone:
        place.serve(SERVICE)
    start = time.monotonic()
    kill(worker)
    for call in calls:
        error = call.exception(TIMEOUT_SECONDS)
        assert isinstance(error, WorkerLost), error
    passed = time.monotonic() - start
    place.note(f"all were told after {passed:.1f} s")
    assert passed < NOTICED_SECONDS
    if alone:
        place.serve(SERVICE)
    assert bus.note(MANY) == MANY
    assert sorted(begun(place)) == [str(a) for a in range(MANY + 1)]
    assert ended(place) == [str(MANY)]
    assert not has_claims(place)


@pytest.mark.together(over=FACES)
def test_another_worker_runs_all_jobs_of_a_killed_one_that_may_run_again(place: Place) -> None:
    options = ("--concurrency", str(MANY))
    worker = place.serve(SERVICE, args=options)
    bus = place.bus(timeout=TIMEOUT_SECONDS)
    methods = [bus.held_cached, bus.held_idempotent] * (MANY // 2)
    calls = [place.apart(method, a) for a, method in enumerate(methods)]
    place.eventually(lambda: len(begun(place)) == MANY)
    other = place.serve(SERVICE, args=options)
    start = time.monotonic()
    kill(worker)
    place.eventually(lambda: len(begun(place)) == 2 * MANY)
    passed = time.monotonic() - start
    place.note(f"all run again after {passed:.1f} s")
    assert passed < NOTICED_SECONDS
    let_go(place, MANY)
    assert [call.result() for call in calls] == [f"{a} by {other.pid}" for a in range(MANY)]
    assert not has_claims(place)


@pytest.mark.parametrize("way", [pytest.param(way, id=way.name.lower()) for way in Way])
@pytest.mark.parametrize("kind", find_servers())
def test_a_job_on_its_way_to_a_slot_that_is_cut_off_is_run_by_another_at_once(
    kind: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait meanwhile: it is found out at once that it is on its way to none of them."""
    monkeypatch.setattr(redis_bus.worker.heart, "BEAT_SECONDS", TIMEOUT_SECONDS)
    ran: Counter[int] = Counter()
    with (
        EmbeddedRedis(find_servers()[kind], port=0) as server,
        CuttingProxy(server.url) as proxy,
        Bus("test", url=proxy.url) as behind,
        Bus("test", url=server.url, timeout=NOTICED_SECONDS) as caller,
    ):

        @behind.register()
        def note(a: int) -> int:
            ran[a] += 1
            return a

        with serving(behind, MANY):
            for after in range(0, 400, 37):
                proxy.cut(after, way, having=b"wake:")
                while not proxy.fired.is_set():
                    a = len(ran)
                    assert caller.note(a) == a
            assert eventually(lambda: not running(caller.conn))
    assert set(ran.values()) == {1}
