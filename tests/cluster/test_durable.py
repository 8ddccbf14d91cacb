"""Methods with ``durable=``: what replicas confirm, and what happens where they do not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redis_bus import AsyncBus, Bus, BusError, ConnectionLost, NotConfirmed
from redis_bus.calls import durable
from redis_bus.protocol.commands import Service as Keys
from tests.async_support import calling, run
from tests.cluster.support import Servers, in_thread, kill_master
from tests.cluster_servers import Cluster
from tests.sentinel_servers import Sentinels
from tests.server_group import Server
from tests.support import eventually, serving

TAG = Keys("test", "").base
# One call in time, or an error: of a bus that is made for it.
Call = Callable[..., Any]
WITHDRAWN = "0 of 1 replicas confirmed it in 0.* s; it was withdrawn before a worker took it"


def call_blocking(address: str, name: str, *args: Any, **options: Any) -> Any:
    with Bus("test", url=address, timeout=20) as bus:
        return bus[name].options(**options)(*args)


def call_on_a_loop(address: str, name: str, *args: Any, **options: Any) -> Any:
    async def body() -> Any:
        async with calling(address) as bus:
            await bus.get_method(name)
            return await bus[name].options(**options)(*args)

    return run(body())


@pytest.fixture(params=[call_blocking, call_on_a_loop])
def call(request: pytest.FixtureRequest) -> Call:
    """A call by each kind of bus."""
    found: Call = request.param
    return found


class Methods:
    """A bus whose methods are durable or not, and what was run."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.ran: list[Any] = []
        bus.register("sure", durable=True)(self._note)
        bus.register("cached", durable=True, cache_key=True)(self._note)
        bus.register("plain")(self._note)

    def _note(self, value: Any) -> Any:
        self.ran.append(value)
        return value

    def queued(self, name: str) -> int:
        return int(self.bus._core.transport.ask(("LLEN", self.bus[name].target.route.queue))[0])


@pytest.fixture
def methods(servers: Servers) -> Iterator[Methods]:
    """Methods that are published, and not served yet."""
    with Bus("test", url=servers.address, timeout=20) as bus:
        methods = Methods(bus)
        for name in bus._core.registrations:
            bus.get_method(name)
        servers.wait_until_ok()
        yield methods


def master_of(servers: Servers) -> Server:
    return servers.master_of(TAG) if isinstance(servers, Cluster) else servers.master()


def replicas_of(servers: Servers) -> list[Any]:
    if isinstance(servers, Cluster):
        return list(servers.replicas_of(servers.master_of(TAG)))
    return list(servers.replicas())


@contextlib.contextmanager
def standing_still(servers: Servers) -> Iterator[Server]:
    """Stop the replicas with SIGSTOP; give the master."""
    master, replicas = master_of(servers), replicas_of(servers)
    for replica in replicas:
        replica.stop_signal()
    try:
        yield master
    finally:
        for replica in replicas:
            replica.cont()


# -- calls ------------------------------------------------------------------------------------


def test_calls_of_every_kind_are_confirmed(servers: Servers, methods: Methods) -> None:
    bus = methods.bus
    with serving(bus):
        assert bus.sure(1) == 1
        assert bus.sure.run(2).get() == 2
        assert list(bus.sure.map(range(3, 9))) == [3, 4, 5, 6, 7, 8]
        assert (bus.cached(9), bus.cached(9), bus.cached.run(9).get()) == (9, 9, 9)
        assert bus.cached.clear_cache(9)
        bus.cached.clear_all_cache()

        async def body() -> None:
            async with calling(servers.address) as far:
                assert await asyncio.gather(*(far.sure(n) for n in range(50))) == list(range(50))
                assert [n async for n in far.sure.map(range(9))] == list(range(9))
                assert await (await far.sure.run(1)) == 1
                assert await far.cached(1) == await far.cached(1) == 1
                assert await far.cached.clear_cache(1)
                await far.cached.clear_all_cache()

        run(body())
    # What is sent together runs in any order: some of it may have been sent anew (NOSCRIPT).
    first, together, mapped, last = (
        methods.ran[:9],
        methods.ran[9:59],
        methods.ran[59:68],
        methods.ran[68:],
    )
    assert first == list(range(1, 10))
    assert (sorted(together), sorted(mapped)) == (list(range(50)), list(range(9)))
    assert last == [1, 1]


