"""``redis-bus --reload TARGET``: worker processes are started again when a Python file changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from redis_bus import Bus, WorkerLost
from redis_bus.embedded import EmbeddedRedis
from redis_bus.supervisor.watcher import folders_of
from tests.cli.test_cli_serve import REFUSED, free_port, is_one_line
from tests.supervisor.test_supervisor import BANNER, DEATH, alive, children, processes_now
from tests.support import PATIENCE_SECONDS, Processes, eventually, workers

SERVICE = """
    import os
    import pathlib
    import time
    from redis_bus import Bus

    pathlib.Path(f"env-{os.getpid()}").write_text(repr(dict(os.environ)))
    bus = Bus("served", prefix="math_")

    @bus.register()
    def version():
        return VERSION

    @bus.register()
    def slow():
        pathlib.Path("started").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.005)
        return "finished"
"""
WAITS = "redis-bus: nothing is served until a file changes; ctrl-C stops\n"
AGAIN = "redis-bus: service.py changed: workers are started again\n"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Processes]:
    """Starts processes for which there is no Redis."""
    processes = Processes(REFUSED, tmp_path)
    yield processes
    processes.end()


def write(processes: Processes, version: int, more: str = "") -> None:
    """Write the service with one rename, as editors do."""
    text = SERVICE.replace("VERSION", str(version)) + more
    processes.write("service.new", text).rename(processes.folder / "service.py")


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that is said; empty where none comes."""
    assert process.stderr is not None
    timer = threading.Timer(PATIENCE_SECONDS, process.kill)
    timer.start()
    try:
        return process.stderr.readline()
    finally:
        timer.cancel()


def said_until(process: subprocess.Popen[str], text: str) -> None:
    """Read lines until one has a text."""
    while text not in (line := said(process)):
        assert line, f"{text!r} was never said"


def said_pids(process: subprocess.Popen[str]) -> list[int]:
    """Return the worker processes that the next line tells of."""
    line = said(process)
    found = BANNER.fullmatch(line)
    assert found, line
    return [int(pid) for pid in found["pids"].split(", ")]


def end(process: subprocess.Popen[str], code: int = 0, number: int = signal.SIGTERM) -> None:
    """End a supervisor that has nothing more to say."""
    pids = children(process.pid)
    process.send_signal(number)
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert (process.returncode, err.strip()) == (code, "")
    assert alive(pids) == []


# -- a change ---------------------------------------------------------------------------------


def test_a_change_ends_all_workers_when_their_jobs_are_done_and_starts_new_ones(
    some: Processes, some_bus: Bus
) -> None:
    write(some, 1)
    line = ["redis-bus", "-w", "2", "-c", "2", "-p", "math_*", "service.bus"]
    process = some.start(*line, env=some.environment(REDIS_BUS_SERVE_RELOAD="1"))
    pids = said_pids(process)
    assert len(pids) == 2 and some_bus["math_version"]() == 1
    job = some_bus["math_slow"].run()
    eventually((some.folder / "started").exists)
    write(some, 2)
    assert said(process) == AGAIN
    (busy,) = eventually(lambda: alive(pids) if len(alive(pids)) == 1 else None)
    assert children(process.pid) == [busy]
    (some.folder / "go").touch()
    assert job.get() == "finished"
    new = said_pids(process)
    assert len(new) == 2 and not set(new) & set(pids)
    assert some_bus["math_version"]() == 2
    environment = (some.folder / f"env-{new[0]}").read_text()
    assert "REDIS_BUS_SERVE" not in environment and "REDIS_BUS_SUCCEEDS" not in environment
    end(process)


def test_one_process_is_the_default(some: Processes, some_bus: Bus) -> None:
    write(some, 1)
    process = some.start("redis-bus", "-r", "service.bus")
    (pid,) = said_pids(process)
    write(some, 2)
    assert said(process) == AGAIN
    (new,) = said_pids(process)
    assert new != pid and some_bus["math_version"]() == 2
    os.kill(new, signal.SIGKILL)
    found = DEATH.fullmatch(said(process))
    assert found and found["how"] == "was ended by SIGKILL"
    assert some_bus["math_version"]() == 2
    end(process)


def test_changes_within_a_moment_are_one(some: Processes, some_bus: Bus) -> None:
    some.write("deep/a.txt", "")
    write(some, 1)
    process = some.start("redis-bus", "-r", "service.bus")
    said_pids(process)
    # So that it sees them at once, however slow this process is.
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: processes_now()[process.pid][1].startswith("T"))
    for name in ("d.py", "c.py", "deep/b.py", "a.py"):
        some.write(name, "")
    write(some, 2)
    process.send_signal(signal.SIGCONT)
    line = said(process)
    assert line == "redis-bus: a.py, c.py, d.py and 2 more changed: workers are started again\n"
    said_pids(process)
    end(process)


