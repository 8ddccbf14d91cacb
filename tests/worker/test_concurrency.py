"""Several jobs at a time in one worker: threads for plain functions, one loop for async ones."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from redis_bus import Bus, CallTimeout, NoWorkers, RemoteError, WorkerLost
from redis_bus.calls import nested
from redis_bus.protocol.deadline import Deadline
from redis_bus.protocol.entries import parse_job
from redis_bus.worker.loop import LoopThread
from redis_bus.worker.slot import Slot
from tests.support import PATIENCE_SECONDS, Processes, eventually, workers

MANY = 4
WAIT_SECONDS = 20.0
SOON_SECONDS = 8.0
HELD = """
    @bus.register()
    def held(a):
        bus.conn.rpush("entered", a)
        # Again and again: a client of redis-py gives up a read after 5 s.
        while not bus.conn.blpop("go", 2):
            pass
        return a
"""
HELD_ON_LOOP = """
    @bus.register()
    async def held(a):
        async with redis.asyncio.Redis.from_url(URL) as conn:
            await conn.rpush("entered", a)
            while not await conn.blpop("go", 2):
                pass
        return a
"""
SERVICE = f"""
    import asyncio, redis_bus, redis.asyncio

    bus = redis_bus.Bus("test")
{HELD}
    @bus.register()
    async def held_async(a):
        try:
            async with redis.asyncio.Redis.from_url(URL) as conn:
                await conn.rpush("entered", a)
                while not await conn.blpop("go", 2):
                    pass
        except asyncio.CancelledError:
            bus.conn.rpush("cancelled", a)
            raise
        return a

    if __name__ == "__main__":
        bus.serve(concurrency=4)
        print("after serve")
