"""``redis-bus -w N TARGET``: processes that serve, are replaced when they die, and end together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from redis_bus import Bus, WorkerLost
from redis_bus.protocol.commands import LEASE_MS
from redis_bus.supervisor.child import BACKOFF_LIMIT_SECONDS, STEADY_SECONDS, Backoff
from tests.cli.test_cli_serve import REFUSED, end, free_port, is_one_line, said_line
from tests.support import PATIENCE_SECONDS, Processes, eventually, workers

SERVICE = """
    import os
    import pathlib
    import signal
    import time
    from redis_bus import Bus

    pathlib.Path(f"env-{os.getpid()}").write_text(repr(dict(os.environ)))
    bus = Bus("served", prefix="math_")

    def until(name):
        while not pathlib.Path(name).exists():
            time.sleep(0.005)

    @bus.register()
    def add(a, b):
        return a + b

    @bus.register()
    def slow():
        pathlib.Path("started").write_text(str(os.getpid()))
        until("go")
        return "finished"

    @bus.register()
    def deaf():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
        slow()

    @bus.register()
    def leave(code):
        os._exit(code)

    @bus.register()
    def environment():
        return dict(os.environ)
"""
FINISHING = "redis-bus: finishing 1 job (math_slow), for 30 s at the most; ctrl-C again stops it\n"
BANNER = re.compile(
    r"redis-bus: serving .* on bus 'served' at (?P<address>.*) "
    r"with (?P<count>\d+) workers? \(pids? (?P<pids>[\d, ]+)\)(?P<stop>; ctrl-C stops)?\n"
)
DEATH = re.compile(
    r".* WARNING redis_bus: worker process (?P<pid>\d+) (?P<how>.*); "
    r"another is started (?:now|in (?P<seconds>[\d.]+) s)\n"
)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Processes]:
    """Starts processes for which there is no Redis."""
    processes = Processes(REFUSED, tmp_path)
    yield processes
    processes.end()


@pytest.fixture
def client_bus(url: str) -> Iterator[Bus]:
    """The bus of SERVICE, seen from here."""
    with Bus("served", url=url, timeout=PATIENCE_SECONDS) as bus:
        yield bus


class Serving:
    """A supervisor whose workers are all alive."""

    def __init__(self, processes: Processes, bus: Bus, count: int, *options: str) -> None:
        processes.write("service.py", SERVICE)
        self.folder = processes.folder
        self.bus = bus
        line = ["redis-bus", "-w", str(count), *options, "service.bus"]
        self.process = processes.start(*line, start_new_session=True)
        self.banner = said_line(self.process)
        found = re.search(r"\(pids? ([\d, ]+)\)", self.banner)
        assert found, self.banner
        self.pids = [int(pid) for pid in found[1].split(", ")]
        self.wait_for(count)

    def wait_for(self, count: int) -> None:
        eventually(lambda: workers(self.bus, "math_add") == count or self.process.poll())
        assert self.process.poll() is None

    def kill(self, pid: int, number: int = signal.SIGKILL) -> re.Match[str]:
        """End a worker, and return what is said of that."""
        os.kill(pid, number)
        line = said_line(self.process)
        found = DEATH.fullmatch(line)
        assert found and int(found["pid"]) == pid, line
        return found

    def start_job(self, method: str = "math_slow") -> int:
        """Return the process in which a job runs now."""
        self.job = self.bus[method].run()
        pid = eventually(lambda: self.file("started"))
        return int(pid)

    def file(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


def processes_now() -> dict[int, tuple[int, str, str]]:
    """Return the parent, the state and the command line of each process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # The name of the program before it is in brackets, and may hold spaces.
                state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(folder.name)] = int(parent), state, line
    return found


def children(pid: int) -> list[int]:
    return [child for child, (parent, _, _) in processes_now().items() if parent == pid]


def alive(pids: list[int]) -> list[int]:
    """Return which of some processes live; one that nobody waited for is dead, too."""
    now = processes_now()
    return [pid for pid in pids if pid in now and not now[pid][1].startswith("Z")]


# -- starting ---------------------------------------------------------------------------------


