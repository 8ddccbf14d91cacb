"""A wake token is never lost and never doubled, however callers and workers interleave."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import redis
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from redis_bus.protocol.entries import Job, Mode, parse_job
from tests.lua.driver import Driver

METHODS = "abc"
# Workers that serve the same methods, and ones that share only some.
WORKERS = {"all": "abc", "too": "abc", "some": "ab", "one": "c"}
KEYS = [b"k1", b"k2"]

methods = st.sampled_from(METHODS)
workers = st.sampled_from(sorted(WORKERS))
numbers = st.integers(0, 11)
limits = st.sampled_from([None, 1, 2, 5])


class WakeTokens(RuleBasedStateMachine):
    """Sends any step at any time, and knows who popped a token and has not taken yet."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.lua = Driver(self.client)
        for method in METHODS:
            self.lua.publish(method)
            self.lua.queued(method)
            self.lua.queued(method)
        self.holders: list[str] = []
        self.runs: list[tuple[str, str, bytes | None]] = []
        self.claims: list[tuple[str, str, Job]] = []

    @rule(method=methods, mode=st.sampled_from([Mode.WAIT, Mode.RUN]))
    def call(self, method: str, mode: Mode) -> None:
        job = self.lua.queued(method, mode=mode)
        if mode is Mode.RUN:
            self.runs.append((method, job, None))

    @rule(method=methods, mode=st.sampled_from([Mode.CALL, Mode.RUN]), key=st.sampled_from(KEYS))
    def call_keyed(self, method: str, mode: Mode, key: bytes) -> None:
        status, *rest = self.lua.call(method, mode=mode, key=key)
        if status == b"queued" and mode is Mode.RUN:
            self.runs.append((method, rest[0].decode(), key))

    @rule(method=methods, key=st.sampled_from([None, *KEYS]))
    def call_and_give_up(self, method: str, key: bytes | None) -> None:
        now = self.lua.now_ms()
        self.lua.call(method, key=key, budget_ms=1)
        while self.lua.now_ms() <= now + 2:
            pass

    @rule(method=methods)
    def foreign_bytes(self, method: str) -> None:
        if self.lua.length(method):
            self.client.rpush(self.lua.route(method).queue, b"foreign")

    @rule(worker=workers, turn=numbers)
    def wake(self, worker: str, turn: int) -> None:
        if any(self.lua.pop_token(method) for method in self.order(worker, turn)):
            self.holders.append(worker)

    @precondition(lambda self: self.holders)
    @rule(number=numbers, turn=numbers, limit=limits)
    def take(self, number: int, turn: int, limit: int | None) -> None:
        self.take_by(self.holders.pop(number % len(self.holders)), turn, limit)

    @rule(worker=workers, turn=numbers, limit=limits)
    def take_without_a_token(self, worker: str, turn: int, limit: int | None) -> None:
        self.take_by(worker, turn, limit)

    @precondition(lambda self: self.claims)
    @rule(number=numbers)
    def finish(self, number: int) -> None:
        worker, method, job = self.claims.pop(number % len(self.claims))
        self.lua.finish(job, worker=worker, method=method)

    @precondition(lambda self: self.claims)
    @rule(number=numbers)
    def release(self, number: int) -> None:
        worker, method, job = self.claims.pop(number % len(self.claims))
        self.lua.release(job.id, worker=worker, method=method)

    @precondition(lambda self: self.runs)
    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        method, job, key = self.runs.pop(number % len(self.runs))
        self.lua.cancel(job, key, method)

    @rule(method=methods, key=st.sampled_from(KEYS))
    def clear(self, method: str, key: bytes) -> None:
        self.lua.clear(key, method)

    @rule(method=methods)
    def clear_all(self, method: str) -> None:
        self.lua.clear_all(method)

    @rule(worker=workers)
    def beat(self, worker: str) -> None:
        lost = self.lua.beat(worker, WORKERS[worker])
        assert lost == 0 or self.holders

    @precondition(lambda self: self.holders)
    @rule(number=numbers)
    def a_worker_dies_and_another_beats(self, number: int) -> None:
        self.holders.pop(number % len(self.holders))
        self.lua.beat("all", METHODS)

    @invariant()
    def a_queue_has_one_token_at_most(self) -> None:
        assert all(self.lua.tokens(method) <= 1 for method in METHODS)

    @invariant()
    def an_empty_queue_has_none(self) -> None:
        for method in METHODS:
            assert self.lua.length(method) or not self.lua.tokens(method)

    @invariant()
    def a_queue_that_waits_has_one_or_somebody_is_about_to_take(self) -> None:
        for method in METHODS:
            if self.lua.length(method) and not self.lua.tokens(method):
                assert any(method in WORKERS[holder] for holder in self.holders)

    def teardown(self) -> None:
        while self.holders:
            self.take_by(self.holders.pop(), 0)
        for method in METHODS:
            assert self.lua.tokens(method) == (1 if self.lua.length(method) else 0)
        while any(self.lua.pop_token(method) for method in METHODS):
            self.take_by("all", 0)
        assert not any(self.lua.length(method) for method in METHODS)

    def order(self, worker: str, turn: int) -> str:
        served = WORKERS[worker]
        first = turn % len(served)
        return served[first:] + served[:first]

    def take_by(self, worker: str, turn: int, limit: int | None = None) -> None:
        order = self.order(worker, turn)
        if limit is None:
            claim = self.lua.take(worker, order)
            claims = [] if claim is None else [claim]
        else:
            waiting = sum(self.lua.length(method) for method in order)
            claims = self.lua.take_many(limit, worker, order)
            left = sum(self.lua.length(method) for method in order)
            assert len(claims) <= limit and len(claims) <= waiting - left
            assert len(claims) == limit or not left
        for claim in claims:
            if not claim.foreign:
                self.claims.append((worker, claim.route.method, parse_job(claim.entry)))


def test_a_wake_token_is_never_lost_and_never_doubled(client: redis.Redis) -> None:
    machine = type("Machine", (WakeTokens,), {"client": client})
    settings = hypothesis.settings(stateful_step_count=40)
    run_state_machine_as_test(machine, settings=settings)
