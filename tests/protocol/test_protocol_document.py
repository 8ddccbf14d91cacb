"""lua/README.rst is enough to write a caller and a worker: its own two work with the library."""

from __future__ import annotations

import ast
import asyncio
import io
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from docutils.core import publish_doctree

from redis_bus import AsyncBus, Bus, QueueFull, RemoteError, WorkerLost
from redis_bus.calls.sweep import sweep
from redis_bus.protocol import cache_key, scripts
from redis_bus.protocol import commands as protocol
from redis_bus.protocol.entries import Mode, parse_entry, parse_job, parse_letter
from tests.support import PATIENCE_SECONDS, ROOT, eventually, serving, workers

DOCUMENT = (ROOT / "lua" / "README.rst").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^\.\. code-block:: \w+\n   :name: (\S+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
BLOCKS = {name: re.sub("^   ", "", text, flags=re.M) for name, text in _BLOCK.findall(DOCUMENT)}
SERVICE = protocol.Service("test", "")


def run_block(name: str) -> dict[str, Any]:
    """Run a program of the document, which may not use the library, and return its names."""
    assert not re.search(r"(import|from) redis_bus", BLOCKS[name])
    namespace: dict[str, Any] = {}
    exec(compile(BLOCKS[name], f"lua/README.rst: {name}", "exec"), namespace)
    return namespace


@pytest.fixture
def joined(tmp_path: Path) -> str:
    """The folder of joined scripts that the document tells to make."""
    scripts.write_joined(str(tmp_path / "scripts"))
    return str(tmp_path / "scripts")


@pytest.fixture
def caller(url: str, joined: str) -> Iterator[Any]:
    caller = run_block("caller")["Caller"](url, "test", joined)
    yield caller
    caller.redis.close()


Methods = dict[str, tuple[Callable[..., Any], list[str], object]]


@contextmanager
def document_worker(url: str, joined: str, bus: Bus, methods: Methods) -> Iterator[Any]:
    """Serve with the worker of the document."""
    worker = run_block("worker")["Worker"](url, "test", joined, methods)
    stop, failure = threading.Event(), []

    def serve() -> None:
        try:
            worker.serve(stop)
        except BaseException as error:
            failure.append(error)
            raise

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        eventually(lambda: failure or all(workers(bus, name) for name in methods))
        yield worker
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS)
        worker.redis.close()
        assert not thread.is_alive()
        assert not failure, failure


def test_its_caller_gets_the_values_of_an_uncached_method(bus: Bus, caller: Any) -> None:
    @bus.register()
    def repeat(text: str, times: int) -> list[str]:
        return [text] * times

    with serving(bus):
        assert caller.call("repeat", "ä", 2) == ["ä", "ä"]
        assert caller.call("repeat", "", 0) == []
    assert not list(bus.conn.scan_iter("rb:*:reply:*"))


def test_its_caller_and_the_library_share_cached_values(bus: Bus, caller: Any) -> None:
    runs: list[object] = []

    @bus.register(cache_key="{a}/{b}")
    def join(a: object, b: object) -> str:
        runs.append((a, b))
        return f"{a} {b}"

    with serving(bus):
        assert caller.call("join", 1, "x") == "1 x"
        assert caller.call("join", 1, "x") == "1 x"
        assert bus.join(1, "x") == "1 x"
        assert runs == [(1, "x")]
        bus.join("b", -7)
        assert caller.call("join", "b", -7) == "b -7"
        assert runs == [(1, "x"), ("b", -7)]
        assert bus.join.clear_cache(1, "x")
        assert caller.call("join", 1, "x") == "1 x"
        assert len(runs) == 3


def test_its_caller_and_the_library_find_the_same_partitions(url: str, caller: Any) -> None:
    runs: list[int] = []
    with Bus("test", url=url, partitions=3) as bus:
        bus.register("keyed", cache_key="{a}")(lambda a: runs.append(a) or a)
        bus.register("plain")(lambda a: a)
        with serving(bus):
            assert [caller.call("keyed", a) for a in range(12)] == list(range(12))
            assert [bus.keyed(a) for a in range(12)] == list(range(12))
            assert runs == list(range(12))
            assert [caller.call("plain", a) for a in range(12)] == list(range(12))