def test_a_call_that_replicas_do_not_confirm_is_withdrawn(
    servers: Servers, methods: Methods, call: Call
) -> None:
    with standing_still(servers):
        with pytest.raises(NotConfirmed, match=rf"^sure\(1\): not accepted, {WITHDRAWN}$"):
            call(servers.address, "sure", 1, timeout=0.3)
        assert methods.queued("sure") == 0
        with pytest.raises(NotConfirmed, match=WITHDRAWN):
            call(servers.address, "cached", 2, timeout=0.3)
        assert methods.queued("cached") == 0
    with serving(methods.bus):
        assert call(servers.address, "sure", 3) == 3
    assert methods.ran == [3]


def test_a_run_that_replicas_do_not_confirm_is_withdrawn(
    servers: Servers, methods: Methods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "SLICE_SECONDS", 0.2)

    async def enqueue() -> None:
        async with calling(servers.address) as far:
            await far.sure.run(1)

    with standing_still(servers):
        with pytest.raises(NotConfirmed, match=WITHDRAWN):
            methods.bus.sure.run(1)
        with pytest.raises(NotConfirmed, match=WITHDRAWN):
            run(enqueue())
        with pytest.raises(NotConfirmed, match=rf"^sure\(0\): .*{WITHDRAWN}"):
            list(methods.bus.sure.map(range(20)))
        assert methods.queued("sure") == 0


def test_a_call_that_a_worker_has_taken_says_so(servers: Servers, methods: Methods) -> None:
    """As the worker waits for the replicas, too, and for longer than this caller."""
    with serving(methods.bus), standing_still(servers):
        with pytest.raises(NotConfirmed, match=r"it may run, as a worker has taken it already$"):
            methods.bus.sure.options(timeout=0.3)(1)
        eventually(lambda: methods.queued("sure") == 1)
        assert methods.ran == []


def test_who_joins_or_is_served_from_the_cache_needs_no_confirmation(
    servers: Servers, methods: Methods
) -> None:
    bus = methods.bus
    with serving(bus):
        bus.cached(1)
    bus.cached.run(2)
    with standing_still(servers):
        assert bus.cached(1) == 1
        with in_thread(bus.cached, 2) as joined:
            eventually(lambda: bus.stats()["cached"]["joins"] == 1)
            with serving(bus):
                go_on(servers)  # its worker waits for them
                assert joined.result(20) == 2


def go_on(servers: Servers) -> None:
    for server in servers.nodes if isinstance(servers, Cluster) else servers.servers:
        if not server.running:
            server.cont()


def test_too_few_replicas_for_the_number_asked_for(servers: Servers, methods: Methods) -> None:
    methods.bus.register("sure", durable=9)(methods._note)
    words = r"^sure\(1\): not sent, as sure is durable=9 and its Redis has only \d replicas? "
    with pytest.raises(NotConfirmed, match=words):
        methods.bus.sure(1)
    assert methods.queued("sure") == 0


def test_a_wait_for_replicas_that_is_broken_off_confirms_nothing(
    servers: Servers, methods: Methods
) -> None:
    """As it is where a master is made a replica: what it wrote may be gone."""
    with standing_still(servers) as master, in_thread(methods.bus.sure, 1) as called:
        waits = eventually(lambda: [c for c in master.control.client_list() if c["cmd"] == "wait"])
        master.call("CLIENT", "UNBLOCK", waits[0]["id"], "ERROR")
        with pytest.raises(ConnectionLost, match=r"^sure\(1\): .*; it is unknown whether it ran"):
            called.result(20)


# -- clears -----------------------------------------------------------------------------------


def test_a_clear_that_replicas_do_not_confirm_says_so(
    servers: Servers, methods: Methods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "SLICE_SECONDS", 0.2)
    bus = methods.bus
    with serving(bus):
        bus.cached(1)

    async def clear() -> None:
        async with calling(servers.address) as far:
            await far.cached.clear_all_cache()

    words = "^cached: cleared, but 0 of 1 replicas confirmed it in 0.2 s; after a failover old"
    with standing_still(servers):
        with pytest.raises(NotConfirmed, match=words):
            bus.cached.clear_cache(1)
        with pytest.raises(NotConfirmed, match=words):
            run(clear())
    assert not bus.cached.clear_cache(1)


