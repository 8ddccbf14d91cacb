"""One write, one wait: commands on redis-py's connections, without its command layer."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import redis

from ..calls.failures import (
    MAXCLIENTS,
    NO_REDIS,
    WAYS_OUT,
    NotConnected,
    NotNow,
    Refused,
    is_undone,
    refusal_of_login,
)
from ..calls.patience import GRACE_SECONDS, LEAST_SECONDS, Patience
from ..calls.steps import READ_SECONDS as READ_SECONDS
from ..errors import BusError, ConnectionLost
from ..protocol import scripts
from ..protocol.commands import BLOCKING, QUEUED_BYTES, ROLE, Command, pack, pack_asking, wait_less
from ..protocol.confirm import Confirm
from . import hooks
from .address import check_settings
from .distributed import Endpoint
from .limit import Limit
from .link import Link
from .public_link import open_link
from .refusals import (
    Failure,
    explain,
    is_passing,
    is_role_of_master,
    refusal,
    replica_error,
    unsent,
)

# A connection that was idle for longer is looked at before it is used again.
FRESH_SECONDS = 0.5
# How long to wait where a unix socket has no room for another connection yet.
CROWDED_SECONDS = 0.01
# What passed so far of a timeout does not matter below this (s).
SOON_SECONDS = 0.5
# How often scripts are loaded for one request: somebody may flush them again at any moment.
LOAD_TRIES = 10


def _is_crowded(error: BaseException) -> bool:
    """Whether more connect to a unix socket than its backlog holds: it refuses them at once."""
    return isinstance(error.__context__, BlockingIOError)


class Transport(Protocol):
    """Sends commands to whichever server has their keys, and reads their replies.

    Nothing above it knows how many servers there are. Safe to share between threads, and after a
    fork. Making one does no I/O. ``place`` says by a key, or the base of a service's keys, where
    commands without a key are to go.
    """

    address: str  # for people
    kind: str  # node, cluster or sentinel
    closings: int  # a connection that was made before the last of them is not kept
    max_connections: int | None  # how many there may be to a server at a time; None: any number

    def exchange(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        """Send commands in one write and return their replies, of which none is an error.

        In one write where they are of one slot, else in one after the other. ``timeout`` (s)
        bounds all of it, to connect as well. Scripts that Redis does not know are loaded and sent
        again, with what followed them. Raises ConnectionLost where Redis cannot be reached or was
        cut off, and BusError, with Redis's words, for an error reply. ``confirm``: behind commands
        of one slot, replicas are waited for on the same connection; how many have them then is
        one reply more, None where that was not waited for.
        """

    def exchange_each(
        self, *commands: Command, timeout: float = READ_SECONDS, place: str | None = None
    ) -> list[Any]:
        """Send commands that do not block in one write; return a reply or a BusError for each.

        So what became of each is known as well as it can be. Only those that were refused, for
        want of their script, say, are sent again. ConnectionLost stands for what has no reply.
        """

    def ask(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        """Like `exchange`, for commands that do no harm when they are sent twice."""

    def checkout(self, timeout: float = READ_SECONDS, place: str | None = None) -> Link:
        """Return a connection that nobody else uses, made in at most ``timeout`` seconds.

        Raises ConnectionLost where there is none by then.
        """

    def checkin(self, link: Link) -> None:
        """Give a connection back, with no reply outstanding."""

    def is_astray(self, link: Link, error: BaseException | None = None) -> bool:
        """Whether a connection leads to the wrong server by now, as an error reply may say.

        Then another one, from `checkout`, is to be used in its place.
        """

    def masters(self) -> list[NodeTransport]:
        """Return the servers that hold the keys, each to be asked by itself."""

    def ranges(self, master: NodeTransport) -> list[tuple[int, int]]:
        """Return the slots that such a server has, where it is one of a cluster."""

    def lost(self, error: BaseException, *, connecting: bool = False) -> ConnectionLost:
        """Return the error that says, in words, what became of a connection."""

    def close(self) -> None:
        """Close the idle connections now, and those in use when they are given back."""


class NodeTransport:
    """The transport of one server. Raises TypeError and ValueError for settings that cannot be."""

    kind = "node"

    def __init__(self, endpoint: Endpoint, connect_seconds: float = READ_SECONDS) -> None:
        # Who waits has a deadline: what may be tried again is decided where that is known.
        no_retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        settings: dict[str, Any] = {**endpoint.settings, "socket_timeout": READ_SECONDS}
        settings.update(retry=no_retry, retry_on_error=[], retry_on_timeout=False)
        hooks.check(settings)
        check_settings(endpoint.connection_class, settings)
        self.endpoint = replace(endpoint, settings=settings)
        is_tls = issubclass(endpoint.connection_class, redis.SSLConnection)
        self._tls = settings if is_tls else None
        self._connect_seconds = connect_seconds  # where another server may do as well
        self._idle: list[Link] = []
        self._pid = os.getpid()
        self._was_there = False  # whether there ever was a connection
        self._server = "Sentinel" if endpoint.is_sentinel else "Redis"
        count = endpoint.max_connections
        self.max_connections = count
        self.limit = None if count is None else Limit(count)
        self.closings = 0
        self.address = self.endpoint.address

    def exchange(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        end = time.monotonic() + timeout
        replies, failure = self.converse(commands, timeout, confirm=confirm)
        if failure is None:
            return replies
        return self._go_on(commands, replies, failure, timeout, end, confirm)

    def _go_on(
        self,
        commands: Sequence[Command],
        replies: list[Any],
        failure: Failure,
        timeout: float,
        end: float,
        confirm: Confirm | None,
    ) -> list[Any]:
        """Send what was not carried out: once Redis knows the scripts, and takes it again."""
        patience = Patience(end - time.monotonic() - GRACE_SECONDS)
        load: tuple[Command, ...] = ()
        loads = 0
        try:
            while True:
                if isinstance(failure, redis.exceptions.NoScriptError):
                    if loads == LOAD_TRIES:
                        raise self.forgets()
                    if loads == 0:
                        self.load_scripts(_left(end, timeout))
                    else:  # somebody flushes them at once: what is needed goes along
                        load = (scripts.loading(str(commands[len(replies)][1])),)
                    loads += 1
                else:
                    time.sleep(self.bear(failure, patience))
                rest = tuple(wait_less(one, patience.passed()) for one in commands[len(replies) :])
                left = _left(end, timeout)
                more, lasting = self.converse((*load, *rest), left, confirm=confirm)
                replies += more[len(load) :]
                if lasting is None:
                    return replies
                failure = lasting
        except ConnectionLost as error:
            if not replies or not is_undone(error):
                raise
            # The first of them were carried out.
            raise self.cut_off(error) from error.__cause__

    def bear(self, failure: Failure, patience: Patience) -> float:
        """Return how long to wait before what was not done is tried again (s).

        Raises the BusError that the failure means, where it does not pass in time.
        """
        passes = isinstance(failure, NotNow) or is_passing(failure)
        seconds = patience.pause() if passes else None
        if seconds is None:
            raise self.refused(failure)
        return seconds

    def cut_off(self, error: ConnectionLost) -> ConnectionLost:
        """Return the error for commands of which the first were carried out, and the rest not."""
        return ConnectionLost(f"the connection to Redis at {self.address} was lost ({error})")

    def converse(
        self,
        commands: Sequence[Command],
        timeout: float,
        *,
        asking: bool = False,
        confirm: Confirm | None = None,
    ) -> tuple[list[Any], Failure | None]:
        """Send commands in one write; return the replies up to an error, and that.

        The error is a reply, or ConnectionLost where nothing was sent for want of a connection.
        Raises ConnectionLost where it is lost later. ``asking``: their slot is about to come here.
        """
        replies: list[Any] = []
        count, began = len(commands), time.monotonic()
        end, later = began + timeout, began + SOON_SECONDS
        try:
            link = self.checkout(min(timeout, self._connect_seconds))
        except ConnectionLost as error:
            return replies, error
        try:
            link.set_timeout(_left(end, timeout))
            link.send(pack_asking(commands) if asking else pack(*commands))
            # Of a call and its wait, the first reply as a rule says only that it is queued.
            beyond = QUEUED_BYTES if count == 2 and commands[1][0] in BLOCKING else 0
            while True:
                reply = link.read_asked() if asking else link.read(beyond=beyond)
                command = commands[len(replies)]
                if command == ROLE and not isinstance(reply, redis.ResponseError):
                    reply = replica_error(command, reply) or reply
                if isinstance(reply, redis.ResponseError):
                    # What was sent behind it may block: only a new connection ends that.
                    link.close()
                    self.give_up(link, reply)
                    return replies, reply
                replies.append(reply)
                if len(replies) == count:
                    break
                beyond = 0
                if time.monotonic() > later:
                    link.set_timeout(_left(end, timeout))
            if confirm is not None:
                replies.append(self._confirmed(link, confirm, replies[-1]))
        except (redis.BusyLoadingError, redis.AuthenticationError) as error:
            link.close()
            self.give_up(link, error)
            return replies, error
        except (redis.RedisError, OSError) as error:
            link.close()
            if MAXCLIENTS in str(error):  # there was no handshake in which it would be told
                return replies, self.lost(error, connecting=True)
            raise self.lost(error) from error
        except BaseException:
            link.close()
            raise
        self.checkin(link)
        return replies, None

    def _confirmed(self, link: Link, confirm: Confirm, reply: object) -> int | None:
        """Wait for replicas, and return how many have what the connection wrote."""
        if not confirm.applies(reply):
            return None
        link.send(pack(confirm.command))
        count = link.read()
        if isinstance(count, redis.ResponseError):
            raise self.unconfirmed(count)
        return int(cast(int, count))

    def exchange_each(
        self, *commands: Command, timeout: float = READ_SECONDS, place: str | None = None
    ) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        todo = list(range(len(commands)))
        end, loads = time.monotonic() + timeout, 0
        patience = Patience(timeout - GRACE_SECONDS)
        while todo:
            found, _ = self.converse_each([commands[i] for i in todo], _left(end, timeout))
            for index, reply in zip(todo, found, strict=True):
                replies[index] = reply
            # A connection that was lost amid them ends it; one that was not made does not.
            if any(isinstance(r, ConnectionLost) and not isinstance(r, NotNow) for r in found):
                break
            lacking = [i for i in todo if isinstance(replies[i], redis.exceptions.NoScriptError)]
            passing = [i for i in todo if isinstance(replies[i], NotNow) or is_passing(replies[i])]
            todo = sorted([*lacking, *passing])
            try:
                if passing:
                    time.sleep(self.bear(replies[passing[0]], patience))
                if lacking:
                    loads += 1
                    if loads == LOAD_TRIES:
                        break
                    self.load_scripts(_left(end, timeout))
            except BusError as error:
                for index in todo:
                    replies[index] = error
                break
        return [
            self.refused(reply) if isinstance(reply, redis.RedisError) else reply
            for reply in replies
        ]

    def converse_each(
        self, commands: Sequence[Command], timeout: float, *, asking: bool = False
    ) -> tuple[list[Any], bool]:
        """Send commands in one write; return a reply, an error reply or ConnectionLost for each.

        And whether nothing was sent, for want of a connection. See `converse`.
        """
        replies: list[Any] = []
        end = time.monotonic() + timeout
        try:
            link = self.checkout(min(timeout, self._connect_seconds))
        except ConnectionLost as error:
            return [error] * len(commands), True
        try:
            link.set_timeout(_left(end, timeout))
            link.send(pack_asking(commands) if asking else pack(*commands))
            for _ in commands:
                try:
                    replies.append(link.read_asked() if asking else link.read())
                except redis.BusyLoadingError as error:  # an answer, too
                    replies.append(error)
                link.set_timeout(_left(end, timeout))
        except (redis.RedisError, OSError) as error:
            link.close()
            replies += [self.lost(error)] * (len(commands) - len(replies))
        except BaseException:
            link.close()
            raise
        else:
            self.checkin(link)
            failure = next((reply for reply in replies if is_passing(reply)), None)
            if failure is not None:
                self.give_up(link, failure)
        return replies, False

    def ask(
        self,
        *commands: Command,
        timeout: float = READ_SECONDS,
        place: str | None = None,
        confirm: Confirm | None = None,
    ) -> list[Any]:
        return ask_twice(self, commands, timeout, place, confirm)

    def load_scripts(self, timeout: float = READ_SECONDS) -> None:
        """Make every script of ours known to Redis."""
        link = self.checkout(timeout)
        try:
            link.set_timeout(timeout)
            known = scripts.load().values()
            link.send(pack(*(("SCRIPT", "LOAD", script.source) for script in known)))
            for _ in known:
                reply = link.read()
                if isinstance(reply, redis.ResponseError):
                    raise BusError(f"Redis at {self.address} refused our scripts: {reply}")
        except (redis.RedisError, OSError) as error:
            link.close()
            raise self.lost(error) from error
        except BaseException:
            link.close()
            raise
        self.checkin(link)

    def checkout(self, timeout: float = READ_SECONDS, place: str | None = None) -> Link:
        if self._pid != os.getpid():
            # The parent's sockets: both sides writing to one would mix their bytes. Another thread
            # that finds the new number is to find them gone.
            self._idle = []
            self._pid = os.getpid()
        if self.limit is not None:
            return self._checkout_within(self.limit, timeout)
        return self._take_idle() or self._open(timeout)

    def spare_idle(self) -> bool:
        """Close a connection that nobody uses, to make room for another; False: there is none."""
        link = self._take_idle()
        if link is None:
            return False
        link.close()
        return True

    def _take_idle(self) -> Link | None:
        """Return a connection that is open and free; None where there is none."""
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - link.idle_since < FRESH_SECONDS or not link.is_broken():
                return link
            link.close()

    def _checkout_within(self, limit: Limit, timeout: float) -> Link:
        """Return a connection where there may be only so many: when one is free, in turn."""
        began, again = time.monotonic(), False
        end = began + limit.patience(timeout)  # of the wait for a turn; the rest is for Redis
        while True:
            seen = limit.changes
            if again or not limit.is_awaited:
                link = self._take_idle()
                if link is not None:
                    return link
                seat = limit.enter()
                if seat is not None:
                    try:
                        link = self._open(_left(began + timeout, timeout))
                    except BaseException:
                        seat.leave()
                        raise
                    link.seat = seat
                    return link
            if not limit.wait(end, seen, again=again):
                raise NotNow(limit.reached(self.address))
            again = True

    def _open(self, timeout: float) -> Link:
        end, closings = time.monotonic() + timeout, self.closings
        while True:
            try:
                link = open_link(self.endpoint.connect(), self, timeout)
                link.closings = closings
                if self.endpoint.is_master:
                    self._check_role(link)
                self.connected()
                return link
            except (redis.RedisError, OSError) as error:
                if not _is_crowded(error) or time.monotonic() > end:
                    # What it says is all that is known: nothing was sent yet.
                    raise self.lost(error, connecting=True) from None
            time.sleep(CROWDED_SECONDS)

    def connected(self) -> None:
        """Note that there is a Redis: where it is away later, it may come back."""
        self._was_there = True

    def _check_role(self, link: Link) -> None:
        """Raise ConnectionLost where a server is not the master that it was said to be."""
        try:
            link.send(pack(("ROLE",)))
            reply = link.read()
        except BaseException:
            link.close()
            raise
        if not is_role_of_master(reply):
            link.close()
            raise self.no_master()

    def no_master(self) -> ConnectionLost:
        """Return the error for a server that is not the master that it was said to be."""
        return NotConnected(f"{NO_REDIS} {self.address} (it is no master now); {WAYS_OUT}")

    def checkin(self, link: Link) -> None:
        link.idle_since = time.monotonic()
        self._idle.append(link)
        if link.closings != self.closings:  # it was closed meanwhile
            self._close_idle()
        elif link.seat is not None:
            link.seat.free()

    def is_astray(self, link: Link, error: BaseException | None = None) -> bool:
        if error is not None:
            self.give_up(link, error)
        return False

    def give_up(self, link: Link, error: BaseException) -> None:
        """Use no connection any more that leads where a master is none now, as that error says.

        Where the address leads elsewhere by now, new ones do.
        """
        if is_passing(error) and link.closings == self.closings:
            self.close()

    def masters(self) -> list[NodeTransport]:
        return [self]

    def ranges(self, master: NodeTransport) -> list[tuple[int, int]]:
        return []

    def refused(self, error: Failure) -> BusError:
        """Return the error that an error reply means, or the want of a connection."""
        if isinstance(error, BusError):
            return error
        if isinstance(error, redis.exceptions.NoScriptError):
            return self.forgets()
        if isinstance(error, redis.BusyLoadingError):
            refused: BusError = NotNow(explain(error, self.address, connecting=False))
        elif not isinstance(error, redis.ResponseError) and not isinstance(
            error, redis.AuthenticationError
        ):
            return self.lost(error)
        elif is_passing(error):
            refused = NotNow(f"Redis at {self.address} cannot do this now: {error}")
        elif isinstance(error, redis.AuthenticationError):
            refused = Refused(refusal_of_login(error, self.address, self._server))
        else:
            refused = BusError(f"Redis at {self.address} {refusal(error)}")
        refused.__cause__ = error
        return refused

    def unconfirmed(self, error: redis.ResponseError) -> BusError:
        """Return the error that a refusal to wait for replicas means: it is no master any more."""
        if isinstance(error, redis.exceptions.NoPermissionError):
            return self.refused(error)
        return ConnectionLost(f"Redis at {self.address} is replaced, it seems: {error}")

    def forgets(self) -> BusError:
        """Return the error for scripts that are flushed again and again."""
        return BusError(f"Redis at {self.address} forgets its scripts faster than they are loaded")

    def lost(self, error: BaseException, *, connecting: bool = False) -> ConnectionLost:
        if connecting:
            there, tls, server = self._was_there, self._tls, self._server
            return unsent(error, self.address, was_there=there, tls=tls, server=server)
        return ConnectionLost(explain(error, self.address, connecting=False, server=self._server))

    def lost_connecting(self, error: BaseException) -> ConnectionLost:
        """Return the error that says why there is no connection."""
        return self.lost(error, connecting=True)

    def close(self) -> None:
        self.closings += 1
        self._close_idle()

    def _close_idle(self) -> None:
        while True:
            try:  # another thread may take the last one
                link = self._idle.pop()
            except IndexError:
                return
            link.close()


def ask_twice(
    transport: Transport,
    commands: tuple[Command, ...],
    timeout: float,
    place: str | None,
    confirm: Confirm | None,
) -> list[Any]:
    """Send commands again, once, where the connection turns out to be dead."""
    end = time.monotonic() + timeout
    try:
        return transport.exchange(*commands, timeout=timeout, place=place, confirm=confirm)
    except ConnectionLost as error:
        if is_undone(error):
            raise
    # Not within the `except`: the first error would be told with the second.
    left = _left(end, timeout)
    return transport.exchange(*commands, timeout=left, place=place, confirm=confirm)


def _left(end: float, timeout: float) -> float:
    """Return what is left of a timeout (s); all of it as long as hardly any of it has passed.

    A socket's timeout costs a system call when it changes.
    """
    left = end - time.monotonic()
    return timeout if left > timeout - SOON_SECONDS else max(LEAST_SECONDS, left)
