"""The connections of `AsyncBus`: cut, slow, half-open, forked, on many loops; closed cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis

from redis_bus import AsyncBus, Bus, BusError, CallTimeout, ConnectionLost
from redis_bus.embedded import EmbeddedRedis
from redis_bus.transport import loops
from redis_bus.transport.async_transport import AsyncLink, AsyncTransport, make_connection
from redis_bus.transport.transport import NodeTransport
from tests.async_support import Gate, calling, run, until
from tests.support import PATIENCE_SECONDS, Processes, eventually, serving, workers
from tests.transport.test_transport import answering

uvloop = pytest.importorskip("uvloop")
QUEUE = "rb:{test:}:queue:"
OURS = "ours"


def echo(value: Any) -> Any:
    return value


def ours(client: redis.Redis, inbox: bool | None = None) -> list[dict[str, str]]:
    """The connections of the AsyncBus under test; of it, those that subscribe, or do not."""
    found = [one for one in client.client_list() if one["name"] == OURS]
    return [one for one in found if inbox is None or (one["sub"] != "0") == inbox]


def cut(client: redis.Redis, inbox: bool | None = None) -> int:
    """Have Redis close connections of the AsyncBus under test."""
    for one in ours(client, inbox):
        client.client_kill_filter(_id=one["id"])
    return len(ours(client, inbox))


@contextlib.contextmanager
def repeated(action: Callable[[], object], pauses: Callable[[], float]) -> Iterator[None]:
    """Do something again and again, in a thread, while the block runs."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pauses()):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE_SECONDS)


# -- cut connections ----------------------------------------------------------------------------


def test_a_question_that_takes_all_its_time_is_asked_again_for_a_moment_only(
    url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "AGAIN_SECONDS", 0.2)
    timeouts: list[float] = []
    real = AsyncTransport.exchange

    async def exchange(self: AsyncTransport, *commands: Any, timeout: float, **how: Any) -> Any:
        timeouts.append(timeout)
        return await real(self, *commands, timeout=timeout, **how)

    async def body() -> None:
        async with calling(url) as far:
            transport = far._core.loops.here()
            await transport.ask(("PING",))
            monkeypatch.setattr(AsyncTransport, "exchange", exchange)
            client.client_pause(round(PATIENCE_SECONDS * 1000), all=False)
            with pytest.raises(ConnectionLost, match="it did not answer in time"):
                await transport.ask(("EVAL", "return 1", 0), timeout=0.5)
            client.client_unpause()

    run(body())
    assert timeouts == [0.5, 0.2]


@pytest.mark.parametrize("inbox", [False, True, None], ids=["commands", "inbox", "both"])
def test_cut_connections_lose_no_call_and_run_no_uncached_call_twice(
    bus: Bus, url: str, client: redis.Redis, inbox: bool | None
) -> None:
    ran: Counter[int] = Counter()
    timeout = 10.0

    def note(n: int) -> int:
        ran[n] += 1
        return n

    bus.register("note")(note)
    bus.register("cached", cache_key="{n}")(note)
    outcomes: list[Any] = []

    async def one(far: AsyncBus, n: int) -> None:
        started = time.monotonic()
        method = far.cached if n % 2 else far.note
        try:
            assert await method(n) == n
            outcomes.append(None)
        except ConnectionLost as error:
            assert str(error).startswith(f"note({n}): ")
            assert "it is unknown whether it ran, so it is not sent again" in str(error)
            outcomes.append(error)
        assert time.monotonic() - started < timeout + 2

    async def body() -> None:
        async with calling(url, timeout=timeout, client_name=OURS) as far:
            await far.note(-1)
            rng = random.Random(1)
            limit = asyncio.Semaphore(20)

            async def limited(n: int) -> None:
                async with limit:
                    await one(far, n)

            with repeated(lambda: cut(client, inbox), lambda: rng.uniform(0.001, 0.03)):
                await asyncio.gather(*(limited(n) for n in range(500)))
            # Cached, so that it is sent again where the last cut has not been noticed yet.
            assert await far.cached(-1) == -1
            assert await far.note(-2) == -2

    with serving(bus):
        run(body())
    assert len(outcomes) == 500
    assert sum(error is None for error in outcomes) > 400
    assert max(count for n, count in ran.items() if n % 2 == 0) == 1


