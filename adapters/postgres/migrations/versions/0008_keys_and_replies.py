"""What a key may do and spend, an account's limits, and replies to requests with an idempotency key.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEYS = """
ALTER TABLE api_keys
    ADD COLUMN scopes text[] NOT NULL DEFAULT '{inference}',
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN last_used_at timestamptz,
    ADD COLUMN spend_limit_micro_usd bigint CHECK (spend_limit_micro_usd >= 0),
    ADD COLUMN spend_reset text NOT NULL DEFAULT 'none'
        CHECK (spend_reset IN ('none', 'daily', 'weekly', 'monthly')),
    ADD COLUMN requests_per_minute integer CHECK (requests_per_minute > 0),
    ADD COLUMN tokens_per_minute integer CHECK (tokens_per_minute > 0);
UPDATE api_keys SET scopes = '{}' WHERE role <> 'consumer';
ALTER TABLE api_keys ADD CONSTRAINT consumers_alone_have_scopes CHECK ((role = 'consumer') = (scopes <> '{}'));
CREATE INDEX api_keys_by_account ON api_keys (account_id, created_at DESC);
CREATE TABLE account_limits (
    account_id text PRIMARY KEY,
    requests_per_second double precision CHECK (requests_per_second >= 0),
    request_burst integer CHECK (request_burst > 0),
    tokens_per_minute integer CHECK (tokens_per_minute >= 0)
);
COMMENT ON TABLE account_limits IS 'Accounts whose limits differ from the settings. 0 lifts a limit, NULL keeps it.';
"""

REPLIES = """
CREATE TABLE replies (
    name bytea PRIMARY KEY,
    fingerprint bytea NOT NULL,
    claim_id uuid NOT NULL,
    gateway_id uuid NOT NULL,
    sealed bytea,
    expires_at timestamptz NOT NULL
);
CREATE INDEX replies_by_expiry ON replies (expires_at);
COMMENT ON TABLE replies IS 'First answers, sealed under a key that only the consumer''s API key gives.';
"""


def upgrade() -> None:
    op.execute(KEYS)
    op.execute(REPLIES)
