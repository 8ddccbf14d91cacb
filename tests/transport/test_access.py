"""The README's access rules let each user do what it is for, and no more; over TLS too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
import pytest
import redis
import trustme

from redis_bus import (
    AsyncBus,
    Bus,
    BusError,
    CallTimeout,
    Cancelled,
    ConnectionLost,
    NotConfirmed,
    WorkerLost,
    as_completed,
)
from redis_bus.calls import calls, waiting
from redis_bus.calls.sweep import sweep
from redis_bus.cli.group import main
from redis_bus.client import direct
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import Post, Service, methods_key
from redis_bus.supervisor.exits import Exit
from redis_bus.transport import transport
from redis_bus.transport.servers import bundled_server, product
from redis_bus.worker import slot
from tests.faults.place import RedisServer, _free_port
from tests.servers import find_servers, has_tls, with_tls
from tests.support import PATIENCE_SECONDS, Processes, eventually, needs_wheel, serving, workers
from tests.test_readme import README, blocks

SERVERS = find_servers()
SERVICE = Service("test", "")
PASSWORD = "s3cret"
KINDS = ("caller", "worker", "admin")
# Of these Redis 6.2 logs only that it was CLIENT, which redis-py tries too when it connects.
OF_CLIENT = ("client|id", "client|unblock")
# What a caller needs only to look after lost workers, as the README says.
(TO_SWEEP,) = re.findall(r"leaves out ``([^`]+)``", README.read_text(encoding="utf-8"))
# What Redis says of a command, and of one in a script.
# Newer servers begin the sentence with a capital.
NO_PERMISSIONS = "[Nn]o permissions"
NO_ACCESS = f"{NO_PERMISSIONS} to access (one of the keys used as arguments|a key)"
REFUSAL = f"{NO_PERMISSIONS}|user executing the script can't"
METHODS = """
@bus.register(cache_key="{n}", stale=60)
def square(n: int) -> int:
    return n * n


@bus.register()
def outer(n: int) -> int:
    return bus.square(n) + 1


@bus.register()
def fail() -> None:
    raise ValueError("no")
"""
BUSY_SERVICE = f"import redis_bus\n\nbus = redis_bus.Bus('test')\n{METHODS}"


# -- the users of the README ------------------------------------------------------------------


def block_of(name: str) -> str:
    (text,) = [block.text for block in blocks() if block.name == name]
    return text


def rules_of(kind: str) -> list[str]:
    """Return what the README gives to ACL SETUSER for a kind of user, behind the name."""
    words = shlex.split(block_of(f"acl-{kind}").replace("\\\n", " "))
    assert words[:6] == ["$", "redis-cli", "ACL", "SETUSER", "USER", "reset"]
    return words[5:]


def commands_of(kind: str) -> list[str]:
    return [rule[1:] for rule in rules_of(kind) if rule.startswith("+")]


@dataclass(frozen=True, slots=True)
class User:
    """A user of the README, for the bus ``test``."""

    kind: str
    url: str
    client: redis.Redis  # that may do all

    def make(self, *without: str) -> None:
        """Make the user, without some of the commands of its list."""
        rules = [rule for rule in rules_of(self.kind) if rule.removeprefix("+") not in without]
        rules = [rule.replace("BUS", "test").replace("PASSWORD", PASSWORD) for rule in rules]
        if not has_read_only_keys(self.client):
            rules = [rule.replace("%R~", "~") for rule in rules]
        self.client.execute_command("ACL", "SETUSER", self.kind, *rules)
        self.client.acl_log_reset()

    def refused(self) -> set[str]:
        """Return the commands that Redis refused this user, but for those on the connection."""
        log = self.client.acl_log()
        found = {entry["object"] for entry in log if entry["username"] == self.kind}
        return {name for name in found if not name.startswith("client")}

    def bus(self, **kwargs: Any) -> Bus:
        return Bus("test", url=self.url, **{"timeout": PATIENCE_SECONDS, **kwargs})

    def async_bus(self, **kwargs: Any) -> AsyncBus:
        return AsyncBus("test", url=self.url, **{"timeout": PATIENCE_SECONDS, **kwargs})

    def raw(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    """A Redis of each kind in turn, on a port."""
    with EmbeddedRedis(SERVERS[request.param], port=0) as embedded:
        yield embedded


def has_read_only_keys(client: redis.Redis) -> bool:
    return int(client.info("server")["redis_version"].split(".")[0]) >= 7


Users = dict[str, User]


@pytest.fixture
def users(client: redis.Redis, url: str) -> Users:
    made = {}
    for kind in KINDS:
        made[kind] = User(kind, url.replace("://", f"://{kind}:{PASSWORD}@"), client)
        made[kind].make()
    return made


@pytest.fixture
def caller(users: Users) -> Iterator[Bus]:
    with users["caller"].bus() as bus:
        yield bus


def command(user: User, *words: str) -> click.testing.Result:
    """Run `redis-bus` as a user, whose password it never shows."""
    result = click.testing.CliRunner().invoke(main, words, env={"REDIS_BUS_URL": user.url})
    assert PASSWORD not in result.output
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def shown(user: User, *words: str, code: Exit = Exit.OK) -> str:
    """Return what `redis-bus` prints for a user who may do that."""
    result = command(user, *words)
    assert result.exit_code == code, result.output
    return result.stdout


def lose(bus: Bus, method: str) -> None:
    """Have a worker take the method's next job, and die."""
    post = Post(SERVICE, f"host:{method}:gone", [bus[method].target.route])
    assert bus._core.transport.exchange(post.take(post.routes))[0]
    bus._core.transport.exchange(SERVICE.lapse(post.worker))


