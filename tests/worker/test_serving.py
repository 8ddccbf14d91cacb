"""Serving: what a worker takes, how it stops, and what becomes of it when Redis goes away."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
import redis

import redis_bus.protocol.commands
import redis_bus.worker.slot
from redis_bus import Bus, BusError, CallTimeout, ConnectionLost, NoWorkers, WorkerLost
from redis_bus.embedded import EmbeddedRedis
from tests.support import PATIENCE_SECONDS, Processes, eventually, serving, workers

QUEUE = "rb:{test:}:queue:"
# A service whose function says when it runs, and waits to be let go, over lists in Redis.
# Its waits are long: what ends one of them before is not its end.
LONG_SLICE_SECONDS = 9.0
SOON_SECONDS = 8.0
SERVICE = """
    import redis_bus, redis_bus.protocol.commands

    redis_bus.protocol.commands.SLICE_SECONDS = 9.0
    bus = redis_bus.Bus("test")

    @bus.register()
    def held(a):
        bus.conn.rpush("entered", a)
        bus.conn.blpop("go")
        return a

    @bus.register()
    async def held_async(a):
        import redis.asyncio
        async with redis.asyncio.Redis.from_url(URL) as conn:
            await conn.rpush("entered", a)
            await conn.blpop("go")
        return a

    bus.serve()
    print("after serve")
