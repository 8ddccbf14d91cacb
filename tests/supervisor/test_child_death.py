"""A worker process that died: its supervisor ends its lease, whatever comes after it."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_bus import Bus, WorkerLost
from redis_bus.protocol.commands import LEASE_MS
from redis_bus.supervisor import lapse
from redis_bus.supervisor.lapse import Lapses, end_lease, lease_of
from redis_bus.worker.worker import Worker
from tests.cli.test_cli_serve import end, said_line
from tests.support import PATIENCE_SECONDS, Processes, eventually, workers

# The import takes as long as the file "import" is not there, but for the first worker.
SERVICE = """
    import os
    import pathlib
    import signal
    import time
    import redis
    from redis_bus import Bus

    class Own(redis.UnixDomainSocketConnection):
        pass

    def until(name):
        while not pathlib.Path(name).exists():
            time.sleep(0.005)

    if pathlib.Path("imported").exists():
        pathlib.Path("importing").touch()
        until("import")
    pathlib.Path("imported").touch()
    url = os.environ["REDIS_BUS_URL"]
    bus = Bus("served", prefix="math_", WHERE)

    @bus.register()
    def add(a, b):
        return a + b

    @bus.register()
    def slow():
        pathlib.Path("started").write_text(str(os.getpid()))
        until("go")

    @bus.register()
    def leave(code):
        os._exit(code)

    @bus.register(idempotent=True)
    def crash():
        os.kill(os.getpid(), signal.SIGKILL)
