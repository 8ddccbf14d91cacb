"""A client listens for a job on its inbox, and whatever brings the outcome tells it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from redis_bus.protocol.commands import LISTEN_MS, MOVED_TAG
from redis_bus.protocol.entries import Job, Mode
from tests.lua.driver import CANCELLED, INBOX, LOST, VALUE, Driver, Listener, within

OTHER_INBOX = "rb:inbox:of-another"
INBOXES = [INBOX, OTHER_INBOX]
LONGEST_TOLD = 4096


@pytest.fixture
def listeners(lua: Driver) -> Iterator[list[Listener]]:
    """Two clients, each with an inbox."""
    listeners = [Listener(lua, inbox) for inbox in INBOXES]
    yield listeners
    for listener in listeners:
        listener.close()


def listen(lua: Driver, job: str) -> None:
    """Let both clients listen for a job."""
    assert [lua.listen(job, inbox) for inbox in INBOXES] == [None, None]


def message(job: str, outcome: bytes) -> bytes:
    return job.encode() + b" " + outcome


def lost_flight(lua: Driver) -> Job:
    """A claimed job with the cache key 'k', past its deadline, whose flight has expired."""
    lua.late(key=b"k", mode=Mode.ASYNC)
    job = lua.taken()
    lua.lose_flight(b"k")
    return job


# -- listen ---------------------------------------------------------------------------------------


def test_an_inbox_is_remembered_for_a_while(lua: Driver) -> None:
    job = lua.queued(mode=Mode.ASYNC)
    assert lua.listen(job) is None
    assert lua.inboxes(job) == {INBOX.encode()}
    assert within(lua.ttl(lua.service.inboxes(job)), LISTEN_MS)


def test_an_outcome_that_is_there_is_the_answer_and_stays(lua: Driver) -> None:
    lua.queued(mode=Mode.ASYNC)
    job = lua.taken()
    lua.finish(job)
    before = lua.all_keys()
    assert lua.listen(job.id) == VALUE
    assert lua.reply(job.id) == [VALUE]
    assert lua.all_keys() == before


def test_sent_twice_it_is_remembered_anew_and_told_once(
    lua: Driver, listeners: list[Listener]
) -> None:
    lua.queued(mode=Mode.ASYNC)
    job = lua.taken()
    lua.listen(job.id)
    lua.send("PEXPIRE", lua.service.inboxes(job.id), 1000)
    lua.listen(job.id)
    assert within(lua.ttl(lua.service.inboxes(job.id)), LISTEN_MS)
    lua.finish(job)
    assert listeners[0].told() == [message(job.id, VALUE)]


def test_two_clients_listen_for_one_job(lua: Driver) -> None:
    job = lua.queued(mode=Mode.ASYNC)
    listen(lua, job)
    assert lua.inboxes(job) == {inbox.encode() for inbox in INBOXES}


@pytest.mark.parametrize("kind", ["reply", "inboxes"])
def test_a_key_of_another_type_is_refused_by_redis(lua: Driver, kind: str) -> None:
    lua.client.set({"reply": lua.service.reply, "inboxes": lua.service.inboxes}[kind]("job"), "1")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lua.listen("job")


def test_where_memory_is_full_an_outcome_can_be_had_still(lua: Driver) -> None:
    lua.queued(mode=Mode.ASYNC)
    job = lua.taken()
    lua.finish(job)
    with lua.memory_full():
        assert lua.listen(job.id) == VALUE


# -- who tells ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.CALL, Mode.ASYNC, Mode.RUN])
@pytest.mark.parametrize("key", [None, b"k"])
def test_every_inbox_is_told_when_a_job_is_finished(
    lua: Driver, listeners: list[Listener], mode: Mode, key: bytes | None
) -> None:
    lua.queued(mode=mode, key=key)
    job = lua.taken()
    listen(lua, job.id)
    assert lua.finish(job) == b"done"
    assert [listener.told() for listener in listeners] == [[message(job.id, VALUE)]] * 2
    assert lua.inboxes(job.id) == set()
    assert lua.reply(job.id) == [VALUE]


def test_who_joined_a_refresh_is_told(lua: Driver, listeners: list[Listener]) -> None:
    lua.fill(b"k", stale_ms=60_000)
    lua.make_stale(b"k")
    assert lua.call(key=b"k")[0] == b"hit"
    job = lua.taken()
    assert job.mode is Mode.REFRESH
    listen(lua, job.id)
    lua.finish(job)
    assert listeners[1].told() == [message(job.id, VALUE)]


@pytest.mark.parametrize("key", [None, b"k"])
def test_every_inbox_is_told_when_a_job_is_lost(
    lua: Driver, listeners: list[Listener], key: bytes | None
) -> None:
    job = lua.queued(mode=Mode.ASYNC, key=key)
    lua.taken()
    listen(lua, job)
    lua.end_lease()
    assert lua.reclaim(job, key) == b"lost"
    assert [listener.told() for listener in listeners] == [[message(job, LOST)]] * 2
    assert lua.inboxes(job) == set()


def test_nobody_is_told_when_a_job_is_given_away(lua: Driver, listeners: list[Listener]) -> None:
    job = lua.queued(mode=Mode.ASYNC, tries=3)
    lua.taken()
    listen(lua, job)
    lua.end_lease()
    assert lua.reclaim(job) == b"requeued"
    assert listeners[0].told() == []
    assert len(lua.inboxes(job)) == 2


@pytest.mark.parametrize("mode", [Mode.ASYNC, Mode.RUN])
@pytest.mark.parametrize("key", [None, b"k"])
def test_every_inbox_is_told_when_a_job_is_cancelled(
    lua: Driver, listeners: list[Listener], mode: Mode, key: bytes | None
) -> None:
    job = lua.queued(mode=mode, key=key)
    listen(lua, job)
    assert lua.cancel(job, key) == b"cancelled"
    assert [listener.told() for listener in listeners] == [[message(job, CANCELLED)]] * 2
    assert lua.inboxes(job) == set()


def test_nobody_is_told_of_a_cancel_that_is_late(lua: Driver, listeners: list[Listener]) -> None:
    job = lua.queued(mode=Mode.ASYNC)
    lua.taken()
    listen(lua, job)
    assert lua.cancel(job) == b"late"
    assert listeners[0].told() == []
    assert len(lua.inboxes(job)) == 2


def test_every_inbox_is_told_of_the_job_to_wait_for_instead(
    lua: Driver, listeners: list[Listener]
) -> None:
    job = lost_flight(lua)
    listen(lua, job.id)
    leader = lua.queued(key=b"k")
    assert lua.admit(job) == b"moved"
    told = message(job.id, MOVED_TAG + leader.encode())
    assert [listener.told() for listener in listeners] == [[told]] * 2
    assert lua.inboxes(job.id) == set()


def test_every_inbox_is_told_of_the_value_that_came_meanwhile(
    lua: Driver, listeners: list[Listener]
) -> None:
    job = lost_flight(lua)
    listen(lua, job.id)
    lua.fill(b"k")
    assert lua.admit(job) == b"answered"
    assert [listener.told() for listener in listeners] == [[message(job.id, VALUE)]] * 2
    assert lua.inboxes(job.id) == set()


def test_nobody_is_told_of_a_job_that_still_has_to_run(
    lua: Driver, listeners: list[Listener]
) -> None:
    job = lost_flight(lua)
    listen(lua, job.id)
    assert lua.admit(job) == b"run"
    assert listeners[0].told() == []
    assert len(lua.inboxes(job.id)) == 2


# -- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [LONGEST_TOLD, LONGEST_TOLD + 1])
@pytest.mark.parametrize("way", ["finish", "reclaim"])
def test_a_long_outcome_is_to_be_looked_for(
    lua: Driver, listeners: list[Listener], size: int, way: str
) -> None:
    outcome = b"e\0\n ".ljust(size)
    lua.queued(mode=Mode.ASYNC)
    job = lua.taken()
    listen(lua, job.id)
    if way == "finish":
        lua.finish(job, outcome)
    else:
        lua.end_lease()
        lua.reclaim(job.id, outcome=outcome)
    told = outcome if size <= LONGEST_TOLD else b""
    assert [listener.told() for listener in listeners] == [[message(job.id, told)]] * 2
    assert lua.listen(job.id) == outcome


def test_a_long_value_of_the_cache_is_to_be_looked_for_too(
    lua: Driver, listeners: list[Listener]
) -> None:
    job = lost_flight(lua)
    listen(lua, job.id)
    lua.fill(b"k", b"m".ljust(LONGEST_TOLD + 1))
    assert lua.admit(job) == b"answered"
    assert listeners[0].told() == [message(job.id, b"")]


def test_a_job_whose_only_caller_blocks_has_no_inboxes(lua: Driver) -> None:
    lua.queued()
    job = lua.taken()
    assert job.mode is Mode.WAIT
    command = lua.post().finish(lua.route(), job, VALUE, spent_us=1, expire_ms=0, stale_ms=0)
    keys = command[3 : 3 + int(command[2])]
    assert keys == (lua.service.running("w"), lua.service.reply(job.id), lua.route().stats)


# -- what stops nothing ---------------------------------------------------------------------------


def outcomes_of_every_kind(lua: Driver, listen: Callable[[str], object]) -> dict[str, bytes]:
    """Bring outcomes in every way that there is, each for a job that somebody listens for."""
    outcomes = {}
    for key in (None, b"finished"):
        lua.queued(mode=Mode.ASYNC, key=key)
        job = lua.taken()
        listen(job.id)
        assert lua.finish(job) == b"done"
        outcomes[job.id] = VALUE
    lost = lua.queued(mode=Mode.ASYNC)
    lua.taken("dies")
    listen(lost)
    lua.end_lease("dies")
    assert lua.reclaim(lost, worker="dies") == b"lost"
    cancelled = lua.queued(mode=Mode.ASYNC)
    listen(cancelled)
    assert lua.cancel(cancelled) == b"cancelled"
    assert lua.take() is None
    moved = lost_flight(lua)
    listen(moved.id)
    leader = lua.queued(key=b"k")
    assert lua.admit(moved) == b"moved"
    return outcomes | {
        lost: LOST,
        cancelled: CANCELLED,
        moved.id: MOVED_TAG + leader.encode(),
    }


def test_inboxes_of_another_type_stop_nothing(lua: Driver) -> None:
    def leave_foreign_bytes(job: str) -> None:
        lua.client.set(lua.service.inboxes(job), "foreign")

    outcomes = outcomes_of_every_kind(lua, leave_foreign_bytes)
    assert {job: lua.reply(job) for job in outcomes} == {j: [o] for j, o in outcomes.items()}
    assert lua.claims() == lua.claims("dies") == []


@pytest.mark.parametrize("rules", [["-publish"], ["-smembers"], ["resetchannels"]])
def test_a_user_who_may_not_tell_brings_outcomes_all_the_same(
    client: redis.Redis, url: str, rules: list[str]
) -> None:
    everything = ["on", "nopass", "allkeys", "allchannels", "+@all"]
    client.execute_command("ACL", "SETUSER", "mute", *everything, *rules)
    mute = redis.Redis.from_url(url.replace("://", "://mute:any@"))
    lua = Driver(mute)
    lua.publish()
    try:
        outcomes = outcomes_of_every_kind(lua, lua.listen)
        assert {job: lua.reply(job) for job in outcomes} == {j: [o] for j, o in outcomes.items()}
        assert not [key for key in lua.all_keys() if b":inboxes:" in key]
    finally:
        mute.close()
        client.execute_command("ACL", "DELUSER", "mute")


# -- a job that names its inbox -------------------------------------------------------------------


@pytest.fixture
def named(lua: Driver) -> Iterator[tuple[str, Listener]]:
    """A job of mode 'told' that waits, and the client whose inbox its id names."""
    listener = Listener(lua, "rb:inbox:to-ken_1")
    yield lua.queued(mode=Mode.TOLD, job="to-ken_1.17"), listener
    listener.close()


@pytest.mark.parametrize("way", ["finish", "reclaim", "cancel"])
@pytest.mark.parametrize("others", [True, False])
def test_the_inbox_that_a_job_names_is_told_and_who_listens_too(
    lua: Driver,
    listeners: list[Listener],
    named: tuple[str, Listener],
    way: str,
    others: bool,
) -> None:
    job, own = named
    if others:
        listen(lua, job)
    if way == "finish":
        outcome, done = VALUE, lua.finish(lua.taken())
    elif way == "reclaim":
        lua.taken()
        lua.end_lease()
        outcome, done = LOST, lua.reclaim(job)
    else:
        outcome, done = CANCELLED, lua.cancel(job, enqueued_ms=0)
    assert done in (b"done", b"lost", b"cancelled")
    told = [message(job, outcome)]
    assert own.told() == told
    assert [listener.told() for listener in listeners] == [told if others else []] * 2
    assert lua.inboxes(job) == set()
    assert lua.reply(job) == [outcome]


def test_a_long_outcome_is_to_be_looked_for_by_the_named_one(
    lua: Driver, named: tuple[str, Listener]
) -> None:
    job, own = named
    lua.finish(lua.taken(), b"m" * (LONGEST_TOLD + 1))
    assert own.told() == [message(job, b"")]


def test_a_named_inbox_is_told_nothing_of_a_job_that_is_given_away(
    lua: Driver, named: tuple[str, Listener]
) -> None:
    _, own = named
    job = lua.taken()
    lua.release(job.id)
    assert own.told() == []
    lua.finish(lua.taken())
    assert own.told() == [message(job.id, VALUE)]
