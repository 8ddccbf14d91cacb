"""Distributed: what a URL or a client says: one node, a cluster, or a master under Sentinel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import redis
import redis.sentinel

from ..protocol.slots import Node
from . import hooks
from .address import CLUSTER, SENTINEL, connect, describe_address, hide_password, limit_of
from .address import check_url as check_node_url
from .address import parse_url as parse_node_url
from .limit import check_limit

PORTS = {CLUSTER: 6379, SENTINEL: 26379}


@dataclass(frozen=True)
class Endpoint:
    """How connections to one server are made: redis-py's class of them, and their settings."""

    connection_class: type[Any]
    settings: dict[str, Any]
    is_master: bool = False  # whether a server that is none is not to be talked to
    max_connections: int | None = None  # how many there may be at a time; None: any number
    is_sentinel: bool = False

    @property
    def address(self) -> str:
        return describe_address(self.settings)

    @property
    def node(self) -> Node:
        return self.settings.get("host", "localhost"), int(self.settings.get("port", 6379))

    def at(self, node: Node) -> Endpoint:
        """Return the same for another server."""
        return replace(self, settings={**self.settings, "host": node[0], "port": node[1]})

    def connect(self) -> Any:
        """Return a connection that is not connected yet."""
        return self.connection_class(**hooks.on_blocking(self.settings))


@dataclass(frozen=True)
class OneNode:
    """A Redis of one node."""

    endpoint: Endpoint
    given: Any

    @property
    def address(self) -> str:
        return self.endpoint.address

    def client(self) -> Any:
        """Return redis-py's client for it."""
        return self.given


@dataclass(frozen=True)
class Cluster:
    """A Redis Cluster: some of its nodes, and how connections to all of them are made."""

    endpoint: Endpoint
    nodes: tuple[Node, ...]
    remap: Callable[[Node], Node] | None = None

    @property
    def address(self) -> str:
        return f"cluster {_show(self.nodes)}"

    def client(self) -> Any:
        """Return redis-py's client, which connects as it is made."""
        make: Any = redis.cluster.ClusterNode
        nodes = [make(host, port) for host, port in self.nodes]
        settings = {k: v for k, v in self.endpoint.settings.items() if k not in ("host", "port")}
        settings.pop("db", None)
        settings.pop("retry", None)
        settings = hooks.on_blocking(settings)
        if self.endpoint.max_connections is not None:
            settings["max_connections"] = self.endpoint.max_connections
        is_tls = issubclass(self.endpoint.connection_class, redis.SSLConnection)
        return redis.RedisCluster(startup_nodes=nodes, ssl=is_tls, **settings)


@dataclass(frozen=True)
class Sentinels:
    """A master under Sentinel: who knows where it is, and how connections to it are made."""

    endpoint: Endpoint
    service: str
    sentinels: tuple[Endpoint, ...]
    least_others: int = 0  # a sentinel that sees fewer other ones is not believed
    force_host: str | None = None
    given: Any = None

    @property
    def address(self) -> str:
        return f"sentinel service {self.service}"

    def client(self) -> Any:
        """Return redis-py's client for the master."""
        return self.given


Deployment = OneNode | Cluster | Sentinels  # what an AsyncBus gives its Bus


def _show(nodes: Iterable[Node]) -> str:
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in nodes)


# -- URLs -------------------------------------------------------------------------------------


def open_url(url: str, **redis_kwargs: Any) -> Deployment:
    """Return what a URL leads to. Does no I/O.

    What ``redis_kwargs`` say counts more than what the URL says. Raises ValueError, without the
    password, for a URL that means nothing.
    """
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if kind not in (CLUSTER, SENTINEL):
        limit = _take_limit(url, redis_kwargs)
        client = connect(url, **redis_kwargs)
        pool = client.connection_pool
        if limit is not None:
            pool.max_connections = limit
        given = Endpoint(pool.connection_class, dict(pool.connection_kwargs), max_connections=limit)
        _adapt(client, given.settings)
        return OneNode(given, client)
    for name in ("host", "port", "unix_socket_path"):
        if redis_kwargs.pop(name, None) is not None:
            raise TypeError(f"{name}=: with {scheme}:// the servers are named in the URL")
    if redis_kwargs.pop("ssl", False):
        base = {"redis": "rediss", "valkey": "valkeys"}.get(base, base)
    try:
        nodes, node_url, service = _split(f"{base}://{rest}", kind)
        node_url, login = _take_login(node_url) if kind == SENTINEL else (node_url, {})
    except ValueError as error:
        raise ValueError(f"not a Redis URL: {hide_password(url)!r}: {error}") from None
    check_node_url(node_url, url)
    limit = _take_limit(node_url, redis_kwargs)
    connection_class, settings = parse_node_url(node_url)
    settings.update(redis_kwargs)
    for name in ("host", "port"):
        settings.pop(name, None)
    if kind == SENTINEL:
        own = {**login, **settings.pop("sentinel_kwargs", {})}
        return _open_sentinels(connection_class, settings, nodes, service, own, limit)
    if settings.pop("db", 0):
        raise ValueError(f"not a Redis URL: {hide_password(url)!r}: a cluster has database 0 only")
    hooks.check(settings)
    return Cluster(Endpoint(connection_class, settings, max_connections=limit), nodes)