"""


@contextlib.contextmanager
def serving(bus: Bus, concurrency: int = MANY) -> Iterator[Bus]:
    """Serve in a thread of this process, so many jobs at a time."""
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(bus.serve, concurrency=concurrency)
        try:
            eventually(lambda: served.done() or all(map(is_served(bus), bus._core.registrations)))
            if not served.done():
                yield bus
        finally:
            bus.stop()
            served.result(PATIENCE_SECONDS)


def is_served(bus: Bus) -> Callable[[str], bool]:
    return lambda method: workers(bus, method) > 0


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=WAIT_SECONDS) as bus:
        yield bus


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(params=["threads", "loop"])
def worker(
    request: pytest.FixtureRequest, processes: Processes, caller: Bus, url: str
) -> subprocess.Popen[str]:
    """A real worker process with four slots, ready: in threads, or all on one loop."""
    code = SERVICE if request.param == "threads" else SERVICE.replace(HELD, HELD_ON_LOOP)
    processes.write("service.py", code.replace("URL", repr(url)))
    process = processes.start("python", "service.py")
    eventually(lambda: workers(caller, "held"))
    return process


class Meeting:
    """Where functions meet: none goes on before so many are there at once."""

    def __init__(self, size: int) -> None:
        self.peak = 0
        self._size = size
        self._barrier = threading.Barrier(size)
        self._lock = threading.Lock()
        self._inside = self._came = 0
        self._gates: list[asyncio.Event] = []

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            self.peak = max(self.peak, self._inside)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def meet(self) -> None:
        with self.counted():
            self._barrier.wait(WAIT_SECONDS)

    async def meet_async(self) -> None:
        with self.counted():
            if self._came % self._size == 0:
                self._gates.append(asyncio.Event())
            self._came += 1
            gate = self._gates[-1]
            if self._came % self._size == 0:
                gate.set()
            await asyncio.wait_for(gate.wait(), WAIT_SECONDS)


def wait_until_entered(client: redis.Redis, jobs: int) -> None:
    for _ in range(jobs):
        assert client.blpop(["entered"], timeout=20)


def running(client: redis.Redis) -> list[int]:
    """How many jobs each worker holds that holds any."""
    return [client.hlen(key) for key in client.scan_iter("rb:{test:}:running:*")]


# -- at once ------------------------------------------------------------------------------------


def test_so_many_plain_functions_run_at_once_and_never_more(bus: Bus) -> None:
    meeting = Meeting(MANY)
    threads: set[int] = set()

    @bus.register()
    def meet(a: int) -> int:
        threads.add(threading.get_ident())
        meeting.meet()
        return a

    results = [bus.meet.run(a) for a in range(5 * MANY)]
    with serving(bus):
        assert [result.get(WAIT_SECONDS) for result in results] == list(range(5 * MANY))
    assert meeting.peak == MANY
    assert len(threads) == MANY
    assert threading.get_ident() not in threads


def test_so_many_async_functions_run_at_once_on_one_loop_and_never_more(bus: Bus) -> None:
    meeting = Meeting(MANY)
    loops: set[int] = set()

    @bus.register()
    async def meet(a: int) -> int:
        loops.add(id(asyncio.get_running_loop()))
        await meeting.meet_async()
        return a

    results = [bus.meet.run(a) for a in range(5 * MANY)]
    with serving(bus):
        assert [result.get(WAIT_SECONDS) for result in results] == list(range(5 * MANY))
    assert meeting.peak == MANY
    assert len(loops) == 1


def test_plain_and_async_functions_of_one_service_run_at_once(
    bus: Bus, pool: ThreadPoolExecutor
) -> None:
    here, there = threading.Event(), threading.Event()

    @bus.register()
    def plain() -> str:
        here.set()
        assert there.wait(WAIT_SECONDS)
        return "plain"

    @bus.register()
    async def awaited() -> str:
        assert await asyncio.to_thread(here.wait, WAIT_SECONDS)
        there.set()
        return "awaited"

    with serving(bus, 2):
        answers = [pool.submit(method) for method in (bus.plain, bus.awaited)]
        assert [answer.result(WAIT_SECONDS) for answer in answers] == ["plain", "awaited"]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_slow_job_does_not_hold_the_others_up(
    bus: Bus, pool: ThreadPoolExecutor, kind: str
) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        assert go.wait(WAIT_SECONDS)
        return "slow"

    async def slow_async() -> str:
        return await asyncio.to_thread(slow)

    async def quick_async(a: int) -> int:
        await asyncio.sleep(0)
        return a

    bus.register("slow")(slow if kind == "plain" else slow_async)
    bus.register("quick")(lambda a: a)
    bus.register("quick_async")(quick_async)
    with serving(bus, 2):
        answer = pool.submit(bus.slow)
        assert entered.wait(WAIT_SECONDS)
        for a in range(10):
            assert bus.quick(a) == bus.quick_async(a) == a
        assert not answer.done()
        go.set()
        assert answer.result(WAIT_SECONDS) == "slow"


def test_a_worker_takes_no_more_than_it_can_run_now(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    """So the next job is that of another worker, which has a slot left."""
    entered: list[str] = []
    go = threading.Event()

    def held(who: str) -> Callable[[], str]:
        def hold() -> str:
            entered.append(who)
            assert who != "first" or go.wait(WAIT_SECONDS)
            return who

        return hold

    with Bus("test", url=url, timeout=WAIT_SECONDS) as other:
        bus.register("held")(held("first"))
        other.register("held")(held("other"))
        with serving(bus, 2):
            results = [bus.held.run() for _ in range(2)]
            eventually(lambda: len(entered) == 2)
            waiting = [bus.held.run() for _ in range(6)]
            assert running(client) == [2]
            with serving(other, 2):
                assert [result.get(WAIT_SECONDS) for result in waiting] == ["other"] * 6
                go.set()
            assert [result.get(WAIT_SECONDS) for result in results] == ["first"] * 2


def test_a_worker_is_one_worker_however_many_jobs_it_runs(bus: Bus, client: redis.Redis) -> None:
    """One lease, one hash of what runs; and its heart renews the flights of all its jobs."""
    meeting, go = Meeting(MANY), threading.Event()

    @bus.register(cache_key="{a}")
    def held(a: int) -> int:
        meeting.meet()
        assert go.wait(WAIT_SECONDS)
        return a

    with serving(bus):
        results = [bus.held.run(a) for a in range(MANY)]
        eventually(lambda: running(client) == [MANY])
        assert workers(bus, "held") == client.zcard("rb:{test:}:workers") == 1
        flights = list(client.scan_iter("rb:{test:}:flight:*"))
        assert len(flights) == MANY
        for flight in flights:
            client.pexpire(flight, 15_000)
        [worker] = bus._workers
        # Claimed in Redis, a job may be on its way to its slot still.
        eventually(lambda: len(worker.lanes[0].claims.all_held()) == MANY)
        worker._heart._beat(worker.lanes[0])
        assert all(client.pttl(flight) > 15_000 for flight in flights)
        go.set()
        assert [result.get(WAIT_SECONDS) for result in results] == list(range(MANY))


# -- one job beside another ---------------------------------------------------------------------


def test_what_a_job_sets_in_its_context_is_gone_with_it(bus: Bus) -> None:
    mark: contextvars.ContextVar[int] = contextvars.ContextVar("mark", default=0)
    meeting = Meeting(2)

    @bus.register()
    def plain(a: int) -> list[int]:
        before = mark.get()
        mark.set(a)
        meeting.meet()
        return [before, mark.get()]

    @bus.register()
    async def awaited(a: int) -> list[int]:
        before = mark.get()
        mark.set(a)
        await meeting.meet_async()
        return [before, mark.get()]

    with serving(bus, 2):
        for method in (bus.plain, bus.awaited, bus.plain):
            results = [method.run(a) for a in range(1, 7)]
            found = [result.get(WAIT_SECONDS) for result in results]
            assert found == [[0, a] for a in range(1, 7)]


@pytest.mark.parametrize("concurrency", [1, 2])
def test_calls_that_an_async_function_makes_have_what_is_left_of_its_time(
    bus: Bus, concurrency: int
) -> None:
    @bus.register()
    async def left() -> list[Any]:
        await asyncio.sleep(0)
        inner = await asyncio.gather(asyncio.to_thread(lambda: Deadline(1000.0).left()))
        return [Deadline(1000.0).left(), *inner, nested.current_job()]

    with serving(bus, concurrency):
        own, inner, _ = bus.left.options(timeout=WAIT_SECONDS)()
        assert 0 < own <= WAIT_SECONDS and 0 < inner <= WAIT_SECONDS
        result = bus.left.run()
        own, inner, job = result.get(WAIT_SECONDS)
        assert own > WAIT_SECONDS and inner > WAIT_SECONDS
        assert job in result.id


def test_a_job_may_call_its_own_worker_where_that_has_another_slot(bus: Bus) -> None:
    bus.register("inner")(lambda a: a + 1)
    bus.register("outer")(lambda a: bus.inner(a) + 1)
    with serving(bus, 2):
        assert [bus.outer(a) for a in range(10)] == [a + 2 for a in range(10)]


def test_jobs_that_fill_all_slots_and_call_their_own_worker_end_with_their_time(bus: Bus) -> None:
    meeting = Meeting(2)
    bus.register("inner")(lambda: 1)

    @bus.register()
    def outer() -> None:
        meeting.meet()
        bus.inner.options(timeout=0.3)()

    with serving(bus, 2):
        for result in [bus.outer.run() for _ in range(2)]:
            with pytest.raises(CallTimeout, match=r"no reply in 0\.3 s .* 1 worker alive\)"):
                result.get(WAIT_SECONDS)


# -- what functions raise -----------------------------------------------------------------------

RAISED = [ValueError, SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, KeyError]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_what_functions_raise_at_once_each_reaches_its_own_caller(bus: Bus, kind: str) -> None:
    meeting = Meeting(len(RAISED))

    def fail(number: int) -> None:
        meeting.meet()
        raise RAISED[number](number)

    async def fail_async(number: int) -> None:
        await meeting.meet_async()
        raise RAISED[number](number)

    bus.register("fail")(fail if kind == "plain" else fail_async)
    bus.register("well")(lambda: "well")
    with serving(bus, len(RAISED)):
        for _ in range(3):
            results = [bus.fail.run(number) for number in range(len(RAISED))]
            for number, result in enumerate(results):
                with pytest.raises(BaseException) as error:
                    result.get(WAIT_SECONDS)
                if RAISED[number] is StopIteration and kind == "async":
                    assert type(error.value) is RuntimeError  # as Python has it
                    assert str(error.value) == "coroutine raised StopIteration"
                elif issubclass(RAISED[number], Exception):
                    assert type(error.value) is RAISED[number]
                    assert error.value.args == (number,)
                else:
                    assert isinstance(error.value, RemoteError)
                    assert error.value.type_name == f"builtins.{RAISED[number].__name__}"
                    assert error.value.remote_args == (number,)
        assert bus.well() == "well"


@pytest.mark.parametrize("concurrency", [1, 2])
def test_the_traceback_of_an_async_function_begins_with_its_own_frames(
    bus: Bus, concurrency: int
) -> None:
    @bus.register()
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("here")

    with serving(bus, concurrency), pytest.raises(ValueError, match="here") as error:
        bus.fail()
    text = str(error.value.__cause__)
    assert 'raise ValueError("here")' in text
    assert "redis_bus/" not in text and "asyncio/" not in text


def test_cancellation_within_an_async_function_is_its_own_affair(bus: Bus) -> None:
    @bus.register()
    async def cancels() -> str:
        task = asyncio.create_task(asyncio.sleep(100))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), 0.01)
        return "cancelled"

    @bus.register()
    async def gives_up() -> None:
        raise asyncio.CancelledError("by itself")

    @bus.register()
    async def is_cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(100)

    with serving(bus, 2):
        for _ in range(3):
            assert bus.cancels() == "cancelled"
            for method in (bus.gives_up, bus.is_cancelled):
                with pytest.raises(RemoteError, match="CancelledError"):
                    method()


@pytest.mark.parametrize("stopping", [SystemExit, KeyboardInterrupt])
def test_a_task_that_a_function_left_ends_neither_the_loop_nor_the_worker(
    bus: Bus, stopping: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    left: list[asyncio.Task[None]] = []

    async def fail() -> None:
        raise stopping

    @bus.register()
    async def leaves() -> None:
        left.append(asyncio.get_running_loop().create_task(fail()))

    @bus.register()
    async def well() -> str:
        await asyncio.sleep(0)
        return "well"

    with serving(bus, 2):
        bus.leaves()
        assert bus.well() == "well"
        eventually(left[0].done)
        assert bus.well() == "well"
        assert isinstance(left[0].exception(), stopping)
    assert f"a task on the loop raised {stopping.__name__}" in caplog.text


# -- a function that blocks the loop --------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one each time that a heart looks whether a loop is blocked."""
    looks: list[None] = []
    look = LoopThread.look

    def counted(self: LoopThread) -> None:
        look(self)
        looks.append(None)

    monkeypatch.setattr(LoopThread, "look", counted)
    return looks