# -- what each is for -------------------------------------------------------------------------


def start_worker(processes: Processes, user: User, code: str = BUSY_SERVICE) -> Any:
    """Serve in two processes, as a user."""
    processes.write("service.py", code)
    env = processes.environment(REDIS_BUS_URL=user.url)
    return processes.start("redis-bus", "--workers", "2", "service.bus", env=env)


def call_everything(bus: Bus) -> None:
    """Do what a caller of BUSY_SERVICE can do."""
    assert {"square", "outer", "fail"} <= set(bus.all_methods())
    assert (bus.square(3), bus.square(3), bus.outer(4)) == (9, 9, 17)
    with pytest.raises(ValueError, match="no"):
        bus.fail()
    result = bus.outer.run(5)
    assert bus.get_async_result(result.id).get() == 26
    assert (result.done(), result.cancel()) == (True, False)
    assert bus.square.run(5).get() == 25
    assert list(bus.square.map(range(100))) == [n * n for n in range(100)]
    # Now these call nobody who may be busy with another of them.
    assert list(bus.outer.map(range(100))) == [n * n + 1 for n in range(100)]
    runs = [bus.outer.run(n) for n in range(20)]
    assert {result.get() for result in as_completed(runs)} == {n * n + 1 for n in range(20)}
    assert bus.square.clear_cache(3)
    bus.square.clear_all_cache()
    assert not bus.square.clear_cache(5)
    assert bus.stats()["square"]["calls"] >= 4


async def await_everything(user: User) -> None:
    """Do the same on an AsyncBus, on which jobs are withdrawn too."""
    async with user.async_bus() as bus:
        assert {"square", "outer", "fail"} <= set(await bus.all_methods())
        assert await asyncio.gather(bus.square(3), bus.square(3), bus.outer(4)) == [9, 9, 17]
        with pytest.raises(ValueError, match="no"):
            await bus.fail()
        result = await bus.outer.run(5)
        assert await bus.get_async_result(result.id).get() == 26
        assert (await result.done(), await result.cancel()) == (True, False)
        assert await bus.square.clear_cache(3)
        await bus.square.clear_all_cache()
        assert (await bus.stats())["square"]["calls"] >= 2


def test_a_worker_serves_and_a_caller_calls(
    users: Users, caller: Bus, processes: Processes
) -> None:
    process = start_worker(processes, users["worker"])
    with users["worker"].bus() as colleague:
        eventually(lambda: workers(colleague, "outer") == 2 or process.poll() is not None)
        call_everything(caller)
        call_everything(colleague)
        for kind in ("caller", "worker"):
            asyncio.run(await_everything(users[kind]))
    assert shown(users["caller"], "call", "test", "outer", "2") == "5\n"
    assert "square(n: int) -> int" in shown(users["caller"], "ls", "test")
    assert "latency" in shown(users["caller"], "stats", "test")
    assert "forgotten" in shown(users["caller"], "clear-cache", "test", "square", "--all", "--yes")
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert [users[kind].refused() for kind in KINDS] == [set()] * len(KINDS)
    assert PASSWORD not in out + err


@pytest.mark.parametrize("name", ["plain", "quad"])
def test_a_caller_withdraws_what_it_awaits_no_longer(users: Users, bus: Bus, name: str) -> None:
    register(bus)
    assert bus.get_method(name)
    queue = bus[name].target.route.queue

    async def give_up() -> None:
        async with users["caller"].async_bus() as abus:
            call = asyncio.create_task(abus[name](1))
            run = await abus[name].run(2)
            while bus.conn.llen(queue) < 2:
                await asyncio.sleep(0.01)
            call.cancel()
            assert await run.cancel()
            with pytest.raises(Cancelled):
                await run.get()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(give_up())
    assert bus.serve_once() == 0
    assert users["caller"].refused() == set()


