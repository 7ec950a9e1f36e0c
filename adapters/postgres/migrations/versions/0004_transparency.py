"""The Merkle tree over the event log, its signed checkpoints and their public keys; all of them only grow.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TREE = """
CREATE TABLE transparency_tiles (
    level smallint NOT NULL,
    number bigint NOT NULL,
    hashes bytea NOT NULL CHECK (octet_length(hashes) BETWEEN 32 AND 8192 AND octet_length(hashes) % 32 = 0),
    PRIMARY KEY (level, number)
);
ALTER TABLE transparency_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;
COMMENT ON TABLE transparency_tiles IS 'The Merkle tree over events. A tile is only ever added to at its end.';
"""

CHECKPOINTS = """
CREATE TABLE checkpoints (
    size bigint PRIMARY KEY CHECK (size > 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    signed_at timestamptz NOT NULL,
    note text NOT NULL
);
COMMENT ON TABLE checkpoints IS 'What was signed: one root for each size, for ever.';
CREATE TABLE checkpoint_keys (
    key_id text PRIMARY KEY,
    verifier_key text NOT NULL UNIQUE,
    announcement text NOT NULL,
    announced_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz
);
COMMENT ON TABLE checkpoint_keys IS 'The public keys of the checkpoints. A row is added, and retired once.';
"""

GUARDS = """
CREATE FUNCTION transparency_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'transparency_tiles' THEN
        IF (NEW.level, NEW.number) = (OLD.level, OLD.number)
            AND substring(NEW.hashes FOR octet_length(OLD.hashes)) = OLD.hashes THEN
            RETURN NEW;
        END IF;
    ELSIF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'checkpoint_keys' THEN
        IF (NEW.key_id, NEW.verifier_key, NEW.announcement, NEW.announced_at)
            = (OLD.key_id, OLD.verifier_key, OLD.announcement, OLD.announced_at) AND OLD.retired_at IS NULL THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION '% only grows: what stands there is never changed or removed', TG_TABLE_NAME;
END
$$;
"""

GUARD = """
CREATE TRIGGER {table}_only_grows BEFORE UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION transparency_only_grows();
CREATE TRIGGER {table}_is_never_emptied BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION transparency_only_grows();
"""


def upgrade() -> None:
    for part in (TREE, CHECKPOINTS, GUARDS):
        op.execute(part)
    for table in ("transparency_tiles", "checkpoints", "checkpoint_keys"):
        op.execute(GUARD.format(table=table))
