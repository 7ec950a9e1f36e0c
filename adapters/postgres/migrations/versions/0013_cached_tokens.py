"""How many prompt tokens of each settled request were charged as remembered.

Revision ID: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

CACHED_TOKENS = """
ALTER TABLE usage_entries ADD COLUMN cached_tokens bigint NOT NULL DEFAULT 0;
ALTER TABLE provider_earnings ADD COLUMN cached_tokens bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN usage_entries.cached_tokens IS 'Those of the prompt that the machine remembered.';
COMMENT ON COLUMN provider_earnings.cached_tokens IS 'Those of the prompt that the machine remembered.';
"""


def upgrade() -> None:
    op.execute(CACHED_TOKENS)
