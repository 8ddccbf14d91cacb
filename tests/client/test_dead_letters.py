"""Dead letters: jobs that killed their workers are kept, shown, tried again or dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import redis

from redis_bus import Bus, BusError, DeadLetter, WorkerLost
from redis_bus.calls.sweep import sweep
from redis_bus.protocol.commands import Post, Service
from redis_bus.protocol.entries import parse_job, parse_letter, retried
from tests.support import Processes, serving

SERVICE = Service("test", "")
DEAD = "rb:{test:}:dead:"


def double(n: int) -> int:
    """Return twice as much."""
    return 2 * n


@pytest.fixture
def caller(url: str, bus: Bus) -> Iterator[Bus]:
    """Another bus, once `double`, `quad` (cached) and `ten` (idempotent) are published."""
    bus.register()(double)
    bus.register("quad", cache_key="{n}")(lambda n: 4 * n)
    bus.register("ten", idempotent=True)(lambda n: 10 * n)
    bus.serve_once()
    with Bus("test", url=url, timeout=20) as caller:
        yield caller


def lose(bus: Bus, method: str, times: int = 1) -> None:
    """Have a worker take the method's next job, and be dead; again and again."""
    for number in range(times):
        post = Post(SERVICE, f"host:{number}:gone", [bus[method].target.route])
        claim = bus._core.transport.exchange(post.take(post.routes))[0]
        assert claim, f"nothing to take, attempt {number + 1}"
        bus._core.transport.exchange(SERVICE.lapse(post.worker))
        bus._core.drive(sweep("test", SERVICE))


def only(letters: list[DeadLetter]) -> DeadLetter:
    assert len(letters) == 1
    return letters[0]


def test_a_cached_job_is_given_up_after_three_attempts_and_kept(caller: Bus) -> None:
    result = caller.quad.run(5)
    lose(caller, "quad", 2)
    assert not result.done()
    assert caller.quad.dead_letters() == []
    lose(caller, "quad")
    with pytest.raises(WorkerLost, match=r"^quad: 3 workers were lost while they ran it, the last"):
        result.get()
    letter = only(caller.quad.dead_letters())
    assert (letter.call, letter.why, letter.attempts) == ("quad(5)", "lost", 3)
    assert letter.worker == "host:0:gone"
    assert result.id == f":quad:{letter.id}"
    stats = caller.stats()["quad"]
    assert (stats["lost"], stats["dead"], stats["queued"]) == (1, 1, 0)


def test_an_uncached_job_is_given_up_at_once_and_kept_where_nobody_may_wait(caller: Bus) -> None:
    result = caller.double.run(5)
    lose(caller, "double")
    with pytest.raises(WorkerLost, match=r"^double: its worker host:0:gone was lost while it ran"):
        result.get()
    assert only(caller.double.dead_letters()).attempts == 1


@pytest.mark.parametrize("method", ["double", "quad", "ten"])
def test_a_dead_job_can_be_tried_again_under_its_own_id(
    bus: Bus, caller: Bus, client: redis.Redis, method: str
) -> None:
    result = caller[method].run(5)
    tries = 1 if method == "double" else 3
    lose(caller, method, tries)
    again = only(caller[method].dead_letters()).retry()
    assert again.id == result.id
    assert caller[method].dead_letters() == []
    assert not result.done()
    job = parse_job(client.lindex(f"rb:{{test:}}:queue:{method}", 0))
    assert (job.attempt, job.tries, job.deadline_ms) == (tries + 1, 2 * tries, 0)
    assert bus.serve_once() == 1
    assert result.get() == again.get() == {"double": 10, "quad": 20, "ten": 50}[method]


def test_a_job_that_is_tried_again_can_be_cancelled(caller: Bus) -> None:
    caller.quad.run(5)
    lose(caller, "quad", 3)
    again = only(caller.quad.dead_letters()).retry()
    # Its flight is gone, so others may wait for its key by now; a job without a key is alone.
    assert not again.cancel()
    caller.double.run(5)
    lose(caller, "double")
    assert only(caller.double.dead_letters()).retry().cancel()


def test_a_job_that_dies_again_is_a_dead_letter_again(caller: Bus) -> None:
    result = caller.ten.run(5)
    lose(caller, "ten", 3)
    only(caller.ten.dead_letters()).retry()
    lose(caller, "ten", 2)
    assert caller.ten.dead_letters() == []
    lose(caller, "ten")
    assert only(caller.ten.dead_letters()).attempts == 6
    with pytest.raises(WorkerLost, match="6 workers were lost"):
        result.get()


def test_a_letter_that_is_gone_is_not_tried_and_not_dropped_twice(caller: Bus) -> None:
    caller.double.run(5)
    lose(caller, "double")
    first, second = caller.double.dead_letters(), caller.double.dead_letters()
    assert only(first).drop()
    assert not only(second).drop()
    with pytest.raises(BusError, match=f"dead letter {second[0].id} is not there any more"):
        second[0].retry()
    assert caller.stats()["double"]["queued"] == 0


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe\n\0", b"1 lost w\nno job", b"12 foreign w\n\xff"])
def test_foreign_bytes_are_shown_and_can_only_be_dropped(
    caller: Bus, client: redis.Redis, raw: bytes
) -> None:
    client.rpush(DEAD + "double", raw)
    letter = only(caller.double.dead_letters())
    assert repr(letter).startswith(f"<dead letter {letter.id} of double: b")
    with pytest.raises(BusError, match="is no job: it can only be dropped"):
        letter.retry()
    assert letter.drop()
    assert caller.double.dead_letters() == []


