"""Servers that belong together: started beside each other, well only as a whole."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.faults.place import RedisServer
from tests.support import PATIENCE_SECONDS

ANSWER_SECONDS = 3.0
POLL_SECONDS = 0.02
# A node of a cluster listens on its port and, for the other nodes, 10000 above it. Both are below
# the ports of outgoing connections, and not among those of `tests.faults.place`.
PORTS = range(7000, 10000)
BUS_OFFSET = 10000


class Server(RedisServer):
    """A server of a group: it may be started beside others, and asked while it may be away."""

    def __init__(self, executable: str, port: int, **options: object) -> None:
        # What a replica gets as a file from its master is not there to be loaded by the next start.
        super().__init__(executable, **{"rdb_del_sync_files": "yes", **options})
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._control: redis.Redis | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.port})"

    @property
    def control(self) -> redis.Redis:
        """A client for the test's own questions, which does not try twice."""
        if self._control is None:
            self._control = self.client(
                decode_responses=True,
                encoding_errors="surrogateescape",
                socket_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        return self._control

    def call(self, *command: object) -> Any:
        """Return what the server replies to a command."""
        return self.control.execute_command(*cast(Any, command))

    def info(self, section: str) -> dict[str, Any]:
        """Return a section of the server's INFO."""
        return self.control.info(section)

    def replicates(self, master: Server) -> bool:
        """Whether this server has all that the master wrote until now, and the link is up."""
        theirs, ours = master.info("replication"), self.info("replication")
        lines = [theirs[f"slave{n}"] for n in range(theirs["connected_slaves"])]
        return (
            ours["role"] == "slave"
            and ours["master_port"] == master.port
            and ours["master_link_status"] == "up"
            and ours["slave_repl_offset"] >= theirs["master_repl_offset"]
            and any(line["port"] == self.port and line["state"] == "online" for line in lines)
        )

    @property
    def running(self) -> bool:
        """Whether the server runs, and is not stopped by a signal."""
        return self.process is not None and self.process.poll() is None and self._guard is None

    def stop_signal(self) -> None:
        # A stopped process does not see that its parent died, so somebody else looks.
        self._guard = subprocess.Popen(
            ["sh", "-c", f"read _; kill -9 {self.pid}"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        super().stop_signal()

    def cont(self) -> None:
        super().cont()
        self._unguard()

    def close(self) -> None:
        self._unguard()
        super().close()

    def _end(self, number: Any) -> None:
        self._unguard()
        super()._end(number)

    def _unguard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.wait()
            assert guard.stdin is not None
            guard.stdin.close()


class Group(ABC):
    """Servers on free ports of the loopback interface, which are made and ended together."""

    def __init__(self, servers: Iterable[Server]) -> None:
        self._all = list(servers)
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _create(self) -> None:
        """Start all servers, as if for the first time, and wait until all is well."""

    @abstractmethod
    def _problem(self) -> str:
        """What `problem` returns, where every server that is asked answers."""

    @abstractmethod
    def describe(self) -> str:
        """Return what the servers that run know of each other."""

    def problem(self) -> str:
        """Return what is wrong with the servers as a whole; nothing where all is well."""
        try:
            return self._problem()
        except (redis.RedisError, OSError) as error:
            return repr(error)

    def wait_until_ok(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until all that run tell the same and take commands, and replicas have all data.

        Those that do not run must be known to be down, and their work be that of others.
        """
        end = time.monotonic() + seconds
        while problem := self.problem():
            assert time.monotonic() < end, f"all is not well: {problem}\n{self.describe()}"
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End all servers and remove what they left; closing twice is fine."""
        for server in self._all:
            server.close()

    def __enter__(self: G) -> G:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


G = TypeVar("G", bound=Group)
S = TypeVar("S", bound=RedisServer)


def pairs(flat: list[str]) -> dict[str, str]:
    """Return a reply of names and values in turn as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def free_ports(count: int) -> list[int]:
    """Return ports that are free, and whose bus ports are."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(PORTS, len(PORTS)):
            if len(ports) == count:
                break
            probes = [held.enter_context(socket.socket()) for _ in range(2)]
            with contextlib.suppress(OSError):
                probes[0].bind(("127.0.0.1", port))
                probes[1].bind(("127.0.0.1", port + BUS_OFFSET))
                ports.append(port)
    assert len(ports) == count, "too few free ports"
    return ports


def start_all(servers: Iterable[S]) -> None:
    """Start servers beside each other, and return once each answers."""
    servers = list(servers)
    with ThreadPoolExecutor(max(1, len(servers))) as threads:
        for _ in threads.map(lambda server: server.start(), servers):
            pass
