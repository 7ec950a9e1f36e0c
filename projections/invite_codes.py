"""invite_codes: each invite code, how often it was used, and whether it still can be."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from domain.eventsourced import DomainEvent
from domain.invites import InviteCodeCreated, InviteCodeDeactivated, InviteCodeRedeemed
from projections.books import Connect
from projections.page import Connection, Page
from projections.projection import copy_rows

COPY = """
COPY invite_codes (code, amount_micro_usd, max_uses, used_count, is_active, expires_at, created_at, position)
FROM STDIN (FORMAT BINARY)
"""
TYPES = ("text", "int8", "int4", "int4", "bool", "timestamptz", "timestamptz", "int8")

USE = """
UPDATE invite_codes SET used_count = news.used_count FROM unnest(%s::text[], %s::int[]) AS news (code, used_count)
WHERE invite_codes.code = news.code
"""
END = "UPDATE invite_codes SET is_active = false WHERE code = ANY(%s::text[])"

NEWEST = """
SELECT code, amount_micro_usd, max_uses, used_count, is_active, expires_at, created_at FROM invite_codes
ORDER BY position DESC LIMIT 1000
"""


class InviteCodes:
    name = "invite_codes"
    events: Sequence[type[DomainEvent]] = (InviteCodeCreated, InviteCodeRedeemed, InviteCodeDeactivated)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        rows = [
            (event.code, event.amount, event.max_uses, 0, True, event.expires_at, event.timestamp, position)
            for position, _, event in page.of(InviteCodeCreated)
        ]
        copy_rows(connection, COPY, TYPES, rows)
        used = {event.code: event.use_number for _, _, event in page.of(InviteCodeRedeemed)}
        if used:
            connection.execute(USE, (list(used), list(used.values())))
        ended = [event.code for _, _, event in page.of(InviteCodeDeactivated)]
        if ended:
            connection.execute(END, (ended,))


class InviteRow(NamedTuple):
    code: str
    amount_micro_usd: int
    max_uses: int
    used_count: int
    is_active: bool
    expires_at: datetime | None
    created_at: datetime


class StoredInvites:
    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    async def newest(self) -> Sequence[InviteRow]:
        """Up to a thousand codes, the newest first."""
        async with self._connect() as connection:
            return [InviteRow(*row) for row in await (await connection.execute(NEWEST)).fetchall()]
