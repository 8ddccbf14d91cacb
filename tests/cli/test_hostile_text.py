"""Text from others reaches a terminal escaped: in every command, every message, every log line."""

from __future__ import annotations

import json
import logging
import pydoc
import traceback

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from redis_bus import Bus, RemoteError
from redis_bus.printable import in_one_line, printable, printable_json
from tests.support import Processes, eventually, serving

# Commands to a terminal (in C0 and C1), marks that turn the direction, line and paragraph
# separators, a byte order mark, half of a surrogate pair.
HOSTILE = "\x1b[31m\x9b31m\x07\r\x00\x7f\u202e\u2066\u200f\u061c\u2028\u2029\ufeff\x85"
TEXT = f"red {HOSTILE} end"


def is_harmless(text: str) -> bool:
    return all(one.isprintable() or one in "\n\t\u200c\u200d" for one in text)


@given(st.text() | st.text(HOSTILE + "ab\n\t\ud800"))
def test_text_that_is_shown_has_nothing_in_it_that_does_not_print(text: str) -> None:
    assert is_harmless(printable(text))
    assert in_one_line(text).isprintable() or set(in_one_line(text)) & {"\u200c", "\u200d"}
    assert printable(printable(text)) == printable(text)
    if text.isprintable():
        assert printable(text) == text


@given(
    st.recursive(
        st.text() | st.none() | st.integers(),
        lambda one: st.lists(one) | st.dictionaries(st.text(), one),
    )
)
def test_json_that_is_shown_means_the_same(value: object) -> None:
    for indent in (None, 2):
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        assert json.loads(printable_json(text)) == value
        assert is_harmless(printable_json(text))


@pytest.fixture
def hostile(client: redis.Redis, url: str) -> str:
    """A bus on which somebody published text that is no good for a terminal."""
    kind = "positional_or_keyword"
    parameters = [
        {"name": "a", "kind": kind, "annotation": TEXT},
        {"name": "b", "kind": kind, "default_repr": TEXT},
    ]
    descriptor = {
        "name": "method",
        "service": "",
        "signature": {"parameters": parameters, "returns": TEXT},
        "doc": f"{TEXT}\nsecond line {TEXT}",
        "cache_key": f"{TEXT}{{a!s}}",
        "publisher": TEXT,
    }
    client.hset("rb:{hostile}:methods", "method", json.dumps(descriptor))
    for name in (f"odd{TEXT}", "\x1b]0;title\x07", "\u202eeman"):
        client.hset("rb:{hostile}:methods", name, json.dumps({**descriptor, "name": name}))
    client.rpush("rb:{hostile:}:dead:method", TEXT.encode())
    return "hostile"


@pytest.mark.parametrize(
    "command",
    [
        ["ls", "hostile"],
        ["ls", "hostile", "--json"],
        ["ls", "hostile", TEXT.replace("\x00", "")],
        ["stats", "hostile"],
        ["stats", "hostile", "--json"],
        ["ping", "hostile"],
        ["ping", "hostile", "--json"],
        ["dead", "hostile"],
        ["dead", "hostile", "method", "--json"],
        ["dead", "hostile", "--drop", "all", "--yes"],
        ["clear-cache", "hostile", "method", "1"],
        ["clear-cache", "hostile", "nosuch"],
        ["call", "hostile", "method", "1", "2", "3"],
        ["call", "hostile", "method", "--timeout", "0.1", TEXT.replace("\x00", "")],
        ["call", "hostile", "methot"],
        ["cleanup", "hostile", "--yes"],
    ],
    ids=lambda command: " ".join(command)[:30].encode("unicode_escape").decode(),
)
def test_no_command_prints_what_a_terminal_obeys(
    processes: Processes, hostile: str, command: list[str]
) -> None:
    done = processes.run("redis-bus", *command)
    assert done.stdout + done.stderr
    assert is_harmless(done.stdout + done.stderr), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_function_returns_or_raises_is_shown_escaped(processes: Processes) -> None:
    with Bus("hostile", url=processes.url, timeout=20) as bus:

        @bus.register()
        def echo() -> str:
            return TEXT

        @bus.register()
        def fails() -> str:
            raise LookupError(TEXT)

        with serving(bus):
            shown = processes.run("redis-bus", "call", "hostile", "echo")
            assert shown.returncode == 0 and "red \\x1b[31m" in shown.stdout
            assert is_harmless(shown.stdout)
            exact = processes.run("redis-bus", "call", "hostile", "echo", "--json")
            assert json.loads(exact.stdout) == TEXT and is_harmless(exact.stdout)
            for more in ([], ["--json"]):
                failed = processes.run("redis-bus", "call", "hostile", "fails", *more)
                assert failed.returncode == 1
                assert is_harmless(failed.stdout + failed.stderr)


def test_a_worker_logs_one_harmless_message_whatever_a_function_raises(
    processes: Processes,
) -> None:
    processes.write(
        "service.py",
        f"""
        import redis_bus

        bus = redis_bus.Bus("hostile")

        @bus.register()
        def fails():
            raise ValueError({TEXT!r} + "\\n2026-01-01 00:00:00,000 ERROR root: invented")
        """,
    )
    for form in ("text", "json"):
        worker = processes.start("redis-bus", "--log-format", form, "service.bus")
        with Bus("hostile", url=processes.url, timeout=20) as bus:
            eventually(lambda: bus.get_method("fails"))
            with pytest.raises(ValueError, match="red"):
                bus.fails()
        worker.terminate()
        _, log = worker.communicate(timeout=60)
        assert is_harmless(log)
        assert "\n2026-01-01 00:00:00,000 ERROR root: invented" not in log
        assert "fails raised ValueError: red \\" in log


def test_a_console_shows_nothing_that_a_terminal_obeys(
    url: str, hostile: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Bus(hostile, url=url, timeout=20) as bus:
        assert bus.all_methods() == ["method"]
        assert is_harmless(repr(bus.method))
        assert is_harmless(pydoc.plain(pydoc.render_doc(bus.method)))
        assert is_harmless(" ".join(dir(bus)))
        with pytest.raises(KeyError) as unknown:
            bus[f"method{TEXT}"]
        assert is_harmless(str(unknown.value.args[0]))
        # Ours takes its place, and the log says whose that was.
        bus.register("method")(lambda a: a)
        with caplog.at_level(logging.INFO, "redis_bus"), serving(bus):
            bus.method(1)
    assert "was published differently by red" in caplog.text
    assert is_harmless(caplog.text)


def test_an_error_of_another_process_is_shown_escaped_and_kept_as_it_is(bus: Bus) -> None:
    class Odd(Exception):
        pass

    @bus.register()
    def fails() -> None:
        raise Odd(TEXT)

    with serving(bus), pytest.raises(RemoteError) as raised:
        bus.fails()
    assert raised.value.remote_args == (TEXT,)
    assert is_harmless("".join(traceback.format_exception(raised.value)))