def test_n_workers_serve_and_one_line_says_so(some: Processes, some_bus: Bus) -> None:
    serving = Serving(some, some_bus, 3)
    said = BANNER.fullmatch(serving.banner)
    assert said and said["count"] == "3" and said["stop"]
    assert said["address"] == some_bus._core.transport.address
    assert len(set(serving.pids)) == 3
    assert sorted(children(serving.process.pid)) == sorted(serving.pids)
    assert some_bus["math_add"](1, 2) == 3
    assert end(serving.process) == ""
    assert alive(serving.pids) == []
    assert workers(some_bus, "math_add") == 0


def test_without_the_option_there_is_no_other_process(some: Processes, some_bus: Bus) -> None:
    some.write("service.py", SERVICE)
    process = some.start("redis-bus", "service.bus")
    eventually(lambda: workers(some_bus, "math_add"))
    assert children(process.pid) == []
    assert "at" in end(process)


def test_one_worker_that_was_asked_for_is_supervised(some: Processes, some_bus: Bus) -> None:
    serving = Serving(some, some_bus, 1)
    assert "with 1 worker (pid " in serving.banner
    serving.kill(serving.pids[0])
    eventually(lambda: children(serving.process.pid))
    assert some_bus["math_add"](1, 2) == 3
    end(serving.process)


def test_the_number_can_come_from_the_environment(some: Processes, some_bus: Bus) -> None:
    some.write("service.py", SERVICE)
    environment = some.environment(
        REDIS_BUS_SERVE_WORKERS="2", REDIS_BUS_SERVE_PATTERN="*_add", REDIS_BUS_SERVE_BURST="no"
    )
    process = some.start("redis-bus", "service.bus", env=environment)
    assert "serving math_add on bus 'served'" in said_line(process)
    eventually(lambda: workers(some_bus, "math_add") == 2)
    for child in children(process.pid):
        assert children(child) == []
    end(process)


def test_what_only_the_supervisor_shall_know_is_not_in_a_jobs_environment(
    some: Processes, some_bus: Bus
) -> None:
    serving = Serving(some, some_bus, 1)
    serving.kill(serving.pids[0])
    found = some_bus["math_environment"]()
    assert found["REDIS_BUS_URL"] == some.url
    assert not {"REDIS_BUS_SUPERVISOR_PIPE", "REDIS_BUS_SUCCEEDS"} & set(found)
    end(serving.process)


