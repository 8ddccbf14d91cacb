"""stale=: an old value is served at once, while exactly one run in the background replaces it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import redis

from redis_bus import Bus
from tests.support import eventually, serving

CACHE = "rb:{test:}:cache:refreshed:"
FLIGHT = "rb:{test:}:flight:refreshed:"
STALE = b"1"  # a soft expiry (ms) long ago
WORKERS, CALLERS, CALLS = 3, 4, 200


class Refreshed:
    """A function that returns the number of its run, and can be held, or be made to fail."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None
        self.runs = 0
        self._lock = threading.Lock()

    def __call__(self, a: int) -> int:
        with self._lock:
            self.runs += 1
            number, error = self.runs, self.error
        self.entered.release()
        assert self.go.wait(20)
        if error is not None:
            raise error
        return number


class Service:
    """One method on several workers, and several callers that know none of its code."""

    def __init__(self, buses: list[Bus], callers: list[Bus], client: redis.Redis) -> None:
        self.function = Refreshed()
        self.callers = callers
        self.client = client
        for bus in buses:
            bus.register("refreshed", cache_key="{a}", cache_expire=1000, stale=500, timeout=20)(
                self.function
            )

    def call(self, a: int = 1) -> int:
        return int(self.callers[0].refreshed(a))

    def age(self, a: int = 1) -> None:
        """Set the value's expiry to a time that has passed; its window has not ended."""
        line, mark, outcome = self.entry(a).partition(b"\n")
        generation, _ = line.split()
        self.client.set(CACHE + str(a), generation + b" " + STALE + mark + outcome, keepttl=True)

    def entry(self, a: int = 1) -> bytes:
        found = self.client.get(CACHE + str(a))
        assert isinstance(found, bytes)
        return found

    def is_stale(self, a: int = 1) -> bool:
        return self.entry(a).split(b"\n")[0].endswith(b" " + STALE)

    def end_window(self, a: int = 1) -> None:
        self.client.pexpire(CACHE + str(a), 1)
        eventually(lambda: not self.client.exists(CACHE + str(a)))

    def flies(self, a: int = 1) -> bool:
        return bool(self.client.exists(FLIGHT + str(a)))

    def call_from_everywhere(self, pool: ThreadPoolExecutor) -> set[int]:
        """Call at once from all callers, many times, and return what came back."""
        answers = [
            pool.submit(self.callers[number % len(self.callers)].refreshed, 1)
            for number in range(CALLS)
        ]
        return {int(answer.result(20)) for answer in answers}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def service(url: str, client: redis.Redis) -> Iterator[Service]:
    """Served by several workers."""
    with ExitStack() as stack:
        buses = [stack.enter_context(Bus("test", url=url)) for _ in range(WORKERS)]
        callers = [stack.enter_context(Bus("test", url=url, timeout=20)) for _ in range(CALLERS)]
        service = Service(buses, callers, client)
        for bus in buses:
            stack.enter_context(serving(bus))
        stack.callback(service.function.go.set)
        yield service


def test_many_callers_of_a_stale_value_get_it_at_once_and_one_worker_refreshes_it(
    service: Service, pool: ThreadPoolExecutor
) -> None:
    assert service.call() == 1
    for number in range(1, 6):
        service.age()
        service.function.go.clear()
        # No call waits: the run that would end one is held until all of them are back.
        assert service.call_from_everywhere(pool) == {number}
        assert service.function.entered.acquire(timeout=20)
        assert service.call_from_everywhere(pool) == {number}
        assert service.function.runs == number + 1
        service.function.go.set()
        eventually(lambda: not service.is_stale())
        assert service.call_from_everywhere(pool) == {number + 1}
        assert service.function.runs == number + 1
    assert service.callers[0].stats()["refreshed"]["joins"] == 0


def test_a_refresh_that_fails_keeps_the_stale_value_and_the_next_call_tries_again(
    service: Service, pool: ThreadPoolExecutor
) -> None:
    assert service.call() == 1
    service.age()
    service.function.error = ValueError("not now")
    before = service.client.pttl(CACHE + "1")
    for number in range(2, 6):
        service.function.go.clear()
        assert service.call_from_everywhere(pool) == {1}
        service.function.go.set()
        eventually(lambda: not service.flies())
        # One run for all of these calls; its failure prolongs nothing, and reaches nobody.
        assert service.function.runs == number
        assert service.is_stale()
        assert 0 < service.client.pttl(CACHE + "1") <= before
    service.function.error = None
    assert service.call() == 1
    eventually(lambda: not service.is_stale())
    assert service.call_from_everywhere(pool) == {6}


def test_after_its_window_a_call_waits_for_a_new_value(
    service: Service, pool: ThreadPoolExecutor
) -> None:
    assert service.call() == 1
    service.age()
    service.end_window()
    service.function.go.clear()
    answer = pool.submit(service.call)
    eventually(lambda: service.function.runs == 2)
    assert not answer.done()
    service.function.go.set()
    assert answer.result(20) == 2


