"""Where Redis is: what its URL means, and what of it may be shown."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import redis

from ..protocol.annotations import signature_of

SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
}
# What may stand behind the scheme, and a +: several servers are named then.
CLUSTER, SENTINEL = "cluster", "sentinel"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# A host and what should be its port, but is no number: it may be a password.
_NO_PORT = re.compile(r"\A((?:\[[^\]]*\]|[^/?#:\[]*):)(?!\d*(?:[/?#]|$)).*", re.DOTALL)
# A parameter that has a secret, in which an @ says nothing of where the credentials end.
_SECRET = re.compile(r"[?&]\w*(?:pas|pw|secret|token|auth|cred)\w*=", re.IGNORECASE)
# What a connection to a unix socket does not have.
_TCP_ONLY = {
    "host",
    "port",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_keepalive_options",
}
_DATABASE = re.compile(r"/?|/\d+/?")
_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")
_INVALID_VALUE = re.compile(r"Invalid value for .(\w+). in connection URL")


def _make_driver() -> dict[str, Any]:
    """Return how a connection introduces itself to Redis, in redis-py's own words.

    Without it redis-py reads the metadata of its package for each connection, for most of a ms.
    """
    try:
        from redis.driver_info import DriverInfo
    except ImportError:  # older ones know their version
        return {}
    return {"driver_info": DriverInfo(lib_version=redis.__version__)}


_DRIVER = _make_driver()


def _introduced(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what to add to settings that do not say how a connection introduces itself."""
    return {} if settings.keys() & {"driver_info", "lib_name", "lib_version"} else _DRIVER


def connect(url: str, **redis_kwargs: Any) -> redis.Redis:
    """Return a client for a URL; ``valkey://`` and ``valkeys://`` are ``redis://`` and ``rediss://``.

    What ``redis_kwargs`` say counts more than what the URL says. Does no I/O. Raises ValueError,
    without the password, for a URL that means nothing.
    """
    url = _check(url)
    if redis_kwargs.pop("ssl", False):
        url = f"rediss://{url.partition('://')[2]}"
    socket_path = redis_kwargs.pop("unix_socket_path", None)
    redis_kwargs.setdefault("retry", redis.retry.Retry(redis.backoff.NoBackoff(), 0))
    client = redis.Redis.from_url(url, **redis_kwargs)
    pool = client.connection_pool
    settings = pool.connection_kwargs
    settings.update({name: redis_kwargs[name] for name in settings.keys() & redis_kwargs.keys()})
    if socket_path is not None:  # as redis.Redis has it: instead of a host and a port
        pool.connection_class = redis.UnixDomainSocketConnection
        for name in [n for n in settings if n in _TCP_ONLY or n.startswith("ssl_")]:
            del settings[name]
        settings["path"] = socket_path
    settings.update(_introduced(settings))
    return client


def check_settings(connection_class: type[Any], settings: dict[str, Any]) -> None:
    """Make a connection that is never connected, so that wrong settings are told here and now.

    Raises TypeError where there is an argument that no connection has, ValueError for a value
    that cannot be.
    """
    try:
        connection_class(**settings)
    except TypeError as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown is None:
            raise
        raise TypeError(
            f"unknown argument {unknown[1]!r}: neither Bus nor redis-py's "
            f"{connection_class.__name__} takes it"
        ) from None
    except redis.RedisError as error:
        raise ValueError(" ".join(str(error).split())) from None


def describe_address(settings: dict[str, Any]) -> str:
    """Return where a connection goes, for people: never with its password."""
    if settings.get("path"):
        return str(settings["path"])
    return f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


def hide_password(url: str) -> str:
    """Return what is meant to be a URL without what may be a password in it, whatever its form.

    All up to the last ``@`` is hidden, for a password may have any character in it, and so is a
    port that is no number, and the value of each parameter that is not known to be harmless.
    """
    secret = _SECRET.search(url)
    if secret:
        head, tail = url[: secret.start()], url[secret.start() + 1 :]
        shown = "&".join(map(_hide_value, tail.split("&")))
        return f"{hide_password(head)}{secret[0][0]}{shown}"
    scheme = _SCHEME.match(url)
    start = scheme.end() if scheme else 0
    _, at, place = url[start:].rpartition("@")
    if not at:
        places = place.split(",") if _names_several(url[:start]) else [place]
        place = ",".join(_NO_PORT.sub(r"\1***", one) for one in places)
    place, mark, query = place.partition("?")
    shown = "&".join(map(_hide_value, query.split("&"))) if query else ""
    return f"{url[:start]}{'***@' if at else ''}{place}{mark}{shown}"