"""
BY_URL = "url=url"
BY_CLIENT = "conn=redis.Redis.from_url(url)"
# Its connections are of a class that only the user's module knows.
UNTOLD = "conn=redis.Redis(connection_pool=redis.ConnectionPool(Own, path=url[7:]))"


class Serving:
    """A supervisor of one worker, whose successor does not get past its import."""

    def __init__(self, processes: Processes, bus: Bus, made: str = BY_URL) -> None:
        self.folder = processes.folder
        processes.write("service.py", SERVICE.replace("WHERE", made))
        self.process = processes.start("redis-bus", "-w", "1", "service.bus")
        said_line(self.process)
        eventually(lambda: workers(bus, "math_add") == 1 or self.process.poll())
        self.job = bus["math_slow"].run()

    def kill(self) -> None:
        """Kill the worker amid its job."""
        os.kill(self.pid(), signal.SIGKILL)

    def pid(self) -> int:
        started = self.folder / "started"
        return int(eventually(lambda: started.exists() and started.read_text()))


@pytest.mark.parametrize("made", [BY_URL, BY_CLIENT])
def test_who_waits_for_it_hears_of_it_before_another_worker_has_imported_the_service(
    some: Processes, some_bus: Bus, made: str
) -> None:
    serving = Serving(some, some_bus, made)
    serving.kill()
    eventually(serving.job.done)
    with pytest.raises(WorkerLost):
        serving.job.get()
    eventually((some.folder / "importing").exists)
    assert workers(some_bus, "math_add") == 0
    (some.folder / "import").touch()
    assert some_bus["math_add"](1, 2) == 3
    assert "its worker" in end(serving.process)


def test_where_the_supervisor_cannot_reach_redis_as_the_service_does_the_next_worker_ends_it(
    some: Processes, some_bus: Bus
) -> None:
    serving = Serving(some, some_bus, UNTOLD)
    serving.kill()
    eventually((some.folder / "importing").exists)
    assert not serving.job.done()
    (some.folder / "import").touch()
    eventually(serving.job.done, LEASE_MS / 1000 / 2)
    end(serving.process)


def test_one_that_is_killed_while_all_ends(some: Processes, some_bus: Bus) -> None:
    serving = Serving(some, some_bus)
    pid = serving.pid()
    serving.process.terminate()
    # It was told to end, and serves no more.
    eventually(lambda: workers(some_bus, "math_add") == 0)
    os.kill(pid, signal.SIGKILL)
    assert serving.process.wait(PATIENCE_SECONDS) == 0
    assert serving.job.done()
    with pytest.raises(WorkerLost):
        serving.job.get()


@pytest.mark.parametrize("code", [0, 7])
def test_one_that_leaves_amid_a_job_of_a_burst(some: Processes, some_bus: Bus, code: int) -> None:
    some.write("service.py", SERVICE.replace("WHERE", BY_URL))
    some.run("redis-bus", "-b", "service.bus")  # it is known then
    (some.folder / "imported").unlink()
    job = some_bus["math_leave"].run(code)
    assert some.run("redis-bus", "-w", "1", "-b", "service.bus").returncode == code
    assert job.done()


def test_a_job_that_kills_each_worker_is_given_up_and_the_next_one_serves(
    some: Processes, some_bus: Bus
) -> None:
    (some.folder / "import").touch()
    serving = Serving(some, some_bus)
    (some.folder / "go").touch()
    with pytest.raises(WorkerLost, match="3 workers were lost"):
        some_bus["math_crash"]()
    assert some_bus["math_add"](1, 2) == 3
    said = end(serving.process)
    assert len(re.findall(r"was ended by SIGKILL; another is started", said)) == 3
    assert len(some_bus["math_crash"].dead_letters()) == 1


def test_one_that_ended_by_itself_is_left_alone(some: Processes, some_bus: Bus) -> None:
    serving = Serving(some, some_bus)
    pid = serving.pid()
    (some.folder / "go").touch()
    before = some_bus.conn.info("stats")["total_connections_received"]
    os.kill(pid, signal.SIGTERM)
    eventually((some.folder / "importing").exists)
    serving.process.terminate()
    serving.process.wait(PATIENCE_SECONDS)
    assert some_bus.conn.info("stats")["total_connections_received"] == before


# -- what is told ------------------------------------------------------------------------------


@pytest.fixture
def worker_of() -> Iterator[Any]:
    """Makes a worker of a bus that is made of some arguments."""
    buses: list[Bus] = []

    def make(**arguments: Any) -> Worker:
        bus = Bus("served", prefix="math_", **arguments)
        buses.append(bus)
        bus.register_method(eventually, "wait")
        registration = bus._core.registrations["wait"]
        return Worker(bus._core, [(registration, bus._core.compile(registration))])

    yield make
    for bus in buses:
        bus.close()


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_lease_is_ended_in_all_partitions(
    some_bus: Bus, some: Processes, worker_of: Any, partitions: int
) -> None:
    worker = worker_of(url=some.url, partitions=partitions)
    worker.publish()
    for lane in worker.lanes:
        worker._heart._beat(lane)
    posts = [lane.post for lane in worker.lanes]
    keys = [key for post in posts for key in (post.service.workers, post.routes[0].serving)]
    assert some_bus.conn.exists(*keys) == 2 * partitions
    # Who was started with fewer serves those that there were once, too.
    lease = lease_of(worker_of(url=some.url))
    assert lease is not None
    end_lease({**lease, "worker": worker.id}, PATIENCE_SECONDS)
    assert some_bus.conn.exists(*keys) == 0


@pytest.mark.parametrize(
    "client",
    [
        redis.Redis(host="h", port=1, db=2, username="u", password="p@/"),
        redis.Redis(host="h", ssl=True, ssl_cert_reqs="none", ssl_ca_certs="/ca"),
        redis.Redis(unix_socket_path="/a b?c", db=3),
        redis.Redis.from_url("unix:///some?db=4"),
        redis.Redis.from_url("rediss://u:p@h:7/5"),
    ],
)
def test_a_client_of_the_users_is_told_as_arguments_that_lead_to_the_same(
    client: redis.Redis, worker_of: Any
) -> None:
    worker = worker_of(conn=client)
    lease = lease_of(worker)
    assert lease is not None
    transport: Any = Bus(**lease["bus"])._core.transport
    theirs, mine = transport.endpoint, worker.core.transport.endpoint
    assert theirs.connection_class is mine.connection_class
    names = ("host", "port", "path", "db", "username", "password", "ssl_ca_certs", "ssl_cert_reqs")
    for name in names:
        assert theirs.settings.get(name) == mine.settings.get(name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"conn": redis.Redis(credential_provider=redis.UsernamePasswordCredentialProvider("u"))},
        {"conn": redis.Redis(redis_connect_func=print)},
        {"credential_provider": redis.UsernamePasswordCredentialProvider("u")},
        {"password": b"bytes"},
    ],
)
def test_what_cannot_be_written_down_is_not_told(arguments: dict[str, Any], worker_of: Any) -> None:
    assert lease_of(worker_of(**arguments)) is None


# -- where Redis is away -----------------------------------------------------------------------


def lease_at(url: str) -> dict[str, Any]:
    bus = {"name": "b", "url": url}
    return {"worker": "w", "service": "", "partitions": 1, "methods": ["m"], "bus": bus}


def test_a_redis_that_is_away_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    lapses = Lapses()
    lapses.begin(lease_at("redis://u:secret@localhost:1"))
    lapses.wait()
    (record,) = caplog.records
    assert "worker w is dead, and its lease cannot be ended: no Redis" in record.getMessage()
    assert "secret" not in record.getMessage()


def test_a_redis_that_does_not_answer_is_not_waited_for_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lapse, "LAPSE_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        lapses = Lapses()
        lapses.begin(lease_at(f"unix://{tmp_path}/silent"))
        eventually(lambda: caplog.records)
        assert "did not answer in time" in caplog.text
        lapses.wait()