@pytest.mark.parametrize("kind", ["caller", "worker"])
def test_other_channels_than_inboxes_are_refused(users: Users, kind: str) -> None:
    with users[kind].raw() as client:
        assert client.publish("rb:inbox:none", "x") == 0
        for words in (("PUBLISH", "somebodys", "x"), ("SUBSCRIBE", "rb:test")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*words)


def test_an_inbox_that_may_not_be_subscribed_is_an_error_in_the_words_of_redis(
    users: Users, bus: Bus
) -> None:
    register(bus)
    assert bus.get_method("plain")
    user = users["caller"]
    user.client.execute_command("ACL", "SETUSER", "caller", "resetchannels")

    async def call() -> None:
        async with user.async_bus() as abus:
            await abus.plain(1)

    with pytest.raises(BusError, match=r"refused: .*channel"):
        asyncio.run(call())


@pytest.mark.parametrize("lacks", ["subscribe", "sadd", "channels"])
def test_who_may_not_be_told_of_outcomes_is_told_what_as_completed_needs(
    users: Users, bus: Bus, caller: Bus, lacks: str
) -> None:
    register(bus)
    assert bus.get_method("plain")
    if lacks == "channels":
        bus.conn.execute_command("ACL", "SETUSER", "caller", "resetchannels")
    else:
        users["caller"].make(lacks)
    results = [caller.plain.run(n) for n in range(2)]
    text = r"^as_completed: Redis at .* refused: .*takes the commands SUBSCRIBE and SADD, and the"
    with pytest.raises(BusError, match=text):
        list(as_completed(results))
    bus.serve_once()
    # What is done is known without it, and so is all else.
    assert {result.get() for result in as_completed(results)} == {0, 1}


@pytest.mark.parametrize("name", ["plain", "quad"])
def test_a_caller_withdraws_what_map_leaves_over(users: Users, bus: Bus, name: str) -> None:
    register(bus)
    assert bus.get_method(name)
    with users["caller"].bus() as caller:
        values = caller[name].map(range(5))
        assert bus.conn.llen(bus[name].target.route.queue) == 5
        del values
        assert bus.serve_once() == 0
    assert users["caller"].refused() == set()


@pytest.mark.usefixtures("quick")
def test_a_caller_looks_after_lost_workers_while_it_waits(bus: Bus, caller: Bus) -> None:
    register(bus)
    assert bus.get_method("plain")
    result = caller.plain.run(1)
    lose(bus, "plain")
    with pytest.raises(WorkerLost, match="its worker host:plain:gone was lost"):
        result.get()


def test_a_caller_makes_a_registration_current_that_redis_lost(bus: Bus, caller: Bus) -> None:
    register(bus)
    with serving(bus):
        assert caller.plain(1) == 1
        assert bus.conn.delete(SERVICE.meta)
        assert caller.plain(2) == 2


def test_an_admin_looks_after_dead_letters_and_cleans_up(
    users: Users, bus: Bus, caller: Bus
) -> None:
    register(bus)
    assert bus.get_method("plain")
    admin = users["admin"]
    for number in (1, 2):
        caller.plain.run(number)
        lose(bus, "plain")
        with users["worker"].bus() as worker_bus:
            register(worker_bus)
            worker_bus.serve_once()
    letters = json.loads(shown(admin, "dead", "test", "--json"))
    assert [letter["call"] for letter in letters] == ["plain(1)", "plain(2)"]
    retried, dropped = (str(letter["id"]) for letter in letters)
    assert "queued again" in shown(admin, "dead", "test", "plain", "--retry", retried)
    assert "dropped" in shown(admin, "dead", "test", "plain", "--drop", dropped, "--yes")
    assert json.loads(shown(admin, "buses", "--json")) == [
        {"name": "test", "methods": 3, "workers": 0}
    ]
    assert "plain(n)" in shown(admin, "ls", "test")
    assert "latency" in shown(admin, "stats", "test")
    assert bus.serve_once() == 1
    about = json.loads(shown(admin, "ping", "test", "--json", code=Exit.NO_WORKERS))
    assert about["version"] == product(bus.conn.info("server"))[1]
    assert (about["methods"], about["workers"]) == (3, 0)
    bus.conn.set("rb:{tester:}:meta", "another bus's")
    assert "deleted" in shown(admin, "cleanup", "test", "--yes")
    assert bus.conn.keys() == [b"rb:{tester:}:meta"]
    assert admin.refused() == set()


