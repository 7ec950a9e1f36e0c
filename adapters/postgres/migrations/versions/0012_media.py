"""What media is metered in, beside the tokens of each settled request.

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

UNITS = """
ALTER TABLE usage_entries
    ADD COLUMN unit text NOT NULL DEFAULT '',
    ADD COLUMN units bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN usage_entries.unit IS 'pixel or audio_ms; empty where only tokens are metered.';
"""


def upgrade() -> None:
    op.execute(UNITS)
