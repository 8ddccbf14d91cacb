"""What a worker has claimed and does not know of is given back, and never run twice for that."""

from __future__ import annotations

import threading

import pytest
import redis

from redis_bus import Bus
from redis_bus.protocol.commands import SLICE_SECONDS, Claim
from redis_bus.protocol.entries import Job, parse_job, retried
from redis_bus.worker.claims import MOST_BYTES, MOST_OUTCOMES, Outcomes
from redis_bus.worker.slot import Slot
from redis_bus.worker.worker import Worker
from tests.support import PATIENCE_SECONDS, eventually

QUEUE = "rb:{test:}:queue:once"


@pytest.fixture
def worker(bus: Bus) -> Worker:
    """A worker of two slots that does not run, with one job in its queue."""
    bus.register("once")(lambda n: n)
    worker = bus._make_worker(None, debug=False, concurrency=2)
    bus._core.drive(bus._core.publish(worker.registrations))
    bus.once.run(1)
    return worker


@pytest.fixture
def slot(worker: Worker) -> Slot:
    return worker.slots[0]


@pytest.fixture
def other(worker: Worker) -> Slot:
    return worker.slots[1]


def take(worker: Worker, slot: Slot) -> Claim:
    """Have a slot ask for a job, and Redis claim one; its reply is on its way."""
    worker.lanes[0].claims.ask(slot)
    order = worker.lanes[0].post.routes
    reply = worker.core.transport.exchange(worker.lanes[0].post.take(order))[0]
    claim = worker.lanes[0].post.parse_take(reply, order)
    assert claim is not None
    return claim


def held(worker: Worker) -> list[bytes]:
    found: list[bytes] = worker.core.transport.ask(("HKEYS", worker.lanes[0].post.running))[0]
    return found


def begin(worker: Worker, slot: Slot, claim: Claim) -> None:
    worker.lanes[0].claims.begin(slot, claim.route, parse_job(claim.entry))


def beat(worker: Worker) -> None:
    worker.lanes[0].claims.give_back_lost(held(worker))


def test_a_claim_is_not_given_back_while_it_may_be_on_its_way(
    worker: Worker, slot: Slot, client: redis.Redis
) -> None:
    claim = take(worker, slot)
    for _ in range(3):
        beat(worker)
        worker.lanes[0].claims.give_back_strangers()
    assert (client.llen(QUEUE), len(held(worker))) == (0, 1)
    begin(worker, slot, claim)
    beat(worker)
    assert (client.llen(QUEUE), len(held(worker))) == (0, 1)


def test_a_claim_whose_reply_was_lost_is_given_back(
    worker: Worker, slot: Slot, client: redis.Redis
) -> None:
    take(worker, slot)
    worker.lanes[0].claims.answered(slot)  # its connection broke
    worker.lanes[0].claims.give_back_strangers()
    assert (client.llen(QUEUE), held(worker)) == (1, [])
    begin(worker, slot, take(worker, slot))


def test_a_claim_that_another_slot_may_be_about_to_hear_of_waits_for_that_slot(
    worker: Worker, slot: Slot, other: Slot, client: redis.Redis
) -> None:
    take(worker, slot)
    worker.lanes[0].claims.ask(other)
    worker.lanes[0].claims.answered(slot)
    beat(worker)
    assert client.llen(QUEUE) == 0
    worker.lanes[0].claims.answered(other)  # nothing for it
    worker.lanes[0].claims.settle()
    assert (client.llen(QUEUE), held(worker)) == (1, [])


def test_what_a_slot_begins_is_in_no_doubt_any_more(
    worker: Worker, slot: Slot, other: Slot, client: redis.Redis
) -> None:
    claim = take(worker, slot)
    worker.lanes[0].claims.ask(other)
    beat(worker)
    assert worker.lanes[0].claims.in_doubt() == {slot, other}
    begin(worker, slot, claim)
    worker.lanes[0].claims.answered(other)
    worker.lanes[0].claims.settle()
    assert (client.llen(QUEUE), len(held(worker))) == (0, 1)
    assert worker.lanes[0].claims.in_doubt() == set()


def test_a_job_that_runs_is_not_given_back(worker: Worker, slot: Slot, client: redis.Redis) -> None:
    begin(worker, slot, take(worker, slot))
    for _ in range(3):
        beat(worker)
        worker.lanes[0].claims.give_back_strangers()
    assert (client.llen(QUEUE), len(held(worker))) == (0, 1)


def test_a_job_whose_outcome_is_late_is_not_given_back(
    worker: Worker, slot: Slot, client: redis.Redis
) -> None:
    claim = take(worker, slot)
    begin(worker, slot, claim)
    worker.lanes[0].claims.keep_late(parse_job(claim.entry).id, ("PING",))
    worker.lanes[0].claims.end(slot)
    worker.lanes[0].claims.give_back_strangers()
    assert (client.llen(QUEUE), len(held(worker))) == (0, 1)
    assert list(worker.lanes[0].claims.send_late()) == [b"PONG"]
    worker.lanes[0].claims.give_back_strangers()
    assert (client.llen(QUEUE), held(worker)) == (1, [])