def test_a_key_that_its_caller_cannot_render_is_called_without_one(bus: Bus, caller: Any) -> None:
    runs: list[object] = []

    @bus.register(cache_key=True)
    def double(a: Any) -> Any:
        runs.append(a)
        return a * 2

    with serving(bus):
        for value in (1.5, "two words", "True", "1"):
            bus.double(value)
            runs.clear()
            assert caller.call("double", value) == value * 2
            assert runs == [value]
            bus.double(value)
            assert runs == [value]


def test_its_caller_joins_a_flight_of_the_library(bus: Bus, caller: Any) -> None:
    begun, go = threading.Event(), threading.Event()
    runs: list[int] = []

    @bus.register(cache_key="{a}")
    def slow(a: int) -> int:
        runs.append(a)
        begun.set()
        assert go.wait(PATIENCE_SECONDS)
        return a + 1

    results: list[int] = []
    with serving(bus):
        first = threading.Thread(target=lambda: results.append(bus.slow(1)))
        first.start()
        assert begun.wait(PATIENCE_SECONDS)
        second = threading.Thread(target=lambda: results.append(caller.call("slow", 1)))
        second.start()
        eventually(lambda: bus.stats()["slow"]["joins"] == 1)
        go.set()
        first.join(PATIENCE_SECONDS)
        second.join(PATIENCE_SECONDS)
    assert results == [2, 2]
    assert runs == [1]


def test_its_caller_waits_for_the_other_job_where_one_was_moved(bus: Bus, caller: Any) -> None:
    @bus.register(cache_key="{a}")
    def slow(a: int) -> int:
        return a

    assert bus.get_method("slow") is not None
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(caller.call("slow", 1)))
    waiter.start()
    route = protocol.Route(SERVICE, "slow", "", max_queue=None, keep_ms=1)
    flown = eventually(lambda: bus.conn.get(route.flight(b"1")))
    job = flown.split(b" ")[0].decode()
    bus.conn.rpush(SERVICE.reply("other"), b"m\x07")
    bus.conn.rpush(SERVICE.reply(job), b">other")
    waiter.join(PATIENCE_SECONDS)
    assert results == [7]


@pytest.mark.parametrize("key", [None, "{a}"])
def test_its_caller_shows_a_remote_error(bus: Bus, caller: Any, key: str | None) -> None:
    @bus.register(cache_key=key)
    def fail(a: int) -> None:
        raise ValueError(f"no {a}")

    with serving(bus):
        with pytest.raises(RuntimeError) as caught:
            caller.call("fail", 3)
        assert "builtins.ValueError: no 3" in str(caught.value)
        assert "in fail" in str(caught.value)


def test_its_caller_follows_a_new_registration(bus: Bus, caller: Any, url: str) -> None:
    @bus.register(cache_key="{a}")
    def price(a: int) -> str:
        return f"old {a}"

    with serving(bus):
        assert caller.call("price", 1) == "old 1"
    old = caller.look_up("price")
    with Bus("test", url=url) as newer:

        @newer.register(name="price", cache_key="new/{a}")
        def price_now(a: int) -> str:
            return f"new {a}"

        with serving(newer):
            assert caller.attempt(old, (1,), time.monotonic() + PATIENCE_SECONDS) is None
            assert caller.call("price", 1) == "new 1"


@pytest.mark.parametrize("argument", [1, 2.5])
def test_a_refusal_ends_its_callers_wait(bus: Bus, caller: Any, argument: float) -> None:
    @bus.register(cache_key="{a}", max_queue=1)
    def busy(a: float) -> None: ...

    assert bus.get_method("busy") is not None
    bus.busy.run(0)
    with pytest.raises(QueueFull):
        bus.busy.run(3)
    with pytest.raises(RuntimeError, match="full"):
        caller.call("busy", argument)


