"""A network that can be parted: TCP proxies between hosts, each a loopback address.

::

    with Network() as network:
        network.open(("127.0.0.1", port), ("127.0.1.1", port))    # a proxy, and what it leads to
        network.part({"127.0.1.1"})                # nothing goes between this host and the others
        network.part({"127.0.1.1"}, How.RESET)     # and who tries hears of it
        network.heal()

Who connects is known by where it connects from, so servers are to bind what they open to their
own address. Clients do not: they are known by the address of the proxy to which they connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tests.faults.cutting_proxy import LINGER_RESET
from tests.faults.faces import Loop

CHUNK_BYTES = 65_536
CONNECT_SECONDS = 5.0
Address = tuple[str, int]


class How(Enum):
    """What the ends of a connection see while it would lead to the other side."""

    SILENCE = (
        "nothing: what they send comes later, once the network is whole, as TCP sends it again"
    )
    RESET = "connections are reset, and new ones too"


@dataclass(frozen=True)
class _Road:
    """Between which hosts a connection is."""

    source: str
    target: str


class Network:
    """Proxies in a thread of this process. See the module."""

    def __init__(self) -> None:
        self._loop = Loop()
        self._servers: list[asyncio.Server] = []
        self._targets: set[str] = set()
        self._island: frozenset[str] = frozenset()
        self._spared: frozenset[str] = frozenset()
        self._how = How.SILENCE
        self._is_whole = asyncio.Event()
        self._roads: dict[asyncio.StreamWriter, _Road] = {}

    def open(self, door: Address, target: Address) -> None:
        """Pass on what comes to an address."""
        self._loop.do(self._open(door, target))

    def part(
        self, island: Iterable[str], how: How = How.SILENCE, spared: Iterable[str] = ()
    ) -> None:
        """Cut some hosts off from all others. Those ``spared`` reach both sides still."""
        self._loop.do(self._part(frozenset(island), how, frozenset(spared)))

    def heal(self) -> None:
        """Let everything pass again."""
        self._loop.do(self._heal())

    def close(self) -> None:
        """End all proxies and their connections."""
        self._loop.do(self._close())
        self._loop.close()
        assert not self._loop.complaints, self._loop.complaints

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- in the loop ----------------------------------------------------------------------------

    async def _open(self, door: Address, target: Address) -> None:
        self._is_whole.set()
        self._targets.add(target[0])

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            source = str(writer.get_extra_info("peername")[0])
            road = _Road(source if source in self._targets else door[0], target[0])
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._connect(road, target, reader, writer)

        self._servers.append(await asyncio.start_server(pass_on, *door, backlog=256))

    async def _part(self, island: frozenset[str], how: How, spared: frozenset[str]) -> None:
        self._island, self._how, self._spared = island, how, spared
        self._is_whole.clear()
        for writer, road in list(self._roads.items()):
            if how is How.RESET and self._is_cut(road):
                _reset(writer)

    async def _heal(self) -> None:
        self._island = frozenset()
        self._is_whole.set()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for writer in list(self._roads):
            _reset(writer)

    def _is_cut(self, road: _Road) -> bool:
        if road.source in self._spared:
            return False
        return (road.source in self._island) != (road.target in self._island)

    async def _passable(self, road: _Road) -> None:
        """Wait until nothing is cut there. Raises ConnectionError where that is to be told."""
        while self._is_cut(road):
            if self._how is How.RESET:
                raise ConnectionResetError
            await self._is_whole.wait()

    async def _connect(
        self,
        road: _Road,
        target: Address,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._roads[writer] = road
        further: Any = None
        try:
            await self._passable(road)
            there, further = await asyncio.wait_for(
                asyncio.open_connection(*target), CONNECT_SECONDS
            )
            self._roads[further] = road
            for end in (writer, further):
                end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.gather(self._pump(road, reader, further), self._pump(road, there, writer))
        finally:
            for end in (writer, further):
                if end is not None:
                    self._roads.pop(end, None)
                    _reset(end)

    async def _pump(
        self, road: _Road, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on what comes from one end until it closes; that, too, gets through late."""
        while data := await reader.read(CHUNK_BYTES):
            await self._passable(road)
            writer.write(data)
            await writer.drain()
        await self._passable(road)
        raise ConnectionResetError  # Redis has no half-closed connections


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once; its peer gets RST."""
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    writer.transport.abort()
