"""The index over the fleet, the health of machines, the demand for models, and turns in the queue.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

FLEET = """
TRUNCATE fleet, claims, waiters;
DROP INDEX fleet_by_model;
ALTER TABLE fleet DROP COLUMN models, ADD COLUMN machine_id text NOT NULL, ADD COLUMN account_id text NOT NULL,
    ADD COLUMN serial text NOT NULL;
CREATE INDEX fleet_by_machine ON fleet (machine_id);
CREATE INDEX fleet_by_account ON fleet (account_id) WHERE account_id <> '';
CREATE INDEX fleet_by_serial ON fleet (serial) WHERE serial <> '';
CREATE UNLOGGED TABLE fleet_models (
    session_id uuid NOT NULL,
    model text NOT NULL,
    gateway_id uuid NOT NULL,
    trust smallint NOT NULL,
    routable boolean NOT NULL,
    capacity integer NOT NULL,
    busy integer NOT NULL,
    requests_model integer NOT NULL,
    output_tokens_model bigint NOT NULL,
    short_ms real NOT NULL,
    usual_ms real NOT NULL,
    long_ms real NOT NULL,
    reading_ms real NOT NULL,
    queue_ms real NOT NULL,
    in_flight integer NOT NULL,
    room_gb real NOT NULL,
    put_aside_until timestamptz NOT NULL,
    PRIMARY KEY (session_id, model)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX fleet_models_short ON fleet_models (model, trust, (short_ms + queue_ms * greatest(busy, in_flight)))
    WHERE routable AND busy < capacity;
CREATE INDEX fleet_models_usual ON fleet_models (model, trust, (usual_ms + queue_ms * greatest(busy, in_flight)))
    WHERE routable AND busy < capacity;
CREATE INDEX fleet_models_reading ON fleet_models (model, trust, (reading_ms + queue_ms * greatest(busy, in_flight)))
    WHERE routable AND busy < capacity;
CREATE INDEX fleet_models_long ON fleet_models (model, trust, (long_ms + queue_ms * greatest(busy, in_flight)))
    WHERE routable AND busy < capacity;
"""

HEALTH = """
CREATE TABLE machine_health (
    machine_id text PRIMARY KEY,
    account_id text NOT NULL,
    chip text NOT NULL,
    machine_model text NOT NULL,
    models text[] NOT NULL,
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    health bytea NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX machine_health_by_account ON machine_health (account_id) WHERE account_id <> '';
CREATE UNLOGGED TABLE model_demand (
    model text PRIMARY KEY,
    asked_at timestamptz,
    slot_seconds double precision,
    turn bigint NOT NULL DEFAULT 0
);
"""

QUEUE = """
ALTER TABLE claims ADD COLUMN account_id text NOT NULL;
CREATE INDEX claims_by_account ON claims (account_id, model);
ALTER TABLE waiters ADD COLUMN account_id text NOT NULL, ADD COLUMN turn bigint NOT NULL;
DROP INDEX waiters_by_model;
CREATE INDEX waiters_by_turn ON waiters (model, turn, enqueued_at);
"""


def upgrade() -> None:
    for part in (FLEET, HEALTH, QUEUE):
        op.execute(part)