def test_arguments_that_cannot_be_read_are_shown_as_bytes(caller: Bus, client: redis.Redis) -> None:
    caller.double.run(5)
    lose(caller, "double")
    raw = client.lpop(DEAD + "double")
    client.rpush(DEAD + "double", raw[:-3] + b"\xc1\xc1\xc1")
    assert only(caller.double.dead_letters()).call.startswith("double(<")


def test_what_is_tried_again_keeps_its_key_and_arguments(caller: Bus, client: redis.Redis) -> None:
    caller.quad.run("x\ny")
    before = parse_job(client.lindex("rb:{test:}:queue:quad", 0))
    lose(caller, "quad", 3)
    letter = parse_letter(client.lindex(DEAD + "quad", 0))
    after = parse_job(retried(letter.entry))
    assert (after.key, after.body, after.etag) == (before.key, before.body, before.etag)


def test_the_last_thousand_are_kept(caller: Bus, client: redis.Redis) -> None:
    client.rpush(DEAD + "double", *[b"%d" % number for number in range(1000)])
    caller.double.run(5)
    lose(caller, "double")
    letters = caller.double.dead_letters()
    assert len(letters) == 1000
    assert letters[-1].call == "double(5)"
    assert client.lindex(DEAD + "double", 0) == b"1"


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def dead_jobs(caller: Bus) -> Bus:
    """A bus with two dead letters of `double` and one of `ten`."""
    for n in (1, 2):
        caller.double.run(n)
        lose(caller, "double")
    caller.ten.run(3)
    lose(caller, "ten", 3)
    return caller


def test_dead_letters_are_listed_for_people_and_programs(
    dead_jobs: Bus, processes: Processes
) -> None:
    shown = processes.run("redis-bus", "dead", "test").stdout
    ids = [letter.id for name in ("double", "ten") for letter in dead_jobs[name].dead_letters()]
    for number, call in enumerate(["double(1)", "double(2)", "ten(3)"]):
        assert f"{ids[number]}  {call}\n" in shown
    assert "UTC, lost with host:2:gone, attempt 3\n" in shown
    assert "ten" not in processes.run("redis-bus", "dead", "test", "double").stdout
    listed = json.loads(processes.run("redis-bus", "dead", "test", "--json").stdout)
    assert [one["id"] for one in listed] == ids
    assert set(listed[0]) == {"id", "method", "call", "why", "time", "worker", "attempts"}
    assert processes.run("redis-bus", "dead", "test", "quad").stdout == "quad has no dead letters\n"


def test_dead_letters_are_tried_again_by_id_or_all(
    bus: Bus, dead_jobs: Bus, processes: Processes
) -> None:
    first, second = dead_jobs.double.dead_letters()
    done = processes.run("redis-bus", "dead", "test", "double", "--retry", first.id)
    assert done.stdout == f"{first.id} double(1): queued again\n"
    assert [letter.id for letter in dead_jobs.double.dead_letters()] == [second.id]
    done = processes.run("redis-bus", "dead", "test", "--retry", "all")
    assert done.returncode == 0 and done.stdout.count("queued again") == 2
    with serving(bus):
        assert bus.get_async_result(f":double:{second.id}").get() == 4
    assert [bus[name].dead_letters() for name in ("double", "ten")] == [[], []]


def test_dropping_asks_first_and_says_how_not_to(dead_jobs: Bus, processes: Processes) -> None:
    asked = processes.run("redis-bus", "dead", "test", "--drop", "all")
    assert asked.returncode == 2 and "--yes" in asked.stderr
    assert len(dead_jobs.double.dead_letters()) == 2
    done = processes.run("redis-bus", "dead", "test", "double", "--drop", "all", "--yes")
    assert done.stdout.count(": dropped\n") == 2
    assert dead_jobs.double.dead_letters() == []
    assert len(dead_jobs.ten.dead_letters()) == 1


def test_what_is_wrong_is_said_without_a_traceback(dead_jobs: Bus, processes: Processes) -> None:
    for arguments, text in [
        (["test", "--retry", "nonsense"], "there is no dead letter nonsense"),
        (["test", "--retry", "all", "--drop", "all"], "either --retry or --drop"),
        (["test", "nothing"], "has no method 'nothing'"),
    ]:
        done = processes.run("redis-bus", "dead", *arguments)
        assert done.returncode == 2
        assert text in done.stderr and "Traceback" not in done.stderr
    dead_jobs.cleanup()
    assert processes.run("redis-bus", "dead", "test").stdout == "bus 'test' has no dead letters\n"


def test_one_that_cannot_be_tried_again_does_not_keep_the_others(
    dead_jobs: Bus, client: redis.Redis, processes: Processes
) -> None:
    client.lpush(DEAD + "double", b"foreign")
    done = processes.run("redis-bus", "dead", "test", "--retry", "all")
    assert done.returncode == 1
    assert "is no job: it can only be dropped" in done.stderr
    assert done.stdout.count("queued again") == 3