def _take_limit(url: str, redis_kwargs: dict[str, Any]) -> int | None:
    """Return how many connections there may be at a time; what ``redis_kwargs`` say, taken out."""
    from_url = limit_of(url)
    return check_limit(redis_kwargs.pop("max_connections", from_url))


def _adapt(client: Any, settings: dict[str, Any]) -> None:
    """Have the hooks among settings work on the connections of a client for them."""
    hooks.check(settings)
    client.connection_pool.connection_kwargs.update(hooks.on_blocking(settings))


def describe_url(url: str) -> str:
    """Return where a URL leads, for people. Raises ValueError as `open_url` does."""
    return open_url(url).address


def _split(url: str, kind: str) -> tuple[tuple[Node, ...], str, str]:
    """Return the servers that a URL names, the URL of the first one, and Sentinel's service.

    Raises ValueError that quotes nothing.
    """
    scheme, _, rest = url.partition("://")
    end = min((i for i in (rest.find(mark) for mark in "/?#") if i >= 0), default=len(rest))
    # As everywhere: what is in front of the last @ may be a password.
    user, at, places = rest[:end].rpartition("@")
    tail = rest[end:]
    nodes = []
    for place in places.split(","):
        try:
            parts = urlsplit(f"//{place}")
            port = parts.port
        except ValueError:
            raise ValueError("a port is not a number from 1 to 65535") from None
        if port == 0:
            raise ValueError("a port is not a number from 1 to 65535")
        if not parts.hostname and "," in places:
            raise ValueError("there is nothing between two of its commas")
        nodes.append((parts.hostname or "localhost", port or PORTS[kind]))
    service = ""
    if kind == SENTINEL:
        behind = urlsplit(f"//h{tail}")
        names = behind.path.strip("/").split("/")
        service = names[0]
        if not service or len(names) > 2:
            raise ValueError("behind the sentinels, it names the master: /NAME, or /NAME/0")
        database = names[1] if len(names) == 2 else ""
        tail = behind._replace(netloc="", path=f"/{database}").geturl()
    host, port = nodes[0]
    shown = f"[{host}]" if ":" in host else host
    return tuple(nodes), f"{scheme}://{user}{at}{shown}:{port}{tail}", service


def _take_login(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without what it says of the sentinels' own user and password, and that."""
    parts = urlsplit(url)
    login, rest = {}, []
    for parameter in parts.query.split("&"):
        name, _, value = parameter.partition("=")
        if name in ("sentinel_username", "sentinel_password"):
            login[name.removeprefix("sentinel_")] = unquote(value)
        else:
            rest.append(parameter)
    return urlunsplit(parts._replace(query="&".join(rest))), login


def _open_sentinels(
    connection_class: type[Any],
    settings: dict[str, Any],
    nodes: tuple[Node, ...],
    service: str,
    own: dict[str, Any],
    limit: int | None,
) -> Sentinels:
    """``own``: settings of the connections to the sentinels, beside those for all sockets."""
    shared = {k: v for k, v in settings.items() if k.startswith(("socket_", "ssl_"))}
    is_tls = issubclass(connection_class, redis.SSLConnection)
    sentinel_kwargs = {"ssl": is_tls, **shared, **own}
    make: Any = redis.sentinel.Sentinel
    manager = make(nodes, sentinel_kwargs=sentinel_kwargs)
    client = manager.master_for(service, ssl=is_tls, max_connections=limit, **settings)
    _adapt(client, settings)
    known = client.connection_pool.connection_kwargs
    own_settings = {k: v for k, v in known.items() if k != "connection_pool"}
    endpoint = Endpoint(connection_class, {**own_settings, **settings}, True, limit)
    found = [one.connection_pool for one in manager.sentinels]
    sentinels = [
        Endpoint(one.connection_class, one.connection_kwargs, is_sentinel=True) for one in found
    ]
    return Sentinels(endpoint, service, tuple(sentinels), manager.min_other_sentinels, given=client)
