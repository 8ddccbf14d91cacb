"""Somebody else's text, so that it can be shown: nothing in it reaches a terminal as a command."""

from __future__ import annotations

# Of these emoji are made; they turn and hide nothing.
_JOINERS = "\u200c\u200d"


def printable(text: str, kept: str = "\n\t") -> str:
    """Return somebody else's text so that it can be shown: what does not print is escaped.

    That is control characters, among them those that begin a terminal's commands, marks that turn
    the direction of writing, and halves of surrogate pairs. ``kept``: which of these are left.
    Joiners, of which emoji are made, are left too.
    """
    if text.isprintable():
        return text
    kept += _JOINERS
    return "".join([one if one.isprintable() or one in kept else _escaped(one) for one in text])


def in_one_line(text: str) -> str:
    """Return somebody else's text as one line that can be shown: ends of lines are escaped too."""
    return printable(text, kept="")


def printable_json(text: str) -> str:
    """Return JSON that means the same and can be shown: its strings have JSON's own escapes."""
    if text.isprintable():
        return text
    kept = "\n" + _JOINERS  # between the values, which have none of their own
    return "".join(
        [one if one.isprintable() or one in kept else _json_escaped(one) for one in text]
    )


def _json_escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join([f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)])


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
