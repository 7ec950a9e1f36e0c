"""Read models of the public numbers and of the books, and why a projection stands still.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TRACKING = """
ALTER TABLE projection_tracking ADD COLUMN failure text, ADD COLUMN failed_at timestamptz;
"""

EARNINGS = """
CREATE INDEX provider_earnings_by_account ON provider_earnings (account_id, position DESC);
CREATE INDEX provider_earnings_by_time ON provider_earnings (settled_at);
CREATE TABLE earning_totals (
    account_id text NOT NULL,
    machine_id text NOT NULL,
    amount_micro_usd bigint NOT NULL,
    jobs bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    PRIMARY KEY (account_id, machine_id)
) WITH (fillfactor = 70);
CREATE INDEX earning_totals_by_machine ON earning_totals (machine_id);
CREATE TABLE leaderboard_daily (
    day date NOT NULL,
    account_id text NOT NULL,
    earnings_micro_usd bigint NOT NULL,
    tokens bigint NOT NULL,
    jobs bigint NOT NULL,
    PRIMARY KEY (day, account_id)
) WITH (fillfactor = 70);
"""

USAGE = """
CREATE TABLE usage_minute (
    minute timestamptz PRIMARY KEY,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL
) WITH (fillfactor = 70);
CREATE TABLE usage_totals (
    model text PRIMARY KEY,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_micro_usd bigint NOT NULL
) WITH (fillfactor = 70);
"""

BOOKS = """
CREATE TABLE ledger_lines (
    account_id text NOT NULL,
    position bigint NOT NULL,
    type text NOT NULL,
    amount_micro_usd bigint NOT NULL,
    balance_after_micro_usd bigint NOT NULL,
    reference text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, position)
);
CREATE TABLE trial_balance (
    account_code text PRIMARY KEY,
    debit_micro_usd bigint NOT NULL,
    credit_micro_usd bigint NOT NULL
) WITH (fillfactor = 70);
CREATE TABLE sub_account_balances (
    account_code text NOT NULL,
    sub_account text NOT NULL,
    debit_micro_usd bigint NOT NULL,
    credit_micro_usd bigint NOT NULL,
    PRIMARY KEY (account_code, sub_account)
) WITH (fillfactor = 70);
CREATE INDEX sub_account_balances_by_sub_account ON sub_account_balances (sub_account);
"""


def upgrade() -> None:
    for part in (TRACKING, EARNINGS, USAGE, BOOKS):
        op.execute(part)