def test_options_are_passed_on(some: Processes, some_bus: Bus) -> None:
    options = ["-p", "*_add", "--log-level", "info", "--log-format", "json", "--log-arguments"]
    some.write("service.py", SERVICE)
    process = some.start("redis-bus", "serve", "--workers=2", *options, "service.bus")
    eventually(lambda: workers(some_bus, "math_add") == 2)
    with pytest.raises(TypeError):
        some_bus["math_add"](1, "2")
    pid = children(process.pid)[0]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in children(process.pid) and len(children(process.pid)) == 2)
    lines = [json.loads(line) for line in end(process).splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    said = [line["message"] for line in lines]
    assert len([text for text in said if text.startswith("serving math_add on bus")]) == 1
    assert any(text.startswith("math_add(1, '2') raised TypeError: ") for text in said)
    assert f"worker process {pid} was ended by SIGKILL; another is started now" in said


def test_notes_on_a_service_are_said_once(some: Processes, some_bus: Bus) -> None:
    some.write("service.py", f"{SERVICE}\n    bus.register('stats')(len)\n")
    shown = some.run("redis-bus", "-w", "2", "-b", "service.bus")
    assert shown.returncode == 0
    assert shown.stderr.count("method 'stats' is reached with bus['stats'] only") == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs Python's -P")
def test_files_of_the_folder_hide_no_modules_from_the_workers(
    some: Processes, some_bus: Bus
) -> None:
    some.write("click.py", "raise ImportError('the wrong click')\n")
    end(Serving(some, some_bus, 2).process)


def test_debug_is_refused(alone: Processes) -> None:
    alone.write("service.py", SERVICE)
    shown = alone.run("redis-bus", "-w", "2", "--debug", "service.bus")
    assert shown.returncode == 2 and "one process, for its pdb" in shown.stderr
    for number in ("0", "-1", "many"):
        shown = alone.run("redis-bus", "-w", number, "service.bus")
        assert shown.returncode == 2 and number in shown.stderr


# -- what cannot be served --------------------------------------------------------------------


def test_a_target_that_cannot_be_served_is_one_line_and_exit_2(alone: Processes) -> None:
    alone.write("broken.py", "import os\nopen(f'ran-{os.getpid()}', 'w')\nraise ValueError('no')\n")
    for target in ("broken.bus", "nothing.bus", "./x.bus"):
        shown = alone.run("redis-bus", "-w", "3", target)
        assert (shown.returncode, shown.stdout) == (2, ""), shown
        assert is_one_line(shown.stderr)
    assert len(list(alone.folder.glob("ran-*"))) == 1


def test_no_redis_is_one_line_and_exit_5(alone: Processes) -> None:
    alone.write("service.py", SERVICE)
    shown = alone.run("redis-bus", "-w", "3", "service.bus")
    assert shown.returncode == 5 and is_one_line(shown.stderr), shown
    assert "localhost:1 (Connection refused)" in shown.stderr
    shown = alone.run("redis-bus", "-w", "3", "--url", "nonsense", "service.bus")
    assert shown.returncode == 2 and is_one_line(shown.stderr), shown


def test_a_redis_that_refuses_to_be_written_is_one_line_and_exit_1(
    some: Processes, some_bus: Bus
) -> None:
    some.write("service.py", SERVICE)
    some_bus.conn.acl_setuser(
        "reader", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-hset"]
    )
    url = some.url.replace("unix://", "unix://reader:any@")
    shown = some.run("redis-bus", "-w", "3", "--url", url, "service.bus")
    some_bus.conn.acl_deluser("reader")
    assert shown.returncode == 1 and is_one_line(shown.stderr), shown


# -- dying, and being replaced ----------------------------------------------------------------


def test_a_worker_that_is_killed_is_replaced_and_the_others_are_not(
    processes: Processes, client_bus: Bus
) -> None:
    serving = Serving(processes, client_bus, 3)
    victim, *others = serving.pids
    assert serving.kill(victim)["how"] == "was ended by SIGKILL"
    eventually(lambda: len(children(serving.process.pid)) == 3)
    now = children(serving.process.pid)
    assert set(others) < set(now) and victim not in now
    (new,) = set(now) - set(others)
    environment = eventually(lambda: serving.file(f"env-{new}"))
    assert re.search(rf"'REDIS_BUS_SUCCEEDS': '[^ ']+:{victim}:[0-9a-f]+'", environment)
    for pid in serving.pids:
        assert "REDIS_BUS_SUCCEEDS" not in serving.file(f"env-{pid}")
    assert client_bus["math_add"](1, 2) == 3
    assert end(serving.process) == ""


def test_who_waits_for_a_worker_that_was_killed_hears_of_it_long_before_its_lease_ends(
    processes: Processes, client_bus: Bus
) -> None:
    serving = Serving(processes, client_bus, 2)
    victim = serving.start_job()
    start = time.monotonic()
    serving.kill(victim)
    with pytest.raises(WorkerLost):
        serving.job.get()
    assert time.monotonic() - start < LEASE_MS / 1000 / 2
    end(serving.process)


def test_a_worker_may_be_told_to_end_and_is_replaced(some: Processes, some_bus: Bus) -> None:
    serving = Serving(some, some_bus, 2)
    found = serving.kill(serving.pids[0], signal.SIGTERM)
    assert found["how"] == "ended with exit code 0" and found["seconds"]
    serving.wait_for(2)
    end(serving.process)


def test_workers_that_die_at_once_are_started_again_later_and_later(alone: Processes) -> None:
    alone.write("service.py", "import os\nopen(f'ran-{os.getpid()}', 'w').close()\nos._exit(3)\n")
    process = alone.start("redis-bus", "-w", "3", "service.bus")
    for number in range(5):
        line = said_line(process)
        found = DEATH.fullmatch(line)
        assert found and found["how"] == "ended with exit code 3", line
        assert (alone.folder / f"ran-{found['pid']}").exists()
        wait = 0.1 * 2**number
        assert 0.49 * wait <= float(found["seconds"]) <= 1.01 * wait, line
        # One at a time, until one serves.
        assert len(list(alone.folder.glob("ran-*"))) == number + 1
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 143
    # What was due is not started any more.
    assert len(list(alone.folder.glob("ran-*"))) == 5


def test_backoff_has_a_limit_and_is_forgotten_after_a_steady_life() -> None:
    backoff = Backoff()
    waits = [backoff.seconds(0.1, by_signal=False) for _ in range(100)]
    assert BACKOFF_LIMIT_SECONDS / 2 <= min(waits[20:]) < max(waits) <= BACKOFF_LIMIT_SECONDS
    assert backoff.seconds(STEADY_SECONDS, by_signal=False) == 0
    assert 0 < backoff.seconds(0.1, by_signal=False) <= 0.1
    killed = Backoff()
    assert killed.seconds(0.1, by_signal=True) == 0
    assert killed.seconds(0.1, by_signal=True) > 0


def test_a_service_that_was_broken_meanwhile_comes_back_when_it_is_mended(
    some: Processes, some_bus: Bus
) -> None:
    serving = Serving(some, some_bus, 2)
    some.write("service.py", "bus = = 1\n")
    dead = serving.pids[0]
    serving.kill(dead)
    assert "SyntaxError" in said_line(serving.process)
    found = DEATH.fullmatch(said_line(serving.process))
    assert found and found["how"] == "ended with exit code 2"
    assert alive(serving.pids[1:]) == serving.pids[1:]
    some.write("service.py", SERVICE)
    # Who comes after one that never served takes the place of the one before.
    for_it = f"'REDIS_BUS_SUCCEEDS': '[^ ']+:{dead}:[0-9a-f]+'"
    eventually(
        lambda: [
            pid
            for pid in children(serving.process.pid)
            if re.search(for_it, serving.file(f"env-{pid}"))
        ]
    )
    process = serving.process
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 0


def test_a_python_that_is_gone_for_a_while_is_tried_again(some: Processes, some_bus: Bus) -> None:
    settings = Path(sys.prefix, "pyvenv.cfg")
    if not settings.exists():
        pytest.skip("needs a virtual environment, to make another of")
    some.write("venv/pyvenv.cfg", settings.read_text())
    (some.folder / "venv" / "lib").symlink_to(Path(sys.prefix, "lib"))
    python = some.folder / "venv" / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(os.path.realpath(sys.executable))
    some.write("service.py", SERVICE)
    process = some.start(str(python), "-m", "redis_bus", "-w", "2", "service.bus")
    assert BANNER.fullmatch(said_line(process))
    eventually(lambda: workers(some_bus, "math_add") == 2)
    python.unlink()
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert DEATH.fullmatch(said_line(process))
    assert "no worker process can be started: [Errno 2]" in said_line(process)
    python.symlink_to(os.path.realpath(sys.executable))
    eventually(lambda: len(children(process.pid)) == 2)
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 0


# -- ending -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_lets_the_running_job_finish(
    some: Processes, some_bus: Bus, number: int
) -> None:
    serving = Serving(some, some_bus, 2)
    busy = serving.start_job()
    # As ctrl-C in a terminal does, which sends it to the group in the foreground.
    os.killpg(serving.process.pid, number)
    eventually(lambda: alive(serving.pids) == [busy])
    queued = some_bus["math_add"].run(1, 2)
    (some.folder / "go").touch()
    assert serving.job.get() == "finished"
    assert serving.process.communicate(timeout=PATIENCE_SECONDS)[1] == FINISHING
    assert serving.process.returncode == 0
    assert alive(serving.pids) == []
    assert not queued.done()


