"""A master and its replicas under sentinels, of a test's own, which can be killed and fail over.

::

    sentinels = Sentinels(executable)             # a master, two replicas, three sentinels
    bus = Bus("test", url=sentinels.address)
    sentinels.fail_over()                         # by command; returns the new master
    old = sentinels.kill_master()
    sentinels.wait_until_ok()                     # a replica is the master, and all know it
    sentinels.restart(old)                        # a master still, until the sentinels see it
    sentinels.restart_as_replica(old)             # its administrator knew of the new master
    sentinels.master().stop_signal(), sentinels.sentinels[0].kill()
    sentinels.flush()                             # empty and whole again: for the next test
    sentinels.close()
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import redis
from redis.sentinel import Sentinel

from tests.sentinel_node import NAME, FiledServer, SentinelServer
from tests.server_group import Group, Server, free_ports, start_all
from tests.support import eventually

DOWN_AFTER_MS = 1000
FAIL_OVER_MS = 3000


class Sentinels(Group):
    """Servers and sentinels on free ports of the loopback interface; their ports stay the same."""

    def __init__(self, executable: str, replicas: int = 2, sentinels: int = 3) -> None:
        ports = free_ports(1 + replicas + sentinels)
        self.servers = [
            FiledServer(executable, port, repl_diskless_sync_delay=0) for port in ports[sentinels:]
        ]
        self.sentinels = [SentinelServer(executable, port) for port in ports[:sentinels]]
        super().__init__([*self.sentinels, *self.servers])

    # -- who is who -----------------------------------------------------------------------------

    @property
    def urls(self) -> list[str]:
        """The address of each server."""
        return [server.url for server in self.servers]

    @property
    def address(self) -> str:
        """The URL of whichever server is the master."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}/0"

    def client(self, **kwargs: Any) -> redis.Redis:
        """Return a new client on whichever server is the master, for the caller to close."""
        hosts = [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]
        return cast(redis.Redis, Sentinel(hosts, **kwargs).master_for(NAME))

    def master(self) -> FiledServer:
        """Return the server that the sentinel with the newest configuration calls the master."""
        known = [sentinel.about_master() for sentinel in self.sentinels if sentinel.running]
        newest = max(known, key=lambda about: int(about["config-epoch"]))
        return self._by_port(newest["port"])

    def replicas(self) -> list[FiledServer]:
        """Return the running servers that say that they are replicas of the master."""
        port = self.master().port
        running = [server for server in self.servers if server.running]
        return [s for s in running if s.info("replication").get("master_port") == port]

    def _by_port(self, port: int | str) -> FiledServer:
        return next(server for server in self.servers if server.port == int(port))

    # -- what happens to them -------------------------------------------------------------------

    def fail_over(self) -> FiledServer:
        """Tell a sentinel to make a replica the master; return it once all agree."""
        self.demote(self.switch_master())
        self.wait_until_ok()
        return self.master()

    def switch_master(self) -> FiledServer:
        """Tell a sentinel to make a replica the master; return the old one once sentinels agree.

        The old one takes writes still, until the sentinels make it a replica: some 10 s.
        """
        self.wait_until_ok()
        old = self.master()
        asked = [sentinel for sentinel in self.sentinels if sentinel.running]
        eventually(lambda: self._told_to_fail_over(asked[0]))
        eventually(lambda: all(int(one.about_master()["port"]) != old.port for one in asked))
        return old

    def demote(self, server: FiledServer) -> None:
        """Make a server a replica of the master, with the words of a sentinel."""
        with server.control.pipeline() as pipe:
            pipe.execute_command("REPLICAOF", "127.0.0.1", self.master().port)
            pipe.execute_command("CONFIG", "REWRITE")
            pipe.execute_command("CLIENT", "KILL", "TYPE", "normal")
            pipe.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            pipe.execute()

    @staticmethod
    def _told_to_fail_over(sentinel: SentinelServer) -> bool:
        with contextlib.suppress(redis.ResponseError):  # no replica is good enough yet
            return bool(sentinel.call("SENTINEL", "FAILOVER", NAME))
        return False

    def kill_master(self) -> FiledServer:
        """End the master with SIGKILL and return it. A replica takes over, some seconds later."""
        master = self.master()
        master.kill()
        return master

    def restart(self, server: Server) -> None:
        """Start a server or a sentinel again, after killing it where it runs, as what it was.

        So an old master takes writes until the sentinels make it a replica: some 10 s.
        """
        server.kill()
        server.start()

    def restart_as_replica(self, server: FiledServer) -> None:
        """Start a server again as a replica of the master of now."""
        server.kill()
        server.write(f"replicaof 127.0.0.1 {self.master().port}")
        server.start()

    # -- being whole ----------------------------------------------------------------------------

    def _problem(self) -> str:
        master = self.master()
        if not master.running:
            return f"the master, {master}, does not run"
        if master.info("replication")["role"] != "master":
            return f"{master} is a replica still"
        replicas = [server for server in self.servers if server is not master]
        for server in replicas:
            if server.running and not server.replicates(master):
                return f"{server} has not all data of {master}"
        for sentinel in self.sentinels:
            if sentinel.running and (wrong := self._wrong_in(sentinel, master, replicas)):
                return f"{sentinel} {wrong}"
        return ""

    def _wrong_in(
        self, sentinel: SentinelServer, master: FiledServer, replicas: list[FiledServer]
    ) -> str:
        about = sentinel.about_master()
        if int(about["port"]) != master.port or about["flags"] != "master":
            return f"says of the master: {about['port']}, {about['flags']}"
        if int(about["num-other-sentinels"]) != len(self.sentinels) - 1:
            return "does not know all sentinels"
        known = sentinel.about_replicas()
        for server in replicas:
            one = known.get(server.port, {"flags": "unknown"})
            if not (one["flags"] == "slave" if server.running else "s_down" in one["flags"]):
                return f"says of {server}: {one['flags']}"
        return ""

    def describe(self) -> str:
        """Return what each running sentinel knows."""
        asked = [sentinel for sentinel in self.sentinels if sentinel.running]
        return "\n".join(f"{s}: {s.about_master()}, {s.about_replicas()}" for s in asked)

    def flush(self) -> None:
        """Empty the servers. Where not all are well, all is made anew on the same ports.

        Which server is the master may have changed.
        """
        if not all(server.running for server in self._all) or self.problem():
            self._create()
            return
        self.master().call("FLUSHALL")
        for server in self.servers:
            server.call("SCRIPT", "FLUSH")
        self.wait_until_ok()

    def _create(self) -> None:
        for server in self._all:
            server.kill()
        master, *replicas = self.servers
        master.write()
        for replica in replicas:
            replica.write(f"replicaof 127.0.0.1 {master.port}")
        for sentinel in self.sentinels:
            sentinel.write(*self._settings(sentinel))
        master.start()
        start_all(replicas)
        for replica in replicas:
            eventually(lambda one=replica: one.replicates(master))  # type: ignore[misc]
        # Last, so that what they see first is what they would else see 10 s later.
        start_all(self.sentinels)
        self.wait_until_ok()

    def _settings(self, sentinel: SentinelServer) -> list[str]:
        """Return a sentinel's settings, with all that it would else find out in seconds."""
        master, *replicas = self.servers
        others = [other for other in self.sentinels if other is not sentinel]
        lines = [
            f"myid {sentinel.name}",
            f"monitor {NAME} 127.0.0.1 {master.port} {len(self.sentinels) // 2 + 1}",
            f"down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"failover-timeout {NAME} {FAIL_OVER_MS}",
            f"parallel-syncs {NAME} {len(replicas)}",
            *(f"known-replica {NAME} 127.0.0.1 {replica.port}" for replica in replicas),
            *(f"known-sentinel {NAME} 127.0.0.1 {o.port} {o.name}" for o in others),
        ]
        return [f"sentinel {line}" for line in lines]