def _names_several(scheme: str) -> bool:
    return scheme.endswith((f"+{CLUSTER}://", f"+{SENTINEL}://"))


def _hide_value(parameter: str) -> str:
    name, mark, _ = parameter.partition("=")
    if not mark:
        return "***"
    known = _settings_of(redis.SSLConnection) | _settings_of(redis.ConnectionPool)
    is_known = name in known and "pass" not in name
    return parameter if is_known else f"{name}=***"


def check_url(url: str, shown: str) -> None:
    """Raise ValueError where the URL of one server is wrong; ``shown``: what it was made of."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ValueError(f"not a Redis URL: {hide_password(shown)!r}; it begins with redis://")
    problem = _find_problem(f"{SCHEMES[scheme]}://{rest}")
    if problem:
        raise ValueError(f"not a Redis URL: {hide_password(shown)!r}: {problem}")


def _check(url: str) -> str:
    """Return a URL with the scheme that redis-py knows. Raises ValueError, without passwords."""
    check_url(url, url)
    return _known(url)


def _known(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{SCHEMES[scheme]}://{rest}"


def _find_problem(url: str) -> str | None:
    """Return what is wrong with a URL of a known scheme, without quoting its credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "its host cannot be read"
    problem = _find_problem_of_place(parts) or _find_problem_of_query(parts, url)
    behind = f"{parts.path}{parts.query}{parts.fragment}"
    if problem and "@" in behind and "@" not in parts.netloc:
        return f"{problem}; in a password, / ? # and @ are written %2F %3F %23 and %40"
    return problem


def _find_problem_of_place(parts: SplitResult) -> str | None:
    if parts.fragment:
        return "a # means nothing in it"
    if parts.scheme == "unix":
        return None if parts.path else "it has no path, as unix:///run/redis.sock has"
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return "its port is not a number from 1 to 65535"
    if not _DATABASE.fullmatch(unquote(parts.path)):
        return "what follows its host must be the number of a database, such as /0"
    return None


def _find_problem_of_query(parts: SplitResult, url: str) -> str | None:
    if any("=" not in parameter for parameter in parts.query.split("&") if parameter):
        return "behind its ? are to be parameters, such as socket_timeout=5"
    try:
        connection_class, settings = parse_url(url)
        connection_class(**settings, **_introduced(settings))
    except TypeError as error:
        unknown = _UNKNOWN.search(str(error))
        return f"there is no parameter {unknown[1]!r}" if unknown else "a parameter is wrong"
    except (ValueError, redis.RedisError) as error:
        # What redis-py says of it may quote values.
        invalid = _INVALID_VALUE.search(str(error))
        return f"{invalid[1]} cannot have that value" if invalid else "a parameter is wrong"
    return None


def parse_url(url: str) -> tuple[type[Any], dict[str, Any]]:
    """Return the class of connections that the URL of one server means, and their arguments."""
    parse: Any = redis.connection.parse_url  # which has no types
    settings: dict[str, Any] = parse(_known(url))
    settings.pop("max_connections", None)  # of a pool's: see `limit_of`
    return settings.pop("connection_class", redis.Connection), settings


def limit_of(url: str) -> int | None:
    """Return how many connections there may be at a time, as the URL of one server says."""
    parse: Any = redis.connection.parse_url
    try:
        found: int | None = parse(_known(url)).get("max_connections")
    except (KeyError, ValueError):  # which is told where it is parsed for the rest
        return None
    return found


def _settings_of(connection_class: type[Any]) -> set[str]:
    """Return the names of the arguments that a class of connections has, all bases' too."""
    return {
        name
        for one in connection_class.__mro__
        if "__init__" in vars(one)
        for name in signature_of(vars(one)["__init__"]).parameters
    }
