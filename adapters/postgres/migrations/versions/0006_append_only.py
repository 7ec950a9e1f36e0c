"""The log is append-only by the database itself: whoever connects, changing or removing an event is refused.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("events",)
"""A later migration protects a table of its own with ``SELECT keep_append_only('table')``; the grants follow that."""

GUARD = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only; % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation',
        HINT = 'Rows are added and never changed or removed. Correct with a new event that refers to the old one.';
END $$;
CREATE FUNCTION keep_append_only(target regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', target);
END $$;
COMMENT ON FUNCTION keep_append_only IS 'Refuse UPDATE, DELETE and TRUNCATE on a table from now on.';
"""


def upgrade() -> None:
    op.execute(GUARD)
    for table in TABLES:
        op.execute(f"SELECT keep_append_only('{table}')")
