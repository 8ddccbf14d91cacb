"""The error of `check_cache_key`, which finds it and which users catch."""

from __future__ import annotations


class CacheKeyError(AssertionError):
    """A cache key under which a call can be answered with what another call returned.

    ``calls`` and ``results`` are the two calls and what came of them, as text, ``key`` is the
    cache key that they share, ``reason`` is what is likely wrong.
    """

    __module__ = "redis_bus.testing"  # where users import it from, and what a traceback names

    def __init__(
        self, text: str, calls: tuple[str, ...], key: bytes, results: tuple[str, ...], reason: str
    ) -> None:
        super().__init__(text)
        self.calls = calls
        self.key = key
        self.results = results
        self.reason = reason
