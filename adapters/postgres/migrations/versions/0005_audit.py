"""Roles of keys, what auditors looked at, and the read models of past instants.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ROLES = """
ALTER TABLE api_keys ADD COLUMN role text NOT NULL DEFAULT 'consumer'
    CHECK (role IN ('consumer', 'auditor', 'admin'));
CREATE TABLE audit_accesses (
    access_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    accessed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    key_id text NOT NULL,
    endpoint text NOT NULL,
    parameters jsonb NOT NULL
);
"""

PAST_INSTANTS = """
CREATE TABLE trial_balance_marks (
    stretch bigint NOT NULL,
    account_code text NOT NULL,
    debit_micro_usd bigint NOT NULL,
    credit_micro_usd bigint NOT NULL,
    PRIMARY KEY (stretch, account_code)
);
CREATE TABLE hold_history (
    hold_id text PRIMARY KEY,
    account_id text NOT NULL,
    amount_micro_usd bigint NOT NULL,
    purpose text NOT NULL,
    placed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    placed_position bigint NOT NULL,
    ended_position bigint
) WITH (fillfactor = 80);
CREATE INDEX hold_history_by_account ON hold_history (account_id, placed_position);
CREATE INDEX hold_history_open ON hold_history (placed_position) WHERE ended_position IS NULL;
CREATE INDEX journal_lines_by_sub_account ON journal_lines (sub_account, position) WHERE sub_account <> '';
CREATE INDEX journal_lines_by_reference ON journal_lines (reference);
CREATE INDEX journal_lines_dated_apart ON journal_lines (position) WHERE effective_at <> recorded_at;
"""

DECISIONS_OF_PEOPLE = """
CREATE INDEX events_of_adjustments ON events (position) WHERE topic IN (
    'Adjustment.AdjustmentProposed', 'Adjustment.AdjustmentApproved', 'Adjustment.AdjustmentRejected');
CREATE INDEX events_of_periods ON events (position) WHERE topic IN (
    'AuditPeriod.PeriodLocked', 'AuditPeriod.PeriodClosed');
"""

RUNS = """
CREATE TABLE replay_runs (
    run_id uuid PRIMARY KEY,
    requested_by text NOT NULL,
    projections text[] NOT NULL,
    to_position bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('running', 'finished', 'failed', 'interrupted')),
    started_at timestamptz NOT NULL DEFAULT now(),
    alive_until timestamptz NOT NULL,
    finished_at timestamptz,
    outcome jsonb
);
CREATE UNIQUE INDEX replay_runs_one_at_a_time ON replay_runs ((true)) WHERE status = 'running';
"""


def upgrade() -> None:
    for part in (ROLES, PAST_INSTANTS, DECISIONS_OF_PEOPLE, RUNS):
        op.execute(part)