def some_more(looks: list[None]) -> Callable[[], bool]:
    """A condition that is true after some more looks."""
    enough = len(looks) + 4
    return lambda: len(looks) >= enough


@pytest.mark.parametrize("how", ["itself", "in a task of its own"])
def test_a_function_that_blocks_the_loop_is_named_once(
    bus: Bus,
    pool: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    looks: list[None],
    how: str,
) -> None:
    go = threading.Event()

    async def block() -> None:
        assert go.wait(WAIT_SECONDS)  # which holds the whole loop

    @bus.register()
    async def blocks() -> str:
        await (block() if how == "itself" else asyncio.wait_for(block(), WAIT_SECONDS))
        return "blocked"

    @bus.register()
    async def waits() -> str:
        await asyncio.sleep(0)
        return "waited"

    with serving(bus, 2), caplog.at_level(logging.WARNING):
        blocking = pool.submit(bus.blocks)
        eventually(lambda: "blocks the event loop" in caplog.text)
        waiting = pool.submit(bus.waits)
        eventually(some_more(looks))
        assert not waiting.done()
        go.set()
        assert blocking.result(WAIT_SECONDS) == "blocked"
        assert waiting.result(WAIT_SECONDS) == "waited"
    warnings = [r.getMessage() for r in caplog.records if "blocks the event loop" in r.message]
    assert len(warnings) == 1
    assert warnings[0].startswith("blocks blocks the event loop, for 1.")
    assert ", in block (test_concurrency.py, line " in warnings[0]