# -- workers ----------------------------------------------------------------------------------


def test_no_durable_job_begins_that_replicas_do_not_know_to_be_taken(
    servers: Servers, methods: Methods, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "redis_bus")
    bus = methods.bus
    with serving(bus), standing_still(servers):
        with pytest.raises(NotConfirmed):
            bus.sure.options(timeout=0.1)(4)
        eventually(lambda: "it begins no job of a durable method until they do" in caplog.text)
        with pytest.raises(NotConfirmed, match=WITHDRAWN):  # it waits in the queue by now
            bus.sure.options(timeout=0.1)(5)
        assert bus.plain(6) == 6
        assert not {4, 5} & set(methods.ran)
        go_on(servers)
        eventually(lambda: "replicas confirm again what it does" in caplog.text)
        assert bus.sure(7) == 7


def test_serve_once_leaves_what_replicas_do_not_confirm(servers: Servers, methods: Methods) -> None:
    bus = methods.bus
    bus.sure.run(1)
    bus.plain.run(2)
    with standing_still(servers):
        assert bus.serve_once() == 1
    assert (methods.ran, methods.queued("sure")) == ([2], 1)
    assert bus.serve_once() == 1
    assert methods.ran == [2, 1]


# -- a master dies ----------------------------------------------------------------------------


def lose_what_follows(servers: Servers, master: Server) -> None:
    """Cut the replicas off, which stand still: what is written from here on does not reach them."""
    master.call("CLIENT", "KILL", "TYPE", "replica")


def test_what_was_accepted_is_there_at_the_new_master(servers: Servers, methods: Methods) -> None:
    """And what is not durable is lost, where the replicas were behind."""
    bus = methods.bus

    async def enqueue() -> str:
        async with calling(servers.address) as far:
            return str((await far.sure.run(2)).id)

    ids = [bus.sure.run(1).id, run(enqueue())]
    with standing_still(servers) as master:
        lose_what_follows(servers, master)
        bus.plain.run(3)
        with pytest.raises(NotConfirmed):
            bus.sure.options(timeout=0.1)(4)
        kill_master(servers, TAG)
    eventually(lambda: methods.queued("sure") == 2)
    assert methods.queued("plain") == 0
    if isinstance(servers, Cluster):  # it has no other replica
        servers.restart(master)  # type: ignore[arg-type]
    with serving(bus):
        assert [bus.get_async_result(one).get() for one in ids] == [1, 2]
    assert methods.ran == [1, 2]


def test_a_durable_job_begins_once_though_its_claim_could_be_lost_with_its_master(
    sentinels: Sentinels,
) -> None:
    """And one that is not durable runs again at the new master, which has it in its queue."""
    with Bus("test", url=sentinels.address, timeout=20) as bus:
        methods = Methods(bus)
        results = [bus.sure.run("sure"), bus.plain.run("plain")]
        sentinels.wait_until_ok()
        with standing_still(sentinels) as master:
            lose_what_follows(sentinels, master)
            with serving(bus):
                eventually(lambda: methods.ran)
            sentinels.kill_master()
        eventually(lambda: methods.queued("sure") == methods.queued("plain") == 1)
        with serving(bus):
            assert [result.get() for result in results] == ["sure", "plain"]
    assert sorted(methods.ran) == ["plain", "plain", "sure"]


