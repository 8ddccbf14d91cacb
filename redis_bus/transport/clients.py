"""Clients: what a client that was given leads to: of redis-py or valkey-py, of either kind.

A bus makes connections of its own, with redis-py's classes and the settings of that client.
valkey-py is known by the names of its classes, and never imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import redis
import redis.asyncio as aioredis

from . import hooks
from .distributed import Cluster, Deployment, Endpoint, OneNode, Sentinels
from .twins import LIBRARIES, blocking_class, for_blocking, from_valkey, is_of_asyncio, library_of
from .wire import forced_master

KINDS = "a redis.Redis, one made by Sentinel.master_for, or a RedisCluster"
# What stands in for a Redis in other people's tests, without one.
FAKES = ("fakeredis", "mockredis", "birdisle", "unittest")
# Settings of a cluster's nodes that are not for connections.
NODES_ONLY = {
    "cache",
    "cache_config",
    "connection_class",
    "himport_registry",
    "max_connections",
    "response_callbacks",
}
# So many connections are as many as one likes.
NO_LIMIT = 2**31


def given(conn: Any, url: str | None, redis_kwargs: dict[str, Any]) -> Deployment | None:
    """Return what a `Bus` was given, a client or a pool; None where it is to be a URL.

    Raises TypeError for what is neither, for what is asyncio's, and for settings beside it that
    would not count.
    """
    if isinstance(conn, Deployment):
        return conn
    return _given(conn, url, redis_kwargs, _blocking_only)


def given_either(conn: Any, url: str | None, redis_kwargs: dict[str, Any]) -> Deployment | None:
    """Return the same for an `AsyncBus`, which takes what is asyncio's, too."""
    return _given(conn, url, redis_kwargs, lambda _: None)


def _given(
    conn: Any, url: str | None, redis_kwargs: dict[str, Any], check: Callable[[Any], None]
) -> Deployment | None:
    pool = redis_kwargs.pop("connection_pool", None)
    if conn is None and pool is None:
        return None
    name = "connection_pool" if conn is None else "conn"
    beside = {**redis_kwargs}
    if conn is not None and pool is not None:
        beside["connection_pool"] = pool
    if conn is None and url is not None:
        beside["url"] = url
    if beside:
        raise TypeError(
            f"{next(iter(beside))}= does not count beside {name}=, which has its own settings: "
            f"make the {'pool' if conn is None else 'client'} with it, or leave {name} out"
        )
    check(pool if conn is None else conn)
    return of_pool(pool) if conn is None else of_client(conn)


def _blocking_only(given: Any) -> None:
    kind = type(given)
    if is_of_asyncio(kind):
        _refuse_fakes(given)
        raise TypeError(
            f"conn: this {kind.__name__} is for asyncio, and so for AsyncBus; Bus needs {KINDS}"
        )


def of_client(client: Any) -> Deployment:
    """Return what a client of either kind leads to.

    Raises TypeError for what is none, and for one whose connections a bus cannot have.
    """
    _refuse_fakes(client)
    names = {one.__name__ for one in type(client).__mro__ if library_of(one) in LIBRARIES}
    if names & {"RedisCluster", "ValkeyCluster"}:
        is_async = is_of_asyncio(type(client))
        return _of_async_cluster(client) if is_async else _of_cluster(client)
    pool = getattr(client, "connection_pool", None)
    if not names & {"Redis", "Valkey"} or pool is None:
        raise TypeError(f"conn: {KINDS} is needed, not {type(client).__name__}")
    return _of_pool(client)


def of_pool(pool: Any) -> Deployment:
    """Return what a pool of connections leads to. Raises TypeError.

    Its class of connections and their settings count, and how many there may be.
    """
    if not all(hasattr(pool, name) for name in ("connection_kwargs", "connection_class")):
        kind = type(pool).__name__
        raise TypeError(f"connection_pool={kind}: a pool of redis-py or of valkey-py is needed")
    _refuse_fakes(pool)
    if library_of(pool.connection_class) == "valkey":
        endpoint = _endpoint(pool)
        settings = hooks.on_blocking(endpoint.settings)
        pool = redis.ConnectionPool(endpoint.connection_class, **settings)
        return OneNode(endpoint, redis.Redis(connection_pool=pool))
    made: Any = (aioredis if is_of_asyncio(type(pool)) else redis).Redis
    return _of_pool(made(connection_pool=pool))