def test_bytes_that_are_no_job_are_deleted(worker: Worker, client: redis.Redis) -> None:
    client.hset(worker.lanes[0].post.running, mapping={b"\xff": b"\xfe", b"job": b"none"})
    worker.lanes[0].claims.give_back_strangers()
    assert held(worker) == []
    assert client.llen(QUEUE) == 1


# -- Redis knows less than it did ---------------------------------------------------------------
# As where a replica is promoted that had not heard of all that its master did.


@pytest.fixture
def ran() -> list[int]:
    """What was run."""
    return []


@pytest.fixture
def counting(bus: Bus, ran: list[int]) -> Worker:
    """A worker of two slots that notes what it runs, with one job in its queue."""
    bus.register("once")(lambda n: ran.append(n) or n)
    worker = bus._make_worker(None, debug=False, concurrency=2)
    bus._core.drive(bus._core.publish(worker.registrations))
    return worker


def reply_of(entry: bytes) -> str:
    return f"rb:{{test:}}:reply:{parse_job(entry).id}"


def test_a_job_whose_end_was_forgotten_is_answered_and_not_given_back(
    bus: Bus, counting: Worker, client: redis.Redis, ran: list[int]
) -> None:
    result = bus.once.run(1)
    entry = client.lrange(QUEUE, 0, -1)[0]
    assert counting.slots[0].serve_next()
    client.delete(reply_of(entry))
    client.hset(counting.lanes[0].post.running, parse_job(entry).id, entry)
    counting.lanes[0].claims.give_back_strangers()
    assert (client.llen(QUEUE), held(counting)) == (0, [])
    assert result.get(timeout=0) == 1
    assert ran == [1]


@pytest.mark.parametrize("again", [0, 1], ids=["same slot", "other slot"])
def test_a_job_whose_claim_was_forgotten_is_answered_and_not_run_again(
    bus: Bus, counting: Worker, client: redis.Redis, ran: list[int], again: int
) -> None:
    result = bus.once.run(1)
    entry = client.lrange(QUEUE, 0, -1)[0]
    assert counting.slots[0].serve_next()
    client.delete(reply_of(entry))
    client.rpush(QUEUE, entry)
    assert counting.slots[again].serve_next()
    assert held(counting) == []
    assert result.get(timeout=0) == 1
    assert ran == [1]


def test_a_job_that_runs_and_whose_claim_was_forgotten_is_not_begun_beside(
    bus: Bus, counting: Worker, client: redis.Redis, ran: list[int]
) -> None:
    slot, other = counting.slots
    bus.once.run(1)
    claim = take(counting, slot)
    begin(counting, slot, claim)
    client.delete(counting.lanes[0].post.running)
    client.rpush(QUEUE, claim.entry)
    assert other.serve_next()
    assert ran == []
    assert held(counting) == [parse_job(claim.entry).id.encode()]  # for the slot that runs it
    assert counting.lanes[0].claims.held(slot) is not None
    assert counting.lanes[0].claims.held(other) is None


def test_a_dead_letter_that_is_tried_again_runs_where_it_ran(
    bus: Bus, counting: Worker, client: redis.Redis, ran: list[int]
) -> None:
    result = bus.once.run(1)
    entry = client.lrange(QUEUE, 0, -1)[0]
    assert counting.slots[0].serve_next()
    client.rpush(QUEUE, retried(entry))
    assert counting.slots[0].serve_next()
    assert ran == [1, 1]
    assert result.get(timeout=0) == 1


def test_outcomes_are_remembered_up_to_a_number_and_a_size() -> None:
    def job(number: int) -> Job:
        return parse_job(b"%d 1 1 0 0 etag run 0 - once\n" % number)

    outcomes = Outcomes()
    for number in range(MOST_OUTCOMES + 1):
        outcomes.add(job(number), ("finish", number))
    assert outcomes.get(job(0)) is None
    assert outcomes.get(job(1)) == ("finish", 1)
    large = bytes(MOST_BYTES // 2)
    for number in range(3):
        outcomes.add(job(-number), ("finish", large))
    assert outcomes.get(job(0)) is None
    assert outcomes.get(job(1)) is None
    assert outcomes.get(job(-2)) == ("finish", large)
    outcomes.add(job(1), ("finish", bytes(MOST_BYTES + 1)))
    assert outcomes.get(job(1)) is None
    assert outcomes.get(job(-2)) is None


# -- a master that was replaced -----------------------------------------------------------------


def test_a_heartbeat_ends_a_wait_at_a_server_where_the_keys_are_not_any_more(
    some_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_bus.register("once")(lambda n: n)
    worker = some_bus._make_worker(None, debug=False, concurrency=1)
    thread = threading.Thread(target=worker.serve, daemon=True)
    thread.start()
    [slot] = eventually(lambda: worker.slots)
    client, old = eventually(lambda: slot.waiting), slot._link
    [lane] = worker.lanes
    worker._heart._beat(lane)
    assert (slot.waiting, slot._link) == (client, old)
    monkeypatch.setattr(worker.core.transport, "is_astray", lambda link, error=None: link is old)
    worker._heart._beat(lane)
    # Sooner than its wait would end by itself.
    eventually(lambda: slot.waiting not in (client, None), seconds=SLICE_SECONDS / 2)
    assert some_bus.once(1) == 1
    worker.stop()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
