"""The soak: workers and callers on a bus while faults hit them, and a count of what went wrong.

::

    python -m tests.soak --seconds 120 --seed 7 [--server PATH] [--verbose]

4 workers, 8 callers, and a killer that picks a fault at random each 1 to 3 s (tests/soak_faults.py;
the calls are in tests/programs/soak.py). It prints its seed first and its report at the end, and
exits with 1 where something is in it that must not be. Redis keeps its data over its restarts:
``appendonly yes``, ``appendfsync always``. It runs on Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from redis_bus.supervisor.exits import Exit
from redis_bus.transport.servers import product
from tests.faults.place import RedisServer
from tests.programs import soak as program
from tests.programs.soak import BUS
from tests.soak_crew import Crew, environment
from tests.soak_faults import Killer
from tests.soak_report import (
    KILLED,
    LATE_SECONDS,
    NEVER_SECONDS,
    Call,
    Report,
    read_calls,
    read_lines,
)
from tests.support import find_servers

WORKERS, CALLERS = 4, 8
START_SECONDS = 60.0
WARM_UP_SECONDS = 5.0
TICK_SECONDS = 0.02
SAMPLE_SECONDS = 1.0
# After the last fault: a lease (10 s), half of one more where Redis stood still, a heartbeat
# (2.5 s) that finds what it left, thrice, as a job may be lost with its second worker, too.
SETTLE_SECONDS = 60.0
# A worker may finish its job (30 s) and tries for a lease to send its outcome.
WORKER_END_SECONDS = 45.0
# The flight of a `run` lasts 70 s, an outcome that others joined 60 s, whatever the bus says.
EXPIRY_SECONDS = 75.0
# A shorter soak does not wait for that: a key with an expiry counts as gone.
WAITS_FROM_SECONDS = 60.0
# For ever by design. A wake token says "look": it stays until a worker pops it, one at the most;
# so one is left where the job that it was for was taken without it, by a worker that then left.
KEPT = ("methods", "meta", "workers", "serving", "swept", "dead", "stats", "wake")
SHOWN_BYTES = 300


class Soak:
    """One soak, on a server of its own."""

    def __init__(
        self,
        executable: str,
        seconds: float,
        seed: int,
        folder: Path,
        say: Callable[[str], None],
        pace: float = 1.0,
    ) -> None:
        self._seconds = seconds
        self._folder = folder
        self._say = say
        self._begin = time.monotonic()
        self._next_sample = 0.0
        self._server = RedisServer(executable, appendonly="yes", appendfsync="always").start()
        self._client = self._server.client()
        version = " ".join(product(self._client.info("server")))
        self._report = Report(seed, seconds, f"{executable} ({version})")
        own = environment(self._server.url, folder)
        rng = random.Random(seed)
        target = f"{program.__name__}.bus"
        serve = ["redis-bus", "serve", "--log-level", "info", target]
        # One that starts while Redis is away, or refuses to publish for want of memory, ends.
        excused = (Exit.NO_REDIS, Exit.REMOTE_ERROR)
        self._workers = Crew(
            "worker", WORKERS, lambda _: serve, own, folder, ready=" serves ", excused=excused
        )

        def call(name: str) -> list[str]:
            chosen = str(rng.randrange(1 << 32))
            return [sys.executable, "-m", program.__name__, name, "--seed", chosen]

        ready = program.READY.decode()
        self._callers = Crew("caller", CALLERS, call, own, folder, ready=ready)
        crews = (self._workers, self._callers)
        self._killer = Killer(seed, self._server, *crews, self._note, pace)

    def run(self) -> Report:
        """Soak; return what was found."""
        report = self._report
        self._start()
        self._work_for(WARM_UP_SECONDS, lambda: None)
        report.redis_before = self._used_memory()
        self._work_for(self._seconds, self._killer.tick)
        self._killer.stop()
        self._note("no more faults")
        self._end_callers()
        self._settle()
        report.did_not_end += [str(life) for life in self._workers.end(WORKER_END_SECONDS)]
        self._look_at_keys()
        report.redis_after = self._used_memory()
        report.faults = dict(self._killer.done)
        report.not_started = self._workers.not_started
        for crew in (self._workers, self._callers):
            report.ended_badly += [str(life) for life in crew.ended_badly()]
        lives = [*self._workers.lives, *self._callers.lives]
        report.judge_memory((life.role, life.memory) for life in lives)
        report.judge_calls(self._calls(), self._runs(), time.monotonic())
        return report

    def close(self) -> None:
        for crew in (self._workers, self._callers):
            crew.kill()
        self._server.close()

    def _note(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._begin:7.2f} s: {text}")

    def _start(self) -> None:
        crews = (self._workers, self._callers)
        end = time.monotonic() + START_SECONDS
        while not all(crew.is_ready() for crew in crews):
            assert time.monotonic() < end, "workers and callers do not start"
            self._work_for(TICK_SECONDS, lambda: None)

    def _work_for(self, seconds: float, tick: Callable[[], None]) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._workers.fill()
            self._callers.fill()
            tick()
            self._sample()
            time.sleep(TICK_SECONDS)

    def _sample(self) -> None:
        if time.monotonic() < self._next_sample:
            return
        self._next_sample = time.monotonic() + SAMPLE_SECONDS
        for crew in (self._workers, self._callers):
            crew.sample_memory()

    def _used_memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    # -- the end --------------------------------------------------------------------------------

    def _end_callers(self) -> None:
        """Let each caller finish its call, while there are workers."""
        for life in self._callers.living:
            self._callers.signal(life, signal.SIGTERM)
        end = time.monotonic() + program.PATIENCE_SECONDS + LATE_SECONDS + NEVER_SECONDS
        while self._callers.living and time.monotonic() < end:
            self._workers.fill()
            time.sleep(TICK_SECONDS)
        # One that does not end has a call that hangs: that is told of with the calls.
        for life in self._callers.end(0.0):
            self._report.did_not_end.append(str(life))
        self._note("the callers have ended")

    def _settle(self) -> None:
        """Wait until no job is left, nor a worker that does not live: what was lost is given away.

        What was sent by `run`, and by nobody waited for, has no deadline; so it is run.
        """
        begin = time.monotonic()
        while time.monotonic() < begin + SETTLE_SECONDS:
            self._workers.fill()
            left = [*self._keys("queue"), *self._keys("running"), *self._keys("pending")]
            listed = list(self._client.zscan_iter(f"rb:{{{BUS}:}}:workers"))
            pids = {str(life.process.pid).encode() for life in self._workers.living}
            lost = [worker for worker, _ in listed if worker.split(b":")[-2] not in pids]
            if not left and not lost:
                self._report.drained_seconds = time.monotonic() - begin
                self._note("queues and claims are empty")
                return
            time.sleep(TICK_SECONDS)
        self._report.not_drained = [self._describe(key) for key in left]
        self._report.not_drained += [f"worker {worker!r} is listed" for worker in lost]

    def _keys(self, kind: str) -> list[bytes]:
        return list(self._client.scan_iter(f"rb:{{{BUS}:}}:{kind}:*")) + [
            key for key in [f"rb:{{{BUS}:}}:{kind}".encode()] if self._client.exists(key)
        ]

    def _look_at_keys(self) -> None:
        """Wait for what expires, then say what is left."""
        end = time.monotonic()
        end += EXPIRY_SECONDS if self._seconds >= WAITS_FROM_SECONDS else 0.0
        while True:
            left, expiring = self._keys_left()
            if (not left and not expiring) or time.monotonic() >= end:
                break
            time.sleep(0.5)
        waited = self._seconds >= WAITS_FROM_SECONDS
        too_long = [
            key for key in expiring if waited or self._client.pttl(key) > EXPIRY_SECONDS * 1000
        ]
        self._report.keys_left = [self._describe(key) for key in [*left, *too_long]]
        self._report.keys_expiring = len(expiring) - len(too_long)
        kept = [key for key in self._client.scan_iter() if _is_kept(key)]
        self._report.keys_kept = sorted(key.decode().partition("}:")[2] for key in kept)
        many_tokens = [key for key in kept if b":wake:" in key and self._client.llen(key) > 1]
        workers = [key for key in kept if key.endswith(b":workers")]  # all have left
        self._report.keys_left += [self._describe(key) for key in [*many_tokens, *workers]]

    def _keys_left(self) -> tuple[list[bytes], list[bytes]]:
        """Return the keys that are left though not by design: for ever, and for a while."""
        left: list[bytes] = []
        expiring: list[bytes] = []
        for key in self._client.scan_iter():
            ttl = self._client.pttl(key)
            if not _is_kept(key) and ttl != -2:
                (left if ttl == -1 else expiring).append(key)
        return left, expiring

    def _describe(self, key: bytes) -> str:
        readers: dict[bytes, Callable[[], object]] = {
            b"string": lambda: self._client.get(key),
            b"list": lambda: self._client.lrange(key, 0, 3),
            b"hash": lambda: self._client.hgetall(key),
            b"zset": lambda: self._client.zrange(key, 0, -1, withscores=True),
        }
        kind, ttl = self._client.type(key), self._client.pttl(key)
        assert isinstance(kind, bytes)
        content = readers[kind]() if kind in readers else None
        return f"{key!r}, a {kind.decode()}, expiry {ttl} ms: {str(content)[:SHOWN_BYTES]}"

    # -- what was noted -------------------------------------------------------------------------

    def _calls(self) -> Iterator[Call]:
        for life in self._callers.lives:
            path = self._folder / f"calls-{life.name}"
            if not path.exists():  # it was killed before its first call
                continue
            for call in read_calls(path):
                if call.end is None and life.killed and not life.told_to_end:
                    call.outcome = KILLED
                yield call

    def _runs(self) -> dict[str, Counter[str]]:
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for path in self._folder.glob("runs-*"):
            for line in read_lines(path):
                method, call = line.split(" ")
                found[method][call] += 1
        return found


def _is_kept(key: bytes) -> bool:
    name = key.decode(errors="replace").partition("}:")[2]
    return name.partition(":")[0] in KEPT


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # so that what is open is closed


def main() -> None:
    servers = find_servers()
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--server", default=servers[list(servers)[-1]])
    parser.add_argument("--pace", type=float, default=1.0, help="how much faster faults come")
    parser.add_argument("--report", type=Path, help="where to put the figures, as JSON")
    parser.add_argument("--keep", type=Path, help="a folder for what the processes wrote")
    parser.add_argument("--verbose", action="store_true", help="tell of each fault")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    print(f"seed {args.seed}", flush=True)  # noqa: T201

    def say(text: str) -> None:
        if args.verbose:
            print(text, flush=True)  # noqa: T201

    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(tempfile.mkdtemp(prefix="redis_bus_soak-"))
        if args.keep is None:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(args.server, args.seconds, args.seed, folder, say, args.pace)
        stack.callback(soak.close)
        report = soak.run()
    print(report)  # noqa: T201
    violations = report.violations()
    if args.report is not None:
        figures = {**dataclasses.asdict(report), "violations": violations}
        args.report.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if violations:
        sys.exit(1)


if __name__ == "__main__":
    main()
