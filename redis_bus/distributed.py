"""Distributed: what a URL or a client says: one node, a cluster, or a master under Sentinel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import redis
import redis.asyncio as aioredis
import redis.asyncio.sentinel
import redis.sentinel

from .address import CLUSTER, SENTINEL, check_settings, connect, describe_address, hide_password
from .address import check_url as check_node_url
from .address import parse_url as parse_node_url
from .slots import Node

PORTS = {CLUSTER: 6379, SENTINEL: 26379}
# Settings of a blocking connection that mean something else, or nothing, for one of asyncio.
BLOCKING_ONLY = {
    "command_packer",
    "event_dispatcher",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "parser_class",
    "retry",
}
# Of the nodes of a cluster of asyncio: they are not for connections.
NODES_ONLY = {"connection_class", "himport_registry", "max_connections", "response_callbacks"}
CLASSES: dict[type[Any], type[Any]] = {
    redis.UnixDomainSocketConnection: aioredis.UnixDomainSocketConnection,
    redis.SSLConnection: aioredis.SSLConnection,
    redis.Connection: aioredis.Connection,
}
KINDS = "a redis.Redis, one made by Sentinel.master_for, or a RedisCluster"


@dataclass(frozen=True)
class Endpoint:
    """How connections to one server are made: redis-py's class of them, and their settings."""

    connection_class: type[Any]
    settings: dict[str, Any]
    is_master: bool = False  # whether a server that is none is not to be talked to
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
        return self.connection_class(**self.settings)


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
        client = connect(url, **redis_kwargs)
        pool = client.connection_pool
        return OneNode(Endpoint(pool.connection_class, pool.connection_kwargs), client)
    for name in ("host", "port"):
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
    connection_class, settings = parse_node_url(node_url)
    settings.update(redis_kwargs)
    for name in ("host", "port"):
        settings.pop(name, None)
    if kind == SENTINEL:
        own = {**login, **settings.pop("sentinel_kwargs", {})}
        return _open_sentinels(connection_class, settings, nodes, service, own)
    if settings.pop("db", 0):
        raise ValueError(f"not a Redis URL: {hide_password(url)!r}: a cluster has database 0 only")
    return Cluster(Endpoint(connection_class, settings), nodes)


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
) -> Sentinels:
    """``own``: settings of the connections to the sentinels, beside those for all sockets."""
    shared = {k: v for k, v in settings.items() if k.startswith(("socket_", "ssl_"))}
    is_tls = issubclass(connection_class, redis.SSLConnection)
    sentinel_kwargs = {"ssl": is_tls, **shared, **own}
    make: Any = redis.sentinel.Sentinel
    manager = make(nodes, sentinel_kwargs=sentinel_kwargs)
    return _of_sentinel(manager.master_for(service, ssl=is_tls, **settings))


# -- clients of redis-py ----------------------------------------------------------------------


def of_client(client: Any) -> Deployment:
    """Return what a blocking client of redis-py leads to.

    Raises TypeError for what is none.
    """
    if isinstance(client, Deployment):
        return client
    if isinstance(client, redis.RedisCluster):
        return _of_cluster(client)
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, redis.sentinel.SentinelConnectionPool):
        return _of_sentinel(client)
    if isinstance(pool, redis.ConnectionPool):
        return OneNode(Endpoint(pool.connection_class, pool.connection_kwargs), client)
    kind = type(client).__name__
    if isinstance(client, (aioredis.Redis, aioredis.RedisCluster)):
        raise TypeError(f"conn: this {kind} is for asyncio, and so for AsyncBus; Bus needs {KINDS}")
    raise TypeError(f"conn: {KINDS} is needed, not {kind}")


def of_async_client(client: Any) -> Deployment:
    """Return what a client for asyncio leads to, or a blocking one.

    Raises TypeError for what is neither.
    """
    if isinstance(client, aioredis.RedisCluster):
        return _of_async_cluster(client)
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, redis.asyncio.sentinel.SentinelConnectionPool):
        return _of_sentinel(client)
    if not isinstance(client, aioredis.Redis):
        return of_client(client)
    assert pool is not None
    return OneNode(_endpoint(pool), client)


def _endpoint(pool: Any) -> Endpoint:
    """Return how a pool connects, as a blocking connection would."""
    settings = {k: v for k, v in pool.connection_kwargs.items() if k != "connection_pool"}
    kind = pool.connection_class
    if issubclass(kind, aioredis.Connection) or kind in CLASSES.values():
        kept = {k: v for k, v in settings.items() if k not in BLOCKING_ONLY}
        return Endpoint(_blocking_class(kind), kept)
    if "connection_pool" in pool.connection_kwargs:  # Sentinel's find their address themselves
        is_tls = issubclass(kind, redis.SSLConnection)
        return Endpoint(redis.SSLConnection if is_tls else redis.Connection, settings)
    return Endpoint(kind, settings)


def _blocking_class(kind: type[Any]) -> type[Any]:
    for blocking, ours in CLASSES.items():
        if issubclass(kind, ours):
            return blocking
    raise TypeError(f"conn: AsyncBus cannot connect as {kind.__name__} does")


def _of_sentinel(client: Any) -> Sentinels:
    pool = client.connection_pool
    if not pool.is_master:
        raise TypeError("conn: it leads to a replica, and a bus needs the master: see master_for")
    manager = pool.sentinel_manager
    # One that cannot be reached is passed over: it is not to be tried again and again.
    found = [replace(_endpoint(o.connection_pool), is_sentinel=True) for o in manager.sentinels]
    return Sentinels(
        replace(_endpoint(pool), is_master=True),
        pool.service_name,
        tuple(found),
        manager.min_other_sentinels,
        manager._force_master_ip,
        client,
    )


def _of_cluster(client: Any) -> Cluster:
    manager = client.nodes_manager
    known = [(node.host, int(node.port)) for node in manager.startup_nodes.values()]
    # What redis-py makes of it sends READONLY, with which a replica would answer.
    own = client.user_on_connect_func
    settings = {k: v for k, v in manager.connection_kwargs.items() if k not in ("host", "port")}
    settings["redis_connect_func"] = None if own is None else _both(own)
    pool = manager.create_redis_node(*known[0], **settings).connection_pool
    return Cluster(_endpoint(pool), tuple(known), manager.address_remap)


def _both(own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def on_connect(connection: Any) -> None:
        connection.on_connect()
        own(connection)

    return on_connect


def _of_async_cluster(client: Any) -> Cluster:
    manager, kwargs = client.nodes_manager, client.connection_kwargs
    known = [(node.host, int(node.port)) for node in manager.startup_nodes.values()]
    left_out = NODES_ONLY | BLOCKING_ONLY | {"redis_connect_func"}
    settings = {k: v for k, v in kwargs.items() if k not in left_out}
    endpoint = Endpoint(_blocking_class(kwargs["connection_class"]), settings)
    check_settings(endpoint.connection_class, settings)
    return Cluster(endpoint, tuple(known), manager.address_remap)
