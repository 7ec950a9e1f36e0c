"""A network that fails on command: TCP proxies in front of PostgreSQL and RabbitMQ."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from enum import Enum, auto
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Pair:
    """One connection through a proxy: the side of the client and the side of the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.answers_are_lost = False

    def cut(self) -> None:
        for one in (self.client, self.server):
            cut(one)


def cut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


class TcpProxy:
    """Passes bytes on, until it is told to cut every connection."""

    def __init__(self, target_host: str, target_port: int, *, port: int = 0) -> None:
        self._target = (target_host, target_port)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[Pair] = []
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        cut(self._listener)
        self.cut_all()

    def cut_all(self) -> int:
        """Cut what is open; how many connections that were. New ones are served."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.cut()
        return len(pairs)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._pass_on(Pair(client, self._connect()))

    def _pass_on(self, pair: Pair) -> None:
        with self._lock:
            self._pairs.append(pair)
        threading.Thread(target=self._guarded, args=(self._to_server, pair), daemon=True).start()
        threading.Thread(target=self._guarded, args=(self._to_client, pair), daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = self._target
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection(self._target)

    def _guarded(self, pump: object, pair: Pair) -> None:
        """A side that breaks off leaves the other one alone, as it is without a proxy between them."""
        assert callable(pump)
        try:
            pump(pair)
        except OSError:
            pair.cut()

    def _to_server(self, pair: Pair) -> None:
        while data := pair.client.recv(65_536):
            pair.server.sendall(data)
        pair.cut()

    def _to_client(self, pair: Pair) -> None:
        while data := pair.server.recv(65_536):
            pair.client.sendall(data)
        pair.cut()


class Cut(Enum):
    """Where the connection of a transaction breaks."""

    BEFORE_COMMIT = auto()
    """The server got every statement but the COMMIT."""

    AFTER_COMMIT = auto()
    """The server committed, and its answer got lost."""

    WHILE_RUNNING = auto()
    """The client is cut off as soon as everything was sent; the server goes on with it in peace."""


class PostgresProxy(TcpProxy):
    """Reads along in the frontend's messages, and breaks the connection around the next COMMIT when told to."""

    def __init__(self, url: str) -> None:
        self._url = url
        said = conninfo_to_dict(url)
        super().__init__(str(said.get("host", "127.0.0.1")), int(said.get("port") or 5432))
        self._armed: Cut | None = None
        self.has_cut = threading.Event()

    @property
    def url(self) -> str:
        """The same database by way of this proxy."""
        return make_conninfo(self._url, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable")

    def cut_at_next_commit(self, where: Cut) -> None:
        self.has_cut.clear()
        self._armed = where

    def _to_server(self, pair: Pair) -> None:
        buffer = self._pass_startup(pair)
        commits: set[bytes] = set()
        committing = False
        while True:
            ready = bytearray()
            while len(buffer) >= 5 and len(buffer) > (size := struct.unpack(">I", buffer[1:5])[0]):
                message, buffer = buffer[: size + 1], buffer[size + 1 :]
                committing = committing or _runs_commit(message, commits)
                if committing and self._armed is Cut.AFTER_COMMIT:
                    pair.answers_are_lost = True
                if committing and self._armed is Cut.BEFORE_COMMIT:
                    pair.server.sendall(ready)
                    self._done(pair.client, pair.server)
                    return
                ready += message
                if committing and message[:1] == b"S":
                    committing = False
                    if self._armed is Cut.WHILE_RUNNING:
                        pair.server.sendall(ready)
                        self._done(pair.client)
                        return
            pair.server.sendall(ready)
            if not (data := pair.client.recv(65_536)):
                pair.cut()
                return
            buffer += data

    def _to_client(self, pair: Pair) -> None:
        while data := pair.server.recv(65_536):
            if pair.answers_are_lost:
                if b"COMMIT\0" in data:
                    self._done(pair.client, pair.server)
                    return
            else:
                with suppress(OSError):
                    pair.client.sendall(data)
        pair.cut()

    def _done(self, *sides: socket.socket) -> None:
        self._armed = None
        for side in sides:
            cut(side)
        self.has_cut.set()

    @staticmethod
    def _pass_startup(pair: Pair) -> bytes:
        """The first message has no type byte; returns what came after it."""
        buffer = b""
        while len(buffer) < 4 or len(buffer) < struct.unpack(">I", buffer[:4])[0]:
            data = pair.client.recv(65_536)
            if not data:
                raise ConnectionResetError
            buffer += data
        size = struct.unpack(">I", buffer[:4])[0]
        pair.server.sendall(buffer[:size])
        return buffer[size:]


def _runs_commit(message: bytes, commits: set[bytes]) -> bool:
    """Whether a frontend message makes the server commit. ``commits`` are the statements prepared for it."""
    kind, body = message[:1], message[5:]
    if kind == b"P":
        name, query, _ = body.split(b"\0", 2)
        (commits.add if query == b"COMMIT" else commits.discard)(name)
    elif kind == b"B":
        return body.split(b"\0", 2)[1] in commits
    return kind == b"Q" and body.rstrip(b"\0").upper() == b"COMMIT"
