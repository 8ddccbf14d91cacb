"""A thousand callers of one missing value, from several processes: one run answers them all.

What it costs, in time, commands and memory, is printed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from redis_bus import Bus
from redis_bus.calls.waiting import FIRST_SLICE_SECONDS
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import SLICE_SECONDS
from tests.commands import sent
from tests.conftest import Tell
from tests.programs import stampede
from tests.programs.stampede import BUS
from tests.support import ROOT, Processes, eventually, serving

CACHE = f"rb:{{{BUS}:}}:cache:method:1"
REPLIES = f"rb:{{{BUS}:}}:reply:*"
STATS = f"rb:{{{BUS}:}}:stats:method"
PROCESSES = 4
# Callers of a value of 1 MB, all of which they get.
SOME = (60, 240)
# How long the run waits for its waiters, and these for it: whoever fails first says why.
GATE_SECONDS, CALL_SECONDS, PROCESS_SECONDS = 30.0, 60.0, 90.0
MB = 1024 * 1024


@pytest.fixture
def fresh(server: EmbeddedRedis) -> Iterator[EmbeddedRedis]:
    """A server that has done nothing yet, so that its peak of memory is the test's own."""
    with EmbeddedRedis(server.executable) as fresh:
        yield fresh


class Memory:
    """Watches what Redis says of its memory (bytes) while something goes on."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.before = self.used()
        self.clients = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def used(self) -> int:
        return int(self.client.info("memory")["used_memory"])

    def peak(self) -> int:
        return int(self.client.info("memory")["used_memory_peak"])

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            found = int(self.client.info("memory")["mem_clients_normal"])
            self.clients = max(self.clients, found)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class Stampede:
    """What came of it; times are of the monotonic clock."""

    runs: int
    values: Counter[str]
    started: float
    returned: float  # when the function did
    ends: list[float]
    commands: Counter[str]


def stampede_on(processes: Processes, client: redis.Redis, callers: int, value: bytes) -> Stampede:
    """Let that many callers ask for one value, whose run ends when all of them wait for it."""
    returned: list[float] = []

    def method(number: int) -> bytes:
        eventually(lambda: client.hget(STATS, "joins") == b"%d" % (callers - 1), GATE_SECONDS)
        returned.append(time.monotonic())
        return value

    program = [
        sys.executable,
        "-m",
        stampede.__name__,
        str(callers // PROCESSES),
        str(CALL_SECONDS),
    ]
    with Bus(BUS, url=processes.url, timeout=CALL_SECONDS) as bus:
        bus.register(cache_key="{number}")(method)
        with serving(bus):
            started = [
                processes.start(*program, cwd=ROOT, stdin=subprocess.PIPE) for _ in range(PROCESSES)
            ]
            for process in started:
                assert process.stdout
                assert process.stdout.readline() == "ready\n", process.communicate()[1]
            with sent(client) as commands:
                start = time.monotonic()
                for process in started:
                    assert process.stdin
                    process.stdin.write("go\n")
                    process.stdin.flush()
                found = [process.communicate(timeout=PROCESS_SECONDS) for process in started]
    told = [json.loads(out) for out, _ in found]
    return Stampede(
        runs=len(returned),
        values=sum((Counter(one["values"]) for one in told), Counter()),
        started=start,
        returned=returned[0] if returned else start,
        ends=sorted(end for one in told for end in one["ends"]),
        commands=commands,
    )


def digest(value: bytes) -> str:
    return f"{len(value)} {hashlib.sha256(value).hexdigest()}"


def check_all_got_it(found: Stampede, callers: int, value: bytes) -> None:
    """One run, one value, and no polling: a waiter sends a call, a wait, and a wait a slice."""
    assert found.values == {digest(value): callers}
    assert found.runs == 1
    assert found.ends[0] >= found.returned
    waited = found.ends[-1] - found.started
    slices = 1 + (waited > FIRST_SLICE_SECONDS) + int(waited / SLICE_SECONDS)
    assert callers <= found.commands["blmove"] <= callers * slices
    # After a slice a waiter asks once whether anybody serves the method, or died.
    others = 50 + waited * 20  # of the worker
    assert callers <= found.commands["evalsha"] <= callers * slices + others


def shown_time(found: Stampede) -> dict[str, object]:
    return {
        "start to last answer": f"{found.ends[-1] - found.started:.2f} s",
        "return of the run to first answer": f"{(found.ends[0] - found.returned) * 1e3:.1f} ms",
        "to last answer": f"{(found.ends[-1] - found.returned) * 1e3:.0f} ms",
    }


def test_a_thousand_callers_of_a_missing_value_share_one_run(
    processes: Processes, client: redis.Redis, tell: Tell
) -> None:
    callers, value = 1000, b"the value"
    found = stampede_on(processes, client, callers, value)
    check_all_got_it(found, callers, value)
    [reply] = client.scan_iter(REPLIES, count=1000)
    assert client.llen(reply) == 1
    assert client.pttl(reply) > 0
    per_waiter = {name: f"{found.commands[name] / callers:.2f}" for name in ("evalsha", "blmove")}
    tell("stampede of 1,000", {**shown_time(found), "commands per waiter": per_waiter})


def test_redis_stores_a_large_value_once_however_many_wait_for_it(
    fresh: EmbeddedRedis, tmp_path: Path, tell: Tell
) -> None:
    value = bytes(range(256)) * (MB // 256)
    stored = {}
    processes = Processes(fresh.url, tmp_path)
    with redis.Redis.from_url(fresh.url) as client, contextlib.ExitStack() as stack:
        stack.callback(processes.end)
        for callers in SOME:
            # Valkey frees what is flushed in the background, while memory is measured already.
            client.execute_command("FLUSHALL", "SYNC")
            client.config_resetstat()
            with Memory(client) as memory:
                found = stampede_on(processes, client, callers, value)
                check_all_got_it(found, callers, value)
            [reply] = client.scan_iter(REPLIES, count=1000)
            assert client.llen(reply) == 1
            in_reply, in_cache = client.memory_usage(reply), client.memory_usage(CACHE)
            # Where the callers' connections are gone, what is left is what Redis keeps.
            eventually(lambda: client.info("clients")["connected_clients"] <= 2)
            stored[callers] = memory.used() - memory.before
            tell(
                f"1 MB for {callers} waiters",
                {
                    **shown_time(found),
                    "MB of the reply": f"{in_reply / MB:.2f}",
                    "MB of the cached value": f"{in_cache / MB:.2f}",
                    "MB more than before when all is over": f"{stored[callers] / MB:.2f}",
                    "MB at the peak": f"{memory.peak() / MB:.0f}",
                    "MB of them in clients' buffers": f"{memory.clients / MB:.0f}",
                },
            )
            assert in_reply < 1.5 * MB
            assert stored[callers] < 4 * MB
    assert abs(stored[SOME[1]] - stored[SOME[0]]) < MB


def test_callers_for_whom_a_socket_has_no_room_yet_wait_until_it_has(
    fresh: EmbeddedRedis,
) -> None:
    """A unix socket refuses at once where more connect than its backlog holds."""
    assert fresh.pid
    with Bus(BUS, url=fresh.url, timeout=20) as bus, contextlib.ExitStack() as stack:
        bus.register(cache_key="{number}")(negative)
        bus.serve_once()
        with Bus(BUS, url=fresh.url, timeout=20) as caller, ThreadPoolExecutor(4) as pool:
            os.kill(fresh.pid, signal.SIGSTOP)
            stack.callback(os.kill, fresh.pid, signal.SIGCONT)
            fill_backlog(fresh.url.removeprefix("unix://"), stack)
            answers = [pool.submit(lambda: caller.negative(7)) for _ in range(4)]
            assert not wait(answers, timeout=0.3).done
            os.kill(fresh.pid, signal.SIGCONT)
            with serving(bus):
                assert [answer.result(20) for answer in answers] == [-7] * 4


def negative(number: int) -> int:
    return -number


def fill_backlog(path: str, stack: contextlib.ExitStack) -> None:
    """Connect until there is no more room."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            sock.connect(path)
