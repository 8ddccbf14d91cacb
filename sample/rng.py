"""A service of random things: ``redis-bus rng.bus``."""

import random
import string
from uuid import uuid4

import redis_bus

bus = redis_bus.Bus("sample_playground", prefix="random_")


@bus.register()
def uuid() -> str:
    """Return a new unique id of 32 hexadecimal digits."""
    return uuid4().hex


@bus.register()
def password(length: int = 12) -> str:
    """Return a password of random letters."""
    return "".join(random.choices(string.ascii_letters, k=length))


@bus.register()
def error() -> None:
    """Raise an exception, to show how it looks to the caller."""
    empty: dict[str, str] = {}
    try:
        empty["nothing"]
    except KeyError as missing:
        raise ValueError("this method always fails") from missing
