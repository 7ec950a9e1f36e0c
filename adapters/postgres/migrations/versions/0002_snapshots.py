"""Snapshots of the aggregates whose histories grow.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE snapshots (
            originator_id uuid PRIMARY KEY,
            originator_version integer NOT NULL,
            class_version integer NOT NULL,
            state bytea NOT NULL
        );
        COMMENT ON TABLE snapshots IS 'A shortcut into long histories. Deleting a row loses nothing.';
        """
    )
