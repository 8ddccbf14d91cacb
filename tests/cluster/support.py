"""What the tests of several servers share: a bus that is served on them, and one that calls it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from redis_bus import Bus
from tests.cluster_servers import Cluster
from tests.sentinel_servers import Sentinels
from tests.support import serving

Servers = Cluster | Sentinels


class Service:
    """A bus that is served, another one that calls it, and what was run."""

    def __init__(self, bus: Bus, caller: Bus) -> None:
        self.bus, self.caller = bus, caller
        self.ran: list[Any] = []
        self.entered, self.go = threading.Event(), threading.Event()
        self.tag = f"rb:{{test:{bus.prefix}}}:"
        bus.register("echo")(self._echo)
        bus.register("cached", cache_key=True)(self._echo)
        bus.register("held")(self._held)

    def _echo(self, value: Any) -> Any:
        self.ran.append(value)
        return value

    def _held(self, value: Any) -> Any:
        self.ran.append(value)
        self.entered.set()
        assert self.go.wait(30)
        return value


@contextlib.contextmanager
def served(address: str) -> Iterator[Service]:
    """Serve a bus of the name 'test' in a thread."""
    with (
        Bus("test", url=address, prefix="math_", timeout=30) as bus,
        Bus("test", url=address, timeout=30) as caller,
    ):
        service = Service(bus, caller)
        with serving(bus):
            yield service
            service.go.set()


@contextlib.contextmanager
def in_thread(function: Any, *args: Any) -> Iterator[concurrent.futures.Future[Any]]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool.submit(function, *args)


def blocked(servers: Servers, key: str) -> int:
    """Return how many connections are blocked at the master of a key."""
    node = servers.master_of(key) if isinstance(servers, Cluster) else servers.master()
    return int(node.info("clients")["blocked_clients"])


def away_from(cluster: Cluster, key: str) -> list[Any]:
    """Return the masters to which the slot of a key can be moved."""
    return [node for node in cluster.masters if node is not cluster.master_of(key)]


def replace_master(servers: Servers, key: str) -> None:
    """Make a replica the master of a key by command."""
    if isinstance(servers, Cluster):
        servers.fail_over(key)
    else:
        servers.fail_over()


def kill_master(servers: Servers, key: str) -> None:
    """End the master of a key; a replica takes over some seconds later."""
    if isinstance(servers, Cluster):
        servers.kill(servers.master_of(key))
    else:
        servers.kill_master()
