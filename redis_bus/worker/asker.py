"""Asker: what asks Redis for the jobs of one partition, over a connection of its own."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from ..errors import BusError, ProtocolError
from ..protocol.commands import Claim, Command, Post, Route, pack
from ..protocol.entries import Job, parse_job
from ..transport.link import Link
from ..transport.refusals import refusal
from ..transport.routing import is_routing
from ..transport.transport import READ_SECONDS, NodeTransport

if TYPE_CHECKING:
    from .claims import Claims
    from .worker import Worker

logger = logging.getLogger("redis_bus.asker")

BACKOFF_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
# How long to wait for a Redis that does not answer where it is no matter if it never does.
LEAVE_SECONDS = 2.0
# Of those pauses, how many there are where a slot of the cluster moves.
MAX_ASTRAY = 3


class AstrayError(Exception):
    """The keys are at another server than the one to which the connection leads."""


class Lane(NamedTuple):
    """One partition, as a worker serves it."""

    post: Post
    claims: Claims


class Asker:
    """Asks for one job after the other; a slot that runs them, or a fetcher for several."""

    def __init__(self, worker: Worker, lane: Lane, number: int) -> None:
        self.waiting: int | None = None  # the client id of its connection, while it waits
        self.home: NodeTransport | None = None  # the server to which that connection leads
        self._link: Link | None = None  # that connection
        self._worker = worker
        self._post, self._claims = lane
        self._transport = worker.core.transport
        self._stopping = worker.stopping
        self._turns = number  # each begins with another method
        self._astray, self._turned = 0, -math.inf  # how often it was at the wrong server, and when

    def _goes_on(self) -> bool:
        """Whether it is to ask for another job."""
        raise NotImplementedError

    def _step(self, link: Link, client: int | None) -> None:
        """Ask for a job, and see to it that it runs."""
        raise NotImplementedError

    def _serve_link(self) -> None:
        """Serve over one connection until it breaks or there is nothing more to ask for."""
        link = self._transport.checkout(place=self._post.service.base)
        self.home, self._link = link.home, link
        try:
            link.set_timeout(READ_SECONDS)
            link.send(pack(("CLIENT", "ID")))
            client = link.read()
            for reply in self._claims.send_late():
                self._accepted(reply)
            self._claims.give_back_strangers()
            while self._goes_on() and not self._transport.is_astray(link):
                self._step(link, client if isinstance(client, int) else None)
        except BaseException as error:
            self._link = None
            link.close()
            self._claims.answered(self)
            if isinstance(error, redis.RedisError) and self._transport.is_astray(link, error):
                raise AstrayError(str(error)) from error
            raise
        self._link = None
        self._transport.checkin(link)

    def leave_old_master(self) -> None:
        """Wait no longer where the keys are not any more; called by the heart.

        A master that is cut off does not say that it was replaced: others do, to the heart.
        """
        link = self._link
        if link is not None and self.waiting is not None and self._transport.is_astray(link):
            link.cut()

    def _let_go(self) -> None:
        """Note that its connection is lost; and with it the job that did not come to run."""

    def _turn_elsewhere(self, error: Exception) -> None:
        """Go on where the keys are by now; while they move, that may be nowhere yet."""
        self._let_go()
        logger.debug("worker %s: %s; it looks where its keys are", self._worker.id, error)
        now = time.monotonic()
        # Once at once: as a rule they have moved already.
        self._astray = self._astray + 1 if now - self._turned < BACKOFF_SECONDS[-1] else 0
        self._turned = now
        if self._astray:
            self._stopping.wait(BACKOFF_SECONDS[min(self._astray, MAX_ASTRAY) - 1])

    def _read_claim(self, woken: object, taken: object, order: list[Route]) -> Claim | None:
        """Return what the replies to a wait and a take say was claimed."""
        return self._post.parse_take(self._checked(woken, taken, order), order)

    def _checked(
        self, woken: object, taken: object, order: list[Route], limit: int | None = None
    ) -> object:
        """Return the reply to a take; it is sent again where Redis had forgotten the script."""
        if isinstance(woken, redis.ResponseError):
            raise woken
        if isinstance(taken, redis.exceptions.NoScriptError):
            taken = self._transport.exchange(self._post.take(order, limit))[0]
        if isinstance(taken, redis.ResponseError):
            raise taken
        return taken

    def _read_job(self, claim: Claim) -> Job | None:
        """Return the job that was claimed; bytes that are none are put to the dead letters."""
        try:
            if claim.foreign:
                raise ProtocolError(f"a queue entry that is no job: {claim.entry[:60]!r}")
            return parse_job(claim.entry)
        except ProtocolError as error:
            logger.error("%s: %s; it is put to the dead letters", claim.route.method, error)
            self._claims.bury(claim.route, claim.entry, claimed=not claim.foreign)
            self._claims.answered(self)
            return None

    def _next_turn(self) -> tuple[list[Route], bytes]:
        """See `Post.turn`; it waits where replicas are to come back before anything is taken."""
        replicas = self._worker.replicas
        served = replicas.wait(self._post) if replicas.are_missed else self._post
        return self._turn(served)

    def _turn(self, served: Post, limit: int | None = None) -> tuple[list[Route], bytes]:
        self._turns += 1
        return served.turn(self._turns, limit)

    def _accepted(self, reply: Any) -> bool:
        """Whether Redis took an outcome; if not, it is sent again."""
        if isinstance(reply, redis.exceptions.NoScriptError):
            return False
        if isinstance(reply, redis.ResponseError):
            if not is_routing(reply):
                said, where = refusal(reply), self._transport.address
                logger.error("Redis at %s %s; the outcome is sent again", where, said)
            return False
        if reply == b"fenced" and not self._is_abandoned():
            logger.warning("an outcome was not wanted: it was there already, or the job given away")
        return True

    def _is_abandoned(self) -> bool:
        return False

    def _wait_for_redis(self, error: Exception) -> None:
        """Come back when Redis does; a worker is not restarted for that."""
        self._let_go()
        worker = self._worker
        # Of several, one says it for all.
        level = logging.DEBUG if worker.away else logging.WARNING
        said = error if isinstance(error, BusError) else self._transport.lost(error)
        logger.log(level, "worker %s: %s; it tries again until it can serve on", worker.id, said)
        worker.away.add(self)
        try:
            for seconds in itertools.chain(BACKOFF_SECONDS, itertools.repeat(BACKOFF_SECONDS[-1])):
                if self._stopping.wait(seconds):
                    return
                try:
                    # The write changes nothing: a replica would answer to the PING alone.
                    look = ("PING",), ("HDEL", self._post.running, "")
                    place = self._post.service.base
                    self._transport.exchange(*look, timeout=LEAVE_SECONDS, place=place)
                    if self._post.service.part == 0:  # of several, once is enough
                        worker.publish()
                except BusError:
                    continue
                break
        finally:
            worker.away.discard(self)
        level = logging.DEBUG if worker.away else logging.INFO
        address = self._transport.address
        logger.log(level, "worker %s: Redis is back at %s; it serves on", worker.id, address)


def unblock(askers: Iterable[Asker]) -> None:
    """Have those that wait for a job look around; where that cannot be, they do with their slice.

    One that is about to wait is not held back from that.
    """
    commands: dict[NodeTransport, list[Command]] = {}
    for asker in askers:
        client, home = asker.waiting, asker.home
        if client is not None and home is not None:
            commands.setdefault(home, []).append(("CLIENT", "UNBLOCK", client))
    for home, some in commands.items():
        try:
            home.ask(*some, timeout=LEAVE_SECONDS)
        except BusError as error:
            logger.debug("a wait cannot be ended: %s", error)
