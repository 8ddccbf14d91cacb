"""``--max-jobs N``: a worker ends once it has run N jobs, and nothing is lost by that."""

from __future__ import annotations

import re
import signal
import subprocess
import textwrap
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from redis_bus import AsyncBus, Bus, Deadlock
from tests import async_support
from tests.support import PATIENCE_SECONDS, Processes, eventually, workers

QUEUE = "rb:{test:}:queue:"
SERVICE = """
    import asyncio
    import os
    from redis_bus import Bus

    bus = Bus("served", prefix="math_")

    @bus.register()
    def add(a, b):
        bus.conn.rpush("ran", a)
        return a + b, os.getpid()

    @bus.register()
    async def add_async(a, b):
        await asyncio.sleep(0.001)
        return add(a, b)

    @bus.register()
    def leave(code):
        os._exit(code)
"""
SPENT = re.compile(
    r".* INFO redis_bus: worker process (\d+) has run as many jobs as it may; "
    r"another is started now"
)


def end(process: subprocess.Popen[str]) -> str:
    """Ask a process to end, and return what it said."""
    process.terminate()
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0, err
    return err


# -- one worker -------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4])
def test_serve_returns_when_it_has_run_so_many_jobs(bus: Bus, concurrency: int) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    results = [bus.note.run(n) for n in range(20)]
    bus.serve(max_jobs=7, concurrency=concurrency)
    assert sorted(ran) == list(range(7))
    assert [result.done() for result in results] == [True] * 7 + [False] * 13
    assert workers(bus, "note") == 0
    assert not list(bus.conn.scan_iter("*running*"))
    bus.serve(max_jobs=13, concurrency=concurrency)
    assert sorted(ran) == list(range(20)) and all(result.done() for result in results)


def test_what_runs_when_the_last_job_is_taken_is_finished(bus: Bus, url: str) -> None:
    go, running = threading.Event(), threading.Semaphore(0)

    @bus.register()
    def held(a: int) -> int:
        running.release()
        assert go.wait(PATIENCE_SECONDS)
        return a

    results = [bus["held"].run(a) for a in range(3)]
    with ThreadPoolExecutor(1) as pool:
        # Three may run at a time, but two in all.
        served = pool.submit(bus.serve, concurrency=3, max_jobs=2)
        assert running.acquire(timeout=PATIENCE_SECONDS)
        assert running.acquire(timeout=PATIENCE_SECONDS)
        eventually(lambda: sum(t.name.startswith("redis_bus slot") for t in threads()) == 2)
        assert not served.done()
        go.set()
        served.result(PATIENCE_SECONDS)
    assert [result.done() for result in results] == [True, True, False]
    assert results[0].get() == 0 and results[1].get() == 1


def threads() -> list[threading.Thread]:
    return list(threading.enumerate())


def test_what_is_no_job_does_not_count(bus: Bus, client: redis.Redis) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    client.rpush(QUEUE + "note", b"no job")
    client.rpush("rb:{test:}:wake:note", b"1")
    results = [bus.note.run(n) for n in range(3)]
    bus.serve(max_jobs=2)
    assert ran == [0, 1]
    assert [result.done() for result in results] == [True, True, False]


def test_the_last_job_that_calls_its_own_worker_is_told_of_the_deadlock(bus: Bus) -> None:
    said: list[Deadlock] = []

    @bus.register()
    def inner() -> None:
        pass

    @bus.register()
    def outer() -> None:
        try:
            bus["inner"].options(timeout=PATIENCE_SECONDS)()
        except Deadlock as error:
            said.append(error)

    bus["outer"].run()
    bus.serve(max_jobs=1)
    assert len(said) == 1


def test_the_async_bus_has_it_too(url: str, client: redis.Redis) -> None:
    ran: list[int] = []

    async def work() -> None:
        async with AsyncBus("test", url=url) as bus:
            bus.register("note")(ran.append)
            for n in range(3):
                await bus["note"].run(n)
            await bus.serve(max_jobs=2)

    async_support.run(work())
    assert ran == [0, 1]


@pytest.mark.parametrize(
    ("jobs", "kind", "text"),
    [
        (0, ValueError, "max_jobs=0: a worker that ends runs one job at least"),
        (-3, ValueError, "max_jobs=-3: "),
        (2.0, TypeError, r"max_jobs=2\.0: a whole number of jobs or None, not float"),
        (True, TypeError, "max_jobs=True: a whole number of jobs or None, not bool"),
        ("2", TypeError, "max_jobs='2': a whole number of jobs or None, not str"),
    ],
)
def test_numbers_that_cannot_be_are_refused(jobs: Any, kind: type[Exception], text: str) -> None:
    with Bus("test", url="redis://localhost:1/0") as bus:
        bus.register("note")(len)
        with pytest.raises(kind, match=text):
            bus.serve(max_jobs=jobs)