def test_its_caller_times_out(bus: Bus, caller: Any) -> None:
    @bus.register()
    def nobody() -> None: ...

    assert bus.get_method("nobody") is not None
    with pytest.raises(TimeoutError):
        caller.call("nobody", timeout=0.2)


def test_its_worker_answers_uncached_calls(bus: Bus, url: str, joined: str) -> None:
    methods: Methods = {
        "add": (lambda a, b: a + b, ["a", "b"], None),
        "upper": (str.upper, ["text"], None),
    }
    with document_worker(url, joined, bus, methods):
        assert bus.add(1, b=2) == 3
        assert bus.upper("ab") == "AB"
        assert [bus.add(n, n) for n in range(20)] == [2 * n for n in range(20)]
        assert bus.add.run(2, 3).get() == 5
        with pytest.raises(TypeError, match="missing"):
            bus.add(1)
    assert bus.stats()["add"]["workers"] == 0
    assert not list(bus.conn.scan_iter("rb:*:running:*"))


def test_its_worker_fills_the_cache(bus: Bus, url: str, joined: str) -> None:
    runs: list[int] = []

    def square(n: int) -> int:
        runs.append(n)
        return n * n

    with document_worker(url, joined, bus, {"square": (square, ["n"], "{n}")}):
        assert bus.square(3) == 9
        assert bus.square(3) == 9
        assert runs == [3]
        assert bus.square.run(3).get() == 9
        assert bus.square.clear_cache(3)
        assert bus.square(3) == 9
        assert runs == [3, 3]
        bus.square.clear_all_cache()
        assert bus.square(3) == 9
        assert runs == [3, 3, 3]
    # Etag and shape are made as the library makes them: nothing was published over them.
    assert bus.square(3) == 9


def test_its_worker_publishes_what_the_library_reckons(bus: Bus, url: str, joined: str) -> None:
    worker = run_block("worker")["Worker"](url, "test", joined, {"f": (abs, ["n"], "{n}")})
    worker.publish()
    target = bus["f"].target
    etag, shape, _ = bus.conn.hget(SERVICE.meta, "f").decode().split(" ")
    assert (etag, shape) == (target.etag, target.shape)
    worker.redis.close()


@pytest.mark.parametrize("key", [None, "{n}"])
def test_its_worker_tells_those_who_listen(
    bus: Bus, url: str, joined: str, key: str | None
) -> None:
    async def call_many() -> list[int]:
        async with AsyncBus("test", url=url, timeout=PATIENCE_SECONDS) as abus:
            return await asyncio.gather(*(abus.square(n) for n in (1, 2, 2, 3)))

    methods: Methods = {"square": (lambda n: n * n, ["n"], key)}
    with document_worker(url, joined, bus, methods):
        assert asyncio.run(call_many()) == [1, 4, 4, 9]


def test_another_etag_serves_until_the_library_publishes_its_own(
    bus: Bus, url: str, joined: str
) -> None:
    with document_worker(url, joined, bus, {"f": (abs, ["n"], "{n}")}) as worker:
        other = worker.script("publish", [worker.key("meta")], "f", "E" * 16, "S" * 16)
        worker.redis.execute_command(*other)
        assert bus.f(-1) == 1
        assert bus.conn.hget(SERVICE.meta, "f").decode().startswith(bus.f.target.etag)
        assert bus.f(-1) == 1


def test_its_workers_errors_are_raised_by_the_library(bus: Bus, url: str, joined: str) -> None:
    class OwnError(Exception):
        pass

    def fail(kind: str) -> None:
        raise {"value": ValueError, "own": OwnError}[kind]("broken")

    with document_worker(url, joined, bus, {"fail": (fail, ["kind"], None)}):
        with pytest.raises(ValueError, match="broken") as caught:
            bus.fail("value")
        assert "in fail" in str(caught.value.__cause__)
        with pytest.raises(RemoteError, match="OwnError: broken"):
            bus.fail("own")