@pytest.mark.usefixtures("quick")
def test_a_caller_who_may_not_look_after_workers_waits_and_is_answered(
    users: Users, bus: Bus, caller: Bus
) -> None:
    user, may_answer = users["caller"], threading.Event()
    user.make(*(rule[1:] for rule in TO_SWEEP.split()))

    @bus.register()
    def slow(n: int) -> int:
        assert may_answer.wait(PATIENCE_SECONDS)
        return n

    bus.register("slow_too", cache_key="{n}")(slow)
    with serving(bus):
        for method in (caller.slow, caller.slow_too):
            may_answer.clear()
            user.client.acl_log_reset()
            with ThreadPoolExecutor() as pool:
                answer = pool.submit(method, 3)
                eventually(lambda answer=answer: user.refused() or answer.done())
                may_answer.set()
            assert answer.result() == 3
            assert user.refused() == {"zrangebyscore"}


# -- what each is not for ---------------------------------------------------------------------

FOREIGN = [
    ("FLUSHALL",),
    ("CONFIG", "GET", "*"),
    ("KEYS", "*"),
    ("ACL", "LIST"),
    ("EVAL", "return redis.call('TIME')", 0),
    ("GET", "somebodys"),
    ("HGET", "rb:{tester}:methods", "f"),
    ("HGET", "rb:{tester:}:meta", "f"),
    ("HGET", "rb:{other}:methods", "f"),
    ("HGET", "rb:{other:test}:meta", "f"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_of_the_bus_is_refused(users: Users, kind: str) -> None:
    with users[kind].raw() as client:
        for words in FOREIGN:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*words)


@pytest.mark.parametrize("kind", KINDS)
def test_another_bus_is_refused(users: Users, url: str, kind: str) -> None:
    with Bus("tester", url=url) as theirs, Bus("tester", url=users[kind].url) as bus:
        register(theirs)
        theirs.serve_once()
        for act in (bus.all_methods, bus.stats, lambda: bus.plain(1)):
            with pytest.raises(BusError, match=rf"refused: .*{NO_ACCESS}"):
                act()


def publish(bus: Bus) -> None:
    bus.register("mine")(lambda: 1)
    bus.mine()


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("caller", publish),
        ("caller", lambda bus: (register(bus), bus.serve())),
        ("caller", lambda bus: (register(bus), bus.serve_once())),
        ("caller", lambda bus: bus.cleanup()),
        ("caller", lambda bus: bus["plain"].dead_letters()),
        ("worker", lambda bus: bus.cleanup()),
        ("worker", lambda bus: bus["plain"].dead_letters()),
        ("admin", publish),
        ("admin", lambda bus: (register(bus), bus.serve())),
        ("admin", lambda bus: bus["plain"](1)),
    ],
)
def test_what_a_user_is_not_for_is_refused_in_the_words_of_redis(
    users: Users, bus: Bus, kind: str, act: Callable[[Bus], object]
) -> None:
    register(bus)
    assert bus.get_method("plain")
    before = bus.conn.hgetall(methods_key("test"))
    with (
        users[kind].bus() as forbidden,
        pytest.raises(BusError, match=f"^Redis at .* refused: .*({REFUSAL})") as e,
    ):
        act(forbidden)
    assert "\n" not in str(e.value)
    assert PASSWORD not in f"{e.value} {forbidden!r}"
    assert bus.conn.hgetall(methods_key("test")) == before


def test_a_caller_cannot_publish_by_hand_where_keys_can_be_read_only(users: Users) -> None:
    """What the README says of Redis 6.2 is shown too: there it can."""
    user = users["caller"]
    with user.raw() as client:
        if has_read_only_keys(user.client):
            for words in (("HSET", methods_key("test"), "f", "{}"), ("DEL", methods_key("test"))):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*words)
        else:
            assert client.hset(methods_key("test"), "f", "{}") == 1


