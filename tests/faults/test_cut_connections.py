"""A connection may be cut behind any byte: a call has its result or an error, and runs once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import redis

from redis_bus import Bus, BusError, ConnectionLost
from redis_bus.embedded import EmbeddedRedis
from tests.faults.cutting_proxy import CuttingProxy, How, Way
from tests.faults.faces import AsyncFace
from tests.servers import find_servers, oldest
from tests.support import eventually, serving

SERVERS = find_servers()
WAYS = [pytest.param(way, id=way.name.lower()) for way in Way]
HOWS = [pytest.param(how, id=how.name.lower()) for how in (How.RST, How.FIN)]
# Every byte takes minutes where the worker comes back with a pause each time.
EVERY_BYTE = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
# On all servers but the first: what they send and read is cut up alike.
STRIDE = 1 if EVERY_BYTE else 5
# What a call may take after a cut: a worker whose token got lost is woken by its next heartbeat.
SOON_SECONDS = 8.0
# What it may take where Redis gave a job to a dead connection: two heartbeats see that.
HEARTBEATS_SECONDS = 12.0
# A word that only the connection sends over which a worker waits for jobs.
LOOP = b"wake:"


@pytest.fixture(scope="module", params=SERVERS)
def tcp_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    """A Redis that listens on TCP, of each kind in turn."""
    with EmbeddedRedis(SERVERS[request.param], port=0) as embedded:
        yield embedded


@pytest.fixture
def client(tcp_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A client on that Redis, which is empty."""
    with redis.Redis.from_url(tcp_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def proxy(
    request: pytest.FixtureRequest, tcp_server: EmbeddedRedis, client: redis.Redis
) -> Iterator[CuttingProxy]:
    """A proxy in front of that Redis."""
    is_first = request.node.callspec.params["tcp_server"] == oldest()
    with CuttingProxy(tcp_server.url, 1 if is_first else STRIDE) as proxy:
        yield proxy


@pytest.fixture
def direct(tcp_server: EmbeddedRedis, client: redis.Redis) -> Iterator[Bus]:
    """A bus on that Redis, whose connections nobody cuts."""
    with Bus("test", url=tcp_server.url, timeout=20) as bus:
        yield bus


@pytest.fixture
def behind(proxy: CuttingProxy) -> Iterator[Bus]:
    """A bus of the same name whose connections go through the proxy."""
    with Bus("test", url=proxy.url, timeout=20) as bus:
        yield bus


class Notes:
    """Functions that note for which calls they ran."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()

    def register(self, bus: Bus) -> Notes:
        bus.register_method(self.note, "note")
        bus.register_method(self.kept, "kept", "{a}")
        return self

    def note(self, a: str) -> str:
        self.ran[a] += 1
        return f"<{a}>"

    def kept(self, a: str) -> str:
        return self.note(a)


@dataclass
class Cuts:
    """What was seen of a series of calls, each with its cut."""

    values: int = 0
    errors: int = 0
    unhurt: int = 0  # it took fewer bytes than before


def ids(number: int) -> Iterator[str]:
    """The arguments of calls, each of the same size."""
    return (f"{n:06d}" for n in range(number, 1_000_000))


def size_of(proxy: CuttingProxy, way: Way, action: Callable[[], object]) -> int:
    """How many bytes go that way for something that was done before, on a warm connection."""
    action()
    proxy.reset_counts()
    action()
    return proxy.passed[way]


def cut_everywhere(
    proxy: CuttingProxy,
    way: Way,
    how: How,
    size: int,
    action: Callable[[str], object],
    *,
    names: tuple[str, ...] = (),
    before: Callable[[], object] | None = None,
    step: int = 1,
    loads: bool = False,
) -> Cuts:
    """Do something once for every number of bytes that its connection is cut behind.

    Or, with a ``step`` or the proxy's stride, for some of them.
    ``before`` each time, something is done without a cut, so that the connection is warm.
    ``loads``: it loads scripts, unless somebody else just did, and then takes fewer bytes.
    """
    cuts = Cuts()
    fresh = ids(0)
    for after in range(0, size, step * proxy.stride):
        if before is not None:
            before()
        argument = next(fresh)
        where = f"cut {after} bytes of {size} {way.value} ({how.value})"
        proxy.cut(after, way, how)
        begun = time.monotonic()
        try:
            action(argument)
        except BusError as error:
            cuts.errors += 1
            assert isinstance(error, ConnectionLost), (where, error)
            assert all(name.format(argument) in str(error) for name in names), (where, error)
        else:
            cuts.values += 1
        passed = time.monotonic() - begun
        assert passed < SOON_SECONDS, (where, passed)
        cuts.unhurt += not proxy.fired.is_set()
        proxy.disarm()
    # Numbers in messages differ in size: times, counts.
    assert loads or cuts.unhurt < 10
    return cuts


# -- the caller's connection ----------------------------------------------------------------------


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", WAYS)
def test_an_uncached_call_cut_behind_any_byte_is_answered_or_lost_and_runs_once_at_most(
    direct: Bus, behind: Bus, proxy: CuttingProxy, way: Way, how: How
) -> None:
    notes = Notes().register(direct)
    answered: list[str] = []

    def call(a: str) -> None:
        assert behind.note(a) == f"<{a}>"
        answered.append(a)

    with serving(direct):
        warm = ids(500_000)
        size = size_of(proxy, way, lambda: call(next(warm)))
        assert size > (200 if way is Way.SERVER else 50)
        cuts = cut_everywhere(
            proxy, way, how, size, call, names=("note('{}')",), before=lambda: call(next(warm))
        )
        # Behind those that were lost: the worker takes jobs in their order.
        call("the last")
        assert behind.stats()["note"]["queued"] == 0
    assert set(notes.ran.values()) == {1}
    assert notes.ran.keys() >= set(answered)
    assert cuts.values <= 1
    lost = notes.ran.keys() - set(answered)
    if way is Way.CLIENT:
        assert len(lost) == cuts.errors  # it was sent each time, and ran
    else:
        assert 0 < len(lost) < cuts.errors  # the call, without its wait, was sent


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["note", "kept"])
def test_a_first_call_cut_behind_any_byte_is_answered_or_lost_and_the_next_is_answered(
    direct: Bus, behind: Bus, proxy: CuttingProxy, client: redis.Redis, way: Way, method: str
) -> None:
    """What sets a connection up, what looks a method up, and what loads the scripts."""
    notes = Notes().register(direct)
    answered: list[str] = []

    def call(a: str) -> None:
        behind.close()
        behind._core.methods.clear()
        client.script_flush()
        assert behind[method](a) == f"<{a}>"
        answered.append(a)

    with serving(direct):
        size = size_of(proxy, way, lambda: call("the first"))
        cuts = cut_everywhere(
            proxy, way, How.RST, size, call, step=1 if EVERY_BYTE else 151, loads=True
        )
        assert cuts.values
        call("the last")
        direct.note("behind all")
    repeated = {a for a, runs in notes.ran.items() if runs > 1} - {"the first"}
    assert not repeated or method == "kept"
    assert max(notes.ran.values()) <= 3
    assert notes.ran.keys() >= set(answered)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", WAYS)
def test_a_cached_call_cut_behind_any_byte_is_answered(
    direct: Bus, behind: Bus, proxy: CuttingProxy, way: Way, how: How
) -> None:
    notes = Notes().register(direct)

    def call(a: str) -> None:
        assert behind.kept(a) == f"<{a}>"

    with serving(direct):
        warm = ids(500_000)
        size = size_of(proxy, way, lambda: call(next(warm)))
        cuts = cut_everywhere(proxy, way, how, size, call, before=lambda: call(next(warm)))
        assert cuts.errors == 0
        direct.kept("behind all")
    # It is sent again while its key flies or is cached, so it hardly ever runs again.
    assert max(notes.ran.values()) <= 3


@pytest.mark.parametrize("way", WAYS)
def test_a_hit_cut_behind_any_byte_is_answered(
    direct: Bus, behind: Bus, proxy: CuttingProxy, way: Way
) -> None:
    notes = Notes().register(direct)

    def call(a: str = "") -> None:
        assert behind.kept("one") == "<one>"

    with serving(direct):
        call()
        size = size_of(proxy, way, call)
        cuts = cut_everywhere(proxy, way, How.RST, size, call, before=call)
        assert cuts.errors == 0
    assert notes.ran == {"one": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["note", "kept"])
def test_a_run_cut_behind_any_byte_is_enqueued_or_lost_and_its_result_is_read(
    direct: Bus, behind: Bus, proxy: CuttingProxy, way: Way, method: str
) -> None:
    notes = Notes().register(direct)
    enqueued: dict[str, str] = {}

    def run(a: str) -> None:
        enqueued[a] = behind[method].run(a).id

    with serving(direct):
        run("the first")
        size = size_of(proxy, way, lambda: run("the first"))
        text = f"{method}('{{}}')"
        cuts = cut_everywhere(
            proxy, way, How.RST, size, run, names=(text, "it may be enqueued, or not")
        )
        assert cuts.errors  # what was cut in a handshake was not sent, and is sent again
        run("the last")
        for a, job in enqueued.items():
            assert behind.get_async_result(job).get() == f"<{a}>"
        direct.note("behind all")
    repeated = {a for a, runs in notes.ran.items() if runs > 1}
    assert not repeated - {"the first"}
    assert notes.ran.keys() >= set(enqueued)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("look", ["get", "done"])
def test_an_outcome_whose_wait_is_cut_behind_any_byte_is_read(
    direct: Bus, behind: Bus, proxy: CuttingProxy, way: Way, look: str
) -> None:
    Notes().register(direct)

    def read(a: str = "") -> None:
        result = behind.get_async_result(job)
        assert result.get() == "<one>" if look == "get" else result.done()

    with serving(direct):
        job = direct.note.run("one").id
        assert direct.get_async_result(job).get() == "<one>"
        size = size_of(proxy, way, read)
        assert cut_everywhere(proxy, way, How.RST, size, read, before=read).errors == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_clear_cut_behind_any_byte_has_cleared_when_it_returns(
    direct: Bus, behind: Bus, proxy: CuttingProxy, way: Way
) -> None:
    notes = Notes().register(direct)

    def clear(a: str = "") -> None:
        before = notes.ran["one"]
        assert direct.kept("one") == "<one>"
        behind.kept.clear_cache("one")
        assert direct.kept("one") == "<one>"
        assert notes.ran["one"] == before + 1 + (before == 0)

    def clear_all(a: str = "") -> None:
        before = notes.ran["one"]
        behind.kept.clear_all_cache()
        assert direct.kept("one") == "<one>"
        assert notes.ran["one"] == before + 1

    with serving(direct):
        for action in (clear, clear_all):
            size = size_of(proxy, way, action)
            assert cut_everywhere(proxy, way, How.RST, size, action, step=3).errors == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_cancel_cut_behind_any_byte_is_done_or_an_error_that_names_the_job(
    direct: Bus, behind: Bus, proxy: CuttingProxy, way: Way
) -> None:
    notes = Notes().register(direct)
    cancelled: list[str] = []

    def cancel(a: str) -> None:
        result = behind.get_async_result(direct.note.run(a).id)
        assert result.cancel()
        cancelled.append(a)

    with direct:
        size = size_of(proxy, way, lambda: cancel("the first"))
        cut_everywhere(proxy, way, How.RST, size, cancel, names=("note (job ",), step=3)
        cancel("the last")
        with serving(direct):
            direct.note("behind all")
    assert not notes.ran.keys() & set(cancelled)
    assert set(notes.ran.values()) == {1}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_looked_up_over_a_connection_that_is_cut_is_found(
    direct: Bus, behind: Bus, proxy: CuttingProxy, client: redis.Redis, way: Way
) -> None:
    Notes().register(direct)

    def look(a: str = "") -> None:
        assert behind.all_methods() == ["kept", "note"]
        assert behind.stats()["note"]["workers"] == 1
        assert "note" in behind and "other" not in behind

    with serving(direct):
        size = size_of(proxy, way, look)
        cuts = cut_everywhere(proxy, way, How.RST, size, look, before=look, step=11)
        assert cuts.errors == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_cleanup_cut_behind_any_byte_leaves_nothing(
    direct: Bus, behind: Bus, proxy: CuttingProxy, client: redis.Redis, way: Way
) -> None:
    def cleanup(a: str = "") -> None:
        for number in range(5):
            client.set(f"rb:{{test:}}:cache:note:{number}", 1)
        client.set("another's", 1)
        behind.cleanup()
        assert client.keys() == [b"another's"]

    size = size_of(proxy, way, cleanup)
    assert cut_everywhere(proxy, way, How.RST, size, cleanup, step=5).errors == 0


# -- the two connections of an AsyncBus -----------------------------------------------------------

# So many cuts are made of each thing that is done, evenly spread.
SOME_CUTS = 47


@pytest.fixture
def behind_async(proxy: CuttingProxy) -> Iterator[AsyncFace]:
    """An `AsyncBus` of the same name whose connections go through the proxy."""
    bus = AsyncFace(url=proxy.url, timeout=20)
    yield bus
    bus.close()


def succeeds(action: Callable[[], object]) -> bool:
    """Do something, and return whether its connection was not lost."""
    try:
        action()
    except ConnectionLost:
        return False
    return True


def cut_here_and_there(
    proxy: CuttingProxy,
    way: Way,
    action: Callable[[str], object],
    warm: Callable[[], object],
    names: tuple[str, ...] = (),
) -> Cuts:
    """Do something with cuts all over what it sends or is sent, over both connections."""

    def connect() -> None:
        # What is sent behind a call, to tidy up, may be what was cut: right before this one.
        eventually(lambda: succeeds(warm))

    connect()
    size = size_of(proxy, way, lambda: action("the first"))
    step = 1 if EVERY_BYTE else max(1, size // SOME_CUTS)
    cuts = cut_everywhere(
        proxy, way, How.RST, size, action, names=names, before=connect, step=step, loads=True
    )
    connect()
    assert cuts.unhurt < (cuts.values + cuts.errors) / 2
    return cuts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["note", "kept"])
def test_a_call_of_an_async_bus_that_is_cut_is_answered_or_lost_and_runs_once_at_most(
    direct: Bus, behind_async: AsyncFace, proxy: CuttingProxy, way: Way, method: str
) -> None:
    notes = Notes().register(direct)
    answered: list[str] = []
    warm = ids(500_000)

    def call(a: str) -> None:
        assert behind_async[method](a) == f"<{a}>"
        answered.append(a)

    with serving(direct):
        names = (f"{method}('{{}}')",)
        cuts = cut_here_and_there(proxy, way, call, lambda: call(next(warm)), names)
        call("the last")
        direct.note("behind all")
        assert direct.stats()[method]["queued"] == 0
    assert notes.ran.keys() >= set(answered)
    if method == "kept":
        assert cuts.errors == 0
        assert max(notes.ran.values()) <= 3
    else:
        assert max(runs for a, runs in notes.ran.items() if a != "the first") == 1


@pytest.mark.parametrize("way", WAYS)
def test_what_else_an_async_bus_asks_over_connections_that_are_cut_is_answered(
    direct: Bus, behind_async: AsyncFace, proxy: CuttingProxy, way: Way
) -> None:
    notes = Notes().register(direct)
    bus = behind_async

    def hit(a: str = "") -> None:
        assert bus.kept("hit") == "<hit>"

    def read(a: str = "") -> None:
        result = bus.get_async_result(job)
        assert result.done()
        assert result.get() == "<one>"

    def clear(a: str = "") -> None:
        before = notes.ran["cleared"]
        assert direct.kept("cleared") == "<cleared>"
        bus.kept.clear_cache("cleared")
        assert direct.kept("cleared") == "<cleared>"
        assert notes.ran["cleared"] == before + 1 + (before == 0)

    def look(a: str = "") -> None:
        assert bus.all_methods() == ["kept", "note"]
        assert bus.stats()["note"]["workers"] == 1

    with serving(direct):
        job = direct.note.run("one").id
        assert direct.get_async_result(job).get() == "<one>"
        for ask in (hit, read, clear, look):
            assert cut_here_and_there(proxy, way, ask, ask).errors == 0
    assert notes.ran["hit"] == notes.ran["one"] == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_run_and_a_cancel_of_an_async_bus_that_are_cut_are_done_or_say_that_it_is_unknown(
    direct: Bus, behind_async: AsyncFace, proxy: CuttingProxy, way: Way
) -> None:
    notes = Notes().register(direct)
    enqueued: dict[str, str] = {}
    cancelled: list[str] = []

    def run(a: str) -> None:
        enqueued[a] = behind_async.note.run(a).id

    def cancel(a: str) -> None:
        result = behind_async.get_async_result(direct.note.run(f"cancel {a}").id)
        assert result.cancel()
        cancelled.append(f"cancel {a}")

    warm = ids(500_000)
    assert direct.get_method("note")
    cut_here_and_there(
        proxy, way, run, lambda: run(next(warm)), ("note('{}')", "it may be enqueued, or not")
    )
    cut_here_and_there(proxy, way, cancel, lambda: cancel(next(warm)), ("note (job ",))
    with serving(direct):
        for a, job in enqueued.items():
            assert behind_async.get_async_result(job).get() == f"<{a}>"
        direct.note("behind all")
    assert notes.ran.keys() >= set(enqueued)
    assert not notes.ran.keys() & set(cancelled)
    assert {runs for a, runs in notes.ran.items() if a != "the first"} == {1}


# -- the worker's connection ----------------------------------------------------------------------


def waiting(client: redis.Redis) -> bool:
    """Whether somebody, such as an idle worker, waits for a list."""
    return int(client.info("clients")["blocked_clients"]) > 0


def blocked(client: redis.Redis) -> set[int]:
    """The connections that wait for a list."""
    return {int(about["id"]) for about in client.client_list() if "b" in about["flags"]}


def strangers(client: redis.Redis) -> list[bytes]:
    """The jobs that are claimed and not finished."""
    return [job for key in client.scan_iter("rb:{test:}:running:*") for job in client.hkeys(key)]


@pytest.mark.parametrize(
    ("method", "how"), [("note", How.RST), ("note", How.FIN), ("kept", How.RST)]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_worker_cut_behind_any_byte_runs_each_job_once_and_goes_on(
    direct: Bus,
    behind: Bus,
    proxy: CuttingProxy,
    client: redis.Redis,
    way: Way,
    how: How,
    method: str,
) -> None:
    notes = Notes().register(behind)
    fresh = ids(0)

    def call() -> None:
        eventually(lambda: waiting(client))
        a = next(fresh)
        assert direct[method](a) == f"<{a}>"

    with serving(behind):
        call()
        # Of two calls: so the outcome of the first is on its way, or the wait behind it.
        size = size_of(proxy, way, lambda: (call(), call()))
        step = (1 if EVERY_BYTE else 83) * proxy.stride
        ends = (*range(4), *range(size // 2 - 4, size // 2 + 4))
        for after in sorted({*range(0, size, step), *ends}):
            eventually(lambda: waiting(client))
            proxy.cut(after, way, how, having=LOOP)
            begun = time.monotonic()
            while not proxy.fired.is_set():
                call()
            call()
            passed = time.monotonic() - begun
            assert passed < SOON_SECONDS, f"cut {after} bytes {way.value}: {passed:.1f} s"
        assert eventually(lambda: not strangers(client))
    assert set(notes.ran.values()) == {1}


@pytest.mark.parametrize("way", WAYS)
def test_a_busy_worker_that_is_cut_again_and_again_runs_each_job_once(
    direct: Bus, behind: Bus, proxy: CuttingProxy, client: redis.Redis, way: Way
) -> None:
    """Jobs wait all the time: so tokens get lost with a connection, too."""
    notes = Notes().register(behind)
    ended = threading.Event()
    slowest = 0.0

    def call(caller: int) -> list[str]:
        nonlocal slowest
        called = []
        while not ended.is_set():
            a = f"{caller}/{len(called):05d}"
            begun = time.monotonic()
            assert direct.note(a) == f"<{a}>"
            slowest = max(slowest, time.monotonic() - begun)
            called.append(a)
        return called

    with serving(behind), ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(call, number) for number in range(4)]
        try:
            for turn in range(8):
                proxy.cut(turn * 211 % 2_000, way, How.RST, having=LOOP)
                eventually(proxy.fired.is_set)
        finally:
            ended.set()
        called = [a for answer in answers for a in answer.result(60)]
        assert eventually(lambda: not strangers(client))
    assert notes.ran == Counter(called)
    assert slowest < SOON_SECONDS


@pytest.mark.parametrize("method", ["note", "kept"])
def test_a_worker_whose_connection_redis_believes_alive_still_gets_each_job(
    direct: Bus, behind: Bus, proxy: CuttingProxy, client: redis.Redis, method: str
) -> None:
    """As where a firewall forgets a connection: Redis gives a job to nobody over the old one."""
    notes = Notes().register(behind)
    fresh = ids(0)

    def call() -> None:
        a = next(fresh)
        assert direct[method].options(timeout=HEARTBEATS_SECONDS)(a) == f"<{a}>"

    with serving(behind):
        call()
        for _ in range(2):
            before = eventually(lambda: blocked(client))
            proxy.cut_idle(LOOP, How.HALF)
            eventually(lambda old=before: blocked(client) - old)  # the worker waits again
            for _ in range(3):
                call()
            proxy.drop_halves()
            eventually(lambda old=before: len(found := blocked(client)) == 1 and not found & old)
        assert eventually(lambda: not strangers(client))
    assert set(notes.ran.values()) == {1}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", WAYS)
def test_heartbeats_that_are_cut_do_not_make_a_worker_count_as_dead(
    direct: Bus,
    behind: Bus,
    proxy: CuttingProxy,
    caplog: pytest.LogCaptureFixture,
    way: Way,
    how: How,
) -> None:
    Notes().register(behind)
    beats = 0
    with serving(behind) as bus, caplog.at_level(logging.WARNING):
        worker = next(iter(bus._workers))
        for after in range(0, 600, 41):
            proxy.cut(after, way, how)
            worker._heart._try_to_beat(healthy=True)
            beats += proxy.fired.is_set()
            proxy.disarm()
            eventually(lambda: direct.stats()["note"]["workers"] == 1)
    assert beats > 5
    assert "heartbeat failed" not in caplog.text
