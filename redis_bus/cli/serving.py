"""What ``redis-bus serve`` does with its options: serve in this process, or under a supervisor."""

from __future__ import annotations

import contextlib
import fnmatch
import gc
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ..bus import Bus
from ..supervisor.exits import Exit
from ..supervisor.signals import EndingSignals, bounded_shutdown
from ..supervisor.supervised import OTHERS, Supervised
from ..supervisor.words import NAMES_SHOWN, count, finishing
from ..transport.distributed import describe_url
from ..worker.logs import LogRuns
from ..worker.worker import Worker, importing
from .common import fail
from .log import say_json, say_text, set_up_logging
from .private import private_url, where_others_look
from .target import BadTarget, load_bus, split_target

if TYPE_CHECKING:
    from ..supervisor.watcher import Watcher

logger = logging.getLogger("redis_bus")

DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The command line of ``redis-bus serve``, or what the environment has for it."""

    target: str
    pattern: str | None
    workers: int | None
    concurrency: int
    max_jobs: int | None
    reload: bool
    debug: bool
    burst: bool
    shutdown_timeout: float
    url: str | None
    embedded: bool
    embedded_port: int
    log_level: str
    log_format: str
    log_arguments: bool

    def for_child(self) -> list[str]:
        """Return the command line of each worker process of a supervisor."""
        # The URL is not among them: `ps` would show its password.
        line = [f"--shutdown-timeout={self.shutdown_timeout}", f"--concurrency={self.concurrency}"]
        line += [f"--log-level={self.log_level}", f"--log-format={self.log_format}"]
        line += [] if self.max_jobs is None else [f"--max-jobs={self.max_jobs}"]
        line += [] if self.pattern is None else [f"--pattern={self.pattern}"]
        line += ["--burst"] if self.burst else []
        line += ["--log-arguments"] if self.log_arguments else []
        return [*line, "--", self.target]


def run(options: ServeOptions) -> None:
    """Serve until a signal ends it. Raises click's Exit where the code is another than 0."""
    set_up_logging(options.log_level, options.log_format)
    supervised = Supervised.from_environment()
    say: Callable[[str], None] = say_json if options.log_format == "json" else say_text
    if supervised is not None:
        say = supervised.notes.append
    with EndingSignals() as signals, contextlib.ExitStack() as stack:
        url, told = options.url, list[str]()
        _check_shape(options.target)
        if options.embedded:
            # It is started before the import, for which it may be needed, and told of after it.
            with signals.held():
                url, text = private_url(stack, options.embedded_port)
                told = [text, *where_others_look(url)]
                stack.callback(signals.ignore)
                gc.collect()  # for a signal that came in a destructor would be lost there
        address = _address(url) if url else None
        if url:
            # The module makes its bus itself: this is where it looks for the address.
            os.environ["REDIS_BUS_URL"] = url
        if options.workers or options.reload:
            with signals.held():
                watcher = stack.enter_context(_watcher(options)) if options.reload else None
            if options.workers and options.workers > 1 and not options.burst:
                os.environ[OTHERS] = "1"
            from ..supervisor.supervisor import Supervisor  # a worker by itself has none

            supervisor = Supervisor(
                options.for_child(),
                options.workers or 1,
                say=say,
                first=told,
                burst=options.burst,
                shutdown_timeout=options.shutdown_timeout,
                watcher=watcher,
            )
            raise click.exceptions.Exit(supervisor.run())
        bus, names = _load(options, signals)
        _log_arguments(bus, options.log_arguments)
        # A Redis that is elsewhere may take its time; then a signal ends the wait for it.
        with signals.held() if told else contextlib.nullcontext():
            for text in told:
                say(text)
            ours = bus._core.transport.address
            if address and ours != address:
                say(f"{options.target} names its own Redis, {ours}, which counts")
            bus._core.transport.exchange(("PING",))
        with signals.held():
            serving = bus._serving(
                options.pattern,
                debug=options.debug,
                concurrency=options.concurrency,
                max_jobs=options.max_jobs,
            )
            worker = stack.enter_context(serving)
            signals.serving(worker.stop)
        banner = _banner(bus, names, options.concurrency, supervised)
        if supervised is None:
            say(banner if options.burst else f"{banner}; ctrl-C stops")
        _warn_of_names(bus, names, say)
        if supervised is not None:
            from ..supervisor.lapse import lease_of

            worker.succeeds, worker.has_others = supervised.succeeds, supervised.has_others
            # What Redis refuses is found out before it counts as served.
            bus._core.drive(bus._core.publish(worker.registrations))
            supervised.serves(worker.id, lease_of(worker), banner)

        def begun() -> None:
            methods = worker.running()
            if supervised is not None:
                supervised.finishes(methods)
            elif methods:
                say(finishing(methods, options.shutdown_timeout))

        with bounded_shutdown(options.shutdown_timeout, begun):
            _work(worker, options, supervised, say)
            if supervised is not None:
                supervised.has_left()