def test_only_python_files_that_people_write_count(some: Processes, some_bus: Bus) -> None:
    some.write("env/pyvenv.cfg", "")
    some.write("package/old.py", "")
    ignored = [".git/a.py", "deep/.tox/a.py", "env/lib/a.py", "__pycache__/a.py", ".a.py"]
    ignored += ["package/a.txt", "package/a.pyc"]
    for name in ignored:
        some.write(name, "")
    write(some, 1)
    process = some.start("redis-bus", "-r", "service.bus")
    said_pids(process)
    for name in ignored:
        some.write(name, "1")
    (some.folder / "package" / "old.py").unlink()
    assert said(process) == "redis-bus: package/old.py changed: workers are started again\n"
    said_pids(process)
    end(process)


def test_a_module_that_lies_elsewhere_is_watched_there(some: Processes, some_bus: Bus) -> None:
    here = some.folder / ".work"  # what it is called does not matter
    here.mkdir()
    some.write("lib/service.py", SERVICE.replace("VERSION", "1"))
    environment = some.environment(PYTHONPATH=str(some.folder / "lib"))
    process = some.start("redis-bus", "-r", "service.bus", cwd=here, env=environment)
    said_pids(process)
    path = some.write("lib/other.py", "")
    assert said(process) == f"redis-bus: {path} changed: workers are started again\n"
    said_pids(process)
    some.write(".work/mine.py", "")
    assert said(process) == "redis-bus: mine.py changed: workers are started again\n"
    said_pids(process)
    end(process)


