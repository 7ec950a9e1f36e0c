"""How a scheduler tells a gateway what became of an attempt: in memory, or over authenticated internal HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from psycopg_pool import ConnectionPool

from adapters.postgres import sql
from domain.dispatch import NOTICES_PATH, SECRET_HEADER, Notice

SECONDS_MAX = 5.0
KEPT_MAX = 100
"""Connections of all threads; beyond that each notice has one of its own."""


class GatewayUnreachable(Exception):
    """The gateway that waits for this notice cannot be reached."""


class Mailbox(Protocol):
    def deliver(self, gateway_id: UUID, notice: Notice) -> None:
        """Raises GatewayUnreachable when the gateway is gone or does not know the request any more."""
        ...


class LocalMailbox:
    """For a scheduler in the gateway's own process. ``hand_over`` takes the notice from any thread and returns whether
    somebody waits for it."""

    def __init__(self, hand_over: Callable[[Notice], bool]) -> None:
        self._hand_over = hand_over

    def deliver(self, gateway_id: UUID, notice: Notice) -> None:
        if not self._hand_over(notice):
            raise GatewayUnreachable(GatewayUnreachable.__doc__)


class HttpMailbox:
    """For a scheduler on its own: posts the notice to the address under which the gateway took its lease.

    Each thread keeps a connection of its own to each gateway: a request waits for this, and a client that can do more
    takes longer than all else that a scheduler does for it.
    """

    def __init__(self, pool: ConnectionPool[Any], secret: str) -> None:
        self._pool = pool
        self._urls: dict[UUID, str] = {}
        self._headers = {SECRET_HEADER: secret, "Content-Type": "application/json"}
        self._kept: dict[tuple[int, str], HTTPConnection] = {}

    def deliver(self, gateway_id: UUID, notice: Notice) -> None:
        try:
            status = self._post(self._url_of(gateway_id), msgspec.json.encode(notice))
        except (OSError, HTTPException) as error:
            raise GatewayUnreachable(type(error).__name__) from None
        if status != 204:
            raise GatewayUnreachable(f"the gateway answered {status}")

    def close(self) -> None:
        for connection in self._kept.values():
            connection.close()

    def _post(self, url: str, content: bytes) -> int:
        """A kept connection may have been closed since; then it is sent again, and a notice that came twice is read
        once."""
        kept = self._kept.pop((threading.get_ident(), url), None)
        if kept is not None:
            with suppress(ConnectionError, HTTPException):
                return self._ask(kept, url, content)
        return self._ask(_connection_to(url), url, content)

    def _ask(self, connection: HTTPConnection, url: str, content: bytes) -> int:
        """Ask over a connection that is kept afterwards if it still works."""
        try:
            connection.request("POST", urlsplit(url).path + NOTICES_PATH, content, self._headers)
            answer = connection.getresponse()
            answer.read()
        except BaseException:
            connection.close()
            raise
        if len(self._kept) < KEPT_MAX:
            self._kept[threading.get_ident(), url] = connection
        else:
            connection.close()
        return answer.status

    def _url_of(self, gateway_id: UUID) -> str:
        if gateway_id not in self._urls:
            with self._pool.connection() as connection:
                row = connection.execute(sql.GATEWAY_URL, (gateway_id,)).fetchone()
            if row is None:
                raise GatewayUnreachable(GatewayUnreachable.__doc__)
            self._urls[gateway_id] = row[0]
        return self._urls[gateway_id]


def _connection_to(url: str) -> HTTPConnection:
    address = urlsplit(url)
    assert address.hostname is not None
    kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
    return kind(address.hostname, address.port, timeout=SECONDS_MAX)
