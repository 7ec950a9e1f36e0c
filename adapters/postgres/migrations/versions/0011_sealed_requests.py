"""Sealed requests that were opened, so that none is opened twice.

Revision ID: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0009"
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


def upgrade() -> None:
    op.execute(SEALED_REQUESTS)
