"""A job that was withdrawn waits no more: it takes no room, and nothing counts it."""

from __future__ import annotations

import asyncio

import pytest
import redis

from redis_bus import Bus, QueueFull
from tests.async_support import calling, run, until


def never(value: str) -> None:
    """No worker serves it."""


def queued(bus: Bus) -> int:
    return int(bus.stats()["never"]["queued"])


def test_withdrawn_runs_leave_room_for_others(bus: Bus) -> None:
    method = bus.register_method(never, max_queue=5)
    results = [method.run(str(number)) for number in range(5)]
    with pytest.raises(QueueFull):
        method.run("one more")
    assert [result.cancel() for result in results[1:4]] == [True] * 3
    assert queued(bus) == 2
    for number in range(3):
        method.run(str(number))
    with pytest.raises(QueueFull):
        method.run("one more")


@pytest.mark.parametrize("cache_key", [None, "{value}"])
def test_calls_whose_tasks_were_cancelled_leave_nothing_though_they_had_no_deadline(
    bus: Bus, url: str, client: redis.Redis, cache_key: str | None
) -> None:
    bus.register("never", cache_key=cache_key, max_queue=100)(never)
    bus.serve_once()

    async def body() -> None:
        async with calling(url, timeout=None) as far:
            for _ in range(2):
                calls = [asyncio.create_task(far.never(str(number))) for number in range(100)]
                await until(lambda: queued(bus) == 100)
                for call in calls:
                    call.cancel()
                await until(lambda: queued(bus) == 0)

    run(body())
    kinds = ("queue", "pending", "wake", "flight", "inboxes")
    assert not [key for kind in kinds for key in client.keys(f"*:{kind}:*")]
