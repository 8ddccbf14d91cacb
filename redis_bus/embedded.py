"""A private Redis: started for its owner, stopped with its owner, and nothing of it is left."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import redis

from .errors import BusError
from .transport.servers import EmbeddedUnavailable, find_server

READY_SECONDS = 10.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.002
PREFIX = "redis_bus-"
# In the folder of a server; locked as long as its owner or the server itself lives.
LOCK = "lock"
# From Linux's <sys/prctl.h>: the signal that this process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> Callable[[], None] | None:
    """Return what a child runs before exec, so that Linux ends it when its parent ends.

    Returns None where there is no prctl. The child ends with the thread that started it.
    """
    if not sys.platform.startswith("linux"):
        return None
    import ctypes  # which only this needs

    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded here: the child only calls it
    owner = os.getpid()

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != owner:  # the owner ended before the line above
            os._exit(1)

    return arrange


def remove_stale_folders() -> None:
    """Remove the folders of servers that ended with an owner who was killed.

    A folder goes only where its lock is free, and so neither its owner nor its server lives,
    wherever they run; and where it is this user's, by whom no other's folder can be removed.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _lock_folder(folder: Path) -> int:
    """Return a descriptor that holds the lock of a folder until its last copy is closed."""
    new = folder / f"{LOCK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Locked before it has the name by which others try the lock.
        new.rename(folder / LOCK)
    except BaseException:
        os.close(lock)
        raise
    return lock


class EmbeddedRedis:
    """A Redis server of one's own, on a unix socket in its own temporary folder.

    With ``port`` it listens on the loopback interface instead; 0 means any free port.
    It keeps nothing on disk. ``executable`` is found by `find_server` unless given.
    """

    def __init__(self, executable: str | None = None, port: int | None = None) -> None:
        self.executable = executable
        self.port = port
        self._folder: Path | None = None
        self._lock: int | None = None
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The address that a client connects to, once started."""
        if not self._url:
            raise BusError("the embedded Redis is not started")
        return self._url

    @property
    def pid(self) -> int | None:
        """The server's process id, while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> EmbeddedRedis:
        """Start the server and wait until it answers.

        Raises EmbeddedUnavailable, with the last line of the server's log, where it does not.
        """
        if self._process is not None:
            return self
        executable = self.executable or find_server()
        remove_stale_folders()
        self._owner = os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        atexit.register(self.stop)
        try:
            self._lock = _lock_folder(self._folder)
            self._launch(executable)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove its folder; stopping twice is fine."""
        atexit.unregister(self.stop)
        if self._owner != os.getpid():
            return  # a fork of its owner: the server is not this process's to stop
        process, self._process = self._process, None
        folder, self._folder = self._folder, None
        lock, self._lock = self._lock, None
        self._url = ""
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)

    def __enter__(self) -> EmbeddedRedis:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _launch(self, executable: str) -> None:
        assert self._folder is not None and self._lock is not None
        command = [executable, "--save", "", "--appendonly", "no", "--daemonize", "no"]
        command += ["--dir", str(self._folder), "--loglevel", "warning"]
        if self.port is None:
            path = self._folder / "redis.sock"
            command += ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
            url = f"unix://{path}"
        else:
            port = self.port or _free_port()
            command += ["--bind", "127.0.0.1", "--port", str(port)]
            url = f"redis://localhost:{port}/0"
        with open(self._folder / "log", "wb") as log:
            try:
                # Its own session: ctrl-C in the terminal must not stop it before its owner.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[self._lock],
                    preexec_fn=die_with_parent(),
                )
            except OSError as error:
                raise EmbeddedUnavailable(f"cannot run {executable}: {error.strerror}") from None
        self._url = url

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        with contextlib.closing(redis.Redis.from_url(self._url)) as client:
            while not self._answers(client):
                if self._process.poll() is not None:
                    raise EmbeddedUnavailable(f"the embedded Redis ended: {self._last_log_line()}")
                if time.monotonic() > deadline:
                    raise EmbeddedUnavailable(
                        f"the embedded Redis did not answer within {READY_SECONDS:g} s: "
                        f"{self._last_log_line()}"
                    )
                time.sleep(POLL_SECONDS)

    def _answers(self, client: redis.Redis) -> bool:
        """Whether the server that answers is the one started here, and not another on its port."""
        try:
            return bool(client.info("server")["process_id"] == self.pid)
        except (redis.exceptions.RedisError, OSError):
            return False

    def _last_log_line(self) -> str:
        assert self._folder is not None
        text = (self._folder / "log").read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"