def test_its_worker_admits_a_late_job(bus: Bus, url: str, joined: str) -> None:
    methods: Methods = {"square": (lambda n: n * n, ["n"], "{n}")}
    worker = run_block("worker")["Worker"](url, "test", joined, methods)
    worker.publish()
    call = worker_call(bus, "square", b"4", 1)
    _, job, now = bus._core.transport.exchange(call)[0]
    eventually(lambda: server_ms(bus) > now + 1)
    taken = take(worker, "square")
    assert worker.run("square", taken[1], taken[2]) is None
    assert not bus.conn.exists(worker.running, SERVICE.reply(job.decode()))
    worker.redis.close()


def test_its_worker_keeps_bytes_that_are_no_job(bus: Bus, url: str, joined: str) -> None:
    with document_worker(url, joined, bus, {"add": (lambda a: a, ["a"], None)}) as worker:
        bus.conn.rpush(f"{SERVICE.base}queue:add", b"rubbish")
        assert bus.add(1) == 1
        letters = eventually(lambda: bus.conn.lrange(f"{SERVICE.base}dead:add", 0, -1))
        letter = parse_letter(letters[0])
        assert (letter.why, letter.worker, letter.entry) == ("foreign", worker.id, b"rubbish")


@pytest.mark.parametrize("key", [None, "{n}"])
def test_its_worker_gives_the_jobs_of_a_lost_one_away(
    bus: Bus, url: str, joined: str, key: str | None
) -> None:
    methods: Methods = {"square": (lambda n: n * n, ["n"], key)}
    lost = run_block("worker")["Worker"](url, "test", joined, methods)
    lost.publish()
    result = bus.square.run(5)
    assert take(lost, "square")
    with document_worker(url, joined, bus, methods) as worker:
        worker.sweep()
        assert bus.conn.hexists(lost.running, result.id.rpartition(":")[2])
        lapse(bus, lost)
        worker.sweep()
        if key:
            assert result.get(timeout=PATIENCE_SECONDS) == 25
        else:
            with pytest.raises(WorkerLost, match=lost.id):
                result.get(timeout=PATIENCE_SECONDS)
            assert len(bus.conn.lrange(f"{SERVICE.base}dead:square", 0, -1)) == 1
        listed = [member.decode() for member in bus.conn.zrange(SERVICE.workers, 0, -1)]
        assert listed == [worker.id]
    lost.redis.close()


def test_its_worker_sweeps_while_it_beats(bus: Bus, url: str, joined: str) -> None:
    methods: Methods = {"square": (lambda n: n * n, ["n"], None)}
    with document_worker(url, joined, bus, methods):
        assert bus.conn.exists(SERVICE.swept)


def test_the_library_gives_the_jobs_of_its_worker_away(bus: Bus, url: str, joined: str) -> None:
    methods: Methods = {"square": (lambda n: n * n, ["n"], "{n}")}
    lost = run_block("worker")["Worker"](url, "test", joined, methods)
    lost.publish()
    bus.register(name="square", cache_key="{n}")(lambda n: n * n)
    result = bus.square.run(5)
    assert take(lost, "square")
    lapse(bus, lost)
    with serving(bus):
        assert result.get(timeout=PATIENCE_SECONDS) == 25
    lost.redis.close()


def test_its_caller_and_its_worker_understand_each_other(
    bus: Bus, url: str, joined: str, caller: Any
) -> None:
    methods: Methods = {"add": (lambda a, b: a + b, ["a", "b"], "{a}+{b}"), "id": (id, [], None)}
    with document_worker(url, joined, bus, methods):
        assert caller.call("add", 1, 2) == 3
        with pytest.raises(RuntimeError, match=r"builtins\.TypeError"):
            caller.call("id")


