"""The event log, the first read models, credentials, leases and the fleet.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LOG = """
CREATE TABLE events (
    position bigint PRIMARY KEY,
    originator_id uuid NOT NULL,
    originator_version integer NOT NULL,
    topic text NOT NULL,
    recorded_at timestamptz NOT NULL,
    state bytea NOT NULL,
    UNIQUE (originator_id, originator_version)
);
COMMENT ON TABLE events IS 'The truth. Rows are only ever added, at gapless positions.';
CREATE TABLE ledger_head (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL
);
INSERT INTO ledger_head (position, recorded_at) VALUES (0, '2020-01-01T00:00:00Z');
"""

READ_MODELS = """
CREATE TABLE wallet_balances (
    account_id text PRIMARY KEY,
    wallet_version integer NOT NULL,
    balance_micro_usd bigint NOT NULL CHECK (balance_micro_usd >= 0),
    withdrawable_micro_usd bigint NOT NULL CHECK (withdrawable_micro_usd >= 0),
    held_micro_usd bigint NOT NULL CHECK (held_micro_usd >= 0)
) WITH (fillfactor = 70);
CREATE TABLE usage_entries (
    job_id uuid PRIMARY KEY,
    account_id text NOT NULL,
    model text NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_micro_usd bigint NOT NULL,
    settled_at timestamptz NOT NULL,
    position bigint NOT NULL
);
CREATE INDEX usage_entries_by_account ON usage_entries (account_id, position DESC);
CREATE TABLE open_requests (
    request_id uuid PRIMARY KEY,
    account_id text NOT NULL,
    gateway_id uuid NOT NULL,
    model text NOT NULL,
    reserved_micro_usd bigint NOT NULL,
    admitted_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE TABLE projection_tracking (name text PRIMARY KEY, position bigint NOT NULL);
CREATE TABLE provider_earnings (
    job_id uuid PRIMARY KEY,
    account_id text NOT NULL,
    machine_id text NOT NULL,
    provider_key text NOT NULL,
    model text NOT NULL,
    amount_micro_usd bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    settled_at timestamptz NOT NULL,
    position bigint NOT NULL
);
CREATE INDEX provider_earnings_by_machine ON provider_earnings (machine_id, position DESC);
CREATE TABLE journal_lines (
    position bigint NOT NULL,
    line integer NOT NULL,
    entry_id uuid NOT NULL,
    entry_key text NOT NULL,
    kind text NOT NULL,
    reference text NOT NULL,
    effective_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    account_code text NOT NULL,
    sub_account text NOT NULL,
    debit_micro_usd bigint NOT NULL,
    credit_micro_usd bigint NOT NULL,
    PRIMARY KEY (position, line)
);
"""

CREDENTIALS = """
CREATE TABLE api_keys (
    key_hash text PRIMARY KEY,
    key_id text NOT NULL UNIQUE,
    label text NOT NULL,
    name text NOT NULL,
    account_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
CREATE TABLE provider_tokens (
    token_hash text PRIMARY KEY,
    account_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
"""

SCHEDULER = """
CREATE TABLE gateways (
    gateway_id uuid PRIMARY KEY,
    internal_url text NOT NULL,
    lease_until timestamptz NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNLOGGED TABLE fleet (
    session_id uuid PRIMARY KEY,
    gateway_id uuid NOT NULL,
    models text[] NOT NULL,
    capacity integer NOT NULL,
    busy integer NOT NULL DEFAULT 0,
    routable boolean NOT NULL,
    snapshot bytea NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE INDEX fleet_by_model ON fleet USING gin (models);
CREATE UNLOGGED TABLE claims (
    request_id uuid NOT NULL,
    attempt integer NOT NULL,
    session_id uuid NOT NULL,
    gateway_id uuid NOT NULL,
    model text NOT NULL,
    output_tokens bigint NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (request_id, attempt)
);
CREATE INDEX claims_by_session ON claims (session_id);
CREATE UNLOGGED TABLE waiters (
    request_id uuid NOT NULL,
    attempt integer NOT NULL,
    model text NOT NULL,
    gateway_id uuid NOT NULL,
    enqueued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    deadline timestamptz NOT NULL,
    woken_at timestamptz,
    message bytea NOT NULL,
    PRIMARY KEY (request_id, attempt)
);
CREATE INDEX waiters_by_model ON waiters (model, enqueued_at);
"""


def upgrade() -> None:
    for part in (LOG, READ_MODELS, CREDENTIALS, SCHEDULER):
        op.execute(part)
