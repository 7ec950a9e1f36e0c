"""How a scheduler tells a gateway what became of an attempt: in memory, or over authenticated internal HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from uuid import UUID

import httpx
import msgspec
from psycopg_pool import ConnectionPool

from adapters.postgres import sql
from domain.dispatch import NOTICES_PATH, SECRET_HEADER, Notice


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
    """For a scheduler on its own: posts the notice to the address under which the gateway took its lease."""

    def __init__(self, pool: ConnectionPool[Any], secret: str) -> None:
        self._pool = pool
        self._urls: dict[UUID, str] = {}
        self._client = httpx.Client(headers={SECRET_HEADER: secret}, timeout=5.0)

    def deliver(self, gateway_id: UUID, notice: Notice) -> None:
        try:
            answer = self._client.post(self._url_of(gateway_id) + NOTICES_PATH, content=msgspec.json.encode(notice))
        except httpx.HTTPError as error:
            raise GatewayUnreachable(type(error).__name__) from None
        if answer.status_code != 204:
            raise GatewayUnreachable(f"the gateway answered {answer.status_code}")

    def close(self) -> None:
        self._client.close()

    def _url_of(self, gateway_id: UUID) -> str:
        if gateway_id not in self._urls:
            with self._pool.connection() as connection:
                row = connection.execute(sql.GATEWAY_URL, (gateway_id,)).fetchone()
            if row is None:
                raise GatewayUnreachable(GatewayUnreachable.__doc__)
            self._urls[gateway_id] = row[0]
        return self._urls[gateway_id]