def test_its_access_rules_are_enough(url: str, joined: str, client: redis.Redis, bus: Bus) -> None:
    with users(client, url) as urls:
        methods: Methods = {"square": (lambda n: n * n, ["n"], "{n}"), "echo": (repr, ["n"], None)}
        with (
            document_worker(urls["acl-worker"], joined, bus, methods),
            Bus("test", url=urls["acl-caller"]) as outside,
        ):
            caller = run_block("caller")["Caller"](urls["acl-caller"], "test", joined)
            assert (caller.call("square", 2), caller.call("echo", 2)) == (4, "2")
            use_everything(outside)
            asyncio.run(use_everything_awaited(urls["acl-caller"]))
            with pytest.raises(redis.exceptions.NoPermissionError):
                caller.redis.execute_command("GET", "rb:{tester}:methods")
            with pytest.raises(redis.exceptions.NoPermissionError):
                caller.redis.execute_command("FLUSHALL")
            caller.redis.close()
        with Bus("test", url=urls["acl-worker"]) as inside:
            inside.register(name="square", cache_key="{n}", stale=5)(lambda n: n * n)
            inside.register(name="echo")(lambda n: repr(n))
            with serving(inside), Bus("test", url=urls["acl-caller"]) as outside:
                use_everything(outside)
                asyncio.run(use_everything_awaited(urls["acl-caller"]))


CALLER_SCRIPTS = {
    *("call", "cancel", "clear", "clear_all", "discard", "listen", "state"),
    *("sweep", "claims", "reclaim", "retry"),
}
WORKER_SCRIPTS = set(scripts.load()) - {
    *("call", "cancel", "clear", "clear_all", "listen", "retry"),
}


@pytest.mark.parametrize(
    ("user", "allowed"), [("acl-caller", CALLER_SCRIPTS), ("acl-worker", WORKER_SCRIPTS)]
)
def test_its_access_rules_name_the_commands_of_the_scripts(user: str, allowed: set[str]) -> None:
    rules = BLOCKS[user].split()
    for name in allowed:
        source = scripts.load()[name].source
        for command in re.findall(r"redis\.p?call\('(\w+)'|'([LR]PUSH)'", source):
            assert f"+{''.join(command).lower()}" in rules, name


def test_its_examples_of_lines_are_read_by_the_library() -> None:
    lines: dict[str, Any] = {}
    exec(BLOCKS["example-lines"], lines)
    job = parse_job(lines["queue_entry"])
    assert (job.attempt, job.mode, job.key) == (1, Mode.CALL, b"1/2")
    plain = parse_job(lines["queue_entry_without_key"])
    assert (plain.deadline_ms, plain.key, plain.body) == (0, None, job.body)
    assert run_block("caller")["decode"](job.body) == [[1, 2], {}]
    assert parse_entry(lines["cached_entry"]) == b"m\x03"
    letter = parse_letter(lines["dead_letter"])
    assert (letter.why, letter.entry) == ("lost", lines["queue_entry"])
    flight = lines["flight"].decode().split(" ")
    assert flight == [job.id, job.generation, "0"]


def test_its_examples_of_cache_keys_are_the_librarys() -> None:
    examples = [re.split(" {2,}", line) for line in BLOCKS["example-keys"].strip().splitlines()]
    assert len(examples) > 9
    for template, shown, key in examples:
        bound = ast.literal_eval(shown)
        render = cache_key.compile_template(template, list(bound))
        assert render(tuple(bound.values())).decode() == key, template


def test_every_script_is_in_it() -> None:
    for name in scripts.load():
        assert f"``{name}``" in DOCUMENT
        assert f"- ``{name}``: " in DOCUMENT


def test_every_key_is_in_it() -> None:
    bus, method = "rb:{bus}", "<method>"
    service = protocol.Service("bus", "service")
    route = protocol.Route(service, method, "", max_queue=None, keep_ms=1)
    keys = [service.meta, service.workers, service.swept, service.running("<worker>")]
    keys.append(route.pending)
    keys += [service.reply("<job>"), service.inboxes("<job>")]
    keys += [route.queue, route.wake, route.serving, route.stats]
    keys += [route.dead, route.cache(b"<key>").decode(), route.flight(b"<key>").decode()]
    for key in keys:
        assert f"``{key.replace('{bus:service}', 'T')}``" in DOCUMENT
    assert f"``{bus}:methods``" in DOCUMENT