"""


@pytest.fixture
def caller(url: str) -> Iterator[Bus]:
    """A second bus of the same name, which registers nothing."""
    with Bus("test", url=url, timeout=20) as bus:
        yield bus


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def worker(processes: Processes, caller: Bus, url: str) -> subprocess.Popen[str]:
    """A real worker process, ready."""
    processes.write("service.py", SERVICE.replace("URL", repr(url)))
    process = processes.start("python", "service.py")
    eventually(lambda: workers(caller, "held"))
    return process


def wait_until_entered(client: redis.Redis) -> None:
    assert client.blpop(["entered"], timeout=20)


def waiting(client: redis.Redis) -> int:
    """How many connections wait for a list."""
    return sum("b" in connection["flags"] for connection in client.client_list())


def test_a_pattern_limits_what_is_served(bus: Bus, client: redis.Redis) -> None:
    for name in ("math_sum", "math_now", "random_uuid"):
        bus.register(name)(lambda: 1)
    with serving(bus, "math_*"):
        assert [bus.math_sum(), bus.math_now()] == [1, 1]
        assert set(bus.stats()) == {"math_sum", "math_now"}
        bus.random_uuid.run()
        bus.math_sum()
        assert client.llen(QUEUE + "random_uuid") == 1
    assert bus.serve_once("math_*") == 0
    assert bus.serve_once("random_????") == 1
    assert bus.serve_once("[mr]*") == 0


def test_nothing_to_serve_is_an_error_that_says_so(bus: Bus) -> None:
    for serve in (bus.serve, bus.serve_once):
        with pytest.raises(BusError, match="nothing to serve, no method is registered here"):
            serve()
    bus.register("method")(lambda: 1)
    for serve in (bus.serve, bus.serve_once):
        with pytest.raises(BusError, match=r"nothing to serve, no method matches 'math_\*'"):
            serve("math_*")


def test_serve_once_runs_what_waits_and_returns_how_many(bus: Bus) -> None:
    bus.register("one")(lambda: 1)
    bus.register("two")(lambda: 2)
    assert bus.serve_once() == 0
    results = [bus.one.run(), bus.two.run(), bus.one.run()]
    assert bus.serve_once() == 3
    assert [result.get() for result in results] == [1, 2, 1]
    assert bus.serve_once() == 0
    assert workers(bus, "one") == 0


def test_serve_once_runs_only_what_was_queued_at_its_start(bus: Bus, client: redis.Redis) -> None:
    ran: list[int] = []

    @bus.register()
    def again(a: int) -> None:
        ran.append(a)
        bus.again.run(a + 1)

    bus.again.run(0)
    assert bus.serve_once() == 1
    assert ran == [0]
    assert client.llen(QUEUE + "again") == 1
    assert bus.serve_once() == 1
    assert ran == [0, 1]


def test_jobs_run_in_the_order_they_came(bus: Bus) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    for a in range(20):
        bus.note.run(a)
    with serving(bus):
        bus.note(20)
    assert ran == list(range(21))


def test_a_busy_method_does_not_starve_the_others(bus: Bus) -> None:
    ran: list[str] = []
    for name in ("busy", "rare"):
        bus.register(name)(lambda name=name: ran.append(name))
    for _ in range(30):
        bus.busy.run()
    for _ in range(3):
        bus.rare.run()
    bus.serve_once()
    assert ran.count("busy") == 30
    assert max(index for index, name in enumerate(ran) if name == "rare") < 10


def test_two_workers_share_the_jobs_and_each_runs_once(bus: Bus, url: str) -> None:
    ran: list[int] = []
    both = threading.Barrier(2)

    def note(a: int) -> int:
        if a < 2:
            both.wait(20)  # which one worker alone would never pass
        ran.append(a)
        return a

    with Bus("test", url=url, timeout=20) as second:
        for service in (bus, second):
            service.register("note")(note)
        results = [bus.note.run(a) for a in range(50)]
        with serving(bus), serving(second):
            assert [result.get() for result in results] == list(range(50))
    assert sorted(ran) == list(range(50))


def test_stop_from_another_thread_ends_serving_soon(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus.protocol.commands, "SLICE_SECONDS", LONG_SLICE_SECONDS)
    bus.register("method")(lambda: 1)
    thread = threading.Thread(target=bus.serve, daemon=True)
    thread.start()
    eventually(lambda: workers(bus, "method"))
    bus.stop()
    thread.join(SOON_SECONDS)
    assert not thread.is_alive()
    assert workers(bus, "method") == 0
    with serving(bus):  # and it can serve again
        assert bus.method() == 1


def test_stop_without_a_worker_does_nothing(bus: Bus) -> None:
    bus.stop()
    bus.register("method")(lambda: 1)
    with serving(bus):
        assert bus.method() == 1


def test_stop_lets_the_running_job_finish(
    bus: Bus, caller: Bus, pool: ThreadPoolExecutor, client: redis.Redis
) -> None:
    entered, go = threading.Event(), threading.Event()

    @bus.register()
    def held(a: int) -> int:
        entered.set()
        assert go.wait(20)
        return a

    serve = pool.submit(bus.serve)
    eventually(lambda: workers(caller, "held"))
    answer = pool.submit(caller.held, 1)
    assert entered.wait(20)
    waiting = caller.held.run(2)
    bus.stop()
    go.set()
    assert answer.result(20) == 1
    serve.result(20)
    assert not waiting.done()
    assert client.llen(QUEUE + "held") == 1


def test_a_job_that_was_claimed_while_the_worker_stops_is_given_back(
    bus: Bus, client: redis.Redis
) -> None:
    ran: list[int] = []
    bus.register("note")(ran.append)
    result = bus.note.run(1)
    [entry] = client.lrange(QUEUE + "note", 0, -1)
    client.delete(QUEUE + "note", "rb:{test:}:wake:note")
    with serving(bus):
        eventually(lambda: waiting(client) == 1)
        # A job without its wake token: the worker finds it when it is woken to stop. (Its next
        # heartbeat, which would give it a token, is seconds away.)
        client.rpush(QUEUE + "note", entry)
    assert ran == []
    assert client.lrange(QUEUE + "note", 0, -1) == [entry]
    assert client.llen("rb:{test:}:wake:note") == 1
    assert not list(client.scan_iter("*running*"))
    assert bus.serve_once() == 1
    assert result.get() is None
    assert ran == [1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_worker_quickly_and_it_leaves_the_list_at_once(
    worker: subprocess.Popen[str], caller: Bus, number: signal.Signals
) -> None:
    worker.send_signal(number)
    out, err = worker.communicate(timeout=SOON_SECONDS)
    assert (worker.returncode, out, err) == (0, "after serve\n", "")
    assert workers(caller, "held") == 0


def test_sigterm_lets_the_running_job_finish_and_leaves_the_queued_ones(
    worker: subprocess.Popen[str],
    caller: Bus,
    client: redis.Redis,
    pool: ThreadPoolExecutor,
) -> None:
    answer = pool.submit(caller.held, 1)
    wait_until_entered(client)
    waiting = caller.held.run(2)
    worker.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.3)
    client.rpush("go", 1)
    assert answer.result(20) == 1
    assert worker.wait(PATIENCE_SECONDS) == 0
    assert client.llen("entered") == 0
    assert client.llen(QUEUE + "held") == 1
    assert not waiting.done()
    assert workers(caller, "held") == 0
    assert not list(client.scan_iter("*running*"))


def insists(worker: subprocess.Popen[str], answer: Future[Any]) -> bool:
    """Send a signal, and give it time to be heard. Returns whether the caller was told."""
    worker.send_signal(signal.SIGINT)
    return bool(wait([answer], SOON_SECONDS).done)


@pytest.mark.parametrize("method", ["held", "held_async"])
def test_a_second_signal_stops_at_once_and_the_caller_gets_worker_lost(
    worker: subprocess.Popen[str],
    caller: Bus,
    client: redis.Redis,
    pool: ThreadPoolExecutor,
    method: str,
) -> None:
    answer = pool.submit(caller[method], 1)
    wait_until_entered(client)
    eventually(lambda: waiting(client) == 2)  # the caller, and the function
    worker.send_signal(signal.SIGTERM)
    # As people do: one that comes within the same instant as another may not be noticed alone. But
    # none that comes once the worker has stopped, which would end the program itself.
    eventually(lambda: insists(worker, answer))
    text = rf"^{method}\(1\): its worker was stopped while it ran"
    with pytest.raises(WorkerLost, match=text):
        answer.result(20)
    assert worker.wait(SOON_SECONDS) == 0
    assert workers(caller, "held") == 0


def test_signals_in_any_number_and_at_any_moment_end_a_worker(
    worker: subprocess.Popen[str], caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    """A handler may interrupt itself: nothing that it does waits for what it interrupted."""
    answer = pool.submit(caller.held, 1)
    wait_until_entered(client)
    for number in (signal.SIGTERM, signal.SIGINT) * 20:
        worker.send_signal(number)
    eventually(lambda: answer.done() or worker.send_signal(signal.SIGTERM))
    with pytest.raises(WorkerLost):
        answer.result(20)
    worker.wait(SOON_SECONDS)


def test_the_signal_handlers_of_a_program_are_back_after_serving(
    processes: Processes, caller: Bus
) -> None:
    code = """
        import signal, redis_bus
        signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True))
        bus = redis_bus.Bus("test")
        bus.register("method")(lambda: 1)
        bus.serve()
        signal.raise_signal(signal.SIGTERM)
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    process = processes.python(code)
    eventually(lambda: workers(caller, "method"))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (0, "mine\nTrue\n", "")


