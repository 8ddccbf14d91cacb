"""``redis-bus TARGET``: what it says, what it serves, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from redis_bus import Bus, WorkerLost
from redis_bus.embedded import EmbeddedRedis
from tests.support import PATIENCE_SECONDS, Processes, eventually, workers

REFUSED = "redis://localhost:1/0"
SERVICE = """
    import pathlib
    import time
    from redis_bus import Bus

    bus = Bus("served", prefix="math_")

    @bus.register()
    def add(a, b):
        return a + b

    @bus.register()
    def slow():
        pathlib.Path(f"started{time.monotonic_ns()}").touch()
        pathlib.Path("started").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.005)
        return "finished"
"""


@pytest.fixture(scope="module")
def server(one_server: EmbeddedRedis) -> EmbeddedRedis:
    """Any: targets, options and signals are not its doing."""
    return one_server


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


def start(processes: Processes, bus: Bus, *options: str) -> subprocess.Popen[str]:
    """Serve SERVICE in a process, and wait until it is alive."""
    processes.write("service.py", SERVICE)
    process = processes.start("redis-bus", *options, "service.bus")
    eventually(lambda: workers(bus, "math_add") or process.poll() is not None)
    return process


def end(process: subprocess.Popen[str]) -> str:
    """Ask a process to end, and return what it said."""
    process.terminate()
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0, err
    return err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_one_line(text: str) -> bool:
    return text.count("\n") == 1 and "Traceback" not in text


# -- what it serves ---------------------------------------------------------------------------


def test_a_target_is_served_with_one_line_that_says_what_and_where(
    processes: Processes, client_bus: Bus
) -> None:
    process = start(processes, client_bus)
    assert client_bus["math_add"](1, 2) == 3
    said = end(process)
    address = client_bus._core.transport.address
    assert said == (
        f"redis-bus: serving math_add, math_slow on bus 'served' at {address}; ctrl-C stops\n"
    )
    assert workers(client_bus, "math_add") == 0


def test_serve_is_the_default_command_and_both_spellings_of_a_target_work(
    processes: Processes, client_bus: Bus
) -> None:
    processes.write("pack/__init__.py", "")
    processes.write("pack/service.py", SERVICE)
    for line in (["pack.service.bus"], ["pack.service:bus"], ["serve", "pack.service:bus"]):
        shown = processes.run("redis-bus", line[0], *line[1:], "--burst")
        assert shown.returncode == 0 and "on bus 'served'" in shown.stderr, shown


def test_an_async_bus_is_served_as_any_other(processes: Processes, client_bus: Bus) -> None:
    code = """
        from redis_bus import AsyncBus, Middleware

        class Refuse(Middleware):
            def before_run(self, run):
                if run.args == (13,):
                    raise ValueError("not 13")

        shop = AsyncBus("served", prefix="math_")
        shop.middleware.append(Refuse())

        @shop.register()
        def add(a, b):
            return a + b

        @shop.register()
        async def twice(a):
            return await shop.math_add(a, a)
    """
    processes.write("service.py", code)
    process = processes.start("redis-bus", "-w1", "-c2", "service.shop")
    eventually(lambda: workers(client_bus, "math_twice"))
    assert client_bus["math_twice"](4) == 8
    with pytest.raises(ValueError, match="not 13"):
        client_bus["math_twice"](13)
    assert "serving math_add, math_twice, 2 at a time" in end(process)
    result = client_bus["math_add"].run(1, 2)
    assert processes.run("redis-bus", "-b", "service.shop").stderr.endswith("ran 1 job\n")
    assert result.get() == 3
    wrong = processes.run("redis-bus", "service.py")
    assert "redis-bus service.shop" in wrong.stderr


def test_burst_runs_what_is_queued_and_exits(processes: Processes, client_bus: Bus) -> None:
    processes.write("service.py", SERVICE)
    assert processes.run("redis-bus", "-b", "service.bus").stderr.endswith("ran 0 jobs\n")
    results = [client_bus["math_add"].run(n, n) for n in range(3)]
    shown = processes.run("redis-bus", "-b", "service.bus")
    assert shown.returncode == 0 and shown.stderr.endswith("ran 3 jobs\n")
    assert [result.get() for result in results] == [0, 2, 4]


def test_a_pattern_chooses_what_is_served(processes: Processes, client_bus: Bus) -> None:
    process = start(processes, client_bus, "-p", "*_add")
    assert client_bus.all_methods() == ["math_add"]
    assert "serving math_add on bus" in end(process)
    none = processes.run("redis-bus", "-p", "x*", "service.bus")
    assert none.returncode == 2 and is_one_line(none.stderr)
    assert "no method of service.bus matches 'x*'; it has math_add, math_slow" in none.stderr


def test_targets_that_cannot_be_served_are_one_line_and_exit_2(alone: Processes) -> None:
    alone.write("service.py", SERVICE + "\n    number = 1\n")
    alone.write("empty.py", "from redis_bus import Bus\nbus = Bus('empty')\n")
    alone.write("broken.py", "from redis_bus import Bus\n\nbus = Bus('a b')\n")
    alone.write("deep.py", "import json\n\njson.loads('{')\n")
    alone.write("syntax.py", "bus = = 1\n")
    alone.write("needy.py", "import there_is_no_such_module\n")
    alone.write("leaver.py", "raise SystemExit\n")
    alone.write("paths.py", "from redis_bus import Bus\nbus = Bus()\nbus.register_method('no.f')\n")
    for target, words in {
        "nothing.bus": "there is no module 'nothing' in ",
        "nothing.at.all:bus": "there is no module 'nothing' in ",
        "service.buss": "module 'service' has no 'buss'; it has service.bus",
        "service.number": "service.number is no Bus, but an int",
        "service.py": "'service.py' is a path; a target is module.attr",
        "./service.bus": "'./service.bus' is a path; a target is module.attr",
        "service:": "'service:' names no bus; a target is module.attr",
        "empty.bus": "empty.bus has nothing to serve: register functions with @bus.register()",
        "broken.bus": "the import of 'broken' failed: ValueError: bus name 'a b'",
        "deep.bus": "JSONDecodeError: Expecting property name",
        "syntax.bus": "SyntaxError: invalid syntax (syntax.py, line 1)",
        "needy.bus": "ModuleNotFoundError: No module named 'there_is_no_such_module' (needy.py, l",
        "leaver.bus": "the import of 'leaver' failed: SystemExit (leaver.py, line 1)",
        "paths.bus": "method 'f' cannot be served: cannot import 'no.f'",
    }.items():
        shown = alone.run("redis-bus", target)
        assert (shown.returncode, shown.stdout) == (2, ""), shown
        assert is_one_line(shown.stderr) and words in shown.stderr, shown.stderr
    assert "(broken.py, line 3)" in alone.run("redis-bus", "broken.bus").stderr
    assert "(deep.py, line 3)" in alone.run("redis-bus", "deep.bus").stderr


def test_what_is_written_for_a_target_is_told_the_right_spelling(alone: Processes) -> None:
    alone.write("service.py", "import redis_bus\n\nshop: redis_bus.Bus = redis_bus.Bus('x')\n")
    alone.write("sub/rng.py", "from redis_bus import Bus\nbus = Bus('x')\n")
    alone.write("pack/__init__.py", "")
    for target, words in {
        "service": "such as service.shop",
        "pack": "such as pack.bus",
        "nothing": "such as simple_math.bus",
        "service.py": "(here: redis-bus service.shop)",
        "./service.py": "(here: redis-bus service.shop)",
        "./service.bus": "(here: redis-bus service.bus)",
        "service.py:shop": "(here: redis-bus service.shop)",
        "service.py.shop": "(here: redis-bus service.shop)",
        "sub/rng.bus": "(cd sub, then redis-bus rng.bus)",
        "sub/rng.py": "(cd sub, then redis-bus rng.bus)",
        "./sub//rng.py:bus": "(cd sub, then redis-bus rng.bus)",
        "../x/y.bus": "(cd ../x, then redis-bus y.bus)",
        str(alone.folder / "sub" / "rng"): f"(cd {alone.folder}/sub, then redis-bus rng.bus)",
    }.items():
        for line in ([target], ["serve", target]):
            shown = alone.run("redis-bus", *line)
            assert (shown.returncode, shown.stdout) == (2, ""), shown
            perhaps = words.replace("such as", "perhaps")
            assert words in shown.stderr or perhaps in shown.stderr, shown.stderr


@pytest.mark.parametrize("call", ["bus.serve()", "bus.serve_once()"])
def test_a_module_that_serves_by_itself_is_told_how_to_be_run(alone: Processes, call: str) -> None:
    alone.write("service.py", f"{SERVICE}\n    {call}\n")
    alone.write("other.py", "from service import bus\n")
    alone.write(
        "late.py", "from redis_bus import Bus\nb = Bus()\nb.register_method('service.add')\n"
    )
    words = (
        "service.py serves by itself when it is imported: run `python service.py`, "
        "or put bus.serve() under if __name__ == '__main__'\n"
    )
    for target in ("service.bus", "other.bus"):
        shown = alone.run("redis-bus", target)
        assert (shown.returncode, shown.stdout) == (2, "")
        assert shown.stderr == f"redis-bus: {words}"
    shown = alone.run("redis-bus", "late.b")
    assert shown.returncode == 2 and is_one_line(shown.stderr)
    assert "method 'add' cannot be served" in shown.stderr and "serves by itself" in shown.stderr


def test_a_module_may_serve_in_a_thread_when_it_is_imported(
    processes: Processes, client_bus: Bus
) -> None:
    threaded = (
        SERVICE.replace('"math_"', '"own_"').replace("bus", "own").replace("redis_own", "redis_bus")
    )
    processes.write(
        "own.py",
        f"""{threaded}
    import threading
    threading.Thread(target=own.serve, daemon=True).start()
    """,
    )
    processes.write("service.py", f"import own\n{textwrap.dedent(SERVICE)}")
    process = processes.start("redis-bus", "service.bus")
    eventually(lambda: workers(client_bus, "math_add") and workers(client_bus, "own_add"))
    assert client_bus["own_add"](1, 2) == client_bus["math_add"](1, 2) == 3
    end(process)


def test_the_whole_traceback_of_an_import_is_shown_on_demand(alone: Processes) -> None:
    alone.write("helper.py", "def f():\n    raise ValueError('redis://u:hunter2@h')\n")
    alone.write("broken.py", "import helper\n\nhelper.f()\n")
    assert is_one_line(alone.run("redis-bus", "broken.bus").stderr)
    for options in (["--debug"], ["--log-level", "debug"]):
        shown = alone.run("redis-bus", *options, "broken.bus")
        assert shown.returncode == 2 and "hunter2" not in shown.stderr
        for line in ('broken.py", line 3', 'helper.py", line 2', "the import of 'broken' failed"):
            assert line in shown.stderr
    shown = alone.run("redis-bus", "--debug", "--log-format", "json", "broken.bus")
    assert "helper.py" in json.loads(shown.stderr.splitlines()[0])["traceback"]


def test_a_method_that_an_attribute_hides_is_warned_of(
    processes: Processes, client_bus: Bus
) -> None:
    processes.write(
        "service.py",
        "from redis_bus import Bus\nbus = Bus('served')\n"
        "for name in ('stats', 'conn', 'x'):\n    bus.register(name)(len)\n",
    )
    said = processes.run("redis-bus", "--burst", "service.bus").stderr.splitlines()
    assert said[1:3] == [
        f"redis-bus: method {name!r} is reached with bus[{name!r}] only: "
        "Bus has an attribute of that name"
        for name in ("conn", "stats")
    ]
    assert not any("'x'" in line for line in said)


def test_serving_without_a_redis_is_one_line_with_three_ways_out(alone: Processes) -> None:
    alone.write("service.py", SERVICE)
    shown = alone.run("redis-bus", "service.bus")
    assert (shown.returncode, shown.stdout) == (5, "")
    assert is_one_line(shown.stderr) and "localhost:1 (Connection refused)" in shown.stderr
    for way in ("--embedded", "apt install redis-server", "--url", "REDIS_BUS_URL"):
        assert way in shown.stderr


# -- options ----------------------------------------------------------------------------------


def test_every_serve_option_can_come_from_the_environment(
    processes: Processes, client_bus: Bus
) -> None:
    processes.write("service.py", SERVICE)
    shown = processes.run("redis-bus", "serve", "--help").stdout
    names = ["PATTERN", "DEBUG", "BURST", "SHUTDOWN_TIMEOUT", "EMBEDDED", "LOG_LEVEL", "LOG_FORMAT"]
    for name in names:
        assert f"REDIS_BUS_SERVE_{name}" in "".join(shown.split())
    assert "REDIS_BUS_URL" in shown

    environment = processes.environment(
        REDIS_BUS_SERVE_PATTERN="*_add",
        REDIS_BUS_SERVE_BURST="1",
        REDIS_BUS_SERVE_LOG_LEVEL="info",
        REDIS_BUS_SERVE_LOG_FORMAT="json",
    )
    shown_json = processes.run("redis-bus", "service.bus", env=environment)
    assert shown_json.returncode == 0
    lines = [json.loads(line) for line in shown_json.stderr.splitlines()]
    assert "serving math_add on bus" in lines[0]["message"]
    assert lines[-1]["message"] == "ran 0 jobs"
    for name, value in (("SHUTDOWN_TIMEOUT", "soon"), ("LOG_LEVEL", "loud"), ("DEBUG", "maybe")):
        environment = processes.environment(**{f"REDIS_BUS_SERVE_{name}": value})
        refused = processes.run("redis-bus", "service.bus", env=environment)
        assert refused.returncode == 2 and value in refused.stderr


def test_logs_are_text_or_one_json_object_a_line(processes: Processes, client_bus: Bus) -> None:
    process = start(processes, client_bus, "--log-format", "json", "--log-level", "info")
    with pytest.raises(TypeError):
        client_bus["math_add"](1, "2")
    lines = [json.loads(line) for line in end(process).splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    raised = [line for line in lines if line["level"] == "warning"]
    said = "math_add raised TypeError: unsupported operand type(s) for +: 'int' and 'str'"
    assert [line["message"] for line in raised] == [said]
    assert "in add" in raised[0]["traceback"] and "redis_bus" not in raised[0]["traceback"]

    process = start(processes, client_bus)
    with pytest.raises(TypeError):
        client_bus["math_add"](1, "2")
    _, warned, *trace = end(process).splitlines()
    assert "WARNING" in warned and said in warned
    assert all(line.startswith("    ") for line in trace) and "in add" in "".join(trace)

    process = start(processes, client_bus, "--log-arguments")
    with pytest.raises(TypeError):
        client_bus["math_add"](1, "2")
    assert "math_add(1, '2') raised TypeError" in end(process)


def test_url_decides_where_the_bus_of_a_module_is(
    processes: Processes, client_bus: Bus, url: str
) -> None:
    processes.write("service.py", SERVICE)
    processes.write("fixed.py", SERVICE.replace('"math_"', f'"math_", url={url!r}'))
    refused = processes.environment(REDIS_BUS_URL=REFUSED)
    line = ["redis-bus", "--burst", "--url", url, "service.bus"]
    assert processes.run(*line, env=refused).returncode == 0
    line = ["redis-bus", "--burst", "--url", REFUSED, "fixed.bus"]
    shown = processes.run(*line, env=refused)
    assert shown.returncode == 0
    assert f"fixed.bus names its own Redis, {client_bus._core.transport.address}" in shown.stderr
    bad = processes.run("redis-bus", "--url", "nonsense", "service.bus")
    assert bad.returncode == 2 and "not a Redis URL" in bad.stderr


def test_passwords_are_never_printed(processes: Processes, client_bus: Bus) -> None:
    secret = "hunter2"
    client_bus.conn.acl_setuser(
        "tester", enabled=True, passwords=[f"+{secret}"], keys=["*"], categories=["+@all"]
    )
    processes.write("service.py", SERVICE)
    url = processes.url.replace("unix://", f"unix://tester:{secret}@")
    environment = processes.environment(REDIS_BUS_URL=url)
    shown = processes.run("redis-bus", "-b", "--log-level", "debug", "service.bus", env=environment)
    client_bus.conn.acl_deluser("tester")
    assert shown.returncode == 0 and "serving" in shown.stderr
    assert secret not in shown.stderr + shown.stdout


# -- how it ends ------------------------------------------------------------------------------


def test_first_sigterm_finishes_the_running_job(processes: Processes, client_bus: Bus) -> None:
    process = start(processes, client_bus)
    running = client_bus["math_slow"].run()
    eventually((processes.folder / "started").exists)
    queued = client_bus["math_add"].run(1, 2)
    process.terminate()
    (processes.folder / "go").touch()
    assert running.get() == "finished"
    assert process.wait(PATIENCE_SECONDS) == 0
    assert not queued.done()


@pytest.mark.parametrize("options", [[], ["-w2"], ["-w2", "-c2"]], ids=" ".join)
def test_the_first_signal_says_once_what_is_finished(
    some: Processes, some_bus: Bus, options: list[str]
) -> None:
    process = start(some, some_bus, *options)
    said_line(process)
    jobs = 3 if "-c2" in options else 1
    calls = [some_bus["math_slow"].run() for _ in range(jobs)]
    eventually(lambda: len(list(some.folder.glob("started?*"))) == jobs)
    process.send_signal(signal.SIGINT)
    what = "3 jobs (math_slow), for 30 s at the most; ctrl-C again stops them"
    if jobs == 1:
        what = "1 job (math_slow), for 30 s at the most; ctrl-C again stops it"
    assert said_line(process) == f"redis-bus: finishing {what}\n"
    (some.folder / "go").touch()
    assert [call.get() for call in calls] == ["finished"] * jobs
    assert process.communicate(timeout=PATIENCE_SECONDS)[1] == ""
    assert process.returncode == 0


def test_second_signal_stops_now(processes: Processes, client_bus: Bus) -> None:
    process = start(processes, client_bus)
    running = client_bus["math_slow"].run()
    eventually((processes.folder / "started").exists)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    with pytest.raises(WorkerLost):
        running.get()
    assert process.wait(PATIENCE_SECONDS) == 0


def test_shutdown_timeout_bounds_the_running_job(processes: Processes, client_bus: Bus) -> None:
    process = start(processes, client_bus, "--shutdown-timeout", "0.2")
    running = client_bus["math_slow"].run()
    eventually((processes.folder / "started").exists)
    process.terminate()
    with pytest.raises(WorkerLost):
        running.get()
    assert process.wait(PATIENCE_SECONDS) == 0


# -- the private Redis ------------------------------------------------------------------------


def embedded(alone: Processes, port: int, temporary: str = ".") -> subprocess.Popen[str]:
    environment = alone.environment(TMPDIR=str(alone.folder / temporary))
    del environment["REDIS_BUS_URL"]
    alone.write("service.py", SERVICE)
    line = ["redis-bus", "--embedded", "--embedded-port", str(port), "service.bus"]
    return alone.start(*line, env=environment)


def said_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_embedded_brings_a_redis_that_other_terminals_find(alone: Processes) -> None:
    port = free_port()
    (alone.folder / "tmp").mkdir()
    process = embedded(alone, port, "tmp")
    url = f"redis://localhost:{port}/0"
    assert f"a private Redis is at {url}; it ends with this process" in said_line(process)
    assert f"serving math_add, math_slow on bus 'served' at localhost:{port}" in said_line(process)
    with Bus("served", url=url) as bus:
        eventually(lambda: workers(bus, "math_add"))
        assert bus["math_add"](1, 2) == 3
    end(process)
    assert list((alone.folder / "tmp").iterdir()) == []
    assert alone.run("redis-bus", "--url", url, "ping").returncode == 5


def test_embedded_uses_the_redis_that_has_the_port_already(alone: Processes) -> None:
    with EmbeddedRedis(port=0) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        process = embedded(alone, port)
        assert f"port {port} is taken by a Redis already: {server.url} is" in said_line(process)
        with Bus("served", url=server.url) as bus:
            eventually(lambda: workers(bus, "math_add"))
            assert bus["math_add"](1, 2) == 3
            end(process)
            assert workers(bus, "math_add") == 0


def test_embedded_takes_a_free_port_where_something_else_has_its_own(alone: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection = other.accept()[0]
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        port = other.getsockname()[1]
        process = embedded(alone, port)
        line = said_line(process)
        thread.join(PATIENCE_SECONDS)
        assert f"port {port} is taken by something else: a private Redis is at redis://" in line
        url = line.rpartition("REDIS_BUS_URL=")[2].strip()
        with Bus("served", url=url) as bus:
            eventually(lambda: workers(bus, "math_add"))
            assert bus["math_add"](1, 2) == 3
        end(process)


def test_two_embedded_at_once_share_one_redis(alone: Processes) -> None:
    port = free_port()
    both = [embedded(alone, port) for _ in range(2)]
    with Bus("served", url=f"redis://localhost:{port}/0") as bus:
        lines = [said_line(process) for process in both]
        assert sorted("taken by a Redis already" in line for line in lines) == [False, True], lines
        eventually(lambda: workers(bus, "math_add") == 2)
    owner = ["taken" in line for line in lines].index(False)
    end(both[1 - owner])
    end(both[owner])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_embedded_leaves_nothing_when_a_signal_comes_early(alone: Processes, number: int) -> None:
    (alone.folder / "tmp").mkdir()
    process = embedded(alone, free_port(), "tmp")
    said_line(process)
    process.send_signal(number)
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode in (0, 130, 143) and "Traceback" not in err
    assert list((alone.folder / "tmp").iterdir()) == []


def test_no_private_redis_is_announced_for_a_target_that_cannot_be_served(alone: Processes) -> None:
    alone.write("broken.py", "import os\nraise ValueError(os.environ['REDIS_BUS_URL'])\n")
    port = free_port()
    for target in ("nothing.bus", "nothing", "./x.bus", "broken.bus"):
        line = ["serve", "--embedded", "--embedded-port", str(port), target]
        shown = alone.run("redis-bus", *line)
        assert shown.returncode == 2 and is_one_line(shown.stderr), shown
    # The module is told where that Redis is, all the same.
    assert f"ValueError: redis://localhost:{port}/0 (broken.py, line 2)" in shown.stderr


def test_a_module_can_use_the_private_redis_when_it_is_imported(alone: Processes) -> None:
    alone.write("service.py", f"{SERVICE}\n    print(bus.all_methods())\n")
    line = ["--embedded", "--embedded-port", str(free_port()), "--burst", "service.bus"]
    shown = alone.run("redis-bus", *line)
    assert shown.returncode == 0 and shown.stdout == "['math_add', 'math_slow']\n"


def test_an_environment_that_leads_others_elsewhere_is_told_of(alone: Processes) -> None:
    alone.write("service.py", SERVICE)
    port = free_port()
    line = ["redis-bus", "--embedded", "--embedded-port", str(port), "--burst", "service.bus"]
    url = f"redis://localhost:{port}/0"
    wrong = "redis://u:secret@localhost:1/0"
    for kind, more in {"": [], "in the words of the supervisor": ["-w1"]}.items():
        said = alone.run(*line, *more, env=alone.environment(REDIS_BUS_URL=wrong)).stderr
        assert said.splitlines()[1] == (
            "redis-bus: REDIS_BUS_URL does not count with --embedded, but others that have it look "
            f"at localhost:1: set REDIS_BUS_URL={url} for them"
        ), kind
    said = alone.run(*line, env=alone.environment(REDIS_BUS_URL=url)).stderr
    assert said.splitlines()[1].startswith("redis-bus: serving math_add")


def test_embedded_and_url_exclude_each_other(alone: Processes) -> None:
    shown = alone.run("redis-bus", "--embedded", "--url", REFUSED, "service.bus")
    assert shown.returncode == 2 and "leave out --url" in shown.stderr


def test_an_embedded_redis_that_cannot_be_is_one_line(alone: Processes) -> None:
    broken = alone.write("bin/redis-server", "#!/bin/sh\necho it cannot run here\nexit 1\n")
    broken.chmod(0o755)
    environment = alone.environment()
    environment["PATH"] = os.pathsep.join([str(broken.parent), environment["PATH"]])
    port = str(free_port())
    for line in (["--embedded", "--embedded-port", port, "service.bus"], ["demo"]):
        shown = alone.run("redis-bus", *line, env=environment)
        assert shown.returncode == 5 and is_one_line(shown.stderr), shown
        assert "it cannot run here" in shown.stderr
