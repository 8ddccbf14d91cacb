"""The names that a bench and its processes share."""

from __future__ import annotations

from ..protocol.commands import Service

# The environment of each process has the name of the bus here.
NAME_VARIABLE = "REDIS_BUS_BENCH_NAME"
# What is measured beside the bus: with redis-py, and over sockets.
PAIR, FLOOR = "pair", "floor"


def request_list(bus: str, kind: str) -> str:
    """Return the list of the requests to a bare worker.

    It is in the slot of the bus's own keys, and is deleted with them.
    """
    return f"{Service(bus, '').base}bare:{kind}"


def reply_list(bus: str, kind: str, number: int = 0) -> str:
    """Return the list in which a caller waits; its requests say so."""
    return f"{request_list(bus, kind)}:reply:{number}"


def value_key(bus: str) -> str:
    """Return the key of what is got beside cached values."""
    return f"{Service(bus, '').base}bare:value"
