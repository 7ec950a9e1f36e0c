"""How a check of the tables stops every writer, and a list of accesses that only grows.

Revision ID: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STOPS = """
ALTER TABLE ledger_head ADD COLUMN stops bigint NOT NULL DEFAULT 0;
CREATE TABLE ledger_stops (
    stop bigint PRIMARY KEY,
    stopped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    position bigint NOT NULL,
    finding text NOT NULL
);
COMMENT ON TABLE ledger_stops IS 'Why the writers were stopped. A writer that starts later goes on.';
"""


def upgrade() -> None:
    op.execute(STOPS)
    for table in ("ledger_stops", "audit_accesses"):
        op.execute(f"SELECT keep_append_only('{table}')")
