from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from redis_bus import Bus
from redis_bus.calls.partitions import announce
from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol.commands import Command
from redis_bus.protocol.target import Target
from tests.lua.driver import ETAG, FOREIGN, OTHER_ETAG, OTHER_SHAPE, SHAPE, Driver


def meta(lua: Driver, part: int = 0) -> list[str]:
    """The etag, the shape and the generation that stand in a partition."""
    found = lua.client.hget(lua.service.at(part).meta, "m")
    return (found or b"- - -").decode().split(" ")


def spread(lua: Driver, etag: str = ETAG, shape: str = SHAPE) -> bytes:
    """Publish in two partitions; return the ballot."""
    ballot, span = lua.shut(etag, shape)
    assert lua.shut(etag, shape, part=1, ballot=ballot) == [ballot, span] == [ballot, 2]
    assert [lua.open(ballot, etag, part=part) for part in (0, 1)] == [b"open", b"open"]
    return bytes(ballot)


def test_what_is_shut_is_stale_to_callers_until_it_is_opened(bare: Driver) -> None:
    ballot, _ = bare.shut()
    assert bare.call() == [b"stale"]
    assert bare.open(ballot) == b"open"
    assert bare.call()[0] == b"queued"


def test_what_is_published_so_already_stays_open_and_keeps_its_ballot(bare: Driver) -> None:
    ballot = spread(bare)
    before = [bare.client.hgetall(bare.service.at(part).meta) for part in (0, 1)]
    assert bare.shut() == [ballot, 2]
    assert bare.shut(part=1, ballot=ballot) == [ballot, 2]
    assert [bare.client.hgetall(bare.service.at(part).meta) for part in (0, 1)] == before


def test_another_shape_begins_a_generation_and_another_etag_does_not(bare: Driver) -> None:
    spread(bare)
    before = [meta(bare, part)[2] for part in (0, 1)]
    spread(bare, OTHER_ETAG)
    assert [meta(bare, part)[2] for part in (0, 1)] == before
    spread(bare, ETAG, OTHER_SHAPE)
    assert all(meta(bare, part)[2] > before[part] for part in (0, 1))


def test_who_comes_later_shuts_the_earlier_out(bare: Driver) -> None:
    first, _ = bare.shut()
    second, _ = bare.shut(OTHER_ETAG, OTHER_SHAPE)
    assert int(second) > int(first)
    bare.shut(OTHER_ETAG, OTHER_SHAPE, part=1, ballot=second)
    assert bare.shut(part=1, ballot=first) == [b"later"]
    assert [bare.open(first, part=part) for part in (0, 1)] == [b"later", b"later"]
    assert bare.open(second, OTHER_ETAG, part=1) == b"open"
    assert bare.shut(part=1, ballot=first) == [b"later"]


def test_partition_0_remembers_the_most_partitions(bare: Driver) -> None:
    assert bare.shut(span=4)[1] == 4
    assert bare.shut(OTHER_ETAG, span=2)[1] == 4
    assert bare.shut(span=7)[1] == 7
    assert bare.client.hget(bare.service.meta, "#") == b"7"


def test_a_service_that_was_spread_is_not_published_in_one_partition_alone(bare: Driver) -> None:
    spread(bare)
    before = bare.client.hgetall(bare.service.meta)
    assert bare.publish(etag=OTHER_ETAG) == [b"spread", 2]
    assert bare.client.hgetall(bare.service.meta) == before


def test_a_partition_that_lost_its_registry_has_it_again(bare: Driver) -> None:
    ballot = spread(bare)
    generation = meta(bare, 1)[2]
    bare.client.delete(bare.service.at(1).meta)
    assert bare.open(ballot, part=1) == b"later"
    assert spread(bare) == ballot
    assert meta(bare, 1)[2] > generation


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_bytes_in_the_registry_are_replaced(bare: Driver, found: bytes) -> None:
    bare.client.hset(bare.service.meta, "m", found)
    bare.client.hset(bare.service.meta, "#", "foreign")
    spread(bare)
    assert meta(bare)[:2] == [ETAG, SHAPE]