def test_the_second_signal_stops_now(some: Processes, some_bus: Bus) -> None:
    serving = Serving(some, some_bus, 4)
    serving.start_job()
    serving.process.send_signal(signal.SIGTERM)
    serving.process.send_signal(signal.SIGINT)
    with pytest.raises(WorkerLost):
        serving.job.get()
    # None of them, also of those who wait for a job, had to be killed.
    # Two that come at once leave no time to say what would be finished.
    assert serving.process.communicate(timeout=PATIENCE_SECONDS)[1] in ("", FINISHING)
    assert serving.process.returncode == 0
    assert alive(serving.pids) == []


def test_shutdown_timeout_bounds_the_running_job(some: Processes, some_bus: Bus) -> None:
    serving = Serving(some, some_bus, 2, "--shutdown-timeout", "0.2")
    serving.start_job()
    serving.process.terminate()
    with pytest.raises(WorkerLost):
        serving.job.get()
    assert serving.process.wait(PATIENCE_SECONDS) == 0


def test_a_worker_that_does_not_end_is_killed(some: Processes, some_bus: Bus) -> None:
    some.write("service.py", SERVICE)
    code = """
        import sys
        from redis_bus.cli import group as cli
        from redis_bus.supervisor import supervisor

        supervisor.KILL_SECONDS = 0.5
        cli.main(["-w", "2", "--shutdown-timeout", "0", "service.bus"], prog_name="redis-bus")
    """
    process = some.python(code)
    assert BANNER.fullmatch(said_line(process))
    some_bus["math_deaf"].run()
    started = some.folder / "started"
    pid = int(eventually(lambda: started.exists() and started.read_text()))
    err = end(process)
    assert f"worker process {pid} does not end: it is killed" in err
    assert alive([pid]) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_anything_is_served_has_the_exit_code_of_one_process(
    some: Processes, some_bus: Bus, number: int, code: int
) -> None:
    waits = "\n    pathlib.Path('importing').touch()\n    until('go')\n"
    some.write("service.py", SERVICE + waits)
    for options in (["-w", "2"], []):
        (some.folder / "importing").unlink(missing_ok=True)
        process = some.start("redis-bus", *options, "service.bus")
        eventually((some.folder / "importing").exists)
        process.send_signal(number)
        err = process.communicate(timeout=PATIENCE_SECONDS)[1]
        assert process.returncode == code and err.strip() == "", err