def test_a_caller_needs_to_write_what_says_which_registration_is_current(
    users: Users, bus: Bus, caller: Bus
) -> None:
    """Redis 7 asks for that for every key that a script is given."""
    register(bus)
    assert bus.get_method("plain")
    assert caller.plain.run(1).id
    if not has_read_only_keys(bus.conn):
        return
    others = [f"~{SERVICE.base}{kind}:*" for kind in ("queue", "wake", "reply", "stats", "pending")]
    rules = ["resetkeys", "%R~rb:{test}:*", f"%R~{SERVICE.meta}", f"~{SERVICE.base}serving:*"]
    bus.conn.execute_command("ACL", "SETUSER", "caller", *rules, *others)
    with pytest.raises(BusError, match=NO_ACCESS):
        caller.plain.run(1)
    bus.conn.execute_command("ACL", "SETUSER", "caller", f"~{SERVICE.meta}")
    assert caller.plain.run(1).id


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("caller", ["cleanup", "test", "--yes"]),
        ("caller", ["ping", "test"]),
        ("caller", ["buses"]),
        ("caller", ["ls"]),
        ("worker", ["buses"]),
        ("caller", ["dead", "test"]),
        ("caller", ["ls", "other"]),
        ("caller", ["call", "other", "f"]),
        ("worker", ["cleanup", "test", "--yes"]),
        ("worker", ["dead", "test", "--drop", "all", "--yes"]),
        ("admin", ["call", "test", "plain", "1"]),
        ("admin", ["clear-cache", "test", "quad", "1"]),
        ("admin", ["stats", "other"]),
        ("admin", ["cleanup", "other", "--yes"]),
    ],
)
def test_a_forbidden_command_says_in_one_line_what_redis_said(
    users: Users, bus: Bus, kind: str, words: list[str]
) -> None:
    register(bus)
    bus.serve_once()
    bus.conn.hset(methods_key("other"), "f", "{}")
    result = command(users[kind], *words)
    assert result.exit_code == Exit.REMOTE_ERROR
    assert re.fullmatch(rf"redis-bus: .*refused: .*({REFUSAL}).*\n", result.output)
    assert bus.conn.exists(methods_key("test"), methods_key("other")) == 2


@pytest.mark.parametrize("words", [["buses"], ["ls"], ["buses", "--json"]])
def test_who_may_not_list_buses_is_told_which_permission_that_takes(
    users: Users, bus: Bus, words: list[str]
) -> None:
    result = command(users["caller"], *words)
    assert (result.exit_code, result.stdout) == (Exit.REMOTE_ERROR, "")
    assert re.search("to list buses takes the command SCAN; .*: redis-bus ls BUS$", result.stderr)


def test_what_an_admin_may_not_look_into_is_unknown_in_words(users: Users, bus: Bus) -> None:
    register(bus)
    bus.serve_once()
    bus.conn.hset(methods_key("other"), "f", "{}")
    result = command(users["admin"], "buses")
    assert result.exit_code == Exit.OK
    assert [row.split() for row in result.stdout.splitlines()] == [
        ["bus", "methods", "workers"],
        ["other", "unknown", "unknown"],
        ["test", "3", "0"],
    ]
    said = rf"redis-bus: not all is known: Redis at .* refused: .*{NO_PERMISSIONS}.*\n"
    assert re.fullmatch(said, result.stderr)
    assert json.loads(shown(users["admin"], "buses", "--json"))[0] == {
        "name": "other",
        "methods": None,
        "workers": None,
    }


