"""What the command line says of a Redis: which buses it has, and whether anyone serves one."""

from __future__ import annotations

import json

import pytest

from redis_bus import Bus
from redis_bus.protocol.commands import bus_of_methods_key, methods_key
from tests.support import Processes, serving

COMMANDS = ("buses", "ls")


def make(name: str, url: str, *methods: str) -> None:
    """Publish methods that nobody serves."""
    with Bus(name, url=url) as bus:
        for method in methods:
            bus.register(method)(print)
            assert bus.get_method(method)


@pytest.mark.parametrize("command", COMMANDS)
def test_buses_are_listed_with_their_methods_and_workers(
    bus: Bus, processes: Processes, url: str, command: str
) -> None:
    bus.register("f")(print)
    make("idle", url, "f", "g")
    make("a.b-c", url, "f")
    with serving(bus):
        shown = processes.run("redis-bus", command, "--json")
        assert json.loads(shown.stdout) == [
            {"name": "a.b-c", "methods": 1, "workers": 0},
            {"name": "idle", "methods": 2, "workers": 0},
            {"name": "test", "methods": 1, "workers": 1},
        ]
        shown = processes.run("redis-bus", command)
        assert [row.split() for row in shown.stdout.splitlines()] == [
            ["bus", "methods", "workers"],
            ["a.b-c", "1", "0"],
            ["idle", "2", "0"],
            ["test", "1", "1"],
        ]
        assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_redis_without_a_bus_is_one_line_and_no_error(processes: Processes, command: str) -> None:
    shown = processes.run("redis-bus", command)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("there is no bus at ") and shown.stdout.count("\n") == 1
    assert processes.run("redis-bus", command, "--json").stdout == "[]\n"


def test_keys_of_others_that_look_like_those_of_a_bus_are_no_buses(
    bus: Bus, processes: Processes, url: str
) -> None:
    make("mine", url, "f")
    bus.conn.set("rb:{text}:methods", "of another kind")
    for name in ("a b", "a}:{b", "", "\x1b[31mred", "\udc80".encode("utf-8", "surrogateescape")):
        key = b"rb:{%b}:methods" % (name if isinstance(name, bytes) else name.encode())
        bus.conn.hset(key, "f", "{}")
    bus.conn.hset("prb:{other}:methods", "f", "{}")
    bus.conn.hset("rb:{other}:methods:more", "f", "{}")
    shown = processes.run("redis-bus", "buses", "--json")
    assert [one["name"] for one in json.loads(shown.stdout)] == ["mine"]


def test_the_bus_of_a_key_is_the_one_whose_key_it_is() -> None:
    for name in ("shop", "a.b-c_D", "methods"):
        assert bus_of_methods_key(methods_key(name).encode()) == name
    for key in (b"rb:{shop}:meta", b"rb:{shop}:methods ", b"rb:{sh}op}:methods", b"rb:{}:methods"):
        assert bus_of_methods_key(key) is None


def test_many_other_keys_hide_no_bus(bus: Bus, processes: Processes, url: str) -> None:
    names = [f"bus{number:02}" for number in range(40)]
    for name in names:
        make(name, url, "f")
    bus.conn.mset({f"other:{number}": 1 for number in range(5000)})
    shown = processes.run("redis-bus", "buses", "--json")
    assert [one["name"] for one in json.loads(shown.stdout)] == names


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_ping_of_a_bus_that_is_not_there_says_so_and_exits_with_3(
    processes: Processes, more: list[str]
) -> None:
    shown = processes.run("redis-bus", "ping", "NOSUCH", *more)
    assert shown.returncode == 3
    assert shown.stderr.startswith("redis-bus: bus 'NOSUCH' has no methods: nothing was served")
    assert "redis-bus buses" in shown.stderr and shown.stderr.count("\n") == 1
    if more:
        found = json.loads(shown.stdout)
        assert (found["bus"], found["methods"], found["workers"]) == ("NOSUCH", 0, 0)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_ping_of_a_bus_that_nobody_serves_says_so_and_exits_with_3(
    processes: Processes, url: str, more: list[str]
) -> None:
    make("idle", url, "f", "g")
    shown = processes.run("redis-bus", "ping", "idle", *more)
    assert shown.returncode == 3
    assert shown.stderr == (
        "redis-bus: bus 'idle': 2 methods, but no worker alive: calls wait until one serves them\n"
    )
    if more:
        found = json.loads(shown.stdout)
        assert (found["bus"], found["methods"], found["workers"]) == ("idle", 2, 0)


def test_a_ping_of_a_bus_that_is_served_or_of_redis_alone_exits_with_0(
    bus: Bus, processes: Processes
) -> None:
    bus.register("f")(print)
    assert processes.run("redis-bus", "ping").returncode == 0
    with serving(bus):
        for more in ([], ["--json"]):
            shown = processes.run("redis-bus", "ping", "test", *more)
            assert (shown.returncode, shown.stderr) == (0, "")


def test_the_version_has_a_short_option(some: Processes) -> None:
    shown = some.run("redis-bus", "-V")
    assert shown.returncode == 0
    assert shown.stdout == some.run("redis-bus", "--version").stdout != ""
