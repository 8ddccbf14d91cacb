"""The commands that look at a bus and act on it, run as a user runs them."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from redis_bus import Bus
from redis_bus.cli.common import hide_passwords
from redis_bus.transport.servers import product
from tests.support import PATIENCE_SECONDS, Processes, eventually, serving

REFUSED = "redis://localhost:1/0"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Processes]:
    """Starts processes for which there is no Redis."""
    processes = Processes(REFUSED, tmp_path)
    yield processes
    processes.end()


@pytest.fixture
def served(bus: Bus) -> Iterator[Bus]:
    """A bus with a method of each kind, and a worker that serves them."""

    @bus.register(cache_key="{a}/{b}")
    def add(a: float, b: float = 10) -> float:
        """Return a + b.

        More words that a list does not show.
        """
        return a + b

    @bus.register()
    def echo(*args: object, **kwargs: object) -> object:
        return [list(args), kwargs]

    @bus.register()
    def greet(name: str) -> str:
        return f"hello, {name}"

    @bus.register()
    def moment() -> tuple[int, ...]:
        return (1, 2)

    @bus.register()
    def fail(kind: str) -> None:
        raise {"value": ValueError, "type": TypeError, "timeout": TimeoutError}[kind]("as asked")

    @bus.register()
    def opaque() -> object:
        return object()

    @bus.register()
    def nested() -> None:
        raise Mine("as asked")

    with serving(bus):
        yield bus


class Mine(Exception):
    """What nobody but this module has."""


def is_one_line(text: str) -> bool:
    return text.count("\n") == 1 and "Traceback" not in text


# -- ls, stats, ping --------------------------------------------------------------------------


def test_ls_shows_signature_cache_key_docstring_workers_and_queue(
    served: Bus, processes: Processes
) -> None:
    shown = processes.run("redis-bus", "ls", "test")
    assert shown.returncode == 0, shown.stderr
    add = "add(a: float, b: float = 10) -> float  [cache_key='{a}/{b}', 1 worker, 0 queued]"
    assert f"{add}\n    Return a + b.\n" in shown.stdout
    assert "greet(name: str) -> str  [1 worker, 0 queued]\n" in shown.stdout
    assert "More words" not in shown.stdout

    assert processes.run("redis-bus", "ls", "test", "gr*").stdout.startswith("greet(name: str)")
    assert "none of its 7 methods" in processes.run("redis-bus", "ls", "test", "x*").stdout


def test_ls_as_json_is_a_list_of_objects(served: Bus, processes: Processes) -> None:
    shown = processes.run("redis-bus", "ls", "test", "add", "--json")
    assert json.loads(shown.stdout) == [
        {
            "name": "add",
            "signature": "(a: float, b: float = 10) -> float",
            "cache_key": "{a}/{b}",
            "doc": "Return a + b.",
            "workers": 1,
            "queued": 0,
            "partitions": 1,
        }
    ]


def test_an_empty_bus_is_no_error(processes: Processes) -> None:
    for command in ("ls", "stats"):
        shown = processes.run("redis-bus", command, "nothing")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert is_one_line(shown.stdout) and "'nothing' has no methods" in shown.stdout
    assert json.loads(processes.run("redis-bus", "ls", "nothing", "--json").stdout) == []


def test_stats_are_a_table_or_json(served: Bus, processes: Processes) -> None:
    for _ in range(3):
        served["add"](1, 2)
    rows = [r.split() for r in processes.run("redis-bus", "stats", "test").stdout.splitlines()]
    assert " ".join(rows[0]) == "method calls hits joins errors lost dead queued workers latency"
    row = next(row for row in rows if row[0] == "add")
    assert row[1:9] == ["3", "2", "0", "0", "0", "0", "0", "1"]
    listed = json.loads(processes.run("redis-bus", "stats", "--json", "test").stdout)
    assert {one["name"]: one["calls"] for one in listed}["add"] == 3


def test_stats_take_a_pattern_and_round_the_latency(served: Bus, processes: Processes) -> None:
    served["add"](1, 2)
    shown = processes.run("redis-bus", "stats", "test", "ad*").stdout
    assert [row.split()[0] for row in shown.splitlines()] == ["method", "add"]
    assert re.search(r" \d+(\.\d)? (m?s)$| \d+\.\d\d ms$", shown.rstrip())
    listed = json.loads(processes.run("redis-bus", "stats", "test", "ad*", "--json").stdout)
    assert [one["name"] for one in listed] == ["add"]
    assert listed[0]["latency"] == round(listed[0]["latency"], 6) > 0
    assert "none of its 7 methods" in processes.run("redis-bus", "stats", "test", "x*").stdout
    assert json.loads(processes.run("redis-bus", "stats", "test", "x*", "--json").stdout) == []


def test_ping_says_latency_version_methods_and_workers(served: Bus, processes: Processes) -> None:
    server, version = product(served.conn.info("server"))
    shown = processes.run("redis-bus", "ping")
    assert shown.returncode == 0 and is_one_line(shown.stdout)
    assert f"{server} {version}" in shown.stdout and " ms" in shown.stdout
    assert "7 methods, 1 worker alive" in processes.run("redis-bus", "ping", "test").stdout
    found = json.loads(processes.run("redis-bus", "ping", "test", "--json").stdout)
    assert (found["methods"], found["workers"]) == (7, 1)
    assert (found["server"], found["version"]) == (server, version)
    assert 0 < found["latency_ms"] < 1000


# -- call -------------------------------------------------------------------------------------


def test_call_reads_values_as_json_else_as_text(served: Bus, processes: Processes) -> None:
    given = ["1", "-2", "2.5", "true", "null", '"1"', "[1, {}]", "one", "NaN", "a-b=1", "b=2"]
    given += ["c=x=y", '{"k": "v=w"}']
    shown = processes.run("redis-bus", "call", "--json", "test", "echo", *given)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == [
        [1, -2, 2.5, True, None, "1", [1, {}], "one", "NaN", "a-b=1", {"k": "v=w"}],
        {"b": 2, "c": "x=y"},
    ]


def test_call_prints_text_as_it_is_and_other_values_by_repr(
    served: Bus, processes: Processes
) -> None:
    assert processes.run("redis-bus", "call", "test", "add", "1", "b=2").stdout == "3\n"
    assert processes.run("redis-bus", "call", "test", "greet", "you").stdout == "hello, you\n"
    assert processes.run("redis-bus", "call", "test", "moment").stdout == "(1, 2)\n"
    shown = processes.run("redis-bus", "call", "test", "greet", "you", "--json")
    assert json.loads(shown.stdout) == "hello, you"


@pytest.mark.parametrize("kind", ["value", "type", "timeout"])
def test_a_remote_error_is_exit_1_and_its_remote_traceback(
    served: Bus, processes: Processes, kind: str
) -> None:
    shown = processes.run("redis-bus", "call", "test", "fail", kind)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("Traceback") and "test_cli.py" in shown.stderr
    assert shown.stderr.endswith("Error: as asked\n")
    assert "redis_bus/" not in shown.stderr


def test_an_error_of_the_bus_that_comes_from_a_worker_is_one_line(
    served: Bus, processes: Processes
) -> None:
    shown = processes.run("redis-bus", "call", "test", "opaque")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert is_one_line(shown.stderr) and "opaque(): cannot encode result" in shown.stderr


@pytest.mark.parametrize(
    ("method", "kind", "message", "trace"),
    [
        ("fail", "ValueError", "as asked", "test_cli.py"),
        ("nested", "tests.cli.test_cli.Mine", "as asked", "test_cli.py"),
        ("opaque", "SerializationError", "opaque(): cannot encode result", "Serialization"),
    ],
)
def test_a_remote_error_as_json_is_an_object_on_stdout(
    served: Bus, processes: Processes, method: str, kind: str, message: str, trace: str
) -> None:
    arguments = ["value"] if method == "fail" else []
    shown = processes.run("redis-bus", "call", "--json", "test", method, *arguments)
    assert (shown.returncode, shown.stderr) == (1, "")
    error = json.loads(shown.stdout)["error"]
    assert set(error) == {"type", "message", "traceback"}
    assert error["type"] == kind and error["message"].startswith(message)
    assert trace in error["traceback"]


def test_a_time_that_is_no_number_is_said_to_be_none(alone: Processes) -> None:
    for value in ("x", "nan", "1s"):
        shown = alone.run("redis-bus", "call", "--timeout", value, "test", "add")
        assert shown.returncode == 2 and f"'{value}' is not a number\n" in shown.stderr
    shown = alone.run("redis-bus", "call", "--timeout", "-1", "test", "add")
    assert shown.returncode == 2 and "range" in shown.stderr


def test_a_wrong_call_is_exit_2_in_one_line(served: Bus, processes: Processes) -> None:
    wrong = processes.run("redis-bus", "call", "test", "add", "1", "2", "3")
    assert wrong.returncode == 2 and is_one_line(wrong.stderr)
    assert "add() takes from 1 to 2 positional arguments but 3 were given" in wrong.stderr
    unknown = processes.run("redis-bus", "call", "test", "ad")
    assert unknown.returncode == 2 and is_one_line(unknown.stderr)
    assert "no method 'ad'; did you mean 'add'" in unknown.stderr
    twice = processes.run("redis-bus", "call", "test", "add", "a=1", "a=2")
    assert twice.returncode == 2 and "a= is given twice" in twice.stderr


def test_no_worker_is_exit_3_and_a_timeout_is_exit_4(bus: Bus, processes: Processes) -> None:
    release = threading.Event()

    @bus.register()
    def block() -> None:
        release.wait()

    bus["block"].run().cancel()
    at_once = processes.run("redis-bus", "call", "--fail-fast", "test", "block")
    assert at_once.returncode == 3 and is_one_line(at_once.stderr)
    late = processes.run("redis-bus", "call", "--timeout", "0.1", "test", "block")
    assert late.returncode == 3 and "0 workers alive" in late.stderr
    with serving(bus):
        try:
            slow = processes.run("redis-bus", "call", "--timeout=0.1", "test", "block")
        finally:
            release.set()
    assert slow.returncode == 4 and is_one_line(slow.stderr)
    assert "block(): no reply in 0.1 s" in slow.stderr


def test_ctrl_c_in_a_call_is_quiet(bus: Bus, processes: Processes) -> None:
    @bus.register()
    def never() -> None:
        """Nobody serves it."""

    bus["never"].run().cancel()
    process = processes.start("redis-bus", "call", "test", "never")
    eventually(lambda: bus.conn.info("clients")["blocked_clients"])
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert err == "\nredis-bus: never(): withdrawn, no worker had taken it\n"
    assert bus.serve_once() == 0


def test_ctrl_c_says_what_becomes_of_a_call_that_it_cannot_withdraw(
    bus: Bus, processes: Processes
) -> None:
    entered, go = threading.Event(), threading.Event()
    ran: list[int] = []

    @bus.register()
    def held(n: int) -> None:
        entered.set()
        assert go.wait(PATIENCE_SECONDS)
        ran.append(n)

    @bus.register(cache_key="{n}")
    def shared(n: int) -> int:
        return n

    with serving(bus, "held"):
        taken = processes.start("redis-bus", "call", "test", "held", "7")
        assert entered.wait(PATIENCE_SECONDS)
        bus.shared.run(1).cancel()
        first = processes.start("redis-bus", "call", "test", "shared", "n=1")
        eventually(lambda: bus.stats()["shared"]["calls"] == 2)
        result = bus.shared.run(1)
        for process, word in (
            (taken, "held(7): not withdrawn, a worker"),
            (first, "shared(n=1): not withdrawn, others wait"),
        ):
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=PATIENCE_SECONDS)[1]
            assert process.returncode == 130 and word in err
        go.set()
    assert ran == [7]
    assert bus.serve_once("shared") == 1  # what was withdrawn is none
    assert result.get() == 1


def test_ctrl_c_amid_the_imports_is_quiet_too(alone: Processes) -> None:
    alone.write("click.py", "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    process = alone.start(sys.executable, "-m", "redis_bus", "--version")
    eventually((alone.folder / "begun").exists)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE_SECONDS) == ("", "\n")
    assert process.returncode == 130


# -- clear-cache, cleanup ---------------------------------------------------------------------


def test_clear_cache_forgets_one_value_or_all_of_a_method(
    served: Bus, processes: Processes
) -> None:
    add = served["add"]
    assert add(1, 2) == add(1, 3) - 1 == 3
    one = processes.run("redis-bus", "clear-cache", "test", "add", "1", "b=2")
    assert (one.returncode, one.stdout) == (0, "add(1, b=2) is forgotten\n")
    again = processes.run("redis-bus", "clear-cache", "test", "add", "1", "b=2")
    assert (again.returncode, again.stdout) == (0, "add(1, b=2) was not cached\n")

    unasked = processes.run("redis-bus", "clear-cache", "test", "add", "--all")
    assert unasked.returncode == 2 and "--yes" in unasked.stderr
    every = processes.run("redis-bus", "clear-cache", "test", "add", "--all", "--yes")
    assert (every.returncode, every.stdout) == (0, "all values of add are forgotten\n")
    hits = served.stats()["add"]["hits"]
    add(1, 3)
    assert served.stats()["add"]["hits"] == hits

    for wrong in (["add"], ["greet", "x"], ["greet", "--all", "--yes"], ["ad", "1"]):
        shown = processes.run("redis-bus", "clear-cache", "test", *wrong)
        assert shown.returncode == 2 and is_one_line(shown.stderr), wrong


def test_cleanup_asks_first_and_says_how_many_keys_it_deleted(
    bus: Bus, processes: Processes
) -> None:
    @bus.register()
    def method() -> None:
        """Leaves keys."""

    bus["method"].run()
    keys = bus.conn.dbsize()
    assert keys > 1
    unasked = processes.run("redis-bus", "cleanup", "test")
    assert unasked.returncode == 2 and "--yes" in unasked.stderr
    assert bus.conn.dbsize() == keys

    environment = processes.environment()
    terminal = pexpect.spawn(
        "redis-bus", ["cleanup", "test"], env=environment, encoding="utf-8", timeout=30
    )
    terminal.expect("Delete all keys of bus 'test' at .*y/N")
    terminal.sendline("n")
    terminal.expect("nothing is deleted")
    terminal.expect(pexpect.EOF)
    assert bus.conn.dbsize() == keys

    terminal = pexpect.spawn(
        "redis-bus", ["cleanup", "test"], env=environment, encoding="utf-8", timeout=30
    )
    terminal.expect("y/N")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130 and "Traceback" not in (terminal.before or "")
    assert bus.conn.dbsize() == keys

    done = processes.run("redis-bus", "cleanup", "test", "--yes")
    assert (done.returncode, done.stdout) == (0, f"deleted {keys} keys of bus 'test'\n")
    assert bus.conn.dbsize() == 0


# -- where Redis is, and where it is not ------------------------------------------------------


def test_redis_is_found_by_option_then_by_environment(
    served: Bus, processes: Processes, url: str
) -> None:
    refused = processes.environment(REDIS_BUS_URL=REFUSED)
    for line in (["ls", "--url", url, "test"], ["--url", url, "ls", "test"]):
        assert "add(a" in processes.run("redis-bus", *line, env=refused).stdout
    second = processes.environment(REDIS_URL=url)
    del second["REDIS_BUS_URL"]
    assert "add(a" in processes.run("redis-bus", "ls", "test", env=second).stdout
    assert processes.run("redis-bus", "ls", "test", env=refused).returncode == 5


@pytest.mark.parametrize(
    "command",
    [
        "ls x",
        "ls",
        "buses",
        "stats x",
        "call x y",
        "clear-cache x y",
        "cleanup x",
        "ping",
        "shell x",
    ],
)
def test_no_redis_at_all_is_one_line_with_three_ways_out(alone: Processes, command: str) -> None:
    shown = alone.run("redis-bus", *command.split())
    assert (shown.returncode, shown.stdout) == (5, "")
    assert is_one_line(shown.stderr)
    assert "localhost:1 (Connection refused)" in shown.stderr
    for way in ("--embedded", "apt install redis-server", "--url", "REDIS_BUS_URL"):
        assert way in shown.stderr


def test_a_redis_that_refuses_us_is_one_line(processes: Processes, url: str) -> None:
    wrong = url.replace("unix://", "unix://nobody:hunter2@")
    shown = processes.run("redis-bus", "--url", wrong, "ls", "test")
    assert shown.returncode == 5 and is_one_line(shown.stderr)
    assert "hunter2" not in shown.stderr


def test_passwords_are_never_printed(alone: Processes) -> None:
    secret = "hunter2"
    alone.write("loud.py", "import os\nraise ValueError(os.environ['REDIS_BUS_URL'])\n")
    urls = [f"redis://u:{secret}@localhost:1/0", f"redis://:{secret}@localhost:1/0"]
    urls += [f"rediss://u:{secret}@localhost:1/0", f"unix://u:{secret}@/no/socket"]
    urls += [f"http://u:{secret}@localhost:1", f"redis://localhost:1/0?password={secret}"]
    urls += [f"u:{secret}@localhost", f":{secret}@localhost:1", f"redis:/u:{secret}@localhost"]
    urls += [f"redis://u:a{mark}{secret}@localhost:1/0" for mark in "/?@#"]
    urls += [f"u:a{mark}{secret}@localhost:1/0" for mark in "/?@#'"]
    for url in urls:
        environment = alone.environment(REDIS_BUS_URL=url)
        for command in (
            ["ls", "x"],
            ["loud.bus"],
            ["--url", url, "ls", "x"],
            ["ls", "x", "y", url],
        ):
            shown = alone.run("redis-bus", *command, env=environment)
            assert shown.returncode in (2, 5), shown
            assert shown.stderr and secret not in shown.stdout + shown.stderr
    text = f"see redis://u:{secret}@h:1/0?x=1 and valkey://:{secret}@h and 'redis://h/0'"
    assert hide_passwords(text) == "see redis://***@h:1/0?x=1 and valkey://***@h and 'redis://h/0'"
    assert hide_passwords(f"see 'u:{secret}@h' and :{secret}@h:1") == "see '***@h' and ***@h:1"
    harmless = "bus.serve() of a:b, @bus.register(), me@example.org, x.bus: it is served at h:1"
    assert hide_passwords(harmless) == harmless


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://localhost/0?tiemout=4", "there is no parameter 'tiemout'"),
        ("redis://localhost:port", "its port is not a number from 1 to 65535"),
        ("redis://localhost:99999", "its port is not a number from 1 to 65535"),
        (
            "redis://localhost/0?db=1&socket_timeout=abc",
            "?db=1&socket_timeout=abc': socket_timeout",
        ),
        ("redis://localhost/abc", "must be the number of a database"),
    ],
)
def test_a_wrong_url_is_one_line_and_exit_2(alone: Processes, url: str, words: str) -> None:
    alone.write("service.py", "from redis_bus import Bus\nbus = Bus()\nbus.register('f')(print)\n")
    for command in (["ls", "x"], ["serve", "service.bus"]):
        shown = alone.run("redis-bus", "--url", url, *command)
        assert (shown.returncode, shown.stdout) == (2, ""), shown
        assert is_one_line(shown.stderr) and words in shown.stderr


# -- help -------------------------------------------------------------------------------------


def test_help_says_what_it_is_with_examples_and_every_command(alone: Processes) -> None:
    shown = alone.run("redis-bus", "--help")
    assert shown.returncode == 0
    assert shown.stdout.count("in a second or two") == 2
    commands = ["serve", "demo", "ls", "call", "stats", "clear-cache", "cleanup", "shell", "ping"]
    commands += ["dead", "bench", "buses"]
    for word in [*commands, "Examples:", "redis-bus --embedded simple_math.bus", "3 no workers"]:
        assert word in shown.stdout
    for command in commands:
        assert alone.run("redis-bus", command, "--help").returncode == 0
    assert "REDIS_BUS_CALL_TIMEOUT" in alone.run("redis-bus", "call", "--help").stdout
    assert alone.run("redis-bus", "--version").stdout.startswith("redis-bus, version ")


def test_a_command_that_does_not_exist_is_exit_2_with_a_hint(alone: Processes) -> None:
    shown = alone.run("redis-bus", "lss", "x")
    assert shown.returncode == 2 and "simple_math.bus" in shown.stderr


def test_an_option_that_does_not_exist_shows_the_usage_of_the_whole(alone: Processes) -> None:
    for option in ("--hlep", "--hlep=1", "-x"):
        shown = alone.run("redis-bus", option)
        assert shown.returncode == 2 and "TARGET | COMMAND" in shown.stderr, shown
        assert "redis-bus --help" in shown.stderr
    assert "'--help'" in alone.run("redis-bus", "--hlep").stderr
    for option in ("--debug", "-db", "--log-level=info"):
        assert "Usage: redis-bus serve" in alone.run("redis-bus", option).stderr


@pytest.mark.parametrize("program", ["redis-bus", "-m redis_bus", "-m redis_bus.cli"])
def test_it_runs_as_a_script_and_as_a_module(alone: Processes, program: str) -> None:
    """In processes that import it themselves, unlike those of `Processes.run`."""
    python = [sys.executable] if program.startswith("-m") else []
    for line, code, words in (
        ("--version", 0, "redis-bus, version "),
        ("ls x", 5, "redis-bus: no Redis at localhost:1 (Connection refused)"),
        ("nothing.bus", 2, "redis-bus: there is no module 'nothing' in "),
    ):
        process = alone.start(*python, *program.split(), *line.split())
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == code and is_one_line(out + err)
        assert (err if code else out).startswith(words)
