"""Where Redis is: wrong URLs and settings are told when a bus is made, without any password."""

from __future__ import annotations

import subprocess
import sys
import traceback
from typing import Any

import pytest
import redis
import redis.sentinel

from redis_bus import Bus
from redis_bus.transport.address import hide_password

SECRETS = ["s3cret", "s3/cret", "s3?cret", "s3@cret", "s3#cret", "s3:cret", "@s3cret@", "/?s3cret"]


def settings_of(bus: Bus) -> dict[str, Any]:
    return dict(bus.conn.connection_pool.connection_kwargs)


# -- what is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("scheme", ["", "redis://", "rediss://", "unix://", "http://", "redis:/"])
@pytest.mark.parametrize("user", ["joe", ""])
def test_no_form_of_an_address_shows_a_password(scheme: str, user: str, secret: str) -> None:
    shown = hide_password(f"{scheme}{user}:{secret}@localhost:6379/0")
    assert shown in (f"{scheme}***@localhost:6379/0", "***@localhost:6379/0")
    shown = hide_password(f"{scheme}localhost/0?password={secret}")
    assert not any(part in shown for part in ("cret", "s3")), shown


@pytest.mark.parametrize("address", ["joe:s3cret", "redis://:s3cret", "redis://joe:s3cret/0"])
def test_what_stands_for_a_port_may_be_a_password(address: str) -> None:
    assert hide_password(address).endswith(":***")


@pytest.mark.parametrize(
    "address",
    [
        "redis://localhost:6379/0",
        "localhost:6379",
        "redis://[::1]:6379/0",
        "unix:///run/redis.sock?db=3",
        "redis://localhost/0?socket_timeout=abc&client_name=me",
        "",
    ],
)
def test_what_is_no_secret_is_shown(address: str) -> None:
    assert hide_password(address) == address


def test_the_parts_of_a_query_that_are_no_secrets_are_kept() -> None:
    address = "rediss://joe:s3@localhost/0?db=1&password=s3&ssl_password=s3&pasword=s3&s3"
    shown = "rediss://***@localhost/0?db=1&password=***&ssl_password=***&pasword=***&***"
    assert hide_password(address) == shown


# -- URLs that mean nothing -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("redis://localhost:port/0", "its port is not a number"),
        ("redis://localhost:99999/0", "its port is not a number"),
        ("redis://localhost:0/0", "its port is not a number"),
        ("redis://localhost:6379/abc", "must be the number of a database"),
        ("rediss://localhost:6379/1/2", "must be the number of a database"),
        ("valkey://localhost/-1", "must be the number of a database"),
        ("redis://localhost/abc?db=1", "must be the number of a database"),
        ("redis://localhost/0?tiemout=4", "there is no parameter 'tiemout'"),
        ("redis://localhost/0?timeout=4", "there is no parameter 'timeout'"),
        ("unix:///run/redis.sock?host=x", "there is no parameter 'host'"),
        ("redis://localhost/0?ssl_ca_certs=x", "there is no parameter 'ssl_ca_certs'"),
        ("redis://localhost/0?socket_timeout=abc", "socket_timeout cannot have that value"),
        ("redis://localhost/0?db=one", "db cannot have that value"),
        ("rediss://localhost/0?ssl_cert_reqs=never", "a parameter is wrong"),
        ("redis://localhost/0?protocol=9", "a parameter is wrong"),
        ("redis://localhost/0?x", "are to be parameters"),
        ("redis://localhost/0#1", "a # means nothing"),
        ("redis://[::1/0", "its host cannot be read"),
        ("unix://redis.sock", "it has no path"),
        ("redis://joe:s3/cret@localhost/0", "in a password, / \\? # and @ are written %2F"),
        ("redis://joe:12?cret@localhost/0", "in a password, / \\? # and @ are written %2F"),
        ("redis://joe:12#cret@localhost/0", "in a password, / \\? # and @ are written %2F"),
        ("unix://joe:12?cret@/run/redis.sock", "in a password, / \\? # and @ are written %2F"),
        ("joe:s3cret@localhost", "it begins with redis://"),
    ],
)
def test_a_url_that_means_nothing_is_a_value_error_that_says_why(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"not a Redis URL: .*{words}") as error:
        Bus("test", url=address)
    assert not any(part in str(error.value) for part in ("cret", "s3", "12"))
    assert "".join(traceback.format_exception(error.value)).count("Traceback") == 1


@pytest.mark.parametrize(
    ("address", "database"),
    [
        ("redis://localhost", 0),
        ("redis://localhost:6379/", 0),
        ("rediss://joe:p%2Fss@localhost:6379/7", 7),
        ("valkey://[::1]:6379/3/", 3),
        ("redis://localhost?db=4&client_name=a@b", 4),
        ("unix:///run/redis.sock?db=2&password=x", 2),
        ("redis://joe:p@ss@localhost/1", 1),
    ],
)
def test_urls_that_mean_something_are_taken(address: str, database: int) -> None:
    assert settings_of(Bus("test", url=address)).get("db", 0) == database


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["serialiser", "tiemout", "redis_url"])
def test_an_argument_that_nobody_takes_is_a_type_error_that_names_it(name: str) -> None:
    arguments: dict[str, Any] = {name: "json"}
    with pytest.raises(TypeError, match=f"unknown argument '{name}': neither Bus nor redis-py's"):
        Bus("test", **arguments)
    with pytest.raises(TypeError, match=f"unknown argument '{name}'"):
        Bus("test", redis.Redis.from_url("redis://localhost", **arguments))


def test_a_setting_that_cannot_be_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="protocol must be"):
        Bus("test", protocol=9)


def test_arguments_count_more_than_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_BUS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = settings_of(Bus("test", host="example.org", port=1234, db=5))
    assert (settings["host"], settings["port"], settings["db"]) == ("example.org", 1234, 5)
    bus = Bus("test", url="redis://joe:old@localhost:1/0", password="new", db=2)
    assert (settings_of(bus)["password"], settings_of(bus)["db"]) == ("new", 2)
    assert "localhost:1" in repr(bus)
    secure = Bus("test", host="example.org", ssl=True, ssl_ca_certs="/no/such/file")
    assert secure.conn.connection_pool.connection_class is redis.SSLConnection


NO_IO = """
import sys
import redis, redis.sentinel
from redis_bus import Bus

Bus("warm", url="redis://localhost")
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") else None)
Bus("a", url="redis://nohost.invalid:1/0", socket_timeout=1, client_name="x", protocol=3)
Bus("b", url="rediss://u:p@nohost.invalid:1/0?ssl_cert_reqs=none", ssl_ca_certs="/no/file")
Bus("c", url="unix:///no/socket?db=1", password="x")
Bus("d", redis.Redis(host="nohost.invalid", ssl=True, ssl_keyfile="/no/file"))
Bus("e", redis.Redis(unix_socket_path="/no/socket"))
sentinel = redis.sentinel.Sentinel([("nohost.invalid", 1)])
print(repr(Bus("f", sentinel.master_for("mymaster", password="x"))))
Bus("g", sentinel.master_for("mymaster", ssl=True, ssl_certfile="/no/file"))
Bus("h", redis.Redis(connection_pool=redis.BlockingConnectionPool(host="nohost.invalid")))
print(seen)
"""


def test_making_a_bus_does_no_io_with_tls_sockets_and_sentinels() -> None:
    shown = subprocess.run([sys.executable, "-c", NO_IO], capture_output=True, text=True)
    assert shown.stdout == "<Bus 'f' at sentinel service mymaster>\n[]\n", shown.stderr
