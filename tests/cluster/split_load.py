"""A load with callers, clearers and a worker on the island of a cluster that is parted."""

from __future__ import annotations

from typing import Any

import redis

from redis_bus import Bus
from tests.cluster.load import KINDS, TIMEOUT_SECONDS, Load
from tests.faults.faces import AsyncFace
from tests.parted_cluster import from_island
from tests.programs.load import BUS
from tests.programs.load import ISLAND as VARIABLE
from tests.programs.race import METHODS
from tests.support import Processes

ISLAND = "island"


class SplitLoad(Load):
    """`Load`, and more of all kinds who reach the nodes by the proxies of the island."""

    def __init__(
        self, processes: Processes, steady: redis.Redis, steady_url: str, places: str
    ) -> None:
        super().__init__(processes, steady, steady_url)
        self._places = places

    def __enter__(self) -> SplitLoad:
        self._serve(1, **{VARIABLE: self._places})
        with from_island(self._places) as conn:
            for face in (Bus, AsyncFace):
                bus: Any = face(BUS, conn=conn, timeout=TIMEOUT_SECONDS)
                self._buses.append(bus)
        super().__enter__()
        for bus, kind in zip(self._buses[len(KINDS) :], KINDS, strict=True):
            for name in ("once", *METHODS):
                bus.get_method(name)  # which is not in the time of a call
            self._put(f"{ISLAND}-{kind}", bus, 1, 1)
        self.goes_on()
        return self
