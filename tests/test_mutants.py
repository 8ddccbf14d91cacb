"""The machine of the cache can fail: it finds each fault that is put into the scripts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest
import redis
from hypothesis.stateful import run_state_machine_as_test

from redis_bus.embedded import EmbeddedRedis
from redis_bus.protocol import scripts
from tests.cache_machine import CacheMachine
from tests.cache_model import RULES, Wire
from tests.conftest import Tell
from tests.mutants import MUTANTS, Mutant
from tests.servers import find_servers, oldest

# Most are found within a hundred; what is not found in all of these survives.
EXAMPLES = 3_000
STEPS = 50
# One with which they are found quickly.
SEED = 3

# Each part may be run by another process.
PARTS = 6


@pytest.fixture
def wire() -> Iterator[Wire]:
    """One server is enough here: it is the machine that is tested."""
    with (
        EmbeddedRedis(find_servers()[oldest()]) as embedded,
        redis.Redis.from_url(embedded.url) as client,
    ):
        wire = Wire(client)
        yield wire
        wire.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_text_is_in_the_file_once_and_changes_what_redis_gets(mutant: Mutant) -> None:
    assert mutant.read().count(mutant.text) == 1
    right, wrong = scripts.load(), mutant.scripts()
    changed = {name for name in right if right[name].sha != wrong[name].sha}
    assert changed
    assert mutant.file.startswith("lib/") or changed == {mutant.file}


def test_each_rule_has_a_mutant_and_each_mutant_a_name() -> None:
    assert {mutant.rule for mutant in MUTANTS} == set(RULES)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("part", range(PARTS))
def test_the_machine_finds_every_mutant(
    part: int, wire: Wire, monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    survivors, mutants = [], MUTANTS[part::PARTS]
    for mutant in mutants:
        faulty = mutant.scripts()
        with monkeypatch.context() as patch:
            patch.setattr(scripts, "load", lambda faulty=faulty: faulty)
            if not finds_a_fault(wire):
                survivors.append(mutant.name)
    killed = len(mutants) - len(survivors)
    tell(f"mutants of the scripts, part {part + 1}", {"all": len(mutants), "killed": killed})
    assert survivors == []


def finds_a_fault(wire: Wire) -> bool:
    """Run the machine on the scripts that there are, the same way each time."""
    wire.load_scripts()
    try:
        machine = type("Machine", (CacheMachine,), {"wire": wire, "counts": Counter()})
        run_state_machine_as_test(
            hypothesis.seed(SEED)(machine),
            settings=hypothesis.settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                derandomize=True,
                database=None,
                phases=[hypothesis.Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=[hypothesis.HealthCheck.too_slow],
            ),
        )
    except AssertionError as error:
        # Whatever else is raised, Redis's errors too, is no finding of the machine.
        if not re.match(r"rule \d+ ", str(error)):
            raise
        return True
    return False