def test_functions_that_wait_or_run_in_threads_block_no_loop(
    bus: Bus, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, looks: list[None]
) -> None:
    go = threading.Event()

    @bus.register()
    def plain() -> None:
        assert go.wait(WAIT_SECONDS)

    @bus.register()
    async def awaited() -> None:
        assert await asyncio.to_thread(go.wait, WAIT_SECONDS)

    with serving(bus, 2):
        answers = [pool.submit(method) for method in (bus.plain, bus.awaited)]
        eventually(some_more(looks))
        go.set()
        for answer in answers:
            answer.result(WAIT_SECONDS)
    assert "blocks the event loop" not in caplog.text


# -- the end --------------------------------------------------------------------------------------


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("redis_bus")}


def test_no_thread_is_left_after_serving(bus: Bus) -> None:
    meeting = Meeting(MANY)
    bus.register("meet")(meeting.meet)
    bus.register("meet_async")(meeting.meet_async)
    before = our_threads()
    for _ in range(2):
        with serving(bus):
            for method in (bus.meet, bus.meet_async):
                for result in [method.run() for _ in range(MANY)]:
                    result.get(WAIT_SECONDS)
            names = {thread.name for thread in our_threads() - before}
            slots = {f"redis_bus slot {number}" for number in range(1, MANY + 1)}
            assert names == {"redis_bus heart", "redis_bus loop", *slots}
        assert our_threads() == before