def test_a_call_that_waits_outlives_both_its_connections(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    gate = Gate()
    bus.register("gated")(gate)

    async def body() -> None:
        async with calling(url, client_name=OURS) as far:
            calls = [asyncio.create_task(far.gated(n)) for n in range(50)]
            await until(gate.entered.is_set)
            await until(lambda: client.llen(QUEUE + "gated") == 49)
            cut(client)
            gate.go.set()
            started = time.monotonic()
            assert await asyncio.gather(*calls) == list(range(50))
            assert time.monotonic() - started < 5

    with serving(bus):
        run(body())
    assert sorted(gate.seen) == list(range(50))  # type: ignore[type-var]


def test_an_outcome_that_comes_while_there_is_no_inbox_is_found_at_once(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    gate = Gate()
    bus.register("gated")(gate)

    async def body() -> None:
        async with calling(url, client_name=OURS) as far:
            call = asyncio.create_task(far.gated(1))
            await until(gate.entered.is_set)
            await until(lambda: ours(client, inbox=True))
            started = time.monotonic()
            cut(client, inbox=True)
            gate.go.set()
            assert await call == 1
            assert time.monotonic() - started < 3

    with serving(bus):
        run(body())


def test_a_connection_that_was_cut_while_idle_fails_no_call(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    """Also where the loop does not run meanwhile, as that of a worker between two jobs."""
    bus.register()(echo)
    far = AsyncBus("test", url=url, client_name=OURS)
    loop = asyncio.new_event_loop()
    with serving(bus):
        assert loop.run_until_complete(far.echo(1)) == 1
        end = time.monotonic() + 0.6
        eventually(lambda: time.monotonic() > end)
        cut(client)
        assert loop.run_until_complete(far.echo(2)) == 2
        loop.run_until_complete(far.aclose())
    loop.close()


def test_scripts_that_are_flushed_again_and_again_fail_no_call(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    bus.register("cached", cache_key=True)(echo)

    async def body() -> None:
        async with calling(url) as far:
            with repeated(client.script_flush, lambda: 0.002):
                for start in range(0, 400, 50):
                    numbers = range(start, start + 50)
                    assert await asyncio.gather(*map(far.echo, numbers)) == list(numbers)
                    assert await asyncio.gather(*map(far.cached, numbers)) == list(numbers)

    with serving(bus):
        run(body())


def test_a_fresh_redis_gets_the_scripts_once_for_all_calls(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)

    async def body() -> None:
        async with calling(url, timeout=60) as far:
            await far.get_method("echo")
            client.script_flush()
            client.config_resetstat()
            assert await asyncio.gather(*map(far.echo, range(1000))) == list(range(1000))
            loads = client.info("commandstats").get("cmdstat_script|load", {}).get("calls")
            if loads is None:  # as Redis before 7 counts them
                loads = client.info("commandstats")["cmdstat_script"]["calls"]
            assert loads < 200

    with serving(bus):
        run(body())


def test_calls_outlive_a_restart_of_redis() -> None:
    """What was queued is lost with its data: cached calls are made again, others are told."""
    server = EmbeddedRedis(port=0)
    server.start()
    server.port = int(server.url.rpartition(":")[2].partition("/")[0])
    ran: Counter[int] = Counter()

    def note(n: int) -> int:
        ran[n] += 1
        return n

    async def one(far: AsyncBus, n: int) -> Any:
        method = far.cached if n % 2 else far.note
        try:
            return await method(n)
        except BusError as error:
            # As long as no worker has published it again, there is no such method.
            assert f"{method.__name__}({n}): " in str(error) or "has no method" in str(error)
            return error

    async def body() -> None:
        async with calling(server.url, timeout=15) as far:
            await far.note(-1)
            await far.cached(-1)
            gate.go.clear()
            calls = [asyncio.create_task(one(far, n)) for n in range(40)]
            with redis.Redis.from_url(server.url) as client:
                await until(lambda: client.llen(QUEUE + "note") >= 19)
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            gate.go.set()
            outcomes = await asyncio.gather(*calls)
            for n in range(1, 40, 2):
                assert outcomes[n] == n or "has no method" in str(outcomes[n])
            # Cached, so that it is sent again where the last cut has not been noticed yet.
            assert await far.cached(-1) == -1
            assert await far.note(-2) == -2

    gate = Gate()

    def gated(n: int) -> int:
        assert gate.go.wait(20)
        return note(n)

    gate.go.set()
    try:
        with Bus("test", url=server.url) as bus:
            bus.register("note")(gated)
            bus.register("cached", cache_key="{n}")(gated)
            with serving(bus):
                run(body())
    finally:
        server.stop()
    assert max(count for n, count in ran.items() if n % 2 == 0) == 1


def test_calls_while_there_is_no_redis_fail_at_once_and_say_so() -> None:
    async def body() -> None:
        async with AsyncBus("test", url="redis://localhost:1/0") as far:
            results = await asyncio.gather(
                far.echo(1), far.all_methods(), far.stats(), return_exceptions=True
            )
            for error, call in zip(results, ("echo: ", "", ""), strict=True):
                assert isinstance(error, ConnectionLost)
                assert str(error) == (
                    f"{call}no Redis at localhost:1 (Connection refused); "
                    "start one, or say where it is with url= or REDIS_BUS_URL"
                )

    run(body())


@pytest.mark.parametrize("arguments", [{}, {"password": "x"}, {"protocol": 2}])
def test_a_server_that_is_no_redis_is_said_to_be_none(arguments: dict[str, Any]) -> None:
    async def body(port: int) -> None:
        async with AsyncBus("test", url=f"redis://127.0.0.1:{port}", **arguments) as far:
            with pytest.raises(ConnectionLost, match=r"^what listens at .* is no Redis \("):
                await far.all_methods()

    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        run(body(port))


def test_a_redis_that_refuses_us_is_told_in_its_words(url: str, client: redis.Redis) -> None:
    client.acl_setuser("guest", enabled=True, nopass=True, reset=True)

    async def body() -> None:
        async with AsyncBus("test", url=url, username="guest", password="") as far:
            with pytest.raises(BusError, match=r"refused: .*[Nn]o permissions|refuses us: "):
                await far.all_methods()

    try:
        run(body())
    finally:
        client.acl_deluser("guest")


# -- dead and slow peers ------------------------------------------------------------------------


class Proxy:
    """Passes bytes between a bus and Redis; frozen, it swallows them and closes nothing."""

    def __init__(self, url: str) -> None:
        self._path = url.partition("://")[2]
        self.frozen: set[int] = set()
        self.count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with server:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def freeze(self) -> None:
        """Leave alone all connections that there are."""
        self.frozen.update(range(self.count))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(self.count, reader, writer))
        self.count += 1
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._path)
        ways = [(reader, far_writer), (far_reader, writer)]
        pumps = [asyncio.create_task(self._pump(number, *way)) for way in ways]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            writer.close()
            far_writer.close()

    async def _pump(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if number not in self.frozen:
                    writer.write(data)


def test_half_open_connections_hold_no_call_past_its_timeout_and_are_given_up(
    bus: Bus, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redis_bus.transport.async_link.AsyncLink.patience", 3)
    bus.register()(echo)

    async def body() -> None:
        proxy = Proxy(url)
        async with proxy.running() as address, calling(address) as far:
            assert await far.echo(1) == 1
            proxy.freeze()
            started, ok = time.monotonic(), False
            while not ok and time.monotonic() - started < 20:
                before = time.monotonic()
                try:
                    ok = await far.echo.options(timeout=1)(2) == 2
                except (ConnectionLost, CallTimeout) as error:
                    assert "echo(2)" in str(error)
                assert time.monotonic() - before < 3
            assert ok
            assert await far.echo(3) == 3

    with serving(bus):
        run(body())


def test_a_half_open_inbox_costs_a_wait_and_is_given_up(bus: Bus, url: str) -> None:
    bus.register()(echo)

    async def body() -> None:
        proxy = Proxy(url)
        async with proxy.running() as address, calling(address) as far:
            assert await far.echo(1) == 1
            proxy.frozen = {1}  # the inbox is connected second
            first = far._core.loops.here()._inbox
            started = time.monotonic()
            while far._core.loops.here()._inbox is first:
                assert await far.echo(2) == 2
                assert time.monotonic() - started < 15
            before = time.monotonic()
            assert await far.echo(3) == 3
            assert time.monotonic() - before < 0.9

    with serving(bus):
        run(body())


def test_a_loop_that_stood_still_finds_its_answers_and_keeps_its_connections(
    bus: Bus, url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redis_bus.transport.async_link.AsyncLink.patience", 0.2)
    monkeypatch.setattr("redis_bus.transport.async_inbox.INBOX_SECONDS", 0.2)
    bus.register()(echo)

    async def body() -> None:
        async with calling(url, client_name=OURS) as far:
            await far.echo(0)
            before = {one["id"] for one in ours(client)}
            calls = [asyncio.create_task(far.echo(n)) for n in range(200)]
            for _ in range(6):
                await asyncio.sleep(0)
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    pass
            assert await asyncio.gather(*calls) == list(range(200))
            assert {one["id"] for one in ours(client)} == before

    with serving(bus):
        run(body())


def test_what_redis_drops_for_a_slow_consumer_is_found_in_the_reply_lists(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    limit = str(client.config_get("client-output-buffer-limit")["client-output-buffer-limit"])
    value = b"x" * 4000

    async def body() -> None:
        async with calling(url, client_name=OURS, timeout=60) as far:
            calls = [asyncio.create_task(far.echo(value)) for _ in range(2000)]
            await until(lambda: client.llen(QUEUE + "echo") == 2000)
            inbox = ours(client, inbox=True)[0]["id"]
            with serving(bus):
                # This loop reads nothing until its inbox is dropped.
                eventually(lambda: all(one["id"] != inbox for one in ours(client)))
                assert await asyncio.gather(*calls) == [value] * 2000

    client.config_set("client-output-buffer-limit", "pubsub 262144 0 0")
    try:
        bus.serve_once()
        run(body())
    finally:
        client.config_set("client-output-buffer-limit", limit)


# -- loops, processes, clients ------------------------------------------------------------------


def test_one_bus_is_used_on_one_loop_after_the_other(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    far = AsyncBus("test", url=url, client_name=OURS)

    async def body(n: int) -> None:
        async with far:
            assert await asyncio.gather(*(far.echo(n) for _ in range(20))) == [n] * 20
        assert far._core.loops._open == {}

    with serving(bus):
        for n in range(3):
            run(body(n))
            eventually(lambda: not ours(client))


def test_the_end_of_a_loop_closes_what_nobody_closed(
    bus: Bus, processes: Processes, client: redis.Redis
) -> None:
    bus.register()(echo)
    code = """
        import asyncio, redis_bus
        bus = redis_bus.AsyncBus("test", client_name="ours")
        async def main(n):
            asyncio.get_running_loop().slow_callback_duration = 5  # this machine may be slow
            return await bus.echo(n)
        for n in range(3):
            print(asyncio.run(main(n)))
    """
    path = processes.write("unclosed.py", code)
    with serving(bus):
        done = processes.run(sys.executable, "-X", "dev", "-W", "error", str(path))
    assert (done.stdout, done.stderr) == ("0\n1\n2\n", "")


def test_a_loop_that_is_closed_without_its_end_is_forgotten(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)
    far = AsyncBus("test", url=url, client_name=OURS)
    with serving(bus), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for n in range(5):
            loop = asyncio.new_event_loop()
            assert loop.run_until_complete(far.echo(n)) == n
            loop.close()
            del loop
        eventually(lambda: gc.collect() is not None and len(ours(client)) <= 2)
        assert asyncio.run(_echo_and_close(far)) == 1
        assert far._core.loops._open == {}
        gc.collect()


async def _echo_and_close(far: AsyncBus) -> Any:
    async with far:
        return await far.echo(1)


def test_one_bus_is_used_on_two_loops_at_a_time(bus: Bus, url: str, client: redis.Redis) -> None:
    bus.register()(echo)
    far = AsyncBus("test", url=url, client_name=OURS)
    meet = threading.Barrier(2)

    async def body(n: int) -> None:
        async with far:
            await far.echo(n)
            await asyncio.to_thread(meet.wait, 20)
            for _ in range(10):
                assert await asyncio.gather(*(far.echo((n, i)) for i in range(20))) == [
                    (n, i) for i in range(20)
                ]
            assert len(ours(client)) <= 4
            await asyncio.to_thread(meet.wait, 20)

    with serving(bus), ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(asyncio.run, body(n)) for n in range(2)]
        errors = [future.exception(PATIENCE_SECONDS) for future in futures]
    assert errors == [None, None]
    eventually(lambda: not ours(client))


@pytest.mark.filterwarnings("ignore")
def test_a_forked_child_has_connections_of_its_own(bus: Bus, url: str, client: redis.Redis) -> None:
    bus.register()(echo)
    far = AsyncBus("test", url=url, client_name=OURS)
    loop = asyncio.new_event_loop()

    async def in_child() -> None:
        async with far:
            assert await asyncio.gather(*(far.echo(n) for n in range(50))) == list(range(50))

    with serving(bus):
        assert loop.run_until_complete(far.echo(1)) == 1
        parents = {one["id"] for one in ours(client)}
        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.set_event_loop(None)
                asyncio.run(in_child())
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert loop.run_until_complete(far.echo(2)) == 2
        assert {one["id"] for one in ours(client)} == parents
        loop.run_until_complete(far.aclose())
    loop.close()


def test_uvloop_runs_calls_caches_cancels_and_serves(url: str, client: redis.Redis) -> None:
    async def body() -> None:
        async with calling(url, client_name=OURS) as bus:
            bus.register()(echo)

            @bus.register(cache_key="{a}")
            async def cached(a: int) -> int:
                await asyncio.sleep(0)
                return a

            @bus.register()
            def fail(text: str) -> None:
                raise ValueError(text)

            task = asyncio.create_task(bus.serve())
            assert await asyncio.gather(*map(bus.echo, range(2000))) == list(range(2000))
            assert await asyncio.gather(*(bus.cached(1) for _ in range(100))) == [1] * 100
            value = b"x" * 1_000_000
            assert await bus.echo(value) == value
            with pytest.raises(ValueError, match="told"):
                await bus.fail("told")
            assert await (await bus.echo.run(3)).get() == 3
            await until(lambda: cut(client) == 0)
            assert await bus.cached(2) == 2
            bus.stop()
            await task
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(bus.echo(1), 0.2)
            with pytest.raises(CallTimeout):
                await bus.echo.options(timeout=0.2)(1)
            assert await bus.serve_once() == 0
        await until(lambda: not ours(client))

    run(body(), uvloop.new_event_loop)


@pytest.mark.parametrize("kind", [redis.Redis, aioredis.Redis], ids=["blocking", "asyncio"])
@pytest.mark.parametrize("settings", [{}, {"decode_responses": True}, {"protocol": 2}], ids=str)
def test_a_client_of_either_kind_says_where_redis_is(
    bus: Bus, url: str, kind: Any, settings: dict[str, Any]
) -> None:
    bus.register()(echo)

    async def body() -> None:
        conn = kind.from_url(url, client_name=OURS, **settings)
        async with AsyncBus("test", conn) as far:
            assert far.conn is conn
            assert await far.echo(b"1") == b"1"
            far.register("own")(echo)
            assert await far.own.run(1)
            assert await far.serve_once() == 1
            assert await far.stats()

    with serving(bus):
        run(body())


def test_either_kind_of_client_works_on_tcp_with_a_password_and_a_database() -> None:
    with EmbeddedRedis(port=0) as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "secret")
        url = server.url.replace("//", "//:secret@").replace("/0", "/3")

        async def body() -> None:
            clients: list[Any] = [redis.Redis.from_url(url), aioredis.Redis.from_url(url), None]
            for conn in clients:
                async with AsyncBus("test", conn, url=url) as far:
                    far.register()(echo)
                    call = asyncio.create_task(far.echo(1))
                    task = asyncio.create_task(far.serve())
                    assert await call == 1
                    assert "secret" not in repr(far)
                    far.stop()
                    await task

        run(body())


def test_clients_that_asyncio_cannot_have_are_refused_when_the_bus_is_made() -> None:
    class Own(redis.connection.AbstractConnection):
        def repr_pieces(self) -> list[tuple[str, object]]:
            return []

        def _connect(self) -> Any:
            raise NotImplementedError

        def _host_error(self) -> str:
            return ""

    pool = redis.ConnectionPool(connection_class=Own)
    with pytest.raises(TypeError, match="AsyncBus cannot connect as Own does"):
        AsyncBus(conn=redis.Redis(connection_pool=pool))
    kind: Any = aioredis.sentinel.Sentinel
    with pytest.raises(TypeError, match="conn: it leads to a replica"):
        AsyncBus(conn=kind([("localhost", 1)]).slave_for("x"))
    other: Any = object()
    with pytest.raises(TypeError, match=r"conn: a redis\.Redis, one made by Sentinel.*not object"):
        AsyncBus(conn=other)


def test_tls_settings_of_a_blocking_client_are_taken_over() -> None:
    async def body() -> None:
        async with AsyncBus(conn=redis.Redis(port=1, ssl=True)) as far:
            with pytest.raises(ConnectionLost, match="no Redis at localhost:1"):
                await far.all_methods()

    run(body())
    with pytest.raises(TypeError, match="ssl_validate_ocsp=: AsyncBus cannot do that"):
        AsyncBus(conn=redis.Redis(ssl=True, ssl_validate_ocsp=True))


# -- connecting and closing ---------------------------------------------------------------------


def test_a_thousand_calls_connect_once(bus: Bus, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(base: NodeTransport) -> Any:
        made.append(make_connection(base))
        return made[-1]

    monkeypatch.setattr("redis_bus.transport.async_transport.make_connection", make)
    bus.register()(echo)

    async def body() -> None:
        async with calling(url) as far:
            assert await asyncio.gather(*map(far.echo, range(1000))) == list(range(1000))

    with serving(bus):
        run(body())
    assert len(made) == 2


def test_nothing_is_kept_of_names_that_were_asked_for(bus: Bus, url: str) -> None:
    bus.register()(echo)

    async def body() -> None:
        async with calling(url) as far:
            for name in ("nope", "echo", "none"):
                found = await far.get_method(name)
                assert (found is not None) == (name == "echo")
                with contextlib.suppress(AttributeError):
                    assert await far[name](1) == 1
            assert far._core.loops.here()._shared == {}

    with serving(bus):
        run(body())


def cut_behind_the_handshake(client: redis.Redis, connection: Any) -> Any:
    """Have Redis close a connection when it is made, before anybody looks at it again."""
    connect = connection.connect

    async def connect_and_cut() -> None:
        await connect()
        cut(client)
        await until(connection._reader.at_eof)

    connection.connect = connect_and_cut
    return connection


def test_a_connection_that_is_closed_behind_its_handshake_is_not_waited_on(
    url: str, client: redis.Redis
) -> None:
    async def body() -> None:
        base: Any = AsyncBus("test", url=url, client_name=OURS)._bus._core.transport
        link = AsyncLink(cut_behind_the_handshake(client, make_connection(base)), base)
        with pytest.raises(ConnectionLost, match=r"was lost \(Redis closed it\)"):
            await link.connect(PATIENCE_SECONDS)

    run(body())


def test_a_connection_that_is_lost_before_anything_ran_fails_no_call(
    bus: Bus, url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def make(base: NodeTransport) -> Any:
        made.append(make_connection(base))
        return cut_behind_the_handshake(client, made[-1]) if len(made) == 2 else made[-1]

    monkeypatch.setattr("redis_bus.transport.async_transport.make_connection", make)
    bus.register()(echo)

    async def body() -> None:
        async with calling(url, client_name=OURS) as far:
            await far.get_method("echo")
            transport = far._core.loops.here()
            await transport.inbox(1)
            link = transport._link
            assert link is not None
            await until(lambda: cut(client) == 0)
            await until(lambda: link.is_closed)
            assert await far.echo(1) == 1
            assert len(made) > 3
            # Its outcome is looked for at once where nothing is told any more.
            inbox = await transport.inbox(1)
            inbox.close()
            assert inbox.expect("job").result() == b""
            # The scripts are not there, and the connection is lost as they are loaded.
            client.script_flush()
            load, loads = transport._load_all, []

            async def cut_and_load() -> None:
                loads.append(1)
                if len(loads) == 1:
                    cut(client, inbox=False)
                await load()

            monkeypatch.setattr(transport, "_load_all", cut_and_load)
            assert await far.echo(2) == 2
            assert len(loads) == 2

    with serving(bus):
        run(body())


def test_a_host_that_does_not_answer_holds_no_call_past_its_timeout() -> None:
    """However many wait for the connection, whoever began it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def body() -> None:
            port = silent.getsockname()[1]
            async with AsyncBus("test", url=f"redis://127.0.0.1:{port}") as far:
                far.register()(echo)
                started = time.monotonic()
                first = asyncio.create_task(far.echo.options(timeout=0.5)(1))
                await asyncio.sleep(0)
                rest = [asyncio.create_task(far.echo.options(timeout=0.3)(n)) for n in range(50)]
                first.cancel()
                for call in await asyncio.gather(first, *rest, return_exceptions=True):
                    assert isinstance(call, (asyncio.CancelledError, ConnectionLost))
                assert time.monotonic() - started < 2.3

        run(body())


def test_closing_tells_those_who_wait_and_the_bus_can_be_used_again(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    gate = Gate()
    bus.register("gated")(gate)
    bus.register("keyed", cache_key="{a}")(gate)

    async def body() -> None:
        far = AsyncBus("test", url=url, client_name=OURS)
        calls = [asyncio.create_task(far.gated(1)), asyncio.create_task(far.keyed(2))]
        await until(gate.entered.is_set)
        await until(lambda: bus.stats()["gated"]["calls"] == 1)
        await until(lambda: list(client.scan_iter("*inboxes:*")))  # of the keyed one
        await far.aclose()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        shown = [str(error) for error in errors]
        text = "the bus was closed meanwhile; it is unknown whether it ran"
        assert shown == [f"gated(1): {text}", f"keyed(2): {text}"]
        await until(lambda: not ours(client))
        gate.go.set()
        assert await far.keyed(2) == 2
        await far.aclose()
        await far.aclose()
        await until(lambda: not ours(client))

    with serving(bus):
        run(body())


def test_closing_while_it_connects_leaves_nothing(bus: Bus, url: str, client: redis.Redis) -> None:
    bus.register()(echo)

    async def body() -> None:
        for turns in range(15):
            far = AsyncBus("test", url=url, client_name=OURS)
            call = asyncio.create_task(far.echo(1))
            for _ in range(turns):
                await asyncio.sleep(0)
            await far.aclose()
            result = (await asyncio.gather(call, return_exceptions=True))[0]
            assert result == 1 or isinstance(result, BusError), result
            await far.aclose()
        await until(lambda: not ours(client))

    with serving(bus):
        run(body())


def test_a_closing_that_is_cancelled_leaves_nothing(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(echo)

    async def body() -> None:
        for turns in range(1, 8):
            far = AsyncBus("test", url=url, client_name=OURS)
            far.register("own")(echo)
            assert await far.serve_once() == 0  # over blocking connections
            assert await far.echo(1) == 1
            assert len(ours(client)) > 2
            closing = asyncio.create_task(far.aclose())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            await until(lambda: not ours(client))

    with serving(bus):
        run(body())


def test_a_connection_that_is_made_too_late_is_closed(url: str, client: redis.Redis) -> None:
    async def body() -> None:
        far = AsyncBus("test", url=url, client_name=OURS)
        transport = far._core.loops.here()
        for connect in (transport._connect, transport._connect_inbox):
            connecting = asyncio.create_task(connect())
            await far.aclose()
            transport.is_closed = True
            with pytest.raises(BusError, match="the bus was closed meanwhile"):
                await connecting
            await until(lambda: not ours(client))

    run(body())


CLEAN = """
    import asyncio, sys, redis_bus
    async def main():
        asyncio.get_running_loop().slow_callback_duration = 5  # this machine may be slow
        async with redis_bus.AsyncBus("test") as bus:
            assert await asyncio.gather(*(bus.echo(n) for n in range(100))) == list(range(100))
            dropped = asyncio.create_task(bus.echo(1))
            await asyncio.sleep(0)
            dropped.cancel()
            try:
                await bus.echo(x=1)
            except TypeError:
                pass
            results = await asyncio.gather(bus.nope(), dropped, return_exceptions=True)
            print([type(one).__name__ for one in results])
        print(len(asyncio.all_tasks()))
    if len(sys.argv) > 1:
        import uvloop
        uvloop.run(main())
    else:
        asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_program_that_closes_its_bus_ends_without_a_warning(
    bus: Bus, processes: Processes, loop: str
) -> None:
    bus.register()(echo)
    path = processes.write("clean.py", CLEAN)
    extra = [] if loop == "asyncio" else [loop]
    with serving(bus):
        done = processes.run(sys.executable, "-X", "dev", "-W", "error", str(path), *extra)
    assert (done.stdout, done.stderr) == ("['AttributeError', 'CancelledError']\n1\n", "")


def test_an_interrupted_program_withdraws_its_calls(
    bus: Bus, url: str, client: redis.Redis, processes: Processes
) -> None:
    bus.register()(echo)
    bus.serve_once()
    code = """
        import asyncio, redis_bus
        async def main():
            async with redis_bus.AsyncBus("test") as bus:
                await asyncio.gather(*(bus.echo(n) for n in range(10)))
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
    """
    process = processes.python(code)
    eventually(lambda: client.llen(QUEUE + "echo") == 10)
    process.send_signal(2)
    assert process.communicate(timeout=30) == ("interrupted\n", "")
    assert not client.exists(QUEUE + "echo", "rb:{test:}:pending:echo")
    assert not workers(bus, "echo")


def test_nothing_is_logged_as_an_error_by_cut_connections(
    bus: Bus, url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bus.register("cached", cache_key="{value}", cache_expire=0)(echo)

    async def body() -> None:
        async with calling(url, client_name=OURS) as far:
            for n in range(20):
                call = asyncio.create_task(far.cached(n))
                await asyncio.to_thread(cut, client)
                assert await call == n

    with serving(bus), caplog.at_level(logging.WARNING):
        run(body())
    assert not [r for r in caplog.records if r.name.startswith(("asyncio", "redis_bus.async"))]


def test_an_answer_that_nobody_asked_for_ends_the_connection_not_the_program() -> None:
    """As of a peer that lost count: nothing is taken for an answer to the next command."""

    async def body() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    writer.write(b"+OK\r\n" * (data.count(b"*") + 3))
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"redis://127.0.0.1:{port}"
            async with AsyncBus("test", url=url, protocol=2, driver_info=None) as far:
                await far._core.loops.here().exchange(("PING",))
                transport: AsyncTransport = far._core.loops.here()
                link = transport._link
                assert link is not None
                await until(lambda: link.is_closed)

    run(body())
