"""People, their sessions and sign-in codes, device login, and the read model of invite codes.

Revision ID: 0010
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

PEOPLE = """
CREATE TABLE identities (
    issuer text NOT NULL,
    subject text NOT NULL,
    account_id text NOT NULL UNIQUE,
    is_open boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer, subject)
);
COMMENT ON TABLE identities IS 'Whom a session token''s subject stands for. is_open once the ledger knows the account.';
CREATE TABLE personal_details (
    account_id text PRIMARY KEY REFERENCES identities (account_id),
    email text NOT NULL DEFAULT '',
    wallet_address text NOT NULL DEFAULT '',
    wallet_id text NOT NULL DEFAULT '',
    signs_in boolean NOT NULL
);
CREATE UNIQUE INDEX personal_details_by_address ON personal_details (email) WHERE signs_in;
COMMENT ON TABLE personal_details IS 'Personal data, here and in no event. A row can be deleted at any time.';
COMMENT ON COLUMN personal_details.signs_in IS 'Whether codes that are sent to the address sign in to this account.';
"""

SESSIONS = """
CREATE TABLE sessions (
    session_id text PRIMARY KEY,
    account_id text NOT NULL,
    refresh_hash text UNIQUE,
    spent_hash text,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX sessions_by_spent_hash ON sessions (spent_hash);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);
COMMENT ON TABLE sessions IS 'This deployment''s own sessions, and those of other issuers once they are signed out.';
CREATE TABLE sign_in_codes (
    code_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email text NOT NULL,
    challenge_hash text,
    code_hash text NOT NULL,
    tries integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    spent_at timestamptz
);
CREATE INDEX sign_in_codes_by_address ON sign_in_codes (email, created_at);
CREATE INDEX sign_in_codes_by_age ON sign_in_codes (created_at);
"""

DEVICES = """
CREATE TABLE device_codes (
    device_hash text PRIMARY KEY,
    user_code_hash text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    account_id text,
    label text NOT NULL DEFAULT '',
    approved_at timestamptz,
    consumed_at timestamptz
);
CREATE INDEX device_codes_by_expiry ON device_codes (expires_at);
ALTER TABLE provider_tokens ADD COLUMN label text NOT NULL DEFAULT '';
"""

INVITES = """
CREATE TABLE invite_codes (
    code text PRIMARY KEY,
    amount_micro_usd bigint NOT NULL,
    max_uses integer NOT NULL,
    used_count integer NOT NULL,
    is_active boolean NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL,
    position bigint NOT NULL
);
CREATE INDEX invite_codes_by_position ON invite_codes (position DESC);
"""


def upgrade() -> None:
    for part in (PEOPLE, SESSIONS, DEVICES, INVITES):
        op.execute(part)
