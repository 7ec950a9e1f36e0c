"""Sealed requests that were opened, so that none is opened twice; files, batches and their lines.

Revision ID: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SEALED_REQUESTS = """
CREATE TABLE sealed_requests (
    digest bytea PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE INDEX sealed_requests_by_expiry ON sealed_requests (expires_at);
COMMENT ON TABLE sealed_requests IS 'SHA-256 of the ephemeral key and nonce of sealed requests that were opened.';
"""

BATCHES = """
CREATE TABLE batches (
    batch_id uuid PRIMARY KEY,
    account_id text NOT NULL,
    key_id text NOT NULL,
    endpoint text NOT NULL,
    input_file_id text NOT NULL,
    status text NOT NULL
        CHECK (status IN ('failed', 'in_progress', 'cancelling', 'completed', 'expired', 'cancelled')),
    total integer NOT NULL,
    errors bytea NOT NULL,
    sealed_metadata bytea NOT NULL,
    consumer_key bytea NOT NULL,
    kid text NOT NULL,
    wrapped_key bytea,
    gateway_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    cancelling_at timestamptz,
    finished_at timestamptz,
    CHECK ((wrapped_key IS NULL) = (finished_at IS NOT NULL)),
    CHECK ((status IN ('in_progress', 'cancelling')) = (finished_at IS NULL))
);
CREATE INDEX batches_by_key ON batches (key_id, created_at DESC);
CREATE INDEX batches_to_do ON batches (created_at) WHERE finished_at IS NULL;
COMMENT ON COLUMN batches.wrapped_key IS 'Sealed to the key of the gateways, and gone when the batch ends.';
CREATE TABLE batch_lines (
    batch_id uuid NOT NULL REFERENCES batches ON DELETE CASCADE,
    number integer NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done')),
    tries integer NOT NULL DEFAULT 0,
    sealed bytea,
    draft bytea,
    failed boolean NOT NULL DEFAULT false,
    result bytea,
    result_bytes bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_id, number)
);
CREATE INDEX batch_lines_to_do ON batch_lines (batch_id, state, number) WHERE state <> 'done';
CREATE TABLE files (
    file_id text PRIMARY KEY,
    account_id text NOT NULL,
    key_id text NOT NULL,
    purpose text NOT NULL CHECK (purpose IN ('batch', 'batch_output')),
    sealed_name bytea,
    sealed bytea,
    size_bytes bigint NOT NULL,
    batch_id uuid REFERENCES batches ON DELETE CASCADE,
    of_errors boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX files_by_key ON files (key_id, created_at DESC);
CREATE INDEX files_by_expiry ON files (expires_at);
CREATE INDEX files_by_batch ON files (batch_id) WHERE batch_id IS NOT NULL;
COMMENT ON TABLE files IS 'What only the API key of the consumer can open.';
"""


def upgrade() -> None:
    op.execute(SEALED_REQUESTS)
    op.execute(BATCHES)
