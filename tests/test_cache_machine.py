"""Cache semantics hold in whatever order callers, workers and those who clear come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest
import redis
from hypothesis.stateful import run_state_machine_as_test

from tests.cache_machine import CacheMachine
from tests.cache_model import Wire
from tests.conftest import Tell
from tests.servers import oldest

# On the first of the servers, or four times what the profile says; the others get a part of it.
EXAMPLES = 1_000
PART = 100
STEPS = 50
# What the scripts must have answered now and then, or the machine goes round in circles.
ANSWERS = [
    *("call hit", "call joined", "call queued", "call stale"),
    *("admit run", "admit moved", "admit answered", "admit dropped", "admit fenced"),
    *("finish done", "finish fenced", "cancel cancelled", "cancel shared", "cancel late"),
    *("reclaim requeued", "reclaim lost", "reclaim gone", "reclaim alive"),
    *("clear cleared", "clear nothing", "clear stale", "publish published", "publish same"),
]


@pytest.fixture
def wire(client: redis.Redis) -> Iterator[Wire]:
    wire = Wire(client)
    wire.load_scripts()
    yield wire
    wire.close()


def test_no_order_of_steps_breaks_a_rule_of_the_cache(
    wire: Wire, request: pytest.FixtureRequest, tell: Tell
) -> None:
    usual = hypothesis.settings().max_examples
    is_first = request.node.callspec.params["server"] == oldest()
    examples = max(EXAMPLES, 4 * usual) if is_first else max(PART, usual // 25)
    counts: Counter[str] = Counter()
    started = time.monotonic()
    run_state_machine_as_test(
        type("Machine", (CacheMachine,), {"wire": wire, "counts": counts}),
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            suppress_health_check=[hypothesis.HealthCheck.too_slow],
        ),
    )
    seconds = round(time.monotonic() - started)
    tell("cache machine", {**dict(sorted(counts.items())), "seconds": seconds})
    if is_first:
        assert [answer for answer in ANSWERS if not counts[answer]] == []
