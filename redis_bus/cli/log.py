"""What ``redis-bus serve`` prints on stderr: log messages and its own, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time

import click

from ..printable import printable, printable_json
from .common import echo, hide_passwords


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, for programs that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        trace = getattr(record, "trace", "")
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hide_passwords(record.getMessage().removesuffix(f"\n{trace}")),
        }
        if trace:
            fields["traceback"] = hide_passwords(trace)
        if record.exc_info:
            fields["traceback"] = hide_passwords(self.formatException(record.exc_info))
        return printable_json(json.dumps(fields, ensure_ascii=False))


class _TextFormatter(logging.Formatter):
    """One message, whose further lines are indented: no text in it can look like another."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(hide_passwords(super().format(record))).replace("\n", "\n    ")


def set_up_logging(level: str, form: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())


def say_text(text: str) -> None:
    echo(f"redis-bus: {hide_passwords(text)}", err=True)


def say_json(text: str) -> None:
    record = logging.LogRecord("redis_bus", logging.INFO, __file__, 0, text, None, None)
    click.echo(_JsonFormatter().format(record), err=True)
