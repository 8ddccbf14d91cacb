"""Words: what is said of jobs and workers, by the command line and by the supervisor."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_SHOWN = 6


def count(number: int, noun: str) -> str:
    """Return '1 worker', '2 workers'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def finishing(methods: Sequence[str], seconds: float) -> str:
    """Return what to say at the first signal, where these methods run, one for each job."""
    names = sorted(set(methods))
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    them = "it" if len(methods) == 1 else "them"
    return (
        f"finishing {count(len(methods), 'job')} ({shown}), for {seconds:g} s at the most; "
        f"ctrl-C again stops {them}"
    )