def test_a_worker_serves_on_after_redis_was_restarted_empty(
    server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="redis_bus")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    first, second = (EmbeddedRedis(server.executable, port=port) for _ in range(2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(first)
        bus = stack.enter_context(Bus("test", url=first.url, timeout=20))
        caller = stack.enter_context(Bus("test", url=first.url, timeout=20))
        bus.register("double", cache_key="{a}")(lambda a: 2 * a)
        bus.register("plain")(lambda a: a)
        stack.enter_context(serving(bus))
        assert [caller.double(1), caller.plain(1)] == [2, 1]
        first.stop()
        with pytest.raises(ConnectionLost):
            caller.plain(1)
        stack.enter_context(second)
        eventually(lambda: set(caller.all_methods()) == {"double", "plain"})
        eventually(lambda: workers(caller, "plain") == 1)
        assert [caller.double(2), caller.plain(2)] == [4, 2]
        bus.stop()
    assert "Redis is back" in caplog.text


def test_a_worker_whose_connections_are_cut_serves_on_and_says_so(
    bus: Bus, caller: Bus, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="redis_bus")
    bus.register("plain")(lambda a: a)
    with serving(bus):
        for turn in range(3):
            client.client_kill_filter(_type="normal", skipme=True)
            caller.close()
            assert caller.plain.run(turn).get() == turn
            assert caller.plain(turn) == turn
    address = re.escape(bus._core.transport.address)
    lost = rf"worker \S+: the connection to Redis at {address} was lost \([\w ]+\); it tries .*"
    back = rf"worker \S+: Redis is back at {address}; it serves on"
    for words in (lost, back):
        assert any(re.fullmatch(words, said) for said in caplog.messages), caplog.messages


def test_a_heart_that_cannot_beat_says_where_why_and_what_it_does_about_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = Bus("test", url="unix:///nowhere/redis.sock")
    bus.register("method")(lambda: 1)
    with bus._serving(None, debug=False) as worker:
        worker._heart._lanes = list(worker.lanes)  # as it begins
        assert not worker._heart._try_to_beat(healthy=True)
        assert not worker._heart._try_to_beat(healthy=False)
    (said,) = caplog.messages
    assert re.fullmatch(
        r"worker \S+: its heartbeat failed: no Redis at /nowhere/redis.sock \(.*\); .*; "
        r"it tries again every 2.5 s",
        said,
    )


def test_an_outcome_survives_a_connection_that_is_cut_while_its_job_runs(
    bus: Bus, url: str, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    entered, go = threading.Event(), threading.Event()
    runs: list[int] = []

    @bus.register()
    def held(a: int) -> int:
        runs.append(a)
        entered.set()
        assert go.wait(20)
        return a

    with Bus("test", url=url, client_name="worker") as service:
        service.register("held")(held)
        with serving(service):
            result = bus.held.run(1)
            assert entered.wait(20)
            for connection in client.client_list():
                if connection["name"] == "worker":
                    client.client_kill_filter(_id=connection["id"])
            go.set()
            assert result.get() == 1
    assert runs == [1]


def test_serving_needs_redis_at_its_start(server: EmbeddedRedis) -> None:
    bus = Bus("test", url="unix:///nowhere/redis.sock")
    bus.register("method")(lambda: 1)
    for serve in (bus.serve, bus.serve_once):
        with pytest.raises(ConnectionLost, match=r"/nowhere/redis\.sock"):
            serve()


def test_what_was_run_is_not_run_again_where_redis_takes_no_outcome_for_long(
    bus: Bus,
    client: redis.Redis,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a failover: for a while, Redis can be read only."""
    monkeypatch.setattr(redis_bus.worker.slot, "LEASE_MS", 100)
    runs, entered, go = [], threading.Event(), threading.Event()

    @bus.register()
    def work(a: int) -> int:
        runs.append(a)
        entered.set()
        assert go.wait(20)
        return a

    with serving(bus):
        result = bus.work.run(1)
        assert entered.wait(20)
        client.replicaof("127.0.0.1", 1)
        try:
            go.set()
            eventually(lambda: "an outcome cannot be sent now" in caplog.text)
        finally:
            client.replicaof("NO", "ONE")
        assert result.get(20) == 1
        assert bus.work(2) == 2
    assert runs == [1, 2]
    assert not list(client.scan_iter("*running*"))


def test_a_signal_to_a_process_that_a_job_started_means_that_process(
    processes: Processes, caller: Bus
) -> None:
    processes.write(
        "service.py",
        """
        import multiprocessing, time
        import redis_bus

        bus = redis_bus.Bus("test")

        def sleep(ready):
            ready.set()
            time.sleep(60)

        @bus.register()
        def child():
            context = multiprocessing.get_context("fork")
            ready = context.Event()
            process = context.Process(target=sleep, args=(ready,))
            process.start()
            assert ready.wait(20)
            process.terminate()
            process.join(20)
            return process.exitcode

        bus.serve()
        """,
    )
    processes.start("python", "service.py")
    eventually(lambda: workers(caller, "child"))
    assert caller.child() == -signal.SIGTERM


def test_close_ends_every_serve_of_a_bus(bus: Bus) -> None:
    bus.register("method")(lambda: 1)
    threads = [threading.Thread(target=bus.serve, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: workers(bus, "method") == 3)
    bus.close()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_an_async_function_that_will_not_be_cancelled_ends_at_the_third_signal(
    processes: Processes, caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    processes.write(
        "service.py",
        """
        import time
        import redis_bus

        bus = redis_bus.Bus("test")

        @bus.register()
        async def blocks():
            bus.conn.rpush("entered", 1)
            time.sleep(60)

        bus.serve()
        """,
    )
    worker = processes.start("python", "service.py")
    eventually(lambda: workers(caller, "blocks"))
    answer = pool.submit(caller.blocks)
    wait_until_entered(client)
    eventually(lambda: answer.done() or worker.send_signal(signal.SIGTERM))
    with pytest.raises(WorkerLost):
        answer.result(20)
    worker.wait(SOON_SECONDS)


def test_a_worker_that_finishes_its_last_job_serves_nothing_any_more(
    worker: subprocess.Popen[str], caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    answer = pool.submit(caller.held, 1)
    wait_until_entered(client)
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: workers(caller, "held") == 0)
    with pytest.raises(NoWorkers):
        caller.held.options(fail_fast=True)(2)
    # Its lease goes on, though: the job is not given away.
    assert client.zcard("rb:{test:}:workers") == 1
    assert not answer.done()
    client.rpush("go", 1)
    answer.result(20)
    assert worker.wait(PATIENCE_SECONDS) == 0


def test_a_call_whose_job_runs_on_a_worker_that_stops_is_not_told_that_nobody_serves(
    worker: subprocess.Popen[str], caller: Bus, client: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    answer = pool.submit(caller.held.options(timeout=2), 1)
    wait_until_entered(client)
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: workers(caller, "held") == 0)
    with pytest.raises(CallTimeout, match="taken by a worker that takes no other") as error:
        answer.result(20)
    assert not isinstance(error.value, NoWorkers)
    client.rpush("go", 1)
    assert worker.wait(PATIENCE_SECONDS) == 0
