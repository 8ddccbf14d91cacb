"""What is said of a Redis that is not there, is no Redis, refuses, or goes away."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from redis_bus import Bus, ConnectionLost
from tests.support import PATIENCE_SECONDS, eventually

WAYS = "; start one, or say where it is with url= or REDIS_BUS_URL"


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Have something that gives the same answer to whoever connects; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                connection = server.accept()[0]
                with connection:
                    if not connection.recv(4096):
                        return
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError), socket.create_connection(server.getsockname()):
            pass
        thread.join(PATIENCE_SECONDS)


def lost(bus: Bus) -> ConnectionLost:
    with pytest.raises(ConnectionLost) as error:
        bus.all_methods()
    return error.value


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://localhost:1/0", "no Redis at localhost:1 (Connection refused)"),
        ("rediss://localhost:1/0", "no Redis at localhost:1 (Connection refused)"),
        ("unix:///no/socket", "no Redis at /no/socket (No such file or directory)"),
    ],
)
def test_no_redis_is_one_error_that_says_what_to_do(url: str, words: str) -> None:
    error = lost(Bus("test", url=url))
    assert str(error) == words + WAYS
    told = "".join(traceback.format_exception(error))
    assert told.count("Traceback") == 1
    assert told.count(words) == 1


def test_no_redis_is_told_the_same_while_another_error_is_handled() -> None:
    bus = Bus("test", url="redis://localhost:1/0")
    try:
        Path("/no/such/file").read_text()
    except OSError:
        assert "(Connection refused)" in str(lost(bus))


@pytest.mark.parametrize(
    "arguments", [{}, {"password": "x"}, {"protocol": 3}, {"driver_info": None}]
)
def test_a_server_that_is_no_redis_is_said_to_be_none(arguments: dict[str, object]) -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = lost(Bus("test", url=f"redis://127.0.0.1:{port}", **arguments))
    assert str(error).startswith(f"what listens at 127.0.0.1:{port} is no Redis (")


def test_a_server_that_knows_no_tls_is_said_to_have_none() -> None:
    with answering(b"-ERR Protocol error\r\n") as port:
        error = lost(Bus("test", url=f"rediss://127.0.0.1:{port}"))
    assert str(error).startswith(f"no TLS connection to Redis at 127.0.0.1:{port} (")
    assert "_ssl.c" not in str(error)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"-DENIED Redis is running in protected mode.\r\n", "DENIED Redis is running in"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "Redis is loading"),
    ],
)
def test_a_redis_that_refuses_us_is_quoted(answer: bytes, words: str) -> None:
    with answering(answer) as port:
        error = str(lost(Bus("test", url=f"redis://127.0.0.1:{port}")))
    assert error.startswith(f"Redis at 127.0.0.1:{port} refuses us: ")
    assert words.rstrip(")") in error and not error.endswith(".")


def test_a_connection_that_is_closed_is_lost_without_doubled_punctuation(url: str) -> None:
    with Bus("test", url=url) as bus:
        transport = bus._core.transport
        with pytest.raises(ConnectionLost) as error:
            transport.exchange(("QUIT",), ("PING",))
    words = "was lost (Connection closed by server)"
    assert str(error.value) == f"the connection to Redis at {transport.address} {words}"


def test_a_redis_that_does_not_answer_in_time_is_said_to_be_late(url: str) -> None:
    with Bus("test", url=url) as bus, pytest.raises(ConnectionLost) as error:
        bus._core.transport.exchange(("BLPOP", "nothing", 0), timeout=0.05)
    assert str(error.value).endswith("was lost (it did not answer in time)")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a listener that accepts nobody, and whose backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            yield port


@pytest.mark.parametrize("given", ["url", "conn"])
def test_connecting_takes_no_longer_than_the_call_has(silent: int, given: str) -> None:
    """redis-py alone would try for more than a minute where a client is given as it comes."""
    if given == "url":
        bus = Bus("test", url=f"redis://127.0.0.1:{silent}/0")
    else:
        bus = Bus("test", redis.Redis(port=silent))
    bus.register("method")(lambda: 1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(bus.method.options(timeout=0.2))
        with pytest.raises(ConnectionLost):
            answer.result(8)


@pytest.mark.parametrize("cache_key", [None, True])
def test_a_wait_that_a_failover_broke_off_goes_on(
    url: str, client: redis.Redis, cache_key: bool | None
) -> None:
    with Bus("test", url=url, timeout=20) as bus:
        bus.register("method", cache_key=cache_key)(lambda: 1)
        result = bus.method.run()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(bus.method if cache_key else result.get)
            eventually(lambda: blocked(client))
            assert client.client_unblock(blocked(client)[0], error=True)
            eventually(lambda: blocked(client))
            bus.serve_once()
            assert answer.result(20) == 1


def blocked(client: redis.Redis) -> list[int]:
    return [int(c["id"]) for c in client.client_list() if "b" in c["flags"]]
