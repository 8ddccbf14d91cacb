"""Routing: to which server commands go, and what is done where it was the wrong one.

As steps with no I/O in them (see `steps`): they yield what to do, and are sent what came of it. The
transports of both faces carry them out. What was done for certain is never sent again, and what may
have been done neither: that is told as ConnectionLost, and its callers know what may be repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import redis
from redis.exceptions import AskError, MovedError, NoScriptError, TryAgainError

from ..calls.failures import NotNow, Refused, is_undone, refusal_of_login
from ..calls.patience import Patience
from ..errors import BusError, ConnectionLost
from ..protocol.commands import Command, wait_less
from ..protocol.confirm import Confirm
from ..protocol.slots import Node, run_of, runs_of
from .maps import Map
from .refusals import Failure, is_passing, refusal
from .transport import LOAD_TRIES

T = TypeVar("T")

# How long it may take to connect to one of several servers, and to ask one where the others are.
CONNECT_SECONDS = 2.0
ASK_SECONDS = 1.0
UNCOVERED = "CLUSTERDOWN nobody serves its slot"


# -- what is to be done -----------------------------------------------------------------------


class Send(NamedTuple):
    """Send commands to a server. The answer: the replies up to an error, and that; see `converse`.

    With ``each`` the answer is a reply or an error for each, and whether nothing was sent.
    """

    node: Node
    commands: Sequence[Command]
    seconds: float
    asking: bool = False
    each: bool = False
    confirm: Confirm | None = None


class Load(NamedTuple):
    """Load the scripts of the bus into a server."""

    node: Node
    seconds: float


class Pause(NamedTuple):
    seconds: float


class Learn(NamedTuple):
    """Ask anew where everything is, unless that was done since this version of the map.

    Raises NotNow where that takes longer than so many seconds.
    """

    version: int
    seconds: float


Act = Send | Load | Pause | Learn
Acts = Generator[Act, Any, T]


# -- the steps --------------------------------------------------------------------------------


class Routes:
    """The steps of requests over one map."""

    def __init__(self, places: Map) -> None:
        self.map = places

    def exchange(
        self,
        commands: tuple[Command, ...],
        timeout: float,
        place: str | None,
        confirm: Confirm | None = None,
    ) -> Acts[list[Any]]:
        """The steps of `Transport.exchange`."""
        replies: list[Any] = []
        try:
            yield from self._exchange(commands, timeout, place, replies, confirm)
        except ConnectionLost as error:
            if not replies or not is_undone(error):
                raise
            # The first of them were carried out.
            text = f"the connection to Redis at {self.map.address} was lost ({error})"
            raise ConnectionLost(text) from error.__cause__
        return replies

    def _exchange(
        self,
        commands: tuple[Command, ...],
        timeout: float,
        place: str | None,
        replies: list[Any],
        confirm: Confirm | None,
    ) -> Acts[None]:
        patience, loads = Patience(timeout), 0
        target: Node | None = None  # to which the slot is about to move
        while len(replies) < len(commands):
            slot, count = run_of(commands[len(replies) :], place)
            run = commands[len(replies) : len(replies) + count]
            node = target or (yield from self.find(slot, patience))
            if patience.tries:
                run = tuple(wait_less(command, patience.passed()) for command in run)
            send = Send(node, run, patience.left(), target is not None, confirm=confirm)
            try:
                more, failure = yield send
            except ConnectionLost:
                self.map.doubt(node)
                raise
            replies += more
            if failure is None:
                target = None
            elif isinstance(failure, NoScriptError):
                loads += 1
                if loads == LOAD_TRIES:
                    raise self.refused(failure)
                yield Load(node, patience.left())
            else:
                target = self._redirect(failure, node)
                yield from self._again(failure, node, patience)

    def exchange_each(
        self, commands: tuple[Command, ...], timeout: float, place: str | None
    ) -> Acts[list[Any]]:
        """The steps of `Transport.exchange_each`."""
        replies: list[Any] = [None] * len(commands)
        patience, loads = Patience(timeout), 0
        todo = list(range(len(commands)))
        targets: dict[int, Node] = {}
        while todo:
            asked: dict[int, Node] = {}
            writes: dict[tuple[Node, bool], list[int]] = {}  # one to each server
            for slot, some in _runs(commands, todo, place, targets):
                try:
                    node = targets.get(some[0]) or (yield from self.find(slot, patience))
                except BusError as error:
                    for index in some:
                        replies[index] = error
                    continue
                writes.setdefault((node, some[0] in targets), []).extend(some)
            for (node, is_asking), some in writes.items():
                chosen = [commands[index] for index in some]
                found, unsent = yield Send(node, chosen, patience.left(), is_asking, each=True)
                for index, reply in zip(some, found, strict=True):
                    replies[index] = reply
                    if isinstance(reply, ConnectionLost):
                        self.map.doubt(node)
                    if unsent or (isinstance(reply, redis.RedisError) and _may_pass(reply)):
                        asked[index] = node
            todo = list(asked)
            targets = {}
            if not todo:
                break
            lacking = {n for i, n in asked.items() if isinstance(replies[i], NoScriptError)}
            loads += bool(lacking)
            worst = _worst([replies[index] for index in todo])
            try:
                for node in lacking:
                    if loads == LOAD_TRIES:
                        raise self.refused(NoScriptError())
                    yield Load(node, patience.left())
                for index, node in asked.items():
                    target = self._redirect(replies[index], node)
                    if target is not None:
                        targets[index] = target
                if not isinstance(worst, NoScriptError):
                    node = next(n for i, n in asked.items() if replies[i] is worst)
                    yield from self._again(worst, node, patience)
            except BusError as error:
                for index in todo:
                    replies[index] = error
                break
        return [
            self.refused(reply) if isinstance(reply, redis.RedisError) else reply
            for reply in replies
        ]

    def find(self, slot: int | None, patience: Patience) -> Acts[Node]:
        """Return the master of a slot. Raises ConnectionLost where there is none in time."""
        failure: Failure
        while True:
            node, failure = self.map.node(slot), redis.exceptions.ClusterDownError(UNCOVERED)
            if node is None or self.map.is_due():
                try:
                    yield Learn(self.map.version, patience.left())
                except NotNow as error:
                    failure = error
                except ConnectionLost:
                    if node is None:
                        raise
                node = self.map.node(slot)
            if node is not None:
                return node
            yield from self._wait(failure, patience)

    def reach(self, failure: Failure, node: Node, patience: Patience) -> Acts[None]:
        """Prepare to connect elsewhere, where a server cannot be reached."""
        yield from self._again(failure, node, patience)

    def _wait(self, failure: Failure, patience: Patience) -> Acts[None]:
        """Pause before the next try. Raises NotNow where there is no time for one."""
        seconds = patience.pause()
        if seconds is None:
            error = self.refused(failure)
            raise NotNow(*error.args) from error.__cause__
        if seconds:
            yield Pause(seconds)

    def note(self, failure: BaseException, node: Node) -> None:
        """Note what an error reply says of where to turn, for who asks next."""
        if isinstance(failure, MovedError):
            self.map.heed(failure, node)
        elif not isinstance(failure, (AskError, TryAgainError)):
            self.map.doubt(node)

    def _redirect(self, failure: Failure, node: Node) -> Node | None:
        """Note what an error says of where to turn. Returns where its commands go for once."""
        if isinstance(failure, MovedError):  # which is a kind of AskError
            self.map.heed(failure, node)
        elif isinstance(failure, AskError):
            return self.map.heed_ask(failure, node)
        return None

    def _again(self, failure: Failure, node: Node, patience: Patience) -> Acts[None]:
        """Prepare another try. Raises the BusError that an error means, where there is none."""
        if isinstance(failure, Refused) or not (
            isinstance(failure, ConnectionLost) or _may_pass(failure)
        ):
            raise self.refused(failure)
        yield from self._wait(failure, patience)
        if not isinstance(failure, (AskError, TryAgainError)):
            self.map.doubt(node)
            with contextlib.suppress(NotNow):
                yield Learn(self.map.version, patience.left())

    def refused(self, failure: Failure) -> BusError:
        """Return the error that a reply means, or the want of a connection."""
        if isinstance(failure, BusError):
            return failure
        if isinstance(failure, NoScriptError):
            text = f"Redis at {self.map.address} forgets its scripts faster than they are loaded"
            return BusError(text)
        if _may_pass(failure):
            error: BusError = ConnectionLost(
                f"Redis at {self.map.address} cannot do this now: {failure}"
            )
        elif isinstance(failure, redis.AuthenticationError):
            error = Refused(refusal_of_login(failure, self.map.address))
        else:
            error = BusError(f"Redis at {self.map.address} {refusal(failure)}")
        error.__cause__ = failure
        return error


def is_routing(error: BaseException) -> bool:
    """Whether an error reply says no more than that another server is to be asked, or later."""
    return not isinstance(error, NoScriptError) and _may_pass(error)


def _may_pass(error: BaseException) -> bool:
    """Whether an error reply says that nothing was done, and that it may be elsewhere or soon."""
    kinds = (AskError, TryAgainError, NoScriptError, redis.exceptions.ClusterDownError)
    if isinstance(error, kinds) or is_passing(error):
        return True
    return isinstance(error, redis.ResponseError) and (
        str(error).startswith("NOREPLICAS") or "-NOREPLICAS " in str(error)
    )


def _worst(failures: list[Failure]) -> Failure:
    """Return the failure that takes longest to pass."""
    order = (NoScriptError, AskError, TryAgainError)

    def rank(failure: Failure) -> int:
        return next((i for i, kind in enumerate(order) if isinstance(failure, kind)), len(order))

    return max(failures, key=rank)


def _runs(
    commands: Sequence[Command], todo: list[int], place: str | None, targets: dict[int, Node]
) -> list[tuple[int | None, list[int]]]:
    """Return the runs of commands that go to one server each: a slot, and their indexes."""
    runs = []
    done = 0
    for slot, count in runs_of([commands[index] for index in todo], place):
        run: list[int] = []
        for index in todo[done : done + count]:
            if run and targets.get(run[0]) != targets.get(index):
                runs.append((slot, run))
                run = []
            run.append(index)
        runs.append((slot, run))
        done += count
    return runs