def test_a_durable_job_whose_outcome_was_lost_with_its_master_runs_once(
    sentinels: Sentinels, caplog: pytest.LogCaptureFixture
) -> None:
    """And one that is not durable runs again at the new master, which has it as taken.

    They are idempotent: of what must not run again, a worker remembers the outcome in any case.
    """
    ran: list[str] = []
    entered = {"sure": threading.Event(), "plain": threading.Event()}
    go = threading.Event()

    def held(name: str) -> None:
        ran.append(name)
        entered[name].set()
        assert go.wait(30)

    with contextlib.ExitStack() as stack:
        results = []
        for name in entered:
            bus = stack.enter_context(Bus("test", url=sentinels.address, prefix=f"{name}_"))
            bus.register(name, durable=name == "sure", idempotent=True)(held)
            stack.enter_context(serving(bus))
            results.append(bus[name].run(name))
        assert all(event.wait(30) for event in entered.values())
        sentinels.wait_until_ok()
        with standing_still(sentinels) as master:
            lose_what_follows(sentinels, master)
            go.set()
            eventually(lambda: not list(master.control.scan_iter("rb:*:running:*")))
            # From here on the worker waits for the replicas no more.
            eventually(lambda: "it begins no job of a durable method" in caplog.text)
            sentinels.kill_master()
        assert [result.get() for result in results] == [None, None]
    assert sorted(ran) == ["plain", "plain", "sure"]


# -- a single Redis ---------------------------------------------------------------------------


def test_a_redis_without_replicas_refuses_durable_calls(bus: Bus, url: str) -> None:
    bus.register("sure", durable=True, cache_key=True)(lambda value: value)
    words = "not sent, as sure is durable=1 and its Redis has no replica to confirm that"

    async def body() -> None:
        async with AsyncBus("test", url=url) as far:
            with pytest.raises(NotConfirmed, match=rf"^sure\(1\): {words}"):
                await far.sure(1)
            with pytest.raises(NotConfirmed, match=rf"^sure\(1\): {words}"):
                await far.sure.run(1)

    bus.get_method("sure")
    run(body())
    for call in (bus.sure, bus.sure.run):
        with pytest.raises(NotConfirmed, match=rf"^sure\(1\): {words}"):
            call(1)
    with pytest.raises(NotConfirmed, match=f"^sure: clear: {words}"):
        bus.sure.clear_cache(1)
    with pytest.raises(NotConfirmed, match=rf"^sure\(1\): {words}"):
        next(bus.sure.map([1]))
    assert bus._core.transport.ask(("LLEN", bus.sure.target.route.queue)) == [0]


@pytest.mark.parametrize("value", [-1, None, 1.5, "yes"])
def test_what_is_no_number_of_replicas_is_refused(bus: Bus, value: Any) -> None:
    with pytest.raises(ValueError, match=r"durable=.*: True, or how many replicas"):
        bus.register("sure", durable=value)(lambda: None)


# -- asyncio ----------------------------------------------------------------------------------


def test_calls_that_wait_for_replicas_hold_back_no_others(
    servers: Servers, methods: Methods
) -> None:
    async def body() -> None:
        async with calling(servers.address) as far:
            assert await far.get_method("sure")
            started = time.monotonic()
            calls = [asyncio.create_task(far.sure.options(timeout=1)(n)) for n in range(40)]
            assert [await far.plain(n) for n in range(3)] == [0, 1, 2]
            assert not any(one.done() for one in calls), time.monotonic() - started
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(one) for one in found} <= {NotConfirmed, ConnectionLost}
            assert sum(isinstance(one, NotConfirmed) for one in found) >= 4

    with serving(methods.bus, "plain"), standing_still(servers):
        run(body())
    assert methods.queued("sure") == 0


def test_a_call_that_is_cancelled_while_it_waits_for_replicas_is_withdrawn(
    servers: Servers, methods: Methods
) -> None:
    async def body() -> None:
        async with calling(servers.address) as far:
            call = asyncio.create_task(far.sure(1))
            while not await asyncio.to_thread(methods.queued, "sure"):
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.to_thread(eventually, lambda: methods.queued("sure") == 0)

    with standing_still(servers):
        run(body())


def test_a_bus_that_is_closed_ends_waits_for_replicas(servers: Servers, methods: Methods) -> None:
    async def body() -> None:
        far = AsyncBus("test", url=servers.address, timeout=20)
        call = asyncio.create_task(far.sure(1))
        while not await asyncio.to_thread(methods.queued, "sure"):
            await asyncio.sleep(0.01)
        await far.aclose()
        with pytest.raises(BusError, match="the bus was closed meanwhile"):
            await call

    with standing_still(servers):
        run(body())