SWALLOWED = {
    "destructor": """
        class Last:
            def __del__(self):
                stop()
        Last()
    """,
    "weak reference": """
        class Last:
            pass
        last = Last()
        reference = weakref.ref(last, lambda _: stop())
        del last
    """,
    "two destructors": """
        class Last:
            def __del__(self):
                stop()
        class Long:
            def __del__(self):
                time.sleep(5)
        Last()
        Long()
    """,
}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("where", SWALLOWED)
def test_a_signal_where_python_swallows_what_is_raised_ends_the_start_without_a_word(
    alone: Processes, where: str, number: int, code: int
) -> None:
    imports = "import os, pathlib, time, weakref\n"
    stop = f"def stop():\n    os.kill(os.getpid(), {number:d})\n    time.sleep(0)\n"
    touch = "pathlib.Path('{}').touch()\n"
    rest = f"{touch.format('swallowed')}time.sleep(5)\n{touch.format('ended')}"
    alone.write("service.py", imports + stop + textwrap.dedent(SWALLOWED[where]) + rest)
    shown = alone.run("redis-bus", "service.bus")
    assert {path.name for path in alone.folder.glob("*ed")} == {"swallowed"}
    assert (shown.returncode, shown.stderr.strip()) == (code, "")


def test_a_signal_that_was_swallowed_is_one_before_anything_is_served(alone: Processes) -> None:
    process = alone.python(
        """
        import os, signal, sys
        from redis_bus.supervisor.signals import EndingSignals

        class Last:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)

        with EndingSignals() as signals:
            Last()
            with signals.held():
                signals.serving(sys.exit)
        """
    )
    assert process.communicate(timeout=PATIENCE_SECONDS)[1] == ""
    assert process.returncode == 143


def test_a_signal_in_the_making_of_a_class_ends_without_a_traceback(alone: Processes) -> None:
    """As in an import that makes an enum: until Python 3.11 a RuntimeError is made of it."""
    process = alone.python(
        """
        import os, signal
        from redis_bus.supervisor.signals import EndingSignals

        class Told:
            def __set_name__(self, owner, name):
                os.kill(os.getpid(), signal.SIGTERM)

        with EndingSignals():
            class Holder:
                told = Told()
        """
    )
    assert process.communicate(timeout=PATIENCE_SECONDS)[1] == ""
    assert process.returncode == 143


