"""A proxy in front of Redis that cuts one connection after so many bytes, then passes all."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from urllib.parse import urlsplit

PATIENCE_SECONDS = 10.0
CHUNK_BYTES = 65_536
# To close at once and tell the peer with RST, not FIN.
LINGER_RESET = struct.pack("ii", 1, 0)


class Way(Enum):
    """Which bytes are counted."""

    SERVER = "to the server"
    CLIENT = "to the client"


class How(Enum):
    """What the two ends see of a cut."""

    RST = "both get RST"
    FIN = "both get FIN"
    HALF = "the client gets RST, the server sees nothing"


@dataclass(slots=True)
class _Cut:
    way: Way
    left: int
    how: How
    having: bytes


class _Pair:
    """One connection: its two sockets, and whether a word has gone over it to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.sent = b""

    def note(self, data: bytes) -> None:
        self.sent = (self.sent + data)[-CHUNK_BYTES:]


class CuttingProxy:
    """Passes connections to a Redis on TCP, from a thread of this process.

    `cut` arms one cut. Bytes are counted from then on, over all connections together, and the
    connection that carries the last of them is cut right behind it; where 0 are let through, at
    the first byte. `fired` is set then, and the proxy passes everything again.
    ``stride``: how many bytes further the next cut of a series is to be.
    """

    def __init__(self, url: str, stride: int = 1) -> None:
        self.stride = stride
        parts = urlsplit(url)
        self._target = (parts.hostname or "localhost", parts.port or 6379)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.fired = threading.Event()
        self.passed = dict.fromkeys(Way, 0)
        self._lock = threading.Lock()
        self._cut: _Cut | None = None
        self._pairs: dict[socket.socket, _Pair] = {}
        self._halves: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._bell, self._rope = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="cutting proxy", daemon=True)

    def cut(self, after: int, way: Way, how: How = How.RST, having: bytes = b"") -> None:
        """Cut once, ``after`` that many more bytes that go that ``way``.

        ``having``: count only what goes over connections that sent this word to the server.
        """
        with self._lock:
            self.fired.clear()
            self._cut = _Cut(way, after, how, having)

    def cut_idle(self, having: bytes, how: How = How.RST) -> None:
        """Cut all connections that sent this word at once, without a byte that passes."""
        with self._lock:
            self.fired.clear()
            self._cut = _Cut(Way.SERVER, 0, how, having)
        self._rope.send(b"!")
        assert self.fired.wait(PATIENCE_SECONDS)

    def disarm(self) -> None:
        """Forget a cut that did not happen."""
        with self._lock:
            self._cut = None

    def reset_counts(self) -> None:
        """Count the bytes that pass from 0 again."""
        with self._lock:
            self.passed = dict.fromkeys(Way, 0)

    def drop_halves(self) -> None:
        """Close the server's side of connections of which only the client's was cut."""
        with self._lock:
            halves, self._halves = self._halves, []
        for half in halves:
            half.close()

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        self._rope.send(b"!")
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self.drop_halves()
        for end in [*self._pairs, self._listener, self._bell, self._rope]:
            end.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._bell:
                    self._bell.recv(CHUNK_BYTES)
                    self._cut_idle()
                elif key.fileobj in self._pairs:  # its pair may have been closed in this round
                    assert isinstance(key.fileobj, socket.socket)
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target, PATIENCE_SECONDS)
        except OSError:
            _close(client, How.RST)
            return
        pair = _Pair(client, server)
        for end in (client, server):
            end.settimeout(PATIENCE_SECONDS)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[end] = pair
            self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        pair = self._pairs[source]
        way = Way.SERVER if source is pair.client else Way.CLIENT
        try:
            data = source.recv(CHUNK_BYTES)
            if not data:
                raise EOFError
            if way is Way.SERVER:
                pair.note(data)
            allowed, cut = self._judge(pair, way, len(data))
            target = pair.server if way is Way.SERVER else pair.client
            target.sendall(data[:allowed])
        except (OSError, EOFError):
            self._forget(pair)
            _close(pair.client, How.FIN)
            _close(pair.server, How.FIN)
            return
        if cut is not None:
            self._sever(pair, cut)

    def _cut_idle(self) -> None:
        with self._lock:
            cut, self._cut = self._cut, None
        for pair in set(self._pairs.values()):
            if cut is not None and cut.having in pair.sent:
                self._sever(pair, cut.how)

    def _sever(self, pair: _Pair, cut: How) -> None:
        self._forget(pair)
        self.fired.set()  # before anybody sees the cut
        _close(pair.client, How.RST if cut is How.HALF else cut)
        if cut is How.HALF:
            with self._lock:
                self._halves.append(pair.server)
        else:
            _close(pair.server, cut)

    def _judge(self, pair: _Pair, way: Way, size: int) -> tuple[int, How | None]:
        """Return how many bytes go through, and how the connection is cut behind them, if it is."""
        with self._lock:
            cut = self._cut
            if cut is None or cut.way is not way or cut.having not in pair.sent:
                self.passed[way] += size
                return size, None
            allowed = min(size, cut.left)
            self.passed[way] += allowed
            cut.left -= allowed
            if cut.left > 0:
                return size, None
            self._cut = None
            return allowed, cut.how

    def _forget(self, pair: _Pair) -> None:
        for end in (pair.client, pair.server):
            self._selector.unregister(end)
            del self._pairs[end]


def _close(end: socket.socket, how: How) -> None:
    with contextlib.suppress(OSError):
        if how is How.FIN:
            end.shutdown(socket.SHUT_RDWR)
        else:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    end.close()
