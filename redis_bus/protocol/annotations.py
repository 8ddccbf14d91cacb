"""Annotations: a function's signature, also where its annotations name what is not there."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from inspect import Signature
from typing import Any


def signature_of(func: Callable[..., Any]) -> Signature:
    """Return the signature of ``func``, as `inspect.signature` does.

    Since Python 3.14 annotations are evaluated when they are read, and may name what is imported
    for type checkers only. Where one fails, all of that function are their text as it is written,
    which is what ``from __future__ import annotations`` makes of them in every Python.

    Raises ValueError where Python knows no signature, and TypeError where it is not callable.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        try:
            return inspect.signature(func)
        except Exception:  # noqa: BLE001 - annotations are code, which may raise anything
            return inspect.signature(func, annotation_format=Format.STRING)
    return inspect.signature(func)