def test_where_a_module_lies_is_known_without_its_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here/mine/__init__.py", "lib/pack/sub/mod.py", "site-packages/single.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("raise AssertionError('it is imported')\n")
    (tmp_path / "lib/pack/__init__.py").write_text("raise AssertionError\n")
    here = tmp_path / "here"
    monkeypatch.chdir(here)
    for folder in ("lib", "site-packages"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    for module in ("mine", "mine.deep", "nowhere", "single", "sys"):
        assert folders_of(module) == [str(here)], module
    assert folders_of("pack.sub.mod") == [str(here), str(tmp_path / "lib" / "pack")]


def test_shutdown_timeout_bounds_what_a_change_waits_for(some: Processes, some_bus: Bus) -> None:
    write(some, 1)
    process = some.start("redis-bus", "-r", "--shutdown-timeout", "0.1", "service.bus")
    said_pids(process)
    job = some_bus["math_slow"].run()
    eventually((some.folder / "started").exists)
    write(some, 2)
    with pytest.raises(WorkerLost):
        job.get()
    assert said(process) == AGAIN
    said_pids(process)
    end(process)


def test_the_private_redis_stays(alone: Processes) -> None:
    port = free_port()
    write(alone, 1)
    line = ["redis-bus", "-r", "--embedded", "--embedded-port", str(port), "service.bus"]
    process = alone.start(*line, env=alone.environment(REDIS_BUS_URL=""))
    url = f"redis://localhost:{port}/0"
    assert f"a private Redis is at {url}; it ends with this process" in said(process)
    said_pids(process)
    with Bus("served", url=url, timeout=PATIENCE_SECONDS) as bus:
        run = bus.conn.info("server")["run_id"]
        write(alone, 2)
        assert said(process) == AGAIN
        said_pids(process)
        assert bus["math_version"]() == 2
        assert bus.conn.info("server")["run_id"] == run
    end(process)


# -- mistakes ---------------------------------------------------------------------------------


def test_a_file_with_a_mistake_is_told_once_and_waits_for_the_next_change(
    some: Processes, some_bus: Bus
) -> None:
    some.write("service.py", "open('ran', 'a').write('x')\nraise ValueError('no')\n")
    process = some.start("redis-bus", "-r", "-w", "3", "service.bus")
    said_why = said(process)
    assert "the import of 'service' failed: ValueError: no (service.py, line 2)" in said_why
    assert said(process) == WAITS
    for text, words in {
        "bus = = 1\n": "SyntaxError: invalid syntax (service.py, line 1)",
        "import there_is_none\n": "ModuleNotFoundError: No module named 'there_is_none'",
        "buss = 1\n": "module 'service' has no 'bus'",
    }.items():
        some.write("service.new", text).rename(some.folder / "service.py")
        assert said(process) == AGAIN
        line = said(process)
        assert words in line, line
        assert said(process) == WAITS
        assert children(process.pid) == []
    write(some, 1)
    assert said(process) == AGAIN
    assert len(said_pids(process)) == 3 and some_bus["math_version"]() == 1
    # Those that begin now must not find the next mistake before the supervisor does.
    eventually(lambda: workers(some_bus, "math_version") == 3)
    some.write("service.new", "import os\nos._exit(3)\n").rename(some.folder / "service.py")
    assert said(process) == AGAIN
    assert re.search(r"WARNING .*worker process \d+ ended with exit code 3\n", said(process))
    assert said(process) == WAITS
    assert (some.folder / "ran").read_text() == "x"
    end(process)


def test_a_signal_ends_the_wait_for_a_change(alone: Processes) -> None:
    alone.write("service.py", "bus = = 1\n")
    process = alone.start("redis-bus", "-r", "service.bus")
    assert "SyntaxError" in said(process) and said(process) == WAITS
    end(process, 0, signal.SIGINT)


def test_a_redis_that_is_not_there_yet_is_tried_again(alone: Processes) -> None:
    port = free_port()
    write(alone, 1)
    environment = alone.environment(REDIS_BUS_URL=f"redis://localhost:{port}/0")
    process = alone.start("redis-bus", "-r", "service.bus", env=environment)
    assert "(Connection refused)" in said(process)
    found = DEATH.fullmatch(said(process))
    assert found and found["how"] == "ended with exit code 5"
    with EmbeddedRedis(port=port):
        while not BANNER.fullmatch(line := said(process)):
            assert "(Connection refused)" in line or DEATH.fullmatch(line), line
        end(process)


# -- ending -----------------------------------------------------------------------------------


def test_a_signal_amid_a_restart_lets_jobs_finish_and_nothing_starts_again(
    some: Processes, some_bus: Bus
) -> None:
    write(some, 1)
    process = some.start("redis-bus", "-r", "--log-level", "info", "service.bus")
    said_until(process, "with 1 worker (pid ")
    job = some_bus["math_slow"].run()
    eventually((some.folder / "started").exists)
    write(some, 2)
    said_until(process, AGAIN)
    process.terminate()
    some.write("other.py", "")
    said_until(process, "INFO redis_bus: other.py changed, but all ends\n")
    queued = some_bus["math_version"].run()
    (some.folder / "go").touch()
    assert job.get() == "finished"
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0 and "WARNING" not in err, err
    assert not queued.done()
    assert len(list(some.folder.glob("env-*"))) == 1


def test_a_worker_is_told_once_to_finish_its_job_and_then_to_stop_at_once(
    some: Processes, some_bus: Bus
) -> None:
    notes = """
    import signal

    @bus.register()
    def noting():
        workers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

        def note(number, frame):
            with open("signals", "a") as file:
                file.write(f"{number} ")
            workers[number](number, frame)

        for number in workers:
            signal.signal(number, note)
        slow()
    """
    write(some, 1, notes)
    process = some.start("redis-bus", "-r", "service.bus")
    said_pids(process)
    job = some_bus["math_noting"].run()
    eventually((some.folder / "started").exists)
    signals = some.folder / "signals"
    write(some, 2, notes)
    assert said(process) == AGAIN
    eventually(signals.exists)
    some.write("other.py", "")
    assert said(process) == "redis-bus: other.py changed: workers are started again\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    with pytest.raises(WorkerLost):
        job.get()
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0
    # Two that come at once leave no time to say what would be finished.
    assert not err or err.startswith("redis-bus: finishing 1 job (math_noting), ")
    assert signals.read_text().split() == ["15", "2"]


# -- the command line -------------------------------------------------------------------------


def test_options_that_do_not_go_with_it_are_refused(alone: Processes) -> None:
    write(alone, 1)
    for option in ("--burst", "--debug"):
        refused = alone.run("redis-bus", "-r", option, "service.bus")
        assert refused.returncode == 2
        assert f"Error: {option} " in refused.stderr and "leave out --reload" in refused.stderr
    wrong = alone.run("redis-bus", "-r", "./service.py")
    assert wrong.returncode == 2 and is_one_line(wrong.stderr)


def test_without_watchfiles_it_says_what_to_install(alone: Processes) -> None:
    write(alone, 1)
    code = """
        import sys
        from redis_bus.cli import group as cli

        sys.modules["watchfiles"] = None
        cli.main(sys.argv[1:], prog_name="redis-bus")
    """
    process = alone.python(code, "--reload", "service.bus")
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 2 and "Traceback" not in err
    assert "pip install 'redis_bus[reload]'" in " ".join(err.split())


def test_watchfiles_is_imported_only_where_files_are_watched(alone: Processes) -> None:
    code = "import sys, redis_bus.cli.group\nassert 'watchfiles' not in sys.modules\n"
    process = alone.python(textwrap.dedent(code))
    assert process.wait(PATIENCE_SECONDS) == 0
