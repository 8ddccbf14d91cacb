"""What is said where Redis asks for a password: what is wrong, what to do, never a secret."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

from redis_bus import AsyncBus, Bus, ConnectionLost
from tests.faults.place import RedisServer
from tests.support import Processes, find_servers

SECRET, WRONG = "s3cret", "wr0ng"
MISSING, REFUSED = "asks for a password", "does not accept the password, or the user"


@pytest.fixture(params=sorted(find_servers()))
def guarded(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a Redis is that asks for a password: host and port."""
    server = RedisServer(find_servers()[request.param])
    try:
        server.start()
        server.client().config_set("requirepass", SECRET)
        yield f"127.0.0.1:{server.port}"
    finally:
        server.close()


def ask(url: str, protocol: int) -> None:
    with Bus("test", url=url, protocol=protocol) as bus:
        bus.all_methods()


def ask_on_loop(url: str, protocol: int) -> None:
    async def body() -> None:
        async with AsyncBus("test", url=url, protocol=protocol) as bus:
            await bus.all_methods()

    asyncio.run(body())


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("face", [ask, ask_on_loop])
@pytest.mark.parametrize(
    ("login", "words"),
    [("", MISSING), (f":{WRONG}@", REFUSED), (f"nobody:{SECRET}@", REFUSED)],
)
def test_a_password_that_is_missing_or_wrong_is_told_at_once_in_plain_words(
    guarded: str, face: Callable[[str, int], None], login: str, words: str, protocol: int
) -> None:
    with pytest.raises(ConnectionLost) as error:
        face(f"redis://{login}{guarded}/0", protocol)
    text = str(error.value)
    assert text.startswith(f"Redis at {guarded} {words}")
    assert "in the URL, as :PASSWORD@ or USER:PASSWORD@ before the host" in text
    for hidden in (SECRET, WRONG, "HELLO", "AUTH", "unknown whether"):
        assert hidden not in text


@pytest.mark.parametrize(("login", "words"), [("", MISSING), (f":{WRONG}@", REFUSED)])
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_the_command_line_says_it_in_one_line(
    guarded: str, login: str, words: str, scheme: str, processes: Processes
) -> None:
    done = processes.run("redis-bus", "ls", "x", "--url", f"{scheme}://{login}{guarded}")
    assert done.returncode == 5
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr and WRONG not in done.stderr


@pytest.mark.parametrize("face", [ask, ask_on_loop])
def test_sentinels_that_ask_for_a_password_are_told_from_the_master(
    guarded: str, face: Callable[[str, int], None]
) -> None:
    with pytest.raises(ConnectionLost) as error:
        face(f"redis+sentinel://{guarded}/mymaster/0", 3)
    assert str(error.value).startswith(f"Sentinel at {guarded} {MISSING}")
    assert "sentinel_password=" in str(error.value)


def test_the_right_password_opens(guarded: str) -> None:
    with contextlib.closing(Bus("test", url=f"redis://:{SECRET}@{guarded}")) as bus:
        assert bus.all_methods() == []