def _of_pool(client: Any) -> Deployment:
    pool = client.connection_pool
    if hasattr(pool, "sentinel_manager"):
        return _of_sentinel(client)
    return OneNode(_endpoint(pool), client)


def _refuse_fakes(given: Any) -> None:
    """Raise TypeError for what has no socket, and no Redis at its end."""
    pool = getattr(given, "connection_pool", given)
    made_of = [type(given), type(pool), getattr(pool, "connection_class", None)]
    for kind in made_of:
        for one in getattr(kind, "__mro__", ()):
            if library_of(one) in FAKES:
                raise TypeError(
                    f"conn: this {type(given).__name__} is of {library_of(one)}, with no Redis "
                    f"behind it, and a bus needs one that runs its scripts: for tests, see "
                    f"redis_bus.testing, which starts a real one"
                )


def _endpoint(pool: Any) -> Endpoint:
    """Return how a pool connects, as a blocking connection would."""
    settings = {k: v for k, v in pool.connection_kwargs.items() if k != "connection_pool"}
    kind, limit = pool.connection_class, _limit(pool.max_connections)
    if any(library_of(one) == "valkey" for one in kind.__mro__):
        kind, settings = from_valkey(kind, settings)
    elif is_of_asyncio(kind):
        kind, settings = blocking_class(kind), for_blocking(settings)
    elif "connection_pool" in pool.connection_kwargs:  # Sentinel's find their address themselves
        kind = blocking_class(kind)
    return Endpoint(kind, settings, max_connections=limit)


def _limit(count: Any) -> int | None:
    return None if not isinstance(count, int) or count >= NO_LIMIT else count


def _of_sentinel(client: Any) -> Sentinels:
    pool = client.connection_pool
    if not pool.is_master:
        raise TypeError("conn: it leads to a replica, and a bus needs the master: see master_for")
    manager = pool.sentinel_manager
    # One that cannot be reached is passed over: it is not to be tried again and again.
    found = [_endpoint(one.connection_pool) for one in manager.sentinels]
    return Sentinels(
        replace(_endpoint(pool), is_master=True),
        pool.service_name,
        tuple(replace(one, max_connections=None, is_sentinel=True) for one in found),
        manager.min_other_sentinels,
        forced_master(manager),
        client,
    )


def _nodes(manager: Any) -> tuple[tuple[str, int], ...]:
    return tuple((node.host, int(node.port)) for node in manager.startup_nodes.values())


def _remap(manager: Any) -> Any:
    found = getattr(manager, "address_remap", None)
    if found is not None:
        hooks.check({"address_remap": found})
    return found


def _of_cluster(client: Any) -> Cluster:
    manager, known = client.nodes_manager, _nodes(client.nodes_manager)
    settings = {k: v for k, v in manager.connection_kwargs.items() if k not in ("host", "port")}
    # What the library makes of it sends READONLY, with which a replica would answer.
    own = client.user_on_connect_func
    name = "redis_connect_func" if "redis_connect_func" in settings else "valkey_connect_func"
    settings[name] = None if own is None else hooks.after_connect(own)
    make = getattr(manager, "create_redis_node", None) or manager.create_valkey_node
    return Cluster(_endpoint(make(*known[0], **settings).connection_pool), known, _remap(manager))


def _of_async_cluster(client: Any) -> Cluster:
    manager, kwargs = client.nodes_manager, client.connection_kwargs
    kind = kwargs["connection_class"]
    # A function that is called there is the library's own, which sends READONLY.
    left_out = NODES_ONLY | {"redis_connect_func", "valkey_connect_func"}
    settings = {k: v for k, v in kwargs.items() if k not in left_out}
    if library_of(kind) == "valkey":
        kind, settings = from_valkey(kind, settings)
    else:
        kind, settings = blocking_class(kind), for_blocking(settings)
    limit = _limit(kwargs.get("max_connections"))
    endpoint = Endpoint(kind, settings, max_connections=limit)
    return Cluster(endpoint, _nodes(manager), _remap(manager))