def test_what_else_python_swallows_is_told_as_ever(alone: Processes) -> None:
    alone.write("service.py", "class Last:\n    def __del__(self):\n        1 / 0\nLast()\n")
    shown = alone.run("redis-bus", "service.bus")
    assert "Exception ignored " in shown.stderr and "ZeroDivisionError" in shown.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children")
def test_workers_end_with_a_supervisor_that_is_killed(some: Processes, some_bus: Bus) -> None:
    serving = Serving(some, some_bus, 3)
    busy = serving.start_job()
    serving.process.kill()
    eventually(lambda: alive(serving.pids) == [busy])
    (some.folder / "go").touch()
    assert serving.job.get() == "finished"
    eventually(lambda: alive(serving.pids) == [])
    assert workers(some_bus, "math_add") == 0


# -- with other options -----------------------------------------------------------------------


def test_a_burst_runs_what_is_queued_and_nobody_is_started_again(
    some: Processes, some_bus: Bus
) -> None:
    some.write("service.py", SERVICE)
    shown = some.run("redis-bus", "-w", "2", "-b", "service.bus")
    assert shown.returncode == 0 and shown.stderr.endswith("ran 0 jobs\n")
    results = [some_bus["math_add"].run(n, n) for n in range(5)]
    shown = some.run("redis-bus", "-w", "3", "-b", "service.bus")
    assert shown.returncode == 0, shown
    banner, ran = shown.stderr.splitlines()
    assert BANNER.fullmatch(f"{banner}\n") and banner.endswith(")") and "with 3 workers" in banner
    assert ran == "redis-bus: ran 5 jobs"
    assert [result.get() for result in results] == [0, 2, 4, 6, 8]
    assert len(list(some.folder.glob("env-*"))) == 5


def test_a_burst_in_which_a_worker_dies_fails(some: Processes, some_bus: Bus) -> None:
    some.write("service.py", SERVICE)
    some.run("redis-bus", "-b", "service.bus")  # it is known then
    some_bus["math_leave"].run(7)
    shown = some.run("redis-bus", "-w", "1", "-b", "service.bus")
    assert shown.returncode == 7
    assert re.search(r"worker process \d+ ended with exit code 7\n", shown.stderr)


def test_no_command_line_of_a_worker_has_the_url(some: Processes, some_bus: Bus) -> None:
    secret = "hunter2"
    some_bus.conn.acl_setuser(
        "tester", enabled=True, passwords=[f"+{secret}"], keys=["*"], categories=["+@all"]
    )
    some.write("service.py", SERVICE)
    url = some.url.replace("unix://", f"unix://tester:{secret}@")
    for options, known in ((["--url", url], some.url), ([], url)):
        environment = some.environment(REDIS_BUS_URL=known)
        line = ["redis-bus", *options, "-w", "2", "--log-level", "debug", "service.bus"]
        process = some.start(*line, env=environment)
        eventually(lambda: workers(some_bus, "math_add") == 2)
        rows = processes_now()
        for child in children(process.pid):
            assert "service.bus" in rows[child][2] and secret not in rows[child][2]
        assert secret not in end(process)
    some_bus.conn.acl_deluser("tester")


def test_embedded_brings_one_redis_for_all_workers(alone: Processes) -> None:
    port = free_port()
    (alone.folder / "tmp").mkdir()
    alone.write("service.py", SERVICE)
    environment = alone.environment(TMPDIR=str(alone.folder / "tmp"), REDIS_BUS_SERVE_EMBEDDED="1")
    del environment["REDIS_BUS_URL"]
    line = ["redis-bus", "-w", "2", "--embedded-port", str(port), "service.bus"]
    process = alone.start(*line, env=environment)
    url = f"redis://localhost:{port}/0"
    assert f"a private Redis is at {url}; it ends with this process" in said_line(process)
    assert f"at localhost:{port} with 2 workers (pids " in said_line(process)
    with Bus("served", url=url) as bus:
        eventually(lambda: workers(bus, "math_add") == 2)
        assert bus["math_add"](1, 2) == 3
    assert end(process) == ""
    assert list((alone.folder / "tmp").iterdir()) == []
    shown = alone.run("redis-bus", "-w", "2", "--embedded", "--embedded-port", str(port), "no.bus")
    assert shown.returncode == 2 and is_one_line(shown.stderr)
