"""hold_history: every hold with where it began and ended; the open ones by age, and any account's at any position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from domain import events
from domain.eventsourced import DomainEvent
from domain.requests import InferenceRequest, JobDispatched
from domain.wallet import HoldCaptured, HoldPlaced, HoldReleased
from projections.audit.instants import Head, head_of
from projections.audit.sources import HOLD_EVENTS, Sources
from projections.page import RECORDED_AT, Connection, Page
from projections.projection import copy_rows

PLACE = """
COPY hold_history (hold_id, account_id, amount_micro_usd, purpose, placed_at, expires_at, placed_position,
                   ended_position) FROM STDIN (FORMAT BINARY)
"""
TYPES = ("text", "text", "int8", "text", RECORDED_AT, "timestamptz", "int8", "int8")

END = """
UPDATE hold_history h SET ended_position = e.position
FROM unnest(%s::text[], %s::bigint[]) AS e (hold_id, position)
WHERE h.hold_id = e.hold_id AND h.ended_position IS NULL
"""

OPEN = f"""
SELECT hold_id, account_id, amount_micro_usd, purpose, placed_at, expires_at, placed_position FROM (
    SELECT hold_id, account_id, amount_micro_usd, purpose, placed_at, expires_at, placed_position
    FROM hold_history WHERE ended_position IS NULL AND placed_position <= %(holds_read)s
    UNION ALL
    SELECT hold_id, account_id, change_micro_usd, said ->> 'purpose', recorded_at,
           (said ->> 'expires_at')::timestamptz, position
    FROM ({HOLD_EVENTS}) p WHERE position > %(holds_read)s AND topic = 'Wallet.HoldPlaced'
) open
WHERE placed_at <= %(before)s AND NOT EXISTS (
    SELECT FROM ({HOLD_EVENTS}) e
    WHERE e.position > %(holds_read)s AND e.topic <> 'Wallet.HoldPlaced' AND e.hold_id = open.hold_id)
ORDER BY placed_position
"""  # noqa: S608  # joined from constants
"""The open holds that were placed before a time, oldest first."""

HELD_AT = f"""
SELECT (SELECT coalesce(sum(amount_micro_usd), 0)
        FROM hold_history WHERE account_id = %(account_id)s AND placed_position <= least(%(position)s, %(holds_read)s)
            AND (ended_position IS NULL OR ended_position > least(%(position)s, %(holds_read)s)))
     + (SELECT coalesce(sum(change_micro_usd), 0) FROM ({HOLD_EVENTS}) h
        WHERE originator_id = %(wallet_id)s AND position > %(holds_read)s AND position <= %(position)s)
"""  # noqa: S608  # joined from constants
"""The sum of an account's open holds at a position."""

CHANGES = f"""
SELECT position, change FROM (
    SELECT placed_position AS position, amount_micro_usd AS change FROM hold_history
    WHERE account_id = %(account_id)s AND placed_position <= %(holds_read)s
    UNION ALL
    SELECT ended_position, -amount_micro_usd FROM hold_history
    WHERE account_id = %(account_id)s AND ended_position <= %(holds_read)s
    UNION ALL
    SELECT position, change_micro_usd FROM ({HOLD_EVENTS}) h
    WHERE originator_id = %(wallet_id)s AND position > %(holds_read)s
) changes WHERE position > %(after)s AND position <= %(upto)s ORDER BY position
"""  # noqa: S608  # joined from constants
"""What changed in the sum of an account's open holds, in order."""

DISPATCHES = """
SELECT originator_id, state FROM events WHERE originator_id = ANY(%s) AND topic = 'InferenceRequest.JobDispatched'
ORDER BY position
"""
"""The attempts of some requests."""


class HoldHistory:
    name = "hold_history"
    events: Sequence[type[DomainEvent]] = (HoldPlaced, HoldCaptured, HoldReleased)
    only_adds = False

    def apply(self, connection: Connection, page: Page) -> None:
        placed: dict[str, list[Any]] = {}
        ended: dict[str, int] = {}
        for position, recorded_at, event in page.of(HoldPlaced):
            placed[event.hold_id] = [
                event.hold_id,
                event.account_id,
                event.amount,
                event.purpose,
                recorded_at,
                event.expires_at,
                position,
                None,
            ]
        ends = [(position, captured.hold_id) for position, _, captured in page.of(HoldCaptured)]
        ends += [(position, released.hold_id) for position, _, released in page.of(HoldReleased)]
        for position, hold_id in ends:
            if hold_id in placed:
                placed[hold_id][-1] = position
            else:
                ended[hold_id] = position
        copy_rows(connection, PLACE, TYPES, list(placed.values()))
        if ended:
            connection.execute(END, (list(ended), list(ended.values())))


class OpenHold(msgspec.Struct, frozen=True):
    """``job_id`` is the newest attempt, empty before the first one."""

    hold_id: str
    account_id: str
    amount_micro_usd: int
    purpose: str
    placed_at: datetime
    expires_at: datetime
    position: int
    age_seconds: int
    job_id: str = ""


class OpenHolds(msgspec.Struct, frozen=True, kw_only=True):
    """The oldest open holds; count and total are of all that are old enough."""

    position: int
    count: int
    total_micro_usd: int
    holds: list[OpenHold]


def open_holds(connection: Connection, sources: Sources, *, older_than_seconds: int, limit: int) -> OpenHolds:
    head = head_of(connection)
    before = head.now - timedelta(seconds=older_than_seconds)
    rows = connection.execute(OPEN, {"holds_read": sources.holds_read, "before": before}).fetchall()
    page = rows[:limit]
    jobs = _newest_jobs(connection, [row[0] for row in page])
    return OpenHolds(
        position=head.position,
        count=len(rows),
        total_micro_usd=sum(row[2] for row in rows),
        holds=[OpenHold(*(*row, _age(head, row[4]), jobs.get(row[0], ""))) for row in page],
    )


def held_at(connection: Connection, account_id: str, wallet_id: UUID, position: int, sources: Sources) -> int:
    parameters = {
        "account_id": account_id,
        "wallet_id": wallet_id,
        "position": position,
        "holds_read": sources.holds_read,
    }
    row = connection.execute(HELD_AT, parameters).fetchone()
    assert row is not None
    return int(row[0])


def changes(
    connection: Connection, account_id: str, wallet_id: UUID, after: int, upto: int, sources: Sources
) -> Iterator[tuple[int, int]]:
    """(position, change in micro-USD) of an account's open holds, in order."""
    parameters = {
        "account_id": account_id,
        "wallet_id": wallet_id,
        "after": after,
        "upto": upto,
        "holds_read": sources.holds_read,
    }
    yield from connection.execute(CHANGES, parameters)


def _age(head: Head, placed_at: datetime) -> int:
    return max(0, int((head.now - placed_at).total_seconds()))


def _newest_jobs(connection: Connection, request_ids: Sequence[str]) -> dict[str, str]:
    by_aggregate = {InferenceRequest.id_of(request_id): request_id for request_id in request_ids}
    found: dict[str, str] = {}
    for originator_id, state in connection.execute(DISPATCHES, (list(by_aggregate),)):
        dispatched = events.decode(JobDispatched.TOPIC, bytes(state))
        assert isinstance(dispatched, JobDispatched)
        found[by_aggregate[originator_id]] = dispatched.job_id
    return found
