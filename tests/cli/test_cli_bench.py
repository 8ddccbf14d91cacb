"""``redis-bus bench``: its figures, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest
import redis

from redis_bus import Bus
from redis_bus.bench import redis_figures as bench_redis
from redis_bus.bench import run as bench
from redis_bus.bench.meter import ratios
from redis_bus.bench.report import ROWS, Figure, figures, rows
from redis_bus.cli.group import main
from tests.support import PATIENCE_SECONDS, Processes, eventually, processes_with, serving

QUICK = ("--rounds", "1", "--seconds", "0.02")
MARK = "REDIS_TEST_BENCH"
FOREIGN = b"not-of-the-bench"


class Runs:
    """Runs the bench where all that it leaves can be found, beside a key that is not its own."""

    def __init__(self, processes: Processes, client: redis.Redis, folder: Path) -> None:
        self.processes = processes
        self.client = client
        self.mark = str(folder)
        client.set(FOREIGN, 1)

    def start(self, *options: str, **env: str) -> subprocess.Popen[str]:
        environment = self.processes.environment(**{MARK: self.mark}, **env)
        return self.processes.start("redis-bus", "bench", *options, env=environment)

    def run(self, *options: str, **env: str) -> tuple[int, str, str]:
        process = self.start(*options, **env)
        out, err = process.communicate(timeout=2 * PATIENCE_SECONDS)
        return process.returncode, out, err

    def has_key(self, pattern: str) -> bool:
        return any(True for _ in self.client.scan_iter(pattern))

    def assert_nothing_is_left(self) -> None:
        assert list(self.client.scan_iter()) == [FOREIGN]
        assert processes_with(f"{MARK}={self.mark}") == []


@pytest.fixture
def runs(some: Processes, tmp_path: Path) -> Iterator[Runs]:
    with redis.Redis.from_url(some.url) as client:
        yield Runs(some, client, tmp_path)


@contextlib.contextmanager
def user(runs: Runs, *rules: str) -> Iterator[str]:
    """Make a user who may do all but that; give the address with his name and password."""
    make = ["reset", "on", ">secret", "~*", "&*", "+@all", *rules]
    runs.client.execute_command("ACL", "SETUSER", "ben", *make)
    yield runs.processes.url.replace("unix://", "unix://ben:secret@")
    runs.client.execute_command("ACL", "DELUSER", "ben")


def test_every_figure_is_told_as_json_and_nothing_is_left(
    processes: Processes, client: redis.Redis, tmp_path: Path
) -> None:
    runs = Runs(processes, client, tmp_path)
    code, out, err = runs.run(*QUICK, "--json")
    assert (code, err) == (0, "")
    runs.assert_nothing_is_left()
    found = json.loads(out)
    assert found["left"]["keys"] == 0 and found["rounds"] == 1
    assert len(found["figures"]) == len(ROWS)
    for figure in found["figures"]:
        assert figure["value"] / figure["other"] == pytest.approx(figure["ratio"]), figure
        assert 0 < figure["least"] <= figure["ratio"] <= figure["most"]
    commands = next(one for one in found["figures"] if one["name"].startswith("call_commands/"))
    # Of the pair it is known: two on either side. Heartbeats may come to it.
    assert round(commands["other"]) == 4 and 3 <= round(commands["value"]) <= 8


def test_a_table_is_told_to_who_may_not_see_what_redis_spends(runs: Runs) -> None:
    with user(runs, "-info", "-memory") as url:
        code, out, err = runs.run(*QUICK, REDIS_BUS_URL=url)
    assert (code, err) == (0, "") and "secret" not in out
    runs.assert_nothing_is_left()
    told = {line[:40].strip(): line for line in out.splitlines()}
    refused = [name for name, line in told.items() if "not allowed" in line]
    assert len(refused) == 4 and all(name.startswith("Redis: ") for name in refused), out
    assert " us " in told["cached hit, Bus"] and "left of it in Redis: 0 keys" in out


def test_who_may_not_delete_keys_is_told_so_and_none_are_made(runs: Runs) -> None:
    with user(runs, "-scan") as url:
        code, out, err = runs.run(*QUICK, REDIS_BUS_URL=url)
    assert (code, out) == (1, "") and err.count("\n") == 1 and "'scan'" in err
    runs.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [
        (signal.SIGINT, "rb:{bench-*:}:bare:pair*", 130),  # its processes start
        (signal.SIGTERM, "rb:{bench-*:}:bare:value", 143),
    ],
)
def test_a_signal_ends_it_and_nothing_is_left(
    runs: Runs, number: int, moment: str, code: int
) -> None:
    process = runs.start("--rounds", "1000", "--seconds", "0.02")
    eventually(lambda: runs.has_key(moment) or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err.strip()) == (code, "", "")
    runs.assert_nothing_is_left()


def test_a_worker_that_does_not_start_is_one_line_and_nothing_is_left(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, runs.mark)
    monkeypatch.setattr(bench, "ASYNC", "nothing")
    line = ["bench", *QUICK, "--url", runs.processes.url]
    result = click.testing.CliRunner().invoke(main, line)
    monkeypatch.delenv(MARK)
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert " ended: " in result.output and "nothing" in result.output
    runs.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--url", "redis://localhost:1"], 5, "no Redis at localhost:1"),
        (["--url", "http://localhost"], 2, "not a Redis URL"),
        (["--url", "redis://localhost", "--embedded"], 2, "leave out --url"),
        (["--seconds", "0"], 2, "0.01<=x<=10"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(options: list[str], code: int, words: str) -> None:
    result = click.testing.CliRunner().invoke(main, ["bench", *options])
    assert result.exit_code == code
    assert words in result.output.splitlines()[-1] and "Traceback" not in result.output


# -- its parts --------------------------------------------------------------------------------


@pytest.fixture
def served(bus: Bus) -> Iterator[Bus]:
    @bus.register()
    def add(a: int, b: int) -> int:
        return a + b

    with serving(bus):
        yield bus


def test_commands_are_those_over_the_wire_as_monitor_shows_them(
    served: Bus, client: redis.Redis, url: str
) -> None:
    calls = 40
    served.add(1, 2)

    def action() -> int:
        for _ in range(calls):
            served.add(1, 2)
        return calls

    with redis.Redis.from_url(url) as other, other.monitor() as monitor:
        spent = bench_redis.spent(client, action)
        client.echo("end")
        shown: list[dict[str, Any]] = []
        while not (line := monitor.next_command())["command"].startswith("ECHO"):
            shown.append(line)
    sent = [line for line in shown if line["client_type"] != "lua"]
    asked = [line for line in sent if line["command"].startswith("INFO")]
    assert spent is not None and len(asked) == 2 and len(shown) > len(sent)
    assert round(spent.commands) == round((len(sent) - len(asked)) / calls)
    assert spent.us > 0


def test_ratios_are_those_of_rounds_and_not_of_medians() -> None:
    # A machine that got slower: the medians are equal, and in each round ours took half.
    assert ratios([1, 2, 4], [2, 4, 8]) == (0.5, 0.5, 0.5)
    seen = {name: [2.0] for _, _, ours, _, theirs in ROWS for name in (ours, theirs)}
    found = figures({**seen, "call": [1, 2, 4], "pair": [2, 4, 8]} | _three(seen, "floor"), ["job"])
    assert found[0] == Figure(
        "call/pair",
        "call, Bus",
        "us",
        2,
        "redis-py LPUSH/BLPOP pair",
        4,
        ratio=0.5,
        least=0.5,
        most=0.5,
    )
    assert rows(found)[1][-2:] == ["0.50", "0.50 to 0.50"]
    weighed = next(row for row in rows(found) if row[0] == "Redis: memory of a queued job")
    assert weighed[1] == "not allowed"


def _three(seen: dict[str, list[float]], name: str) -> dict[str, list[float]]:
    return {name: seen[name] * 3}
