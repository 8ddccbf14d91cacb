"""A traceback that pytest or IPython shows has the user's frames and none of ours."""

from __future__ import annotations

import re
import sys

import pytest

from redis_bus import Bus
from tests.support import Processes, eventually

SERVICE = """
    import redis_bus

    bus = redis_bus.Bus("shown")

    @bus.register()
    def fails(a=1):
        raise LookupError("it failed")

    @bus.register(cache_key="{a}")
    def keyed(a=1):
        raise LookupError("it failed")
"""
CALLS = {
    "call": "bus.fails()",
    "cached": "bus.keyed(1)",
    "wrong": "bus.fails(1, 2, 3)",
    "unsendable": "bus.fails(object())",
    "get": "bus.fails.run().get()",
    "map": "list(bus.fails.map([1]))",
    "completed": "[one.get() for one in redis_bus.as_completed([bus.fails.run()])]",
    "unknown": "bus.nosuch",
    "async": "asyncio.run(awaited(lambda bus: bus.fails()))",
    "async_cached": "asyncio.run(awaited(lambda bus: bus.keyed(1)))",
    "async_wrong": "asyncio.run(awaited(lambda bus: bus.fails(1, 2, 3)))",
    "async_map": "asyncio.run(mapped())",
    "no_workers": "bus.fails.options(timeout=0.01, fail_fast=True)(1, 2, 3)",
}
PRELUDE = """
import asyncio
import redis_bus

bus = redis_bus.Bus("shown", timeout=20)

async def awaited(call):
    async with redis_bus.AsyncBus("shown", timeout=20) as bus:
        return await call(bus)

async def mapped():
    async with redis_bus.AsyncBus("shown", timeout=20) as bus:
        return [value async for value in bus.fails.map([1])]
"""


@pytest.fixture
def served(processes: Processes) -> Processes:
    processes.write("service.py", SERVICE)
    processes.start("redis-bus", "service.bus")
    with Bus("shown", url=processes.url) as bus:
        eventually(lambda: bus.get_method("fails") and bus.stats()["fails"]["workers"])
    return processes


def test_pytest_shows_the_users_frames_and_none_of_ours(served: Processes) -> None:
    tests = "\n".join(f"def test_{name}():\n    {call}\n" for name, call in CALLS.items())
    served.write("test_shown.py", f"{PRELUDE}\n{tests}")
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "test_shown.py")
    shown = served.start(sys.executable, *command)
    out, _ = shown.communicate(timeout=120)
    assert f"{len(CALLS)} failed" in out
    assert not re.findall(r"redis_bus/\w+\.py:\d+: in ", out)
    assert all(f"in test_{name}" in out for name in CALLS)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_ipython_shows_the_users_frames_and_none_of_ours(served: Processes, name: str) -> None:
    code = f"{PRELUDE}\n\ndef test():\n    {CALLS[name]}\n\ntest()\n"
    served.write("shown.py", code)
    process = served.start(
        sys.executable, "-m", "IPython", "--colors=NoColor", "--no-banner", "shown.py"
    )
    out, err = process.communicate(timeout=120)
    text = out + err
    # Above it IPython shows what it came from: the callee's own traceback.
    shown = text.rpartition("The above exception was the direct cause")[2]
    assert "in test()" in shown, text
    # The frame that raised is always shown: IPython hides none that is the last.
    ours = re.findall(r"File \S*/redis_bus/\w+\.py:\d+, in (\w+)", shown)
    assert len(ours) <= 1 and not shown.rstrip().endswith("frame]"), shown
    assert len(ours) == 0 or shown.index("in test()") < shown.index(f"in {ours[0]}")
