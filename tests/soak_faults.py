"""The killer of the soak: a fault each 1 to 3 s, drawn from a seed, and undone when it is time."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from redis_bus import Bus, BusError
from tests.faults.place import RedisServer
from tests.programs.soak import BUS
from tests.soak_crew import Crew, Life

FAULT_SECONDS = (1.0, 3.0)
WORKER_PAUSE_SECONDS = (1.0, 14.0)
REDIS_PAUSE_SECONDS = (0.5, 3.0)
LONG_REDIS_PAUSE_SECONDS = 11.0
REDIS_AWAY_SECONDS = (0.0, 2.0)
SQUEEZE_SECONDS = 2.0
SQUEEZED_BYTES = 100_000  # that are used already
ANSWER_SECONDS = 1.0
# After these, a job may be gone from Redis without a trace.
LOSING = ("empty Redis", "clean up")


class Killer:
    """Does faults, and undoes those that pass. Call `tick` often.

    Which faults, and upon whom, depends on the seed alone; what they hit is up to the machine.
    """

    def __init__(
        self,
        seed: int,
        server: RedisServer,
        workers: Crew,
        callers: Crew,
        say: Callable[[str], None],
        pace: float = 1.0,
    ) -> None:
        self.done: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._server = server
        self._workers = workers
        self._callers = callers
        self._say = say
        self._pace = pace
        self._client = server.client(
            socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
        )
        self._numbers = itertools.count()
        self._undoings: list[tuple[float, int, Callable[[], None]]] = []
        self._redis_is_up = True
        self._next = time.monotonic()
        # How often each comes, of all faults.
        self._faults: dict[str, tuple[int, Callable[[random.Random], bool]]] = {
            "kill a worker": (5, self._kill_worker),
            "pause a worker": (4, self._pause_worker),
            "end a worker": (4, self._end_worker),
            "kill a caller": (2, self._kill_caller),
            "flush scripts": (3, self._flush_scripts),
            "kill connections": (5, self._kill_connections),
            "delete wake tokens": (3, self._delete_wake_tokens),
            "pause Redis": (4, self._pause_redis),
            "pause Redis for long": (1, self._pause_redis_for_long),
            "kill Redis": (4, self._kill_redis),
            "empty Redis": (1, self._empty_redis),
            "squeeze memory": (2, self._squeeze_memory),
            "clean up": (1, self._clean_up),
        }

    def tick(self) -> None:
        """Undo what is due; do the next fault where it is time for it."""
        while self._undoings and self._undoings[0][0] <= time.monotonic():
            heapq.heappop(self._undoings)[2]()
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._rng.uniform(*FAULT_SECONDS) / self._pace
            weights = [weight for weight, _ in self._faults.values()]
            [name] = self._rng.choices(list(self._faults), weights)
            # Of its own, so that what a fault draws does not change those that follow.
            own = random.Random(self._rng.random())
            with contextlib.suppress(redis.RedisError, BusError):
                if self._faults[name][1](own):
                    self.done[name] += 1
                    self._say(name)

    def stop(self) -> None:
        """Undo all faults."""
        while self._undoings:
            heapq.heappop(self._undoings)[2]()

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        heapq.heappush(self._undoings, (time.monotonic() + seconds, next(self._numbers), undo))

    # -- processes ------------------------------------------------------------------------------

    def _kill_worker(self, rng: random.Random) -> bool:
        return self._signal(self._workers, rng, signal.SIGKILL) is not None

    def _end_worker(self, rng: random.Random) -> bool:
        return self._signal(self._workers, rng, signal.SIGTERM) is not None

    def _kill_caller(self, rng: random.Random) -> bool:
        return self._signal(self._callers, rng, signal.SIGKILL) is not None

    def _pause_worker(self, rng: random.Random) -> bool:
        life = self._signal(self._workers, rng, signal.SIGSTOP)
        if life is None:
            return False
        self._later(rng.uniform(*WORKER_PAUSE_SECONDS), lambda: self._resume(life))
        return True

    def _resume(self, life: Life) -> None:
        with contextlib.suppress(ProcessLookupError):
            life.process.send_signal(signal.SIGCONT)

    def _signal(self, crew: Crew, rng: random.Random, number: signal.Signals) -> Life | None:
        life = crew[rng.randrange(len(crew))]
        if life is not None:
            crew.signal(life, number)
        return life

    # -- Redis ----------------------------------------------------------------------------------

    def _flush_scripts(self, rng: random.Random) -> bool:
        return self._redis_is_up and bool(self._client.script_flush())

    def _kill_connections(self, rng: random.Random) -> bool:
        if not self._redis_is_up:
            return False
        own = self._client.client_id()
        share = rng.choice([0.1, 0.3, 1.0])
        for client in self._client.client_list():
            if int(client["id"]) != own and rng.random() < share:
                with contextlib.suppress(redis.ResponseError):  # it has gone by itself
                    self._client.client_kill_filter(_id=client["id"])
        return True

    def _delete_wake_tokens(self, rng: random.Random) -> bool:
        if not self._redis_is_up:
            return False
        for key in self._client.scan_iter(f"rb:{{{BUS}:}}:wake:*"):
            self._client.delete(key)
        return True

    def _pause_redis(self, rng: random.Random) -> bool:
        return self._stop_redis(rng.uniform(*REDIS_PAUSE_SECONDS))

    def _pause_redis_for_long(self, rng: random.Random) -> bool:
        return self._stop_redis(LONG_REDIS_PAUSE_SECONDS)

    def _stop_redis(self, seconds: float) -> bool:
        if not self._redis_is_up:
            return False
        self._redis_is_up = False
        self._server.stop_signal()
        self._later(seconds, self._continue_redis)
        return True

    def _continue_redis(self) -> None:
        self._server.cont()
        self._redis_is_up = True

    def _kill_redis(self, rng: random.Random) -> bool:
        if not self._redis_is_up:
            return False
        self._redis_is_up = False
        self._server.kill()
        self._later(rng.uniform(*REDIS_AWAY_SECONDS), self._start_redis)
        return True

    def _empty_redis(self, rng: random.Random) -> bool:
        if not self._kill_redis(rng):
            return False
        for path in self._files_of_redis():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return True

    def _files_of_redis(self) -> Iterator[Path]:
        for pattern in ("appendonly*", "dump.rdb"):
            yield from self._server.folder.glob(pattern)

    def _start_redis(self) -> None:
        self._server.start()
        self._redis_is_up = True

    def _squeeze_memory(self, rng: random.Random) -> bool:
        if not self._redis_is_up:
            return False
        used = self._client.info("memory")["used_memory"]
        self._client.config_set("maxmemory", max(1, used - SQUEEZED_BYTES))
        self._later(SQUEEZE_SECONDS, self._release_memory)
        return True

    def _release_memory(self) -> None:
        try:
            if self._redis_is_up:
                self._client.config_set("maxmemory", 0)
                return
        except redis.RedisError as error:
            self._say(f"memory cannot be released yet: {error}")
        self._later(ANSWER_SECONDS, self._release_memory)

    def _clean_up(self, rng: random.Random) -> bool:
        if not self._redis_is_up:
            return False
        with Bus(BUS, url=self._server.url) as bus:
            bus.cleanup()
        return True
