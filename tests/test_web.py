"""The README's web service keeps what is said of it: real uvicorn, real workers, real requests."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from redis_bus import Bus
from redis_bus.embedded import EmbeddedRedis, _free_port
from tests.support import PATIENCE_SECONDS, SAMPLE, Processes, eventually, workers
from tests.test_readme import blocks
from tests.web_support import answers, get

WEB = next(block.text for block in blocks() if block.name == "web.py")
# What Python says of tasks, coroutines and sockets that nobody looked after, and of errors.
# (With --workers, uvicorn itself leaves the socket open on which it listened: that has no raddr.)
LEFT = re.compile(
    "never retrieved|never awaited|is pending|Traceback|ERROR|unclosed transport|unclosed.*raddr"
)
SERVICE = "rb:{sample_playground:random_}"
THREADS = 16


@dataclass
class Web:
    port: int
    process: subprocess.Popen[str]
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        return get(self.port, path)

    def end(self, number: signal.Signals) -> str:
        """Send a signal as a terminal or systemd would, and return all that was ever printed."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE_SECONDS)
        return self.log.read_text()


@contextlib.contextmanager
def uvicorn(processes: Processes, *options: str, code: str = WEB) -> Iterator[Web]:
    """Start the README's file under uvicorn, with the warnings of Python's development mode."""
    processes.write("web.py", code)
    port, log = _free_port(), processes.folder / "uvicorn.log"
    command = [sys.executable, "-X", "dev", "-m", "uvicorn", "web:app", "--port", str(port)]
    env = processes.environment()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *options],
            cwd=processes.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        eventually(lambda: process.poll() is not None or answers(port))
        assert process.poll() is None, log.read_text()
        yield Web(port, process, log)
    finally:
        # With its workers, which else might outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def server(one_server: EmbeddedRedis) -> EmbeddedRedis:
    """Any: what a web service does with calls is not its doing."""
    return one_server


@pytest.fixture
def playground(url: str) -> Iterator[Bus]:
    with Bus("sample_playground", url=url, timeout=20) as bus:
        yield bus


def serve(processes: Processes, target: str, bus: Bus, method: str) -> subprocess.Popen[str]:
    """Start a worker of a sample; return once it serves."""
    before = workers(bus, method)
    worker = processes.start("redis-bus", target, cwd=SAMPLE)
    eventually(lambda: workers(bus, method) > before)
    return worker


@pytest.mark.parametrize("count", [1, 2])
def test_requests_from_many_threads_are_all_answered_right(
    processes: Processes, playground: Bus, count: int
) -> None:
    serve(processes, "rng.bus", playground, "random_uuid")
    serve(processes, "simple_math.bus", playground, "math_sum")
    options = ["--workers", str(count)] if count > 1 else []
    with uvicorn(processes, *options) as web, ThreadPoolExecutor(THREADS) as pool:
        answered = list(pool.map(lambda n: (n, *web.get(f"/page/{n % 40}")), range(160)))
        uuids = set()
        for n, status, text in answered:
            assert status == 200, text
            page = json.loads(text)
            assert page["sums"] == [n % 40 + m for m in range(10)]
            assert len(page["password"]) == n % 40
            uuids.add(page["uuid"])
        assert len(uuids) == len(answered)
        # The signal comes in the midst of requests: those that were taken are answered.
        more = [pool.submit(web.get, f"/page/{n}") for n in range(THREADS)]
        assert more[0].result()[0] == 200
        printed = web.end(signal.SIGTERM)
        for one in more:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                assert one.result()[0] == 200
    assert not LEFT.search(printed), printed
    assert printed.count("Application shutdown complete.") == count, printed


def test_what_goes_wrong_is_the_status_that_the_readme_says(
    processes: Processes, playground: Bus
) -> None:
    serve(processes, "rng.bus", playground, "random_uuid")
    worker = serve(processes, "simple_math.bus", playground, "math_sum")
    fresh = itertools.count(10)
    with uvicorn(processes) as web:

        def is_now(status: int, detail: str) -> None:
            # A call has one second: on a busy machine one may take longer.
            def said() -> bool:
                code, text = web.get(f"/sum/{next(fresh)}/0")
                return code == status and detail in text

            eventually(said)

        is_now(200, "")
        eventually(lambda: web.get("/sum/1/2") == (200, "3"))
        assert web.get("/error") == (400, '{"detail":"this method always fails"}')
        worker.terminate()
        worker.wait(PATIENCE_SECONDS)
        # In the words of a call that did not wait.
        is_now(503, "no worker alive serves math_sum")
        assert web.get("/sum/1/2") == (200, "3")
        worker = serve(processes, "simple_math.bus", playground, "math_sum")
        is_now(200, "")
        worker.kill()
        status, text = web.get("/sum/3/4")
        assert status == 504
        assert "math_sum(3, 4): no reply in 1 s" in text
        assert web.get("/sum/1/2") == (200, "3")
        serve(processes, "simple_math.bus", playground, "math_sum")
        is_now(200, "")
        printed = web.end(signal.SIGINT)
    assert not LEFT.search(printed), printed
    assert "Application shutdown complete." in printed


def test_the_calls_of_a_client_that_hangs_up_are_withdrawn(
    processes: Processes, playground: Bus, client: redis.Redis
) -> None:
    serve(processes, "simple_math.bus", playground, "math_sum")
    worker = serve(processes, "rng.bus", playground, "random_uuid")
    worker.terminate()
    worker.wait(PATIENCE_SECONDS)
    # Not at its deadline: that is later than this test waits.
    patient = WEB.replace("timeout=5", f"timeout={2 * PATIENCE_SECONDS}")
    assert patient != WEB
    with uvicorn(processes, code=patient) as web:

        def waiting() -> int:
            names = ("random_uuid", "random_password")
            return sum(client.llen(f"{SERVICE}:queue:{name}") for name in names)

        browser = http.client.HTTPConnection("localhost", web.port)
        browser.request("GET", "/page/4")
        eventually(lambda: waiting() == 2)
        browser.close()
        eventually(lambda: waiting() == 0)
        serve(processes, "rng.bus", playground, "random_uuid")
        assert web.get("/page/4")[0] == 200
        printed = web.end(signal.SIGINT)
    assert not LEFT.search(printed), printed
    assert "Application shutdown complete." in printed
