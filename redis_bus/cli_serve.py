"""``redis-bus TARGET``: serve the bus of a user's module until a signal ends it."""

from __future__ import annotations

import contextlib
import fnmatch
import gc
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable

import click
from click.core import ParameterSource

from .address import describe_url
from .bus import Bus
from .cli_common import Exit, Seconds, fail, hide_passwords, option, url_option
from .cli_signals import EndingSignals, bounded_shutdown
from .cli_target import BadTarget, load_bus, split_target
from .embedded import EmbeddedRedis, EmbeddedUnavailable
from .supervisor import Supervised, Supervisor
from .worker import importing

logger = logging.getLogger("redis_bus")

DEFAULT_PORT = 6379
PROBE_SECONDS = 1.0
SHUTDOWN_SECONDS = 30.0
NAMES_SHOWN = 6


@click.command(short_help="Serve a bus of a module (the default command).")
@click.argument("target")
@option("-p", "--pattern", metavar="GLOB", help="Only the methods that match, such as 'math_*'.")
@option(
    "-w",
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Serve in N processes, started again when they die; else in this process alone.",
)
@option(
    "-c",
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Run N jobs at a time in each process: in threads, async functions on one event loop.",
)
@option("-d", "--debug", is_flag=True, help="On an exception, open pdb in the frame that raised.")
@option("-b", "--burst", is_flag=True, help="Run what is queued now, then exit.")
@option(
    "--shutdown-timeout",
    type=Seconds(min=0),
    metavar="SECONDS",
    default=SHUTDOWN_SECONDS,
    show_default=True,
    help="How long running jobs may go on after the first SIGTERM or ctrl-C.",
)
@url_option
@option("--embedded", is_flag=True, help="Start a private Redis first, at the default address.")
@click.option("--embedded-port", type=int, default=DEFAULT_PORT, hidden=True)
@option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="warning",
    show_default=True,
    help="The least serious messages to print.",
)
@option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How messages are printed, on stderr.",
)
@click.pass_context
def serve(
    context: click.Context,
    target: str,
    pattern: str | None,
    workers: int | None,
    concurrency: int,
    debug: bool,
    burst: bool,
    shutdown_timeout: float,
    url: str | None,
    embedded: bool,
    embedded_port: int,
    log_level: str,
    log_format: str,
) -> None:
    """Serve TARGET, a bus such as simple_math.bus in the current folder.

    It runs until SIGTERM or ctrl-C: the first lets running jobs finish, a second stops at
    once. `redis-bus TARGET` means the same: serve is the default command.
    """
    if embedded and context.get_parameter_source("url") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--embedded brings its own Redis: leave out --url")
    if workers and debug:
        raise click.UsageError("--debug needs one process, for its pdb: leave out --workers")
    if concurrency > 1 and (debug or burst):
        option = "--debug needs" if debug else "--burst runs"
        raise click.UsageError(f"{option} one job at a time: leave out --concurrency")
    _set_up_logging(log_level, log_format)
    supervised = Supervised.from_environment()
    say: Callable[[str], None] = _say_json if log_format == "json" else _say_text
    if supervised is not None:
        say = supervised.notes.append
    with EndingSignals() as signals, contextlib.ExitStack() as stack:
        told = None
        _check_shape(target)
        if embedded:
            # It is started before the import, for which it may be needed, and told of after it.
            with signals.held():
                url, told = _embedded_url(stack, embedded_port)
                stack.callback(signals.ignore)
                gc.collect()  # for a signal that came in a destructor would be lost there
        address = _address(url) if url else None
        if url:
            # The module makes its bus itself: this is where it looks for the address.
            os.environ["REDIS_BUS_URL"] = url
        if workers:
            # The URL is not among them: `ps` would show its password.
            options = [f"--shutdown-timeout={shutdown_timeout}", f"--concurrency={concurrency}"]
            options += [f"--log-level={log_level}", f"--log-format={log_format}"]
            options += [] if pattern is None else [f"--pattern={pattern}"]
            options += ["--burst"] if burst else []
            supervisor = Supervisor(
                [*options, "--", target],
                workers,
                say=say,
                first=[told] if told else [],
                burst=burst,
                shutdown_timeout=shutdown_timeout,
            )
            raise click.exceptions.Exit(supervisor.run())
        try:
            bus = load_bus(target)
            names = _served(bus, target, pattern)
        except BadTarget as error:
            signals.check()  # a signal during the import ends it, too
            if error.__cause__ and (debug or log_level == "debug"):
                logger.error("the whole of it:", exc_info=error.__cause__)
            fail(str(error), Exit.USAGE)
        signals.check()
        # A Redis that is elsewhere may take its time; then a signal ends the wait for it.
        with signals.held() if told else contextlib.nullcontext():
            if told:
                say(told)
            if address and bus._core.transport.address != address:
                say(f"{target} names its own Redis, {bus._core.transport.address}, which counts")
            bus._core.transport.exchange(("PING",))
        with signals.held():
            serving = bus._serving(pattern, debug=debug, concurrency=concurrency)
            worker = stack.enter_context(serving)
            signals.serving(worker.stop)
        what = _shorten(names)
        if concurrency > 1:
            what += f", {concurrency} at a time{' in each process' if supervised else ''},"
        banner = f"serving {what} on bus {bus.name!r} at {bus._core.transport.address}"
        if supervised is None:
            say(banner if burst else f"{banner}; ctrl-C stops")
        for name in names:
            if hasattr(type(bus), name) or name in vars(bus):
                say(
                    f"method {name!r} is reached with bus[{name!r}] only: "
                    "Bus has an attribute of that name"
                )
        if supervised is not None:
            worker.succeeds = supervised.succeeds
            # What Redis refuses is found out before it counts as served.
            bus._core.drive(bus._core.publish(worker.registrations))
            supervised.serves(worker.id, banner)
        with bounded_shutdown(shutdown_timeout):
            if not burst:
                worker.serve()
                return
            done = worker.serve_once()
            if supervised is not None:
                supervised.has_run(done)
            else:
                say(f"ran {done} job{'' if done == 1 else 's'}")


