"""Where the lines and holds of a question are read: in the read models as far as they go, in the log after that."""

from __future__ import annotations

from typing import NamedTuple

from projections.audit.instants import Connection

TRACKED = "SELECT name, position FROM projection_tracking WHERE name = ANY(%s)"

LINES = """
WITH lines AS (
    SELECT position, line, entry_id, entry_key, kind, reference, effective_at, recorded_at, account_code, sub_account,
           debit_micro_usd, credit_micro_usd
    FROM journal_lines WHERE position <= %(lines_read)s
    UNION ALL
    SELECT e.position, (p.number - 1)::int, e.originator_id, said ->> 'entry_key', said ->> 'kind',
           said ->> 'reference', (said ->> 'effective_at')::timestamptz, e.recorded_at, posting ->> 'account_code',
           posting ->> 'sub_account',
           CASE posting ->> 'direction' WHEN 'debit' THEN (posting ->> 'amount')::bigint ELSE 0 END,
           CASE posting ->> 'direction' WHEN 'credit' THEN (posting ->> 'amount')::bigint ELSE 0 END
    FROM events e, LATERAL (SELECT convert_from(e.state, 'UTF8')::jsonb AS said OFFSET 0) s,
         LATERAL jsonb_array_elements(said -> 'postings') WITH ORDINALITY AS p (posting, number)
    WHERE e.topic = 'JournalEntry.JournalEntryPosted' AND e.position > %(lines_read)s
)
"""
"""Every posting, wherever it can be read. It knows version 1 of the event, which a test holds it to."""

HOLD_EVENTS = """
    SELECT position, originator_id, recorded_at, topic, said ->> 'hold_id' AS hold_id,
           said ->> 'account_id' AS account_id, said,
           CASE topic WHEN 'Wallet.HoldPlaced' THEN (said ->> 'amount')::bigint
                      WHEN 'Wallet.HoldCaptured' THEN -(said ->> 'captured')::bigint - (said ->> 'released')::bigint
                      ELSE -(said ->> 'released')::bigint END AS change_micro_usd
    FROM events, LATERAL (SELECT convert_from(state, 'UTF8')::jsonb AS said OFFSET 0) s
    WHERE topic IN ('Wallet.HoldPlaced', 'Wallet.HoldCaptured', 'Wallet.HoldReleased')
"""
"""What each event changes in the sum of open holds; the same holds for its versions."""


class Sources(NamedTuple):
    """How far each read model has read. Zeros leave them out: then every number comes from the events alone."""

    lines_read: int = 0
    holds_read: int = 0
    marks_read: int = 0


EVENTS_ALONE = Sources()


def sources_of(connection: Connection) -> Sources:
    names = ["journal_lines", "hold_history", "trial_balance_marks"]
    found: dict[str, int] = dict(connection.execute(TRACKED, (names,)).fetchall())
    return Sources(*(found.get(name, 0) for name in names))