@pytest.mark.parametrize("concurrency", [1, 2])
def test_what_async_functions_leave_is_ended_with_the_worker(bus: Bus, concurrency: int) -> None:
    ended: list[str] = []
    kept: list[Any] = []

    async def numbers() -> Any:
        try:
            for number in range(10):
                yield number
        finally:
            ended.append("generator")

    async def lasts() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append("task")
            raise

    @bus.register()
    async def leaves() -> int:
        kept.append(asyncio.create_task(lasts()))
        kept.append(numbers())
        await asyncio.sleep(0)
        first: int = await kept[-1].__anext__()
        return first

    with serving(bus, concurrency):
        assert bus.leaves() == 0
        assert ended == []
    assert sorted(ended) == ["generator", "task"]
    assert kept[0].cancelled()


def test_stop_lets_all_running_jobs_finish(
    bus: Bus, caller: Bus, pool: ThreadPoolExecutor, client: redis.Redis
) -> None:
    meeting, go = Meeting(3), threading.Event()

    @bus.register()
    def held(a: int) -> int:
        meeting.meet()
        assert go.wait(WAIT_SECONDS)
        return a

    serve = pool.submit(bus.serve, concurrency=3)
    eventually(lambda: workers(caller, "held"))
    answers = [pool.submit(caller.held, a) for a in range(3)]
    eventually(lambda: meeting.peak == 3)  # what is not begun is given back
    waiting = caller.held.run(3)
    bus.stop()
    go.set()
    assert [answer.result(WAIT_SECONDS) for answer in answers] == [0, 1, 2]
    serve.result(WAIT_SECONDS)
    assert not waiting.done()
    assert client.llen("rb:{test:}:queue:held") == 1


def test_a_slot_that_fails_ends_the_worker_with_its_error(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, client: redis.Redis
) -> None:
    """It would be a fault of ours; then nobody shall believe that all is well."""

    def fail(self: Slot, claim: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Slot, "_handle", fail)
    bus.register("method")(lambda: 1)
    bus.method.run()
    with pytest.raises(ZeroDivisionError):
        bus.serve(concurrency=3)
    assert workers(bus, "method") == 0


