"""Results: enqueued now, read later, any number of times, from anywhere."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from redis_bus import AsyncResult, Bus, BusError, CallTimeout, Cancelled, NoWorkers, RemoteError
from tests.support import Processes, eventually, serving


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Gate:
    """Holds a function open: it says that it was entered and waits to be let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.runs = 0

    def __call__(self, a: int = 0) -> int:
        self.runs += 1
        self.entered.set()
        assert self.go.wait(20)
        return a


class Refused(Exception):
    pass


def double(a: int) -> int:
    return 2 * a


def test_a_job_run_before_any_worker_exists_is_read_any_number_of_times_and_anywhere(
    bus: Bus, caller: Bus, processes: Processes
) -> None:
    bus.register()(double)
    result = bus.double.run(4)
    assert isinstance(result, AsyncResult)
    assert not result.done()
    assert bus.serve_once() == 1
    assert result.done()
    assert [result.get() for _ in range(3)] == [8, 8, 8]
    again = caller.get_async_result(result.id)
    assert again.id == result.id
    assert again.done()
    assert [again.get(), again.get(timeout=1)] == [8, 8]
    code = """
        import sys, redis_bus
        result = redis_bus.Bus("test").get_async_result(sys.argv[1])
        print(result.done(), result.get(), result.get())
    """
    out, err = processes.python(code, result.id).communicate(timeout=30)
    assert (out, err) == ("True 8 8\n", "")
    assert result.get() == 8


def test_an_id_is_plain_text_and_holds_for_services_with_a_prefix(url: str, caller: Bus) -> None:
    with Bus("test", url=url, prefix="math_") as service:
        service.register()(double)
        result = service.math_double.run(4)
        service.serve_once()
        assert re.fullmatch(r"math_:math_double:[A-Za-z0-9_-]{16}", result.id)
        assert caller.get_async_result(result.id).get() == 8
        assert result.id in repr(result)


def test_many_can_wait_for_one_result_before_it_is_there(bus: Bus, caller: Bus) -> None:
    gate = Gate()
    bus.register("gated")(gate)
    result = bus.gated.run(5)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(caller.get_async_result(result.id).get) for _ in range(20)]
        eventually(lambda: int(bus.conn.info("clients")["blocked_clients"]) >= 20)
        with serving(bus):
            assert gate.entered.wait(20)
            assert not any(answer.done() for answer in answers)
            gate.go.set()
            assert [answer.result(20) for answer in answers] == [5] * 20
    assert gate.runs == 1


def test_done_turns_true_with_the_outcome(bus: Bus) -> None:
    gate = Gate()
    bus.register("gated")(gate)
    with serving(bus):
        result = bus.gated.run()
        assert gate.entered.wait(20)
        assert not result.done()
        gate.go.set()
        eventually(result.done)
        assert result.get(timeout=0.01) == 0


def test_get_waits_no_longer_than_its_timeout(bus: Bus) -> None:
    bus.register()(double)
    result = bus.double.run(1)
    with pytest.raises(NoWorkers, match=r"^double \(job .{16}\): no reply in 0\.1 s"):
        result.get(timeout=0.1)
    assert bus.serve_once() == 1  # to give up waiting does not withdraw the job
    assert result.get() == 2


def test_get_without_a_timeout_waits_as_long_as_a_call_on_its_bus(url: str) -> None:
    with Bus("test", url=url, timeout=0.2) as bus:
        bus.register()(double)
        result = bus.double.run(1)
        with pytest.raises(CallTimeout, match=r"no reply in 0\.2 s"):
            result.get()


def test_a_cancelled_job_is_not_run_and_get_raises_cancelled(bus: Bus, caller: Bus) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    result, other = bus.note.run(1), bus.note.run(2)
    assert result.cancel() is True
    assert result.cancel() is False
    assert result.done()
    assert bus.serve_once() >= 1
    for one in (result, caller.get_async_result(result.id)):
        with pytest.raises(Cancelled, match="cancelled before a worker took it"):
            one.get()
    assert other.get() is None
    assert ran == [2]


def test_a_job_is_cancelled_from_another_process_by_its_id(bus: Bus, caller: Bus) -> None:
    bus.register()(double)
    result = bus.double.run(1)
    assert caller.get_async_result(result.id).cancel() is True
    with pytest.raises(Cancelled):
        result.get()