def _work(
    worker: Worker,
    options: ServeOptions,
    supervised: Supervised | None,
    say: Callable[[str], None],
) -> None:
    """Serve to the end, and say what that was where it was not a signal."""
    if options.burst:
        done = worker.serve_once()
        if supervised is not None:
            supervised.has_run(done)
        else:
            say(f"ran {count(done, 'job')}")
        return
    worker.serve()
    if options.max_jobs is None or not worker.quota.is_spent:
        return
    if supervised is not None:
        supervised.is_spent()
    else:
        say(f"ran {count(options.max_jobs, 'job')}, as many as --max-jobs says, and ends")


# -- what is served ---------------------------------------------------------------------------


def _check_shape(target: str) -> None:
    try:
        split_target(target)
    except BadTarget as error:
        fail(str(error), Exit.USAGE)


def _load(options: ServeOptions, signals: EndingSignals) -> tuple[Bus, list[str]]:
    """Import the bus, and return which of its methods are served."""
    try:
        bus = load_bus(options.target)
        names = _served(bus, options.target, options.pattern)
    except BadTarget as error:
        signals.check()  # a signal during the import ends it, too
        if error.__cause__ and (options.debug or options.log_level == "debug"):
            logger.error("the whole of it:", exc_info=error.__cause__)
        fail(str(error), Exit.USAGE)
    signals.check()
    return bus, names


def _log_arguments(bus: Bus, wanted: bool) -> None:
    for one in bus.middleware:
        if isinstance(one, LogRuns):
            one.arguments = one.arguments or wanted


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


def _banner(bus: Bus, names: list[str], concurrency: int, supervised: Supervised | None) -> str:
    what = _shorten(names)
    if concurrency > 1:
        what += f", {concurrency} at a time{' in each process' if supervised else ''},"
    return f"serving {what} on bus {bus.name!r} at {bus._core.transport.address}"


def _warn_of_names(bus: Bus, names: list[str], say: Callable[[str], None]) -> None:
    for name in names:
        if hasattr(type(bus), name) or name in vars(bus):
            say(
                f"method {name!r} is reached with bus[{name!r}] only: "
                "Bus has an attribute of that name"
            )


def _shorten(names: list[str]) -> str:
    if len(names) <= NAMES_SHOWN:
        return ", ".join(names)
    return f"{len(names)} methods ({', '.join(names[:3])}, ...)"


# -- where, and what is watched ---------------------------------------------------------------


def _address(url: str) -> str:
    try:
        return describe_url(url)
    except ValueError as error:
        fail(str(error), Exit.USAGE)


def _watcher(options: ServeOptions) -> Watcher:
    from ..supervisor.watcher import Watcher

    module, _ = split_target(options.target)
    try:
        return Watcher(module)
    except (OSError, RuntimeError) as error:
        fail(f"--reload cannot watch the files: {error}", Exit.USAGE)