def test_the_first_signal_lets_all_jobs_finish_and_the_worker_serves_nothing_any_more(
    worker: subprocess.Popen[str], caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    methods = (caller.held, caller.held_async) * 2
    answers = [pool.submit(method, a) for a, method in enumerate(methods)]
    wait_until_entered(client, 4)
    waiting = caller.held.run(4)
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: workers(caller, "held") == 0)
    with pytest.raises(NoWorkers):
        caller.held.options(fail_fast=True)(5)
    # Its lease goes on, though: the jobs are not given away.
    assert client.zcard("rb:{test:}:workers") == 1
    client.rpush("go", 1, 1)
    eventually(lambda: sum(answer.done() for answer in answers) == 2)
    assert worker.poll() is None
    client.rpush("go", 1, 1)
    assert [answer.result(WAIT_SECONDS) for answer in answers] == [0, 1, 2, 3]
    out, err = worker.communicate(timeout=PATIENCE_SECONDS)
    assert (worker.returncode, out, err) == (0, "after serve\n", "")
    assert not waiting.done()
    assert client.llen("rb:{test:}:queue:held") == 1
    assert not list(client.scan_iter("*running*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_worker_quickly(
    worker: subprocess.Popen[str], caller: Bus, client: redis.Redis, number: signal.Signals
) -> None:
    worker.send_signal(number)
    out, err = worker.communicate(timeout=SOON_SECONDS)
    assert (worker.returncode, out, err) == (0, "after serve\n", "")
    assert client.zcard("rb:{test:}:workers") == 0


def expect_lost(answers: dict[int, Future[Any]], methods: tuple[str, ...]) -> None:
    for a, answer in answers.items():
        text = rf"^{methods[a]}\({a}\): its worker was stopped while it ran"
        with pytest.raises(WorkerLost, match=text):
            answer.result(WAIT_SECONDS)


def test_the_second_signal_tells_every_caller_that_its_job_is_lost_and_ends_the_process(
    worker: subprocess.Popen[str], caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    methods = ("held", "held_async", "held")
    answers = {a: pool.submit(caller[method], a) for a, method in enumerate(methods)}
    wait_until_entered(client, 3)
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: workers(caller, "held") == 0)
    worker.send_signal(signal.SIGINT)
    expect_lost(answers, methods)
    out, err = worker.communicate(timeout=SOON_SECONDS)
    assert (worker.returncode, out) == (0, "after serve\n")
    assert "not wanted" not in err and "Traceback" not in err
    assert client.lrange("cancelled", 0, -1) == [b"1"]
    assert not list(client.scan_iter("*running*"))
    assert client.zcard("rb:{test:}:workers") == 0
    assert caller.stats()["held"]["errors"] == 2


def test_signals_in_any_number_end_a_worker(
    worker: subprocess.Popen[str], caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    methods = ("held", "held_async", "held_async", "held")
    answers = {a: pool.submit(caller[method], a) for a, method in enumerate(methods)}
    wait_until_entered(client, 4)
    for number in (signal.SIGTERM, signal.SIGINT) * 20:
        worker.send_signal(number)
    eventually(lambda: worker.poll() is not None or worker.send_signal(signal.SIGTERM))
    expect_lost(answers, methods)


def test_a_blocked_loop_does_not_keep_a_process_from_its_end(
    processes: Processes, caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    processes.write(
        "service.py",
        """
        import threading
        import redis_bus

        bus = redis_bus.Bus("test")

        @bus.register()
        async def blocks(a):
            bus.conn.rpush("entered", a)
            threading.Event().wait()

        bus.serve(concurrency=2)
        """,
    )
    worker = processes.start("python", "service.py")
    eventually(lambda: workers(caller, "blocks"))
    answers = {0: pool.submit(caller.blocks, 0)}
    wait_until_entered(client, 1)
    waiting = caller.blocks.run(1)
    eventually(lambda: running(client) == [2])
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: workers(caller, "blocks") == 0)
    worker.send_signal(signal.SIGINT)
    expect_lost(answers, ("blocks",))
    worker.wait(2 * SOON_SECONDS)
    # It did not begin: it is for the next worker.
    assert (client.llen("rb:{test:}:queue:blocks"), waiting.done()) == (1, False)


def test_a_signal_to_a_process_that_a_job_started_means_that_process(
    processes: Processes, caller: Bus
) -> None:
    """Signals are not blocked in the threads of the jobs: that is inherited."""
    processes.write(
        "service.py",
        """
        import asyncio, subprocess, sys
        import redis_bus

        bus = redis_bus.Bus("test")
        LINE = [sys.executable, "-c", "print('ready', flush=True); input()"]

        @bus.register()
        def child():
            with subprocess.Popen(LINE, stdin=-1, stdout=-1) as process:
                process.stdout.readline()
                process.terminate()
                return process.wait(20)

        @bus.register()
        async def child_async():
            process = await asyncio.create_subprocess_exec(*LINE, stdin=-1, stdout=-1)
            await process.stdout.readline()
            process.terminate()
            return await process.wait()

        bus.serve(concurrency=2)
        """,
    )
    processes.start("python", "service.py")
    eventually(lambda: workers(caller, "child"))
    assert caller.child() == caller.child_async() == -signal.SIGTERM


# -- Redis that goes away -------------------------------------------------------------------------


def test_connections_that_are_cut_lose_and_repeat_nothing(bus: Bus, client: redis.Redis) -> None:
    jobs = 300
    ran: Counter[int] = Counter()

    @bus.register()
    def plain(a: int) -> int:
        ran[a] += 1
        return a

    @bus.register()
    async def awaited(a: int) -> int:
        ran[a] += 1
        await asyncio.sleep(0)
        return a

    results = [(bus.plain if a % 2 else bus.awaited).run(a) for a in range(jobs)]
    with serving(bus):
        for turn in range(1, 11):
            eventually(lambda turn=turn: len(ran) >= jobs * turn // 12)
            client.client_kill_filter(_type="normal", skipme=True)
        assert [result.get(WAIT_SECONDS) for result in results] == list(range(jobs))
        eventually(lambda: not running(client))
    assert ran == Counter(range(jobs))


def test_a_claim_is_given_back_once_it_is_on_its_way_to_nobody(
    bus: Bus, client: redis.Redis
) -> None:
    """A slot that has a new connection must not give away what another is about to be told of."""
    bus.register("method")(lambda: 1)
    jobs = [bus.method.run() for _ in range(2)]
    route = bus._core.first_target("method").route
    worker, transport = bus._make_worker(None), bus._core.transport
    post, claims = worker.lanes[0]
    first, second = (
        Slot(worker, worker.lanes[0], worker.slots[0].runner, number) for number in range(2)
    )
    for slot in (first, second):
        claims.ask(slot)
    taken = [post.parse_take(transport.exchange(post.take([route]))[0], [route]) for _ in jobs]
    own, lost = (parse_job(claim.entry) for claim in taken if claim)
    assert running(client) == [2]

    # The second has lost its connection, and looks: both may be on their way to the first.
    claims.answered(second)
    claims.give_back_strangers()
    assert running(client) == [2]
    assert claims.in_doubt() == {first}
    # The first has its answer.
    claims.begin(first, route, own)
    claims.ask(second)  # which came too late for what was seen before
    assert claims.in_doubt() == set()
    claims.settle()
    assert client.hkeys(post.running) == [own.id.encode()]
    assert [parse_job(entry).id for entry in client.lrange(route.queue, 0, -1)] == [lost.id]
    # What is held is never given back.
    claims.answered(second)
    claims.give_back_strangers()
    assert running(client) == [1]
    # Nor is what is not known yet, but comes.
    claims.end(first)
    claims.ask(first)
    claims.give_back_lost(client.hkeys(post.running))
    claims.give_back_lost(client.hkeys(post.running))
    assert running(client) == [1]
    claims.begin(first, route, own)
    claims.give_back_lost(client.hkeys(post.running))
    assert running(client) == [1]


# -- how it is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concurrency", "kind", "text"),
    [
        (0, ValueError, "concurrency=0: one job at a time is the least"),
        (-3, ValueError, "concurrency=-3: one job at a time is the least"),
        (2.0, TypeError, r"concurrency=2\.0: a whole number of jobs, not float"),
        (True, TypeError, "concurrency=True: a whole number of jobs, not bool"),
        (None, TypeError, "concurrency=None: a whole number of jobs, not NoneType"),
    ],
)
def test_numbers_of_jobs_that_cannot_be_are_refused(
    bus: Bus, concurrency: Any, kind: type[Exception], text: str
) -> None:
    bus.register("method")(lambda: 1)
    with pytest.raises(kind, match=text):
        bus.serve(concurrency=concurrency)


def test_pdb_needs_one_job_at_a_time(bus: Bus) -> None:
    bus.register("method")(lambda: 1)
    with pytest.raises(ValueError, match="concurrency=2: pdb needs one job at a time"):
        bus.serve(debug=True, concurrency=2)


@pytest.mark.parametrize("how", ["option", "environment"])
def test_redis_bus_serves_so_many_at_a_time_and_says_so(
    processes: Processes, caller: Bus, client: redis.Redis, url: str, how: str
) -> None:
    processes.write("service.py", SERVICE.replace("URL", repr(url)))
    line, environment = ["redis-bus", "service.bus"], processes.environment()
    if how == "option":
        line += ["-c", "3"]
    else:
        environment["REDIS_BUS_SERVE_CONCURRENCY"] = "3"
    process = processes.start(*line, env=environment)
    eventually(lambda: workers(caller, "held") or process.poll() is not None)
    results = [caller.held.run(a) for a in range(4)]
    wait_until_entered(client, 3)
    assert running(client) == [3]
    client.rpush("go", *range(4))
    assert [result.get(WAIT_SECONDS) for result in results] == list(range(4))
    process.terminate()
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0
    assert err.startswith("redis-bus: serving held, held_async, 3 at a time, on bus 'test' at ")


def test_shutdown_timeout_bounds_all_running_jobs(
    processes: Processes, caller: Bus, client: redis.Redis, url: str, pool: ThreadPoolExecutor
) -> None:
    processes.write("service.py", SERVICE.replace("URL", repr(url)))
    line = ["redis-bus", "--concurrency=3", "--shutdown-timeout=0.2", "service.bus"]
    process = processes.start(*line)
    eventually(lambda: workers(caller, "held") or process.poll() is not None)
    methods = ("held", "held_async", "held")
    answers = {a: pool.submit(caller[method], a) for a, method in enumerate(methods)}
    wait_until_entered(client, 3)
    process.terminate()
    expect_lost(answers, methods)
    assert process.wait(PATIENCE_SECONDS) == 0


def test_each_process_of_several_serves_so_many_at_a_time(
    processes: Processes, caller: Bus, client: redis.Redis, url: str
) -> None:
    processes.write("service.py", SERVICE.replace("URL", repr(url)))
    process = processes.start("redis-bus", "-w", "2", "-c", "2", "service.bus")
    eventually(lambda: workers(caller, "held") == 2 or process.poll() is not None)
    results = [caller.held.run(a) for a in range(5)]
    wait_until_entered(client, 4)
    assert running(client) == [2, 2]
    client.rpush("go", *range(5))
    assert [result.get(WAIT_SECONDS) for result in results] == list(range(5))
    process.terminate()
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0
    assert "serving held, held_async, 2 at a time in each process, on bus 'test' at " in err
    assert " with 2 workers (pids " in err


def test_debug_and_burst_run_one_job_at_a_time(processes: Processes, url: str) -> None:
    processes.write("service.py", SERVICE.replace("URL", repr(url)))
    for option in ("--debug", "--burst"):
        refused = processes.run("redis-bus", option, "-c", "2", "service.bus")
        assert refused.returncode == 2
        assert f"{option} " in refused.stderr and "leave out --concurrency" in refused.stderr
        assert processes.run("redis-bus", "-c", "0", "service.bus").returncode == 2
    assert processes.run("redis-bus", "-c", "1", "--burst", "service.bus").returncode == 0
