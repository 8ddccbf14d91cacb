"""What shells complete: buses, methods and targets; in time, and only what can be typed."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import pexpect
import pytest

from redis_bus import Bus
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import methods_key
from tests.support import PATIENCE_SECONDS, Processes
from tests.transport.test_access import block_of

# A process that imports it all, and a second of looking; much more would be a hang.
LONGEST_SECONDS = 10.0
SERVICE = "import redis_bus\n\nbus = redis_bus.Bus()\n"
Complete = Callable[..., list[str]]


def protocol(shell: str, line: str) -> dict[str, str]:
    """Return what a shell has click know of a line whose last word is to be completed."""
    words = line.split(" ")
    word = words[-1] if shell == "fish" else str(len(words) - 1)
    return {"_REDIS_BUS_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": word}


def values(shell: str, told: str) -> list[str]:
    """Return the completions that a shell reads in what it is told."""
    if shell == "zsh":
        return told.splitlines()[1::3]
    return [one.partition(",")[2] for one in told.splitlines() if one]


@pytest.fixture
def complete(some: Processes) -> Complete:
    def complete(line: str, shell: str = "bash", **environment: str) -> list[str]:
        env = some.environment(**protocol(shell, f"redis-bus {line}"), **environment)
        start = time.monotonic()
        done = some.run("redis-bus", env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert time.monotonic() - start < LONGEST_SECONDS
        return values(shell, done.stdout)

    return complete


@pytest.fixture
def shop(some: Processes) -> Iterator[Bus]:
    """A bus with methods, beside another one."""
    with Bus("shop", url=some.url) as bus, Bus("shoes", url=some.url) as other:
        for name in ("m_one", "m_two", "vat"):
            bus.register(name)(print)
            assert bus.get_method(name)
        other.register("m_shoe")(print)
        assert other.get_method("m_shoe")
        yield bus


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_methods_of_that_bus_and_buses_are_completed(
    complete: Complete, shop: Bus, shell: str
) -> None:
    assert complete("call shop m_", shell) == ["m_one", "m_two"]
    assert complete("call shop ", shell) == ["m_one", "m_two", "vat"]
    assert complete("call shoes m", shell) == ["m_shoe"]
    assert complete("call shop --fail-fast v", shell) == ["vat"]
    assert complete("call sh", shell) == ["shoes", "shop"]
    assert complete("call shop nothing", shell) == []
    assert complete("call nothing m_", shell) == []
    assert complete("call shop m_one m_", shell) == []  # an argument


@pytest.mark.parametrize(
    "command", ["call", "ls", "stats", "ping", "dead", "clear-cache", "cleanup", "shell"]
)
def test_every_command_on_a_bus_completes_buses(
    complete: Complete, shop: Bus, command: str
) -> None:
    assert complete(f"{command} ") == ["shoes", "shop"]
    assert complete(f"{command} sho") == ["shoes", "shop"]
    assert complete(f"{command} shop ") == (
        [] if command in ("ping", "cleanup", "shell") else ["m_one", "m_two", "vat"]
    )


def test_redis_is_found_by_option_then_by_environment(
    complete: Complete, shop: Bus, some: Processes
) -> None:
    nowhere = "redis://localhost:1/0"
    assert complete("call shop m_", REDIS_BUS_URL=nowhere) == []
    for given in (f"--url {some.url}", f"--url={some.url}"):
        expected = ["m_one", "m_two"]
        assert complete(f"call {given} shop m_", REDIS_BUS_URL=nowhere) == expected
        assert complete(f"{given} call shop m_", REDIS_BUS_URL=nowhere) == expected
    assert complete(f"call --url {nowhere} shop m_") == []
    assert complete("call shop m_", REDIS_BUS_URL="", REDIS_URL=some.url) == ["m_one", "m_two"]


def test_names_that_no_bus_and_no_method_can_have_are_not_completed(
    complete: Complete, shop: Bus
) -> None:
    for name in ("m_\x1b[31m", "m_$(id)", "m_a b", "m_\n", "m_;", "m_\u202e"):
        shop.conn.hset(methods_key("shop"), name, "{}")
        shop.conn.hset(methods_key(f"shop{name}"), "f", "{}")
    shop.conn.hset(methods_key("shop"), b"m_\xff", "{}")
    for shell in ("bash", "zsh", "fish"):
        assert complete("call shop m_", shell) == ["m_one", "m_two"]
        assert complete("call shop", shell) == ["shop"]


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A server that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


@pytest.mark.parametrize("line", ["call shop m_", "call ", "ls s"])
def test_a_redis_that_is_away_or_silent_or_refuses_completes_nothing_and_says_nothing(
    complete: Complete, shop: Bus, line: str
) -> None:
    with silent_server() as silent:
        for url in (
            "redis://localhost:1/0",
            silent,
            "redis://nobody:wrong@" + silent.partition("//")[2],
            "nonsense://",
            "redis+cluster://localhost:1,localhost:2",
            f"redis+sentinel://{silent.partition('//')[2].removesuffix('/0')}/main/0",
        ):
            assert complete(line, REDIS_BUS_URL=url) == []


def test_a_user_who_is_refused_completes_nothing_and_says_nothing(
    complete: Complete, shop: Bus, some: Processes
) -> None:
    shop.conn.execute_command("ACL", "SETUSER", "nobody", "on", ">secret", "+ping", "~none")
    try:
        for user in ("nobody:secret", "nobody:wrong"):
            url = some.url.replace("://", f"://{user}@")
            assert complete("call shop m_", REDIS_BUS_URL=url) == []
            assert complete("call ", REDIS_BUS_URL=url) == []
    finally:
        shop.conn.execute_command("ACL", "DELUSER", "nobody")


def test_targets_are_the_buses_that_files_of_this_folder_make(
    complete: Complete, some: Processes
) -> None:
    some.write("service.py", SERVICE)
    some.write(
        "serve_two.py", "from redis_bus import AsyncBus, Bus\na: Bus = Bus()\nb = AsyncBus()\n"
    )
    some.write("pkg/__init__.py", SERVICE)
    some.write("pkg/sub/deep.py", SERVICE)
    some.write("other.py", "value = 1\ndef f():\n    bus = Bus()\n")
    some.write("not-a-module.py", SERVICE)
    some.write(".hidden/mod.py", SERVICE)
    some.write("env/pyvenv.cfg", "")
    some.write("env/lib.py", SERVICE)
    assert complete("serve s") == ["serve_two.a", "serve_two.b", "service.bus"]
    assert complete("serve ") == [
        "pkg.bus",
        "pkg.sub.deep.bus",
        "serve_two.a",
        "serve_two.b",
        "service.bus",
    ]
    assert complete("serve -w 2 pkg.s") == ["pkg.sub.deep.bus"]
    assert complete("serve service:", "zsh") == ["service:bus"]
    assert complete("serve pkg.sub.deep:b", "fish") == ["pkg.sub.deep:bus"]
    assert complete("servi") == ["service.bus"]  # serve is the default command
    assert complete("serve oth") == []


def test_commands_and_options_are_completed(complete: Complete) -> None:
    assert complete("c") == ["call", "cleanup", "clear-cache"]
    assert {"-V", "--version", "-w", "--workers"} <= set(complete("-"))
    assert complete("call --t") == ["--timeout"]
    assert complete("serve --log-level w") == ["warning"]


@pytest.fixture
def bash(some: Processes) -> Iterator[pexpect.spawn]:
    """A bash that was told what the README says, in whose folder is a service."""
    some.write("service.py", SERVICE)
    env = {**some.environment(), "TERM": "dumb", "INPUTRC": os.devnull, "PS1": "% "}
    shell = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        env=env,
        cwd=str(some.folder),
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
        dimensions=(40, 200),
    )
    shell.sendline("bind 'set enable-bracketed-paste off'; PS1='% '; echo rea''dy")
    shell.expect("ready\r\n")
    shell.sendline(f"{block_of('complete-bash').strip().removeprefix('$ ')}; echo do''ne")
    shell.expect("done\r\n")
    yield shell
    shell.close(force=True)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("redis-bus call shop v", "redis-bus call shop vat "),
        ("redis-bus call shop m_o", "redis-bus call shop m_one "),
        ("redis-bus ls shoe", "redis-bus ls shoes "),
        ("redis-bus servi", "redis-bus service.bus "),
        ("redis-bus serve service:b", "redis-bus serve service:bus "),
        ("redis-bus buse", "redis-bus buses "),
    ],
)
def test_bash_completes_with_the_line_of_the_readme(
    bash: pexpect.spawn, shop: Bus, line: str, completed: str
) -> None:
    bash.send(f"{line}\t")
    bash.expect_exact(completed)


@pytest.mark.parametrize("option", ["--url ", "--url="])
def test_bash_completes_behind_a_url_that_it_takes_for_many_words(
    bash: pexpect.spawn, option: str
) -> None:
    with EmbeddedRedis(port=0) as server, Bus("far", url=server.url) as bus:
        bus.register("away")(print)
        assert bus.get_method("away")
        bus.conn.execute_command("ACL", "SETUSER", "me", "on", ">secret", "~*", "+@all")
        url = server.url.replace("://", "://me:secret@")
        for line, completed in (("fa", "far "), ("far aw", "far away ")):
            bash.send(f"redis-bus call {option}{url} {line}\t")
            bash.expect_exact(f"{url} {completed}")
            bash.sendline("\x15")


def test_the_lines_of_the_readme_for_zsh_and_fish_make_such_a_completion(some: Processes) -> None:
    for shell in ("bash", "zsh", "fish"):
        line = block_of(f"complete-{shell}")
        assert f"_REDIS_BUS_COMPLETE={shell}_source redis-bus" in line
        env = some.environment(_REDIS_BUS_COMPLETE=f"{shell}_source")
        shown = some.run("redis-bus", env=env)
        assert shown.returncode == 0
        assert f"_REDIS_BUS_COMPLETE={shell}_complete" in shown.stdout