# -- the command line -------------------------------------------------------------------------


def test_alone_it_says_so_and_exits_with_0(some: Processes, some_bus: Bus) -> None:
    some.write("service.py", SERVICE)
    some.run("redis-bus", "-b", "service.bus")  # it is known then
    for line, more, count in (
        (["--max-jobs", "2"], {}, "2 jobs"),
        ([], {"REDIS_BUS_SERVE_MAX_JOBS": "1"}, "1 job"),
    ):
        results = [some_bus["math_add"].run(n, n) for n in range(int(count[0]))]
        shown = some.run("redis-bus", *line, "service.bus", env=some.environment(**more))
        assert shown.returncode == 0
        _, last = shown.stderr.splitlines()
        assert last == f"redis-bus: ran {count}, as many as --max-jobs says, and ends"
        assert [result.get()[0] for result in results] == [2 * n for n in range(len(results))]
    for line in (["--max-jobs", "0"], ["--max-jobs", "2", "--burst"]):
        refused = some.run("redis-bus", *line, "service.bus")
        assert refused.returncode == 2 and "--max-jobs" in refused.stderr


def test_no_call_is_lost_or_run_twice_while_workers_are_replaced(
    some: Processes, some_bus: Bus
) -> None:
    some.write("service.py", SERVICE)
    line = ["redis-bus", "-w", "2", "-c", "2", "--max-jobs", "11", "--log-level", "info"]
    process = some.start(*line, "service.bus")
    eventually(lambda: workers(some_bus, "math_add") == 2 or process.poll() is not None)
    calls = range(110)

    def call(a: int) -> tuple[int, int]:
        return some_bus["math_add_async" if a % 2 else "math_add"](a, 1)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, calls))
    assert [value for value, _ in answers] == [a + 1 for a in calls]
    assert Counter(map(int, some_bus.conn.lrange("ran", 0, -1))) == Counter(calls)
    jobs = Counter(pid for _, pid in answers)
    assert max(jobs.values()) == 11 and len(jobs) >= 10
    eventually(lambda: workers(some_bus, "math_add") == 2)
    err = end(process)
    assert "WARNING" not in err and "ERROR" not in err
    spent, full = SPENT.findall(err), {str(pid) for pid, number in jobs.items() if number == 11}
    assert len(spent) == len(set(spent)) and set(spent) <= full
    assert len(full - set(spent)) <= 2  # those that were about to end anyway


def test_a_job_that_calls_its_service_waits_for_the_worker_that_is_being_replaced(
    some: Processes, some_bus: Bus
) -> None:
    code = """
        import pathlib, time

        def until(name):
            while not pathlib.Path(name).exists():
                time.sleep(0.005)

        if pathlib.Path("is slow").exists():
            until("begin")
    """
    outer = """
    @bus.register()
    def outer():
        pathlib.Path("is slow").touch()
        until("go")
        return bus.math_add(3, 4)[0]
    """
    some.write("service.py", f"{textwrap.dedent(code)}\n{textwrap.dedent(SERVICE + outer)}")
    process = some.start("redis-bus", "-w", "2", "--max-jobs", "2", "service.bus")
    eventually(lambda: workers(some_bus, "math_add") == 2 or process.poll() is not None)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(some_bus["math_outer"])
        eventually((some.folder / "is slow").exists)
        assert [some_bus["math_add"](n, n)[0] for n in range(2)] == [0, 2]
        eventually(lambda: workers(some_bus, "math_add") == 1)
        (some.folder / "go").touch()
        eventually(lambda: answer.done() or some_bus.stats()["math_add"]["queued"])
        (some.folder / "begin").touch()
        assert answer.result(PATIENCE_SECONDS) == 7
    end(process)


def test_one_that_dies_is_told_of_as_ever(some: Processes, some_bus: Bus) -> None:
    some.write("service.py", SERVICE)
    line = ["redis-bus", "-w", "1", "--max-jobs", "2", "--log-level", "info", "service.bus"]
    process = some.start(*line)
    eventually(lambda: workers(some_bus, "math_add") or process.poll() is not None)
    some_bus["math_leave"].run(7)
    assert [some_bus["math_add"](n, 1)[0] for n in range(3)] == [1, 2, 3]
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0 and len(SPENT.findall(err)) == 1
    assert re.search(r"WARNING .* ended with exit code 7; another is started in 0\.\d+ s", err)


def test_it_goes_with_reload(some: Processes, some_bus: Bus) -> None:
    some.write("service.py", SERVICE)
    process = some.start("redis-bus", "-r", "--max-jobs", "1", "service.bus")
    eventually(lambda: workers(some_bus, "math_add") or process.poll() is not None)
    pids = [some_bus["math_add"](n, 1)[1] for n in range(3)]
    assert len(set(pids)) == 3
    eventually(lambda: workers(some_bus, "math_add") == 1)
    assert end(process).count("\n") == 1