def test_after_its_window_a_call_gets_the_error_of_a_failed_run(service: Service) -> None:
    assert service.call() == 1
    service.age()
    service.function.error = ValueError("not now")
    assert service.call() == 1
    eventually(lambda: not service.flies())
    service.end_window()
    with pytest.raises(ValueError, match="not now"):
        service.call()
    with pytest.raises(ValueError, match="not now"):
        service.call()
    assert service.function.runs == 4


def test_when_the_window_ends_during_a_refresh_callers_wait_for_that_run(
    service: Service, pool: ThreadPoolExecutor
) -> None:
    assert service.call() == 1
    service.age()
    service.function.go.clear()
    assert service.call() == 1
    eventually(lambda: service.function.runs == 2)
    service.end_window()
    answers = [pool.submit(service.call) for _ in range(20)]
    eventually(lambda: service.callers[0].stats()["refreshed"]["joins"] == 20)
    assert not any(answer.done() for answer in answers)
    service.function.go.set()
    assert {answer.result(20) for answer in answers} == {2}
    assert service.function.runs == 2
    assert service.call() == 2


def test_when_a_refresh_fails_after_the_window_those_who_wait_get_its_error(
    service: Service, pool: ThreadPoolExecutor
) -> None:
    assert service.call() == 1
    service.age()
    service.function.go.clear()
    service.function.error = ValueError("not now")
    assert service.call() == 1
    eventually(lambda: service.function.runs == 2)
    service.end_window()
    answers = [pool.submit(service.call) for _ in range(5)]
    eventually(lambda: service.callers[0].stats()["refreshed"]["joins"] == 5)
    service.function.go.set()
    for answer in answers:
        assert isinstance(answer.exception(20), ValueError)
    assert service.function.runs == 2


@pytest.mark.parametrize("whole", [False, True])
def test_a_stale_value_is_never_served_across_a_clear(
    service: Service, pool: ThreadPoolExecutor, whole: bool
) -> None:
    method = service.callers[1].refreshed
    assert service.call() == 1
    service.age()
    service.function.go.clear()
    assert service.call() == 1
    eventually(lambda: service.function.runs == 2)
    if whole:
        method.clear_all_cache()
    else:
        assert method.clear_cache(1) is True
    answers = [pool.submit(service.call) for _ in range(10)]
    # They neither got the stale value nor joined the refresh, which began before the clear.
    eventually(lambda: service.function.runs == 3)
    eventually(lambda: service.callers[0].stats()["refreshed"]["joins"] == 9)
    assert not any(answer.done() for answer in answers)
    service.function.go.set()
    assert {answer.result(20) for answer in answers} == {3}
    eventually(lambda: not list(service.client.scan_iter("*:running:*")))
    assert service.call() == 3


def test_a_refresh_that_nobody_came_to_run_is_tried_again_by_a_later_call(
    url: str, client: redis.Redis
) -> None:
    with Bus("test", url=url) as bus, Bus("test", url=url, timeout=0.2) as caller:
        function = Refreshed()
        bus.register("refreshed", cache_key="{a}", cache_expire=1000, stale=500)(function)
        service = Service([], [caller], client)
        with serving(bus):
            assert service.call() == 1
        service.age()
        assert service.call() == 1
        [entry] = client.lrange("rb:{test:}:queue:refreshed", 0, -1)
        assert b" refresh " in entry
        # Its budget was that of the call that wanted it, and passes before a worker comes.
        deadline = int(entry.split()[3])
        eventually(lambda: server_ms(client) > deadline)
        with serving(bus):
            eventually(lambda: not service.flies())
            assert service.call() == 1
            eventually(lambda: not service.is_stale())
            assert service.call() == 2
    assert function.runs == 2


def test_a_window_begins_at_the_expiry_and_ends_by_the_clock(url: str, client: redis.Redis) -> None:
    with Bus("test", url=url, timeout=20) as bus:
        function = Refreshed()
        bus.register("refreshed", cache_key="{a}", cache_expire=0.2, stale=0.3)(function)
        service = Service([], [bus], client)
        with serving(bus):
            begun = server_ms(client)
            assert service.call() == 1
            stored = server_ms(client)
            assert begun + 200 <= int(service.entry().split()[1]) <= stored + 200
            # Its window is what Redis keeps it for beyond its expiry.
            before, left, after = server_ms(client), client.pttl(CACHE + "1"), server_ms(client)
            # It ends between these two; each clock is cut off at a millisecond.
            assert begun + 500 <= after + left + 1
            assert before + left - 1 <= stored + 500
            service.end_window()
            # A value that was never asked for in its window is gone without a refresh.
            assert function.runs == 1
            assert service.call() == 2


def server_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000