@pytest.mark.parametrize("kind", ["caller", "admin"])
def test_serving_as_another_than_a_worker_is_one_line(
    users: Users, processes: Processes, kind: str
) -> None:
    processes.write("service.py", BUSY_SERVICE)
    env = processes.environment(REDIS_BUS_URL=users[kind].url)
    done = processes.run("redis-bus", "service.bus", env=env)
    assert done.returncode == Exit.REMOTE_ERROR
    assert re.search(rf"^redis-bus: Redis at .* refused: .*{NO_PERMISSIONS}", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stdout + done.stderr


def test_a_wrong_password_is_one_line_that_does_not_show_it(users: Users, url: str) -> None:
    users["caller"].client.execute_command("ACL", "SETUSER", "caller", "resetpass", ">another")
    result = command(users["caller"], "ls", "test")
    assert result.exit_code == Exit.NO_REDIS
    said = r"redis-bus: Redis at \S+ does not accept the password, or the user; .*\n"
    assert re.fullmatch(said, result.output)


@pytest.mark.usefixtures("quick")
def test_no_log_message_shows_a_password(users: Users, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    user = users["worker"]
    with user.bus() as bus:
        register(bus)
        lose_connection(user, bus)
        user.make("zrangebyscore", "rpush")
        with pytest.raises(BusError):
            bus.plain.options(timeout=0.3)(1)
    assert "Connection closed" in caplog.text
    assert PASSWORD not in caplog.text


def test_durable_methods_need_what_the_readme_adds(users: Users, url: str) -> None:
    (added,) = re.findall(r"durable\s+methods a caller has ``([^`]+)``", README.read_text("utf-8"))
    user = users["caller"]
    with Bus("test", url=url) as own, user.bus() as bus:
        own.register("sure", durable=True)(lambda: None)
        own.get_method("sure")
        # Where there are replicas it is sent; how many there are a caller may ask anyway.
        with redis.Redis.from_url(user.url) as theirs:
            with pytest.raises(redis.exceptions.NoPermissionError):
                theirs.wait(1, 1)
            user.client.execute_command("ACL", "SETUSER", "caller", *added.split())
            assert theirs.wait(1, 1) == 0
        with pytest.raises(NotConfirmed, match="has no replica"):
            bus.sure()
    assert added.split() == ["+wait"]


# -- no command of the lists can be left out --------------------------------------------------


def register(bus: Bus) -> None:
    bus.register("plain")(lambda n: n)
    bus.register("quad", cache_key="{n}")(lambda n: 4 * n)
    bus.register("limited", max_queue=1)(lambda n: n)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look around soon while waiting, and give up soon what Redis refuses."""
    for module in (waiting, calls, direct):
        monkeypatch.setattr(module, "FIRST_SLICE_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "FIRST_SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(slot, "LEASE_MS", 1)


def blocked(user: User) -> set[str]:
    """Return the ids of the connections on which a user waits."""
    clients = user.client.client_list()
    return {c["id"] for c in clients if c["user"] == user.kind and "b" in c["flags"]}


@contextlib.contextmanager
def serving_apart(user: User, bus: Bus) -> Iterator[threading.Thread]:
    """Serve in a thread, until it waits for jobs or is refused something."""

    def serve() -> None:
        with contextlib.suppress(BusError):
            bus.serve()

    def has_ended() -> bool:
        for client in blocked(user):
            user.client.client_unblock(int(client))
        return not thread.is_alive()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    eventually(lambda: blocked(user) or user.refused() or not thread.is_alive())
    try:
        yield thread
    finally:
        bus.stop()
        eventually(has_ended)


def lose_connection(user: User, bus: Bus) -> None:
    """Serve, lose the connection and come back, unless something is refused."""
    with serving_apart(user, bus):
        before = blocked(user)
        for client in before:
            user.client.client_kill_filter(_id=client)
        eventually(lambda: blocked(user) - before or user.refused())


Step = Callable[[], object]
Steps = Callable[[Bus, Bus, User], Iterator[Step]]


def steps_of_a_caller(own: Bus, bus: Bus, user: User) -> Iterator[Step]:
    """What a caller is for; ``own`` may do all, and does what others do meanwhile."""
    own.limited.options(timeout=0.001).run(0)  # dead by the time when it is looked at
    own.quad.run(1)
    lose(own, "quad")
    own.plain.run(1)
    lose(own, "plain")
    own.conn.zadd(SERVICE.workers, {"host:1:ahead": 9e15})
    own.conn.script_flush()
    yield bus.all_methods
    yield lambda: bus.get_method("nothing")
    yield bus.stats
    yield lambda: bus.plain.options(timeout=9).run(1)
    yield lambda: bus.plain.run(2).cancel()
    yield lambda: bus.quad.clear_cache(1)
    yield lambda: bus.quad.clear_all_cache()
    yield lambda: bus.quad.options(fail_fast=True)(3)
    yield lambda: bus.limited.run(1)
    yield lambda: bus.plain.options(timeout=1.0)(1)
    yield lambda: asyncio.run(be_told(own, user))


async def be_told(own: Bus, user: User) -> None:
    """Wait on an inbox for a run, and withdraw it."""
    async with user.async_bus(timeout=0.5) as bus:
        run = await bus.plain.run(5)
        waiter = asyncio.create_task(run.get())
        with contextlib.suppress(CallTimeout):
            inboxes = SERVICE.inboxes(run.id.rpartition(":")[2])
            while not waiter.done() and not own.conn.exists(inboxes):
                await asyncio.sleep(0.001)
            await run.cancel()
            with contextlib.suppress(Cancelled):
                await waiter


def steps_of_a_worker(own: Bus, bus: Bus, user: User) -> Iterator[Step]:
    yield from steps_of_a_caller(own, bus, user)
    own.plain.run(3)
    own.conn.rpush(own.quad.target.route.queue, b"no job")
    register(bus)
    yield bus.serve_once
    yield lambda: lose_connection(user, bus)


def steps_of_an_admin(own: Bus, bus: Bus, user: User) -> Iterator[Step]:
    for number in range(3):
        own.plain.run(number)
        lose(own, "plain")
        own._core.drive(sweep("test", SERVICE))
    own.conn.script_flush()
    own.conn.rpush(own.plain.target.route.wake, 1)  # of a job that is gone
    yield lambda: bus.plain.dead_letters()[0].retry()  # to an empty queue
    own.conn.delete(own.plain.target.route.queue)
    for number in range(101):  # more than that are looked through for dead ones
        own.plain.options(timeout=60).run(number)
    yield lambda: bus.plain.dead_letters()[0].retry()  # to one with an end
    yield lambda: bus.plain.dead_letters()[0].drop()
    for words in (["buses"], ["ls", "test"], ["stats", "test"], ["ping", "test"]):
        yield lambda words=words: command(user, *words)
    yield lambda: bus.get_method("nothing")
    yield bus.cleanup


def is_refused(user: User, name: str, steps: Iterator[Step]) -> bool:
    """Whether Redis refuses a command in one of the steps, whatever becomes of them."""
    for step in steps:
        with contextlib.suppress(BusError, AttributeError):
            step()
        if user.refused() & {name, name.partition("|")[0]}:
            return True
    return False


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("caller", steps_of_a_caller),
        ("worker", steps_of_a_worker),
        ("admin", steps_of_an_admin),
    ],
)
def test_no_command_can_be_left_out_of_a_list(
    users: Users, url: str, kind: str, steps: Steps
) -> None:
    user, needless = users[kind], []
    for name in ["none", *commands_of(kind)]:
        if name in OF_CLIENT:
            continue
        user.client.flushall()
        with Bus("test", url=url) as own, user.bus(timeout=0.2) as bus:
            register(own)
            own.serve_once()
            user.make(name)
            if not is_refused(user, name, steps(own, bus, user)):
                needless.append(name)
                assert user.refused() == set()
    assert needless == ["none"]


@pytest.mark.parametrize("without", [None, *OF_CLIENT])
def test_a_worker_that_may_not_end_its_wait_stops_when_that_is_over(
    users: Users, without: str | None
) -> None:
    user = users["worker"]
    user.make(*([without] if without else []))
    with user.bus() as bus:
        register(bus)
        with serving_apart(user, bus) as thread:
            bus.stop()
            thread.join(0.5 if without else PATIENCE_SECONDS)
            assert thread.is_alive() == bool(without)


# -- TLS --------------------------------------------------------------------------------------

Place = tuple[RedisServer, str, Path]


@pytest.fixture(scope="module", params=with_tls())
def tls(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A Redis that wants certificates of its clients; where TLS is; and the files of a client."""
    folder = tmp_path_factory.mktemp("tls")
    ours, strangers = trustme.CA(), trustme.CA()
    for name, authority in (("ca", ours), ("strangers", strangers)):
        authority.cert_pem.write_to_path(folder / f"{name}.pem")
    issued = {"server": ours.issue_cert("localhost"), "client": ours.issue_cert("me@localhost")}
    issued["stranger"] = strangers.issue_cert("me@localhost")
    for name, certificate in issued.items():
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    port = _free_port()
    options: dict[str, object] = {
        "tls_port": port,
        "tls_cert_file": folder / "server.pem",
        "tls_key_file": folder / "server.key",
        "tls_ca_cert_file": folder / "ca.pem",
    }
    server = RedisServer(SERVERS[request.param], **options)
    with contextlib.closing(server.start()):
        yield server, f"rediss://localhost:{port}/0", folder


def certificates(folder: Path, ca: str = "ca.pem", client: str = "client") -> dict[str, str]:
    """Return the settings of the README, with files of that folder."""
    names = {"ssl_ca_certs": ca, "ssl_certfile": f"{client}.pem", "ssl_keyfile": f"{client}.key"}
    return {setting: str(folder / name) for setting, name in names.items()}


@pytest.fixture
def tls_users(tls: Place) -> Users:
    server, url, folder = tls
    client = server.client()
    client.flushall()
    more = "&".join(f"{name}={file}" for name, file in certificates(folder).items())
    users = {}
    for kind in KINDS:
        place = url.replace("://", f"://{kind}:{PASSWORD}@")
        users[kind] = User(kind, f"{place}?{more}", client)
        users[kind].make()
    return users


@needs_wheel
def test_the_embedded_server_of_the_wheel_is_built_without_tls() -> None:
    """As the README says; so what follows is tested with other servers only."""
    bundled = bundled_server()
    assert bundled is not None
    assert not has_tls(bundled)


def service_of_the_readme(url: str, folder: Path) -> str:
    """Return the README's example, with the place, the user and the files of the test."""
    code = block_of("tls.py").replace('"shop"', '"test"')
    there = "rediss://USER:PASSWORD@redis.example.org:6379/0"
    assert there in code
    code = code.replace(there, url.partition("?")[0])
    for setting, file in certificates(folder).items():
        code, found = re.subn(f'{setting}="[^"]+"', f'{setting}="{file}"', code)
        assert found == 1
    return code + METHODS


def test_worker_caller_and_admin_speak_tls(tls: Place, tls_users: Users, tmp_path: Path) -> None:
    server, _, folder = tls
    processes = Processes("redis://localhost:1/0", tmp_path)
    try:
        code = service_of_the_readme(tls_users["worker"].url, folder)
        process = start_worker(processes, tls_users["worker"], code)
        with tls_users["caller"].bus() as caller:
            with Bus("test", url=server.url) as own:
                eventually(lambda: workers(own, "outer") == 2 or process.poll() is not None)
            call_everything(caller)
            eventually(lambda: len(blocked(tls_users["worker"])) == 2)
            tls_users["caller"].client.client_kill_filter(user="worker", skipme=False)
            tls_users["caller"].client.client_kill_filter(user="caller", skipme=False)
            call_everything(caller)
        assert "2 workers" in shown(tls_users["admin"], "ls", "test")
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0
        # That of the function that failed, and no frame of ours.
        assert err.count("Traceback") == err.count("raised ValueError: no")
        assert "redis_bus/" not in err
        assert PASSWORD not in out + err
    finally:
        processes.end()


def test_a_connection_over_tls_is_used_again(
    tls_users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tls_users["caller"]
    monkeypatch.setattr(transport, "FRESH_SECONDS", -1.0)  # each is looked at before
    with user.bus() as bus:
        assert bus.all_methods() == []
        before = user.client.info("stats")["total_connections_received"]
        assert [bus.all_methods() for _ in range(10)] == [[]] * 10
        assert user.client.info("stats")["total_connections_received"] == before


@pytest.mark.parametrize(
    ("ca", "client", "words"),
    [
        ("strangers.pem", "client", "CERTIFICATE_VERIFY_FAILED"),
        ("ca.pem", "stranger", "ssl_certfile|unknown ca"),
        ("ca.pem", "", "ssl_certfile|certificate required"),
        ("missing.pem", "client", "missing.pem cannot be read"),
        ("ca.pem", "missing", "missing.pem cannot be read"),
        ("server.key", "client", "certificate"),
    ],
)
def test_what_is_wrong_with_certificates_is_an_error_that_names_tls(
    tls: Place, tls_users: Users, ca: str, client: str, words: str
) -> None:
    _, _, folder = tls
    url = tls_users["caller"].url.partition("?")[0]
    settings = certificates(folder, ca, client)
    if not client:
        settings = {"ssl_ca_certs": settings["ssl_ca_certs"]}
    pattern = f"no TLS connection to Redis at localhost:\\d+ \\(.*({words}).*\\)"
    with Bus("test", url=url, **settings) as bus, pytest.raises(ConnectionLost) as error:
        bus.all_methods()
    assert re.fullmatch(pattern, str(error.value))
    assert PASSWORD not in str(error.value)
    more = "&".join(f"{name}={file}" for name, file in settings.items())
    result = command(User("caller", f"{url}?{more}", tls_users["caller"].client), "ls", "test")
    assert result.exit_code == Exit.NO_REDIS
    assert re.fullmatch(f"redis-bus: {pattern}\n", result.output)


def test_a_host_that_the_certificate_does_not_name_is_refused(tls_users: Users) -> None:
    url = tls_users["caller"].url.replace("@localhost", "@127.0.0.1")
    with Bus("test", url=url) as bus, pytest.raises(ConnectionLost, match=r"no TLS.*127\.0\.0\.1"):
        bus.all_methods()


def test_a_call_is_not_said_to_be_perhaps_sent_where_there_was_no_tls_connection(
    tls: Place, tls_users: Users
) -> None:
    _, _, folder = tls
    own_ca = folder / "copied.pem"
    own_ca.write_bytes((folder / "ca.pem").read_bytes())
    user = tls_users["worker"]
    with user.bus() as bus:
        register(bus)
        bus.serve_once()
    url = user.url.partition("?")[0]
    settings = certificates(folder, "copied.pem")
    with Bus("test", url=url, **settings) as bus:
        assert bus.get_method("plain")
        own_ca.unlink()
        bus.close()
        with pytest.raises(ConnectionLost) as error:
            bus.plain(1)
    assert str(error.value).endswith("copied.pem cannot be read)")


def test_a_redis_that_speaks_no_tls_is_an_error_that_names_tls(tls: Place) -> None:
    server, _, folder = tls
    url = server.url.replace("redis://", "rediss://")
    with (
        Bus("test", url=url, **certificates(folder)) as bus,
        pytest.raises(ConnectionLost, match=r"^no TLS connection to Redis at 127"),
    ):
        bus._core.transport.exchange(("PING",), timeout=0.3)