def _check_shape(target: str) -> None:
    try:
        split_target(target)
    except BadTarget as error:
        fail(str(error), Exit.USAGE)


def _served(bus: Bus, target: str, pattern: str | None) -> list[str]:
    """Return which methods are served. Raises BadTarget where there are none."""
    names = sorted(bus._core.registrations)
    chosen = [name for name in names if pattern is None or fnmatch.fnmatchcase(name, pattern)]
    if not chosen:
        raise BadTarget(f"no method of {target} matches {pattern!r}; it has {_shorten(names)}")
    for name in chosen:
        try:
            with importing():
                bus._core.first_target(name)
        except (Exception, SystemExit) as error:
            raise BadTarget(f"method {name!r} cannot be served: {error}") from error
    return chosen


def _shorten(names: list[str]) -> str:
    if len(names) <= NAMES_SHOWN:
        return ", ".join(names)
    return f"{len(names)} methods ({', '.join(names[:3])}, ...)"


def _address(url: str) -> str:
    try:
        return describe_url(url)
    except ValueError as error:
        fail(str(error), Exit.USAGE)


# -- the private Redis ------------------------------------------------------------------------


def _embedded_url(stack: contextlib.ExitStack, port: int) -> tuple[str, str]:
    """Start a private Redis, or find the one that is there; return its URL and what to say."""
    for last_try in (False, True):
        listener = _what_listens(port)
        if listener == "redis":
            url = f"redis://localhost:{port}/0"
            return url, f"port {port} is taken by a Redis already: {url} is used"
        try:
            server = stack.enter_context(EmbeddedRedis(port=port if listener == "nothing" else 0))
        except EmbeddedUnavailable:
            # Somebody else may have taken the port since it was looked at.
            if last_try or _what_listens(port) == "nothing":
                raise
            continue
        if listener == "nothing":
            ends = "it ends with this process"
            return server.url, f"a private Redis is at {server.url}; {ends}"
        return server.url, (
            f"port {port} is taken by something else: a private Redis is at {server.url}; "
            f"other terminals find it with REDIS_BUS_URL={server.url}"
        )
    raise AssertionError("the last try returns or raises")


def _what_listens(port: int) -> str:
    """Return what answers on a port of the loopback interface: nothing, redis or other."""
    try:
        with socket.create_connection(("127.0.0.1", port), PROBE_SECONDS) as probe:
            probe.settimeout(PROBE_SECONDS)
            probe.sendall(b"PING\r\n")
            answer = probe.recv(64)
    except ConnectionRefusedError:
        return "nothing"
    except OSError:
        return "other"
    # A Redis that wants a password, or is still loading, is a Redis all the same.
    return "redis" if answer.startswith((b"+PONG", b"-NOAUTH", b"-LOADING")) else "other"


# -- messages ---------------------------------------------------------------------------------


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, for programs that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hide_passwords(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = hide_passwords(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return hide_passwords(super().format(record))


def _set_up_logging(level: str, form: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())


def _say_text(text: str) -> None:
    click.echo(f"redis-bus: {hide_passwords(text)}", err=True)


def _say_json(text: str) -> None:
    record = logging.LogRecord("redis_bus", logging.INFO, __file__, 0, text, None, None)
    click.echo(_JsonFormatter().format(record), err=True)