def test_a_registry_of_another_type_is_refused_by_redis(bare: Driver) -> None:
    bare.client.set(bare.service.meta, "foreign")
    for refused in (bare.shut, lambda: bare.open(b"1")):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            refused()


# -- publishers that interleave, die, and send twice ---------------------------------------------

PARTITIONS = [1, 2, 3]
MOST = max(PARTITIONS)


class _Publisher:
    """Publishes one registration, a command at a time."""

    def __init__(self, target: Target) -> None:
        self._steps = announce(target)
        self.commands: list[Command] = list(next(self._steps).commands)
        self._replies: list[object] = []

    def next(self, lua: Driver) -> Command | None:
        """Send the next command; return it, None where it was the last."""
        command = self.commands.pop(0)
        self._replies.append(lua.send(*command))
        if self.commands:
            return command
        try:
            self.commands = list(self._steps.send(self._replies).commands)
            self._replies = []
        except StopIteration:
            return None
        return command


class PublishersMachine(RuleBasedStateMachine):
    """No two partitions are ever open to different registrations, and none has an old value."""

    lua: ClassVar[Driver]
    targets: ClassVar[list[Target]]

    def __init__(self) -> None:
        super().__init__()
        self.lua.client.flushall()
        self.publishers: list[_Publisher] = []
        self.sent: list[Command] = []
        self.era, self.shape = 0, ""
        self.eras: dict[tuple[int, str], int] = {}  # of the generation of a partition

    @precondition(lambda self: len(self.publishers) < 3)
    @rule(number=st.integers(0, 3))
    def publish(self, number: int) -> None:
        self.publishers.append(_Publisher(self.targets[number]))

    @precondition(lambda self: self.publishers)
    @rule(number=st.integers(0, 2), dies=st.sampled_from([False] * 9 + [True]))
    def go_on(self, number: int, dies: bool) -> None:
        publisher = self.publishers[number % len(self.publishers)]
        command = None if dies else publisher.next(self.lua)
        if command is None:
            self.publishers.remove(publisher)
        else:
            self.sent.append(command)

    @precondition(lambda self: self.publishers)
    @rule()
    def go_on_to_the_end(self) -> None:
        """What came last counts, if nobody publishes beside it."""
        publisher = self.publishers.pop()
        while publisher.next(self.lua):
            self.look()

    @precondition(lambda self: self.sent)
    @rule(number=st.integers(0, 5))
    def send_twice(self, number: int) -> None:
        self.lua.send(*self.sent[-1 - number % len(self.sent)])

    @invariant()
    def look(self) -> None:
        found = [meta(self.lua, part) for part in range(MOST)]
        opened = {part: one for part, one in enumerate(found) if one[0][0] not in "-~"}
        assert len({etag for etag, _, _ in opened.values()}) <= 1, found
        for part, (_, shape, generation) in opened.items():
            if shape != self.shape:
                self.era, self.shape = self.era + 1, shape
            assert self.eras.setdefault((part, generation), self.era) == self.era, found


@pytest.fixture(scope="module")
def targets() -> Iterator[list[Target]]:
    """A method in 1, 2 and 3 partitions, and in 2 with another timeout."""
    made = []
    for partitions, timeout in [*((n, 30.0) for n in PARTITIONS), (2, 7.0)]:
        with Bus("test", prefix="unit", partitions=partitions, timeout=timeout) as bus:
            bus.register("m", cache_key="{a}")(lambda a: a)
            made.append(bus._core.compile(bus._core.registrations["m"]))
    yield made


@pytest.mark.usefixtures("one_server")
def test_publishers_machine(one_server: EmbeddedRedis, targets: list[Target]) -> None:
    with redis.Redis.from_url(one_server.url) as client:
        PublishersMachine.lua, PublishersMachine.targets = Driver(client), targets
        case = PublishersMachine.TestCase
        case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
        case().runTest()