def test_it_is_valid_markup() -> None:
    said = io.StringIO()
    settings = {"syntax_highlight": "none", "report_level": 2, "warning_stream": said}
    publish_doctree(DOCUMENT, settings_overrides=settings)
    assert said.getvalue() == ""


def server_ms(bus: Bus) -> int:
    seconds, micro = bus.conn.time()
    return int(seconds) * 1000 + int(micro) // 1000


def worker_call(bus: Bus, method: str, key: bytes, budget_ms: int) -> protocol.Command:
    """A keyed call that nobody waits for any more after its budget."""
    route = bus[method].target.route
    job = uuid.uuid4().hex
    body = b"m\x92\x91\x04\x80"
    return route.call(job, body, mode=Mode.CALL, budget_ms=budget_ms, key=key)


def take(worker: Any, method: str) -> Any:
    """Let a worker of the document, which does not serve, claim a job."""
    keys = [worker.running, worker.key("workers")]
    keys += [worker.key(kind, method) for kind in ("queue", "wake", "pending")]
    return worker.redis.execute_command(*worker.script("take", keys, worker.id, 10_000))


def lapse(bus: Bus, worker: Any) -> None:
    """Say that a worker is dead."""
    command = SERVICE.lapse(worker.id)
    assert bus.conn.execute_command(*command) == 0  # it was listed
    assert bus.conn.zscore(SERVICE.workers, worker.id) == 0


def use_everything(bus: Bus) -> None:
    """Do all that a caller can do."""
    assert {"square", "echo"} <= set(bus.all_methods())
    assert (bus.square(3), bus.square(3), bus.echo(1)) == (9, 9, "1")
    result = bus.square.run(5)
    assert (result.get(), result.done(), result.cancel()) == (25, True, False)
    assert bus.get_async_result(result.id).get() == 25
    assert bus.echo.run(5).get() == "5"
    assert bus.square.clear_cache(3)
    bus.square.clear_all_cache()
    assert bus.stats()["square"]["calls"]
    route = bus.echo.target.route
    rest = f" 1 3 0 1 {route.etag} run 1 - echo\n".encode() + b"m\x92\x91\x01\x80"
    bus.conn.rpush(route.dead, b"1 lost w\na" + rest, b"1 lost w\nb" + rest)
    first, second = bus.echo.dead_letters()
    assert (first.retry().get(), second.drop()) == ("1", True)
    bus.conn.hset(SERVICE.running("gone"), "c", b"c" + rest)
    bus.conn.zadd(SERVICE.workers, {"gone": 0})
    bus._core.drive(sweep("test", SERVICE))
    assert bus.get_async_result(":echo:c").get() == "1"


async def use_everything_awaited(url: str) -> None:
    """Do what a caller can do on one connection, and be told of outcomes on another."""
    async with AsyncBus("test", url=url, timeout=PATIENCE_SECONDS) as bus:
        assert await asyncio.gather(bus.square(7), bus.square(7), bus.echo(1)) == [49, 49, "1"]
        result = await bus.square.run(8)
        assert await result.get() == 64
        assert (await result.done(), await result.cancel()) == (True, False)
        assert await bus.square.clear_cache(7)


@contextmanager
def users(client: redis.Redis, url: str) -> Iterator[dict[str, str]]:
    """Make the users of the document; they see nothing but the bus ``test``."""
    address = url.partition("://")
    urls = {}
    for name in ("acl-caller", "acl-worker"):
        text = BLOCKS[name].replace("USER on", f"{name} on").replace("BUS", "test")
        client.execute_command(*text.replace("PASSWORD", "secret").split())
        urls[name] = f"{address[0]}://{name}:secret@{address[2]}"
    try:
        yield urls
    finally:
        client.execute_command("ACL", "DELUSER", *urls)
