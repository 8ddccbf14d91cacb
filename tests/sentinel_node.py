"""One server under sentinels, and one sentinel: processes whose settings are in files."""

from __future__ import annotations

import secrets
import shlex

import redis

from tests.server_group import Server, pairs

# By which the sentinels know the master.
NAME = "redis_bus"


class FiledServer(Server):
    """A server whose settings are in a file, into which it writes what it is told to keep."""

    def __init__(self, executable: str, port: int, *arguments: str, **options: object) -> None:
        super().__init__(executable, port, **options)
        self.settings = self.folder / "settings.conf"
        # The file is the first argument, before those that every server has.
        script = self.folder / "server"
        command = shlex.join([executable, str(self.settings), *arguments])
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o700)
        self.executable = str(script)

    def write(self, *settings: str) -> None:
        """Forget what was kept; start with these settings."""
        self.settings.write_text("".join(f"{line}\n" for line in settings))


class SentinelServer(FiledServer):
    """One sentinel, and what it says of the master that it watches."""

    def __init__(self, executable: str, port: int) -> None:
        super().__init__(executable, port, "--sentinel")
        self.name = secrets.token_hex(20)

    def _answers(self, client: redis.Redis) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the sentinel ended:\n{self.log()}"
        try:
            return bool(client.info("server")["process_id"] == self.pid)
        except (redis.RedisError, OSError):
            return False

    def about_master(self) -> dict[str, str]:
        """Return what this sentinel knows of the master."""
        return pairs(self.call("SENTINEL", "MASTER", NAME))

    def about_replicas(self) -> dict[int, dict[str, str]]:
        """Return what this sentinel knows of the replicas, by their ports."""
        found = [pairs(one) for one in self.call("SENTINEL", "SLAVES", NAME)]
        return {int(one["port"]): one for one in found}
