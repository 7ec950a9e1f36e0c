"""A network between the parts that can be led elsewhere, or go silent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import httpx

from tests.support.ledger_proxy import Pair, PostgresProxy, TcpProxy, cut

READY_SECONDS_MAX = 1.0


class Balancer(TcpProxy):
    """Leads each connection to the first of some gateways that says it is ready."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__("127.0.0.1", 0)
        self._ports = ports

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._lead, args=(client,), daemon=True).start()

    def _lead(self, client: socket.socket) -> None:
        for port in filter(is_ready, self._ports):
            with suppress(OSError):
                self._pass_on(Pair(client, socket.create_connection(("127.0.0.1", port))))
                return
        cut(client)


def is_ready(port: int) -> bool:
    """Whether the gateway at a port says that it takes requests."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=READY_SECONDS_MAX).status_code == 200
    except httpx.HTTPError:
        return False


class SilentProxy(PostgresProxy):
    """In front of PostgreSQL: passes on what is said, until it falls silent. Nothing is closed then, and nothing is
    lost when it speaks again."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.speaking = threading.Event()
        self.speaking.set()

    def _to_server(self, pair: Pair) -> None:
        while data := pair.client.recv(65_536):
            self.speaking.wait()
            pair.server.sendall(data)
        pair.cut()

    def _to_client(self, pair: Pair) -> None:
        while data := pair.server.recv(65_536):
            self.speaking.wait()
            pair.client.sendall(data)
        pair.cut()
