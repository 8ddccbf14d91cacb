"""What every script keeps to, whatever it does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from redis_bus.protocol import scripts
from redis_bus.protocol.entries import Mode
from tests.lua.driver import INBOX, OTHER_SHAPE, Driver
from tests.support import ROOT

FOLDER = ROOT / "lua"
NAMES = sorted(path.stem for path in FOLDER.glob("*.lua"))
SHARED = sorted(path.stem for path in (FOLDER / "lib").glob("*.lua"))
STEPS = [
    *("admit", "beat", "bury", "call", "cancel", "claims", "clear", "clear_all", "discard"),
    *("finish", "hold", "listen", "open", "publish", "reclaim", "release", "retry", "shut"),
    *("state", "sweep", "take"),
]
MOST_LINES = 80
MOST_COLUMNS = 100
INCLUDE = re.compile(r"^ *-- include: (\w+)$", re.MULTILINE)
CALL = re.compile(r"redis\.p?call\(([^,()]+)(?:, ([^,()]+))?")


def text(name: str) -> str:
    return (FOLDER / f"{name}.lua").read_text(encoding="utf-8")


def shared(name: str) -> str:
    return text(f"lib/{name}")


def heading(name: str) -> str:
    """The comment that a script opens with."""
    lines = text(name).splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(line.removeprefix("--").strip() for line in lines[:end])


def function_of(name: str) -> str:
    """The function that a shared file defines."""
    found = re.findall(r"^local function (\w+)", shared(name), re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


# -- as text --------------------------------------------------------------------------------------


def test_every_step_of_a_call_is_a_script() -> None:
    assert NAMES == STEPS
    assert sorted(scripts.load()) == STEPS


@pytest.mark.parametrize("name", NAMES)
def test_a_heading_says_all_that_a_client_needs(name: str) -> None:
    found = heading(name)
    assert found.startswith(f"{name}: ")
    body = text(name)[text(name).index("\nlocal") :]
    assert ("ARGV" in found) == ("ARGV" in body)
    for word in ("KEYS", "Returns"):
        assert re.search(rf"^{word}\b", found, re.MULTILINE), f"no {word} in the heading"
    assert re.search(r"\bSent twice\b", found), "what happens when it is sent twice?"


@pytest.mark.parametrize("name", NAMES)
def test_a_heading_names_every_status_that_the_script_returns(name: str) -> None:
    said = heading(name)
    for line in text(name).splitlines():
        if line.strip().startswith("return"):
            for word in re.findall(r"'([a-z_]+)'", line):
                assert word in said, f"{word} is returned, the heading says nothing of it"


@pytest.mark.parametrize("name", [*NAMES, *(f"lib/{name}" for name in SHARED)])
def test_a_script_fits_on_a_screen(name: str) -> None:
    lines = text(name).splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= MOST_COLUMNS
    assert text(name).endswith("\n")
    assert text(name).isascii()


@pytest.mark.parametrize("name", NAMES)
def test_includes_are_joined_in_where_they_are_used(name: str) -> None:
    source = scripts.load()[name].source
    assert not INCLUDE.search(source)
    for include in INCLUDE.findall(text(name)):
        defined, used = f"local function {function_of(include)}(", f"{function_of(include)}("
        assert defined in source
        assert used in INCLUDE.sub("", text(name))


def test_everything_that_is_shared_is_included_somewhere() -> None:
    texts = [*map(text, NAMES), *map(shared, SHARED)]
    assert {include for found in texts for include in INCLUDE.findall(found)} == set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_uses_what_it_includes(name: str) -> None:
    for include in INCLUDE.findall(shared(name)):
        assert f"{function_of(include)}(" in INCLUDE.sub("", shared(name))


@pytest.mark.parametrize("name", NAMES)
def test_no_key_is_made_in_a_script(name: str) -> None:
    calls = CALL.findall(scripts.load()[name].source)
    assert calls
    for command, key in calls:
        if command == "'TIME'":
            assert key == ""
            continue
        assert command == "push" or re.fullmatch(r"'[A-Z]+'", command)
        assert re.fullmatch(r"[a-z]+|KEYS\[index( \+ 1)?\]", key), f"{command} {key}"


def test_the_joined_scripts_can_be_had_as_files(tmp_path: Path) -> None:
    scripts.write_joined(str(tmp_path / "new"))
    written = {path.stem: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert written == {name: script.source for name, script in scripts.load().items()}


# -- in Redis -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_sha1_is_the_name_that_redis_gives_it(bare: Driver, name: str) -> None:
    script = scripts.load()[name]
    assert bare.send("SCRIPT", "LOAD", script.source) == script.sha.encode()
    assert hashlib.sha1(script.source.encode()).hexdigest() == script.sha


def test_after_redis_forgot_them_they_work_when_loaded_again(bare: Driver) -> None:
    command = bare.service.publish("m", "e" * 16, "s" * 16)
    bare.send("SCRIPT", "FLUSH")
    with pytest.raises(redis.exceptions.NoScriptError):
        bare._send(command)
    assert bare.all_keys() == set()
    bare.load_scripts()
    assert bare._send(command) == [b"published", b""]


@pytest.mark.parametrize("name", NAMES)
def test_no_command_of_a_script_blocks_or_looks_through_the_database(
    bare: Driver, name: str
) -> None:
    used = {command.strip("'") for command, _ in CALL.findall(scripts.load()[name].source)}
    used = (used - {"push"}) | ({"RPUSH", "LPUSH"} if "push" in used else set())
    for info in bare.send("COMMAND", "INFO", *sorted(used)):
        categories = set(map(bytes, info[6]))
        assert not categories & {b"@dangerous", b"@blocking", b"@admin"}, info[0]


def one_of_each(lua: Driver) -> Iterator[str]:
    """Send every script, most of them on more than one of their ways."""
    lua.publish("other")
    yield "publish"
    lua.beat(methods=["m", "other"])
    lua.listen(lua.queued(key=b"k"))
    lua.call(key=b"k")
    lua.run(key=b"k2")
    lua.run()
    lua.call(max_queue=1)
    lua.call(etag="?")
    yield "call"
    job = lua.taken(methods=["m", "other"])
    lua.beat(flights=[job])
    yield "beat"
    lua.state(job.id, 1, workers=["w", "w2"])
    yield "state"
    lua.hold(job.id)
    yield "hold"
    lua.finish(job, stale_ms=1000)
    lua.listen(job.id)
    yield "listen"
    lua.make_stale(b"k")
    lua.call(key=b"k")
    lua.run(key=b"k")
    yield "finish"
    lua.taken(methods=["m", "other"])
    yield "take"
    cancelled = lua.queued(key=b"k3", mode=Mode.ASYNC)
    lua.listen(cancelled)
    lua.cancel(cancelled, b"k3")
    yield "cancel"
    released = lua.queued("other", mode=Mode.RUN, key=b"k")
    lua.taken(methods=["other"])
    lua.release(released, method="other")
    yield "release"
    old = lua.taken(methods=["other"])
    lua.clear(b"k", "other")
    yield "clear"
    lua.queued("other", key=b"k")
    lua.listen(old.id)
    lua.admit(old, method="other")
    lua.lose_flight(b"k", "other")
    again = lua.taken(methods=["other"])
    lua.admit(again, method="other")
    lua.finish(again, method="other")
    yield "admit"
    lua.discard(b"k", "0")
    yield "discard"
    lua.sweep()
    lost = {
        lua.queued(key=key, mode=mode, tries=tries): key
        for tries in (1, 3)
        for mode in (Mode.CALL, Mode.ASYNC, Mode.RUN)
        for key in (None, f"{mode.value}{tries}".encode())
    }
    while lua.take("dies"):
        pass
    lua.client.hset(lua.service.running("dies"), "foreign", "foreign")
    lua.leave("dies")
    lua.sweep()
    yield "sweep"
    lua.held("dies")
    for job_id, key in lost.items():
        lua.listen(job_id)
        lua.reclaim(job_id, key, worker="dies")
    yield "reclaim"
    lua.held("dies")
    yield "claims"
    lua.bury(b"foreign")
    lua.bury(b"foreign", "none")
    yield "bury"
    entry = next(letter for letter in lua.letters() if b" lost " in letter).partition(b"\n")[2]
    lua.client.rpush(lua.route().dead, "letter")
    lua.retry(b"letter", entry, "any")
    yield "retry"
    lua.clear_all()
    lua.publish(shape=OTHER_SHAPE)
    yield "clear_all"
    ballot, _ = lua.shut()
    yield "shut"
    lua.open(ballot)
    yield "open"


def test_a_script_touches_no_key_that_it_does_not_declare(lua: Driver) -> None:
    lua.load_scripts()
    names = {script.sha: script.name for script in scripts.load().values()}
    sent, inside = set(), []
    with lua.client.monitor() as monitor:
        assert sorted(one_of_each(lua)) == STEPS
        lua.send("ECHO", "the end")
        name, declared = "", set[str]()
        while True:
            seen = monitor.next_command()
            words = seen["command"].split(" ")
            if seen["client_type"] == "lua":
                inside.append((name, declared, words))
            elif words[0] == "EVALSHA":
                name = names[words[1]]
                declared = set(words[3 : 3 + int(words[2])])
                sent.add(name)
            elif words[0] == "ECHO":
                break
    assert sent == set(NAMES)
    assert {name for name, _, _ in inside} == set(NAMES)
    for name, declared, words in inside:
        if words[0] == "PUBLISH":
            # A channel is no key: it is not of a slot, and access to it has rules of its own.
            assert words[1] == INBOX
        elif words[0] != "TIME":
            keys = {key.decode() for key in lua.send("COMMAND", "GETKEYS", *words)}
            assert keys <= declared, f"{name}: {words}"
