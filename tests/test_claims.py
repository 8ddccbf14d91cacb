"""What a worker has claimed and does not know of is given back, and never run twice for that."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis

from redis_bus import Bus
from redis_bus.entries import parse_job
from redis_bus.protocol import Claim
from redis_bus.worker import Worker

QUEUE = "rb:{test:}:queue:once"


@pytest.fixture
def worker(bus: Bus) -> Worker:
    """A worker that does not run, with one job in its queue."""
    bus.register("once")(lambda n: n)
    worker = bus._make_worker(None, debug=False)
    bus._core.drive(bus._core.publish(worker.registrations))
    bus.once.run(1)
    return worker


def take(worker: Worker) -> Claim:
    order = worker.post.routes
    claim = worker.post.parse_take(
        worker.core.transport.exchange(worker.post.take(order))[0], order
    )
    assert claim is not None
    return claim


def held(worker: Worker) -> list[bytes]:
    found: list[bytes] = worker.core.transport.ask(("HKEYS", worker.post.running))[0]
    return found


def begin(worker: Worker, claim: Claim) -> bool:
    return worker.claims.begin(claim.route, parse_job(claim.entry))


def test_a_claim_is_given_back_once_two_beats_saw_it_and_nobody_knows_it(
    worker: Worker, client: redis.Redis
) -> None:
    take(worker)
    worker.claims.give_back_lost(held(worker))
    assert client.llen(QUEUE) == 0  # its reply may be on its way
    worker.claims.give_back_lost(held(worker))
    assert (client.llen(QUEUE), held(worker)) == (1, [])


def test_a_job_that_runs_is_not_given_back(worker: Worker, client: redis.Redis) -> None:
    assert begin(worker, take(worker))
    for _ in range(3):
        worker.claims.give_back_lost(held(worker))
    worker.claims.give_back_strangers()
    assert (client.llen(QUEUE), len(held(worker))) == (0, 1)


def test_a_job_that_was_given_back_is_not_begun_when_its_reply_comes_after_all(
    worker: Worker, client: redis.Redis
) -> None:
    claim = take(worker)
    for _ in range(2):
        worker.claims.give_back_lost(held(worker))
    assert not begin(worker, claim)
    assert client.llen(QUEUE) == 1
    assert begin(worker, take(worker))


def test_on_a_new_connection_all_that_is_not_known_is_given_back_at_once(
    worker: Worker, client: redis.Redis
) -> None:
    take(worker)
    worker.claims.give_back_strangers()
    assert (client.llen(QUEUE), held(worker)) == (1, [])
    assert begin(worker, take(worker))


def test_bytes_that_are_no_job_are_deleted(worker: Worker, client: redis.Redis) -> None:
    client.hset(worker.post.running, mapping={b"\xff": b"\xfe", b"job": b"none"})
    worker.claims.give_back_strangers()
    assert held(worker) == []
    assert client.llen(QUEUE) == 1


def test_a_job_is_not_given_back_while_it_is_taken_again(
    worker: Worker, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heart is slow between deciding and releasing: the loop waits for it."""
    asks, may_ask = threading.Event(), threading.Event()
    ask = worker.core.transport.ask

    def slow(*commands: Any, **options: Any) -> list[Any]:
        if threading.current_thread().name == "heart" and commands[0][0] == "HGET":
            asks.set()
            assert may_ask.wait(20)
        return ask(*commands, **options)

    claim, found = take(worker), held(worker)
    worker.claims.give_back_lost(found)
    monkeypatch.setattr(worker.core.transport, "ask", slow)
    heart = threading.Thread(
        target=worker.claims.give_back_lost, args=(found,), name="heart", daemon=True
    )
    heart.start()
    assert asks.wait(20)
    begun: list[bool] = []

    def loop() -> None:
        begun.append(begin(worker, claim))
        begun.append(begin(worker, take(worker)))

    running = threading.Thread(target=loop, daemon=True)
    running.start()
    may_ask.set()
    for thread in (heart, running):
        thread.join(20)
    assert begun == [False, True]
    assert (client.llen(QUEUE), len(held(worker))) == (0, 1)
