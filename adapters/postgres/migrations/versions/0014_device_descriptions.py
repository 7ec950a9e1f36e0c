"""What a machine that asks to be linked says of itself, and that its owner refused it.

Revision ID: 0014
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

DEVICES = """
ALTER TABLE device_codes ADD COLUMN machine_name text NOT NULL DEFAULT '', ADD COLUMN chip text NOT NULL DEFAULT '',
    ADD COLUMN refused_at timestamptz;
"""


def upgrade() -> None:
    op.execute(DEVICES)
