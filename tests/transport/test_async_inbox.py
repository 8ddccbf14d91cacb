"""The id of a job that an AsyncBus waits for names the inbox on which it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from redis_bus import AsyncBus, Bus
from redis_bus.client.async_method import AsyncMethod
from redis_bus.protocol.entries import Mode, parse_job
from redis_bus.transport.async_inbox import Inbox, InboxName
from redis_bus.transport.async_transport import AsyncTransport
from tests.async_support import Gate, calling, run, until
from tests.commands import sent
from tests.support import serving

QUEUE = "rb:{test:}:queue:"
INBOXES = "rb:{test:}:inboxes:*"
PENDING = "rb:{test:}:pending:*"
REPLIES = "rb:{test:}:reply:*"


def transport_of(bus: AsyncBus) -> AsyncTransport:
    transport = bus._core.loops.here()
    assert isinstance(transport, AsyncTransport)
    return transport


def inbox_of(bus: AsyncBus) -> Inbox:
    inbox = transport_of(bus).open_inbox()
    assert inbox is not None
    return inbox


@pytest.fixture
def gate(bus: Bus) -> Iterator[Gate]:
    gate = Gate()
    bus.register("gated")(gate)
    yield gate
    gate.go.set()


def test_no_two_jobs_have_one_id_and_each_names_its_inbox_alone() -> None:
    names = [InboxName() for _ in range(100)]
    jobs = [name.new_job_id() for name in names for _ in range(100)]
    assert len(set(jobs)) == len(jobs)
    assert [sum(name.is_in(job) for name in names) for job in jobs] == [1] * len(jobs)
    assert names[0].channel == f"rb:inbox:{jobs[0].rpartition('.')[0]}"


def test_a_call_is_one_script_and_nothing_is_noted_of_it(
    bus: Bus, url: str, client: redis.Redis
) -> None:
    bus.register()(len)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            method = await far.get_method("len")
            assert isinstance(method, AsyncMethod)
            await transport_of(far).inbox(1)
            with sent(client) as commands:
                calls = [asyncio.create_task(method("abc")) for _ in range(20)]
                await until(lambda: client.llen(QUEUE + "len") == 20)
            assert commands["evalsha"] == 20
            jobs = [parse_job(entry) for entry in client.lrange(QUEUE + "len", 0, -1)]
            assert {job.mode for job in jobs} == {Mode.TOLD}
            assert all(inbox_of(far).name.is_in(job.id) for job in jobs)
            assert client.keys(INBOXES) == client.keys(PENDING) == []
            assert await asyncio.to_thread(bus.serve_once) == 20
            assert await asyncio.gather(*calls) == [3] * 20
            await until(lambda: not client.keys(REPLIES))

    run(body())


def test_a_bus_has_one_name_for_all_its_inboxes_on_a_server(
    bus: Bus, url: str, client: redis.Redis, gate: Gate
) -> None:
    """So whoever waits while the connection is lost is told on the next one."""

    async def body() -> None:
        async with calling(url) as far:
            call = asyncio.create_task(far.gated(1))
            await until(gate.entered.is_set)
            lost = inbox_of(far)
            client.client_kill_filter(_type="pubsub")
            await until(lambda: lost.is_closed)
            await until(lambda: client.pubsub_numsub(lost.name.channel)[0][1] == 1)
            assert inbox_of(far) is not lost
            assert client.keys(INBOXES) == []
            gate.go.set()
            assert await call == 1

    with serving(bus):
        run(body())


def test_where_the_inbox_is_another_one_meanwhile_the_call_listens_there(
    bus: Bus, url: str, client: redis.Redis, gate: Gate
) -> None:
    """As where the service is at another server by now."""

    async def body() -> None:
        async with calling(url) as far:
            call = asyncio.create_task(far.gated(1))
            await until(gate.entered.is_set)
            transport_of(far)._inbox_name = InboxName()
            inbox_of(far).close()
            await until(lambda: client.keys(INBOXES))
            gate.go.set()
            assert await call == 1
            await until(lambda: not client.keys(INBOXES))

    with serving(bus):
        run(body())


def test_where_the_inbox_was_lost_before_the_call_is_sent_it_listens_in_the_same_write(
    bus: Bus, url: str, client: redis.Redis, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(method: AsyncMethod, *args: Any) -> Any:
        yield from ()
        return InboxName().new_job_id()

    monkeypatch.setattr(AsyncMethod, "told_job", lost)
    # Else it would listen with the next slice.
    for module in ("calls.calls", "client.async_direct"):
        monkeypatch.setattr(f"redis_bus.{module}.FIRST_SLICE_SECONDS", 100.0)

    async def body() -> None:
        async with calling(url) as far:
            call = asyncio.create_task(far.gated(1))
            await until(gate.entered.is_set)
            await until(lambda: client.keys(INBOXES))
            gate.go.set()
            assert await call == 1
            await until(lambda: not client.keys(INBOXES) and not client.keys(REPLIES))

    with serving(bus):
        run(body())


def test_where_there_is_no_inbox_to_be_had_twice_the_job_is_noted_and_listened_for(
    bus: Bus, url: str, client: redis.Redis, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(method: AsyncMethod, *args: Any) -> Any:
        yield from ()

    monkeypatch.setattr(AsyncMethod, "told_job", none)

    async def body() -> None:
        async with calling(url) as far:
            call = asyncio.create_task(far.gated(1))
            await until(lambda: client.keys(INBOXES))
            gate.go.set()
            assert await call == 1

    with serving(bus):
        run(body())


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_call_that_is_cancelled_is_found_in_a_long_queue(
    bus: Bus, url: str, client: redis.Redis, is_answered: bool
) -> None:
    """By when it was enqueued; before that is known, at its end."""
    ran: list[int] = []
    bus.register("note")(ran.append)
    bus.serve_once()

    async def body() -> None:
        async with calling(url) as far:
            await far.get_method("note")
            others = [await far.note.run(-n) for n in range(1, 1500)]
            call = asyncio.create_task(far.note(0))
            if is_answered:
                await until(lambda: client.llen(QUEUE + "note") == 1500)
                await asyncio.gather(*(far.note.run(n) for n in range(1, 1100)))
                left = len(others) + 1099
            else:
                link = transport_of(far)._link
                assert link is not None
                while not link._waiting:
                    await asyncio.sleep(0)
                left = len(others)
            call.cancel()
            await asyncio.wait([call])
            await until(lambda: client.llen(QUEUE + "note") == left)
            assert b"-" not in client.hvals("rb:{test:}:pending:note")

    run(body())


def test_the_result_of_a_job_that_named_an_inbox_can_be_had_by_its_id(bus: Bus, url: str) -> None:
    """As of a dead letter that is tried again: it keeps its id."""
    job = InboxName().new_job_id()
    assert bus.get_async_result(f":echo:{job}").id == f":echo:{job}"
