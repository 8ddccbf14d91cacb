"""A job that kills every worker that takes it, under a supervisor: as it goes in production."""

from __future__ import annotations

import time

import pytest

from redis_bus import WorkerLost
from tests.faults.place import BOTH, Place
from tests.faults.services import begun

CODE = """
import os
import signal

import redis_bus

bus = redis_bus.Bus("test")


@bus.register(idempotent=True)
def deadly(n):
    bus.conn.rpush("began", n)
    os.kill(os.getpid(), signal.SIGKILL)


@bus.register()
def plain(n):
    return n + 1
"""


@pytest.mark.together(over=BOTH)
def test_a_job_that_kills_its_workers_is_given_up_and_the_supervisor_starts_them_again(
    place: Place,
) -> None:
    supervisor = place.serve(CODE, args=("-w", "2"), alive=False)
    bus = place.bus(timeout=100)
    place.eventually(lambda: place.workers("plain") == 2)
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=r"^deadly\(7\): 3 workers were lost while they ran it"):
        bus.deadly(7)
    place.note(f"given up after {time.monotonic() - start:.1f} s")
    assert begun(place) == ["7"] * 3
    (letter,) = bus.deadly.dead_letters()
    assert (letter.call, letter.attempts) == ("deadly(7)", 3)
    # Whoever is left serves on, and those that died come back.
    assert bus.plain(1) == 2
    place.eventually(lambda: place.workers("plain") == 2, 60)
    assert place.log(supervisor).count("SIGKILL") == 3
    assert supervisor.poll() is None
    # People decide: it kills three more, or it is dropped.
    result = letter.retry()
    with pytest.raises(WorkerLost, match="6 workers were lost"):
        result.get(100)
    (letter,) = bus.deadly.dead_letters()
    assert letter.drop()
    assert bus.plain(1) == 2