def test_those_who_wait_for_a_job_are_told_that_it_was_cancelled(bus: Bus, caller: Bus) -> None:
    bus.register()(double)
    result = bus.double.run(1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(caller.get_async_result(result.id).get)
        eventually(lambda: int(bus.conn.info("clients")["blocked_clients"]) == 1)
        assert result.cancel() is True
        with pytest.raises(Cancelled):
            answer.result(20)


def test_cancel_is_false_once_a_worker_took_the_job(bus: Bus) -> None:
    gate = Gate()
    bus.register("gated")(gate)
    with serving(bus):
        result = bus.gated.run(7)
        assert gate.entered.wait(20)
        assert result.cancel() is False
        gate.go.set()
        assert result.get() == 7
        assert result.cancel() is False
        assert result.get() == 7


def test_cancel_is_false_where_others_wait_for_the_same_value(bus: Bus) -> None:
    bus.register(cache_key="{a}")(double)
    first, second = bus.double.run(1), bus.double.run(1)
    assert first.id == second.id  # it joined
    assert first.cancel() is False
    bus.serve_once()
    assert second.get() == 2


def test_after_a_cancelled_run_of_a_key_the_next_call_runs(bus: Bus) -> None:
    bus.register(cache_key="{a}")(double)
    first = bus.double.run(1)
    assert first.cancel() is True
    second = bus.double.run(1)
    assert second.id != first.id
    bus.serve_once()
    assert second.get() == 2
    with pytest.raises(Cancelled):
        first.get()


@pytest.mark.parametrize(
    "text",
    [
        *("", "garbage", ":", "::", ":double:", "double:job", ":double:job:more", "a b:double:job"),
        *("}x{:double:job", ":*:job", ":double:job\n", ":double:../job", "1:double:job"),
    ],
)
def test_what_is_no_id_is_a_bus_error(bus: Bus, text: str) -> None:
    with pytest.raises(BusError, match="is not the id of a result"):
        bus.get_async_result(text)


def test_an_id_of_no_job_is_never_done(bus: Bus) -> None:
    bus.register()(double)
    bus.serve_once()
    result = bus.get_async_result(":double:AAAAAAAAAAAAAAAA")
    assert not result.done()
    assert result.cancel() is False
    with pytest.raises(CallTimeout):
        result.get(timeout=0.05)


def test_run_on_a_cached_value_has_it_at_once_and_needs_no_worker(bus: Bus, caller: Bus) -> None:
    bus.register(cache_key="{a}")(double)
    with serving(bus):
        assert bus.double(1) == 2
    result = bus.double.run(1)
    assert result.done()
    assert [result.get(), result.get()] == [2, 2]
    assert caller.get_async_result(result.id).get() == 2
    assert bus.double.run(1).id != result.id
    bus.double.clear_cache(1)
    assert result.get() == 2  # it is this job's outcome, whatever becomes of the cache


def test_run_joins_the_flight_of_a_call_and_the_call_that_of_a_run(bus: Bus, caller: Bus) -> None:
    gate = Gate()
    bus.register("gated", cache_key="{a}")(gate)
    with serving(bus), ThreadPoolExecutor(2) as pool:
        answer = pool.submit(caller.gated, 1)
        assert gate.entered.wait(20)
        results = [bus.gated.run(1) for _ in range(3)]
        late = pool.submit(caller.gated, 1)
        eventually(lambda: bus.stats()["gated"]["joins"] == 4)
        gate.go.set()
        assert [answer.result(20), late.result(20)] == [1, 1]
        assert [result.get() for result in results] == [1, 1, 1]
    assert gate.runs == 1
    assert results[0].get() == 1


def test_a_result_expires_after_result_expire(url: str, client: redis.Redis) -> None:
    with Bus("test", url=url, result_expire=120) as bus:
        bus.register("plain")(double)
        bus.register("keyed", cache_key="{a}")(double)
        with serving(bus):
            plain, keyed = bus.plain.run(1), bus.keyed.run(1)
            assert [plain.get(), keyed.get()] == [2, 2]
            hit = bus.keyed.run(1)
        for result in (plain, keyed, hit):
            job = result.id.rpartition(":")[2]
            assert 100_000 < client.pttl(f"rb:{{test:}}:reply:{job}") <= 120_000
            result.get()
            assert client.pttl(f"rb:{{test:}}:reply:{job}") > 0


def test_a_result_that_is_no_longer_kept_is_gone(url: str) -> None:
    with Bus("test", url=url, result_expire=0.05) as bus:
        bus.register()(double)
        with serving(bus):
            result = bus.double.run(1)
            eventually(result.done)
            eventually(lambda: not result.done())
            with pytest.raises(CallTimeout):
                result.get(timeout=0.05)


def test_a_call_leaves_no_result_behind(bus: Bus, client: redis.Redis) -> None:
    bus.register("plain")(double)
    bus.register("keyed", cache_key="{a}")(double)
    with serving(bus):
        for a in range(5):
            assert bus.plain(a) == 2 * a
        assert not list(client.scan_iter("*reply*"))
        assert bus.keyed(1) == 2
        for key in client.scan_iter("*reply*"):
            assert client.pttl(key) <= 10_000


def members(client: redis.Redis, key: bytes) -> int:
    """How much a key holds."""
    count = {
        b"hash": client.hlen,
        b"list": client.llen,
        b"zset": client.zcard,
        b"string": client.strlen,
    }
    return int(count[client.type(key)](key))


def test_nothing_without_an_expiry_grows_with_the_number_of_calls(
    bus: Bus, client: redis.Redis
) -> None:
    bus.register("plain")(double)
    bus.register("keyed", cache_key="{a}")(double)
    bus.register("fail")(lambda a: 1 / a)

    def use() -> dict[bytes, int]:
        for a in range(1, 11):
            bus.plain(a)
            bus.keyed(a)
            bus.plain.run(a).get()
            bus.keyed.run(a + 100).get()
            bus.plain.run(a).cancel()
            with pytest.raises(ZeroDivisionError):
                bus.fail(0)
        lasting = [key for key in client.scan_iter() if client.ttl(key) == -1]
        return {key: members(client, key) for key in lasting}

    with serving(bus):
        use()
        before = use()  # by now every counter is there
        assert use() == before


def test_an_error_is_raised_by_every_get(bus: Bus, caller: Bus) -> None:
    @bus.register()
    def fail() -> None:
        raise KeyError("gone")

    result = bus.fail.run()
    bus.serve_once()
    assert result.done()
    for one in (result, result, caller.get_async_result(result.id)):
        with pytest.raises(KeyError) as error:
            one.get()
        assert error.value.args == ("gone",)
        assert "in fail" in str(error.value.__cause__)


def test_allowed_classes_hold_for_the_result(bus: Bus) -> None:
    @bus.register()
    def refuse() -> None:
        raise Refused("no")

    result = bus.refuse.options(allow=(Refused,)).run()
    plain = bus.refuse.run()
    bus.serve_once()
    with pytest.raises(Refused, match="no"):
        result.get()
    for one in (plain, bus.get_async_result(result.id)):
        with pytest.raises(RemoteError, match="no"):
            one.get()


def test_get_without_time_returns_what_is_there(bus: Bus) -> None:
    bus.register()(double)
    result = bus.double.run(4)
    with pytest.raises(CallTimeout):
        result.get(timeout=0)
    bus.serve_once()
    assert result.get(timeout=0) == 8


def test_a_run_waits_for_a_worker_as_long_as_that_takes(url: str, client: redis.Redis) -> None:
    with Bus("test", url=url, result_expire=0.001) as bus:
        bus.register()(double)
        result = bus.double.run(4)
        assert client.ttl("rb:{test:}:queue:double") == -1
        assert client.ttl("rb:{test:}:pending:double") == -1
        assert result.cancel()
        assert bus.serve_once() == 0


def test_a_run_with_a_timeout_is_dropped_where_no_worker_takes_it_in_time(
    bus: Bus, client: redis.Redis
) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    bus.note.options(timeout=0.001).run(1)
    entry = client.lindex("rb:{test:}:queue:note", 0)
    deadline_ms = int(entry.split()[3])
    eventually(lambda: client.time()[0] * 1000 + client.time()[1] // 1000 > deadline_ms)
    bus.note.run(2)
    bus.serve_once()
    assert ran == [2]


def test_outcomes_that_point_at_each_other_are_not_followed_for_ever(
    bus: Bus, client: redis.Redis
) -> None:
    bus.register()(double)
    result = bus.double.run(4)
    job = result.id.rpartition(":")[2]
    client.rpush(f"rb:{{test:}}:reply:{job}", f">{job}")
    for ask in (result.done, result.get):
        with pytest.raises(BusError, match="said to be another's, again and again"):
            ask()


def test_who_joined_a_run_is_answered_whatever_its_result_expire(
    url: str, pool: ThreadPoolExecutor
) -> None:
    with Bus("test", url=url, result_expire=0.001, timeout=20) as bus:
        gate = Gate()
        bus.register("gate", cache_key="{a}", cache_expire=0)(gate)
        with serving(bus):
            leader = bus.gate.run(1)
            assert gate.entered.wait(20)
            joined = [pool.submit(bus.gate, 1) for _ in range(6)]
            eventually(lambda: bus.stats()["gate"]["joins"] == 6)
            gate.go.set()
            assert [answer.result(20) for answer in joined] == [1] * 6
            assert leader.get() == 1
    assert gate.runs == 1
