"""Every statement that the adapters send, by name. What they say runs on PostgreSQL 15 and newer.

The read models' own statements stand with them in ``projections``.
"""

# --- the event log ---------------------------------------------------------------------------------------------------

LOCK_HEAD = "SELECT position, recorded_at FROM ledger_head FOR UPDATE"
"""Take the log's one lock; nobody else decides or appends until this transaction ends."""

HEAD_POSITION = "SELECT position FROM ledger_head"

CLOCK = "SELECT clock_timestamp()"
"""One clock for all writers. Asked after the lock is taken, because waiting for it can last."""

LOAD_AGGREGATES = """
WITH wanted AS (
    SELECT * FROM unnest(%s::uuid[], %s::int[]) AS wanted (originator_id, class_version)
), base AS (
    SELECT s.originator_id, s.originator_version, s.state
    FROM wanted JOIN snapshots s USING (originator_id, class_version)
)
SELECT originator_id, originator_version, NULL AS topic, state FROM base
UNION ALL
SELECT e.originator_id, e.originator_version, e.topic, e.state
FROM wanted LEFT JOIN base USING (originator_id)
CROSS JOIN LATERAL (
    SELECT * FROM events e
    WHERE e.originator_id = wanted.originator_id AND e.originator_version > coalesce(base.originator_version, 0)
) e
ORDER BY originator_id, originator_version
"""
"""The histories of some aggregates: the snapshot of their class's version, if there is one, then the events after
it. One statement, so that both are of one moment."""

LOG_TAIL = """
SELECT originator_id, originator_version, topic, state FROM events
WHERE position > %s ORDER BY position LIMIT %s
"""
"""What other writers appended after a position."""

APPEND_EVENTS = """
INSERT INTO events (position, originator_id, originator_version, topic, recorded_at, state)
SELECT %s + ordinality, originator_id, originator_version, topic, %s, state
FROM unnest(%s::uuid[], %s::int[], %s::text[], %s::bytea[])
WITH ORDINALITY AS batch (originator_id, originator_version, topic, state, ordinality)
"""
"""A batch of events at gapless positions after the head."""

KEEP_SNAPSHOTS = """
INSERT INTO snapshots (originator_id, originator_version, class_version, state)
SELECT * FROM unnest(%s::uuid[], %s::int[], %s::int[], %s::bytea[])
ON CONFLICT (originator_id) DO UPDATE SET originator_version = excluded.originator_version,
    class_version = excluded.class_version, state = excluded.state
"""
"""Written under the head's lock together with the events that they cover, so a newer one always replaces an older."""

MOVE_HEAD = "UPDATE ledger_head SET position = %s, recorded_at = %s"

NOTIFY_LEDGER = "SELECT pg_notify('ledger', %s)"

COMMIT_WITHOUT_WAITING = "SET LOCAL synchronous_commit TO off"

EVENT_AT = "SELECT originator_id, originator_version, state FROM events WHERE position = %s"
"""Whether a batch whose commit got no answer was committed: its first event stands there or does not."""

# --- credentials -----------------------------------------------------------------------------------------------------

INSERT_API_KEY = """
INSERT INTO api_keys (key_hash, key_id, label, name, account_id, role, scopes)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
FIND_API_KEY = """
SELECT k.account_id, k.key_id, k.role, k.scopes, k.spend_limit_micro_usd, k.spend_reset,
       k.requests_per_minute, k.tokens_per_minute, a.requests_per_second, a.request_burst, a.tokens_per_minute,
       k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute' AS use_is_news
FROM api_keys k LEFT JOIN account_limits a USING (account_id)
WHERE k.key_hash = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
"""
"""An active key with its own limits and its account's."""

NOTE_KEY_USE = """
UPDATE api_keys SET last_used_at = now() WHERE key_id IN (
    SELECT key_id FROM api_keys WHERE key_id = %s
        AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute') FOR NO KEY UPDATE SKIP LOCKED)
"""
"""Note that a key was used; of many requests at once one writes and none waits."""

REVOKE_API_KEY = """
WITH revoked AS (
    UPDATE api_keys SET revoked_at = now()
    WHERE (key_id = %(key)s OR key_hash = %(key_hash)s) AND revoked_at IS NULL
        AND (%(account_id)s::text IS NULL OR account_id = %(account_id)s)
    RETURNING key_id
)
SELECT key_id, pg_notify('keys_revoked', key_id) FROM revoked
"""
"""Revoke a key of an account, or of any; gateways that serve requests of it hear of it at the commit."""
CREATE_API_KEY = """
INSERT INTO api_keys (key_hash, key_id, label, name, account_id, role, scopes, expires_at, spend_limit_micro_usd,
                      spend_reset, requests_per_minute, tokens_per_minute)
SELECT %(key_hash)s, %(key_id)s, %(label)s, %(name)s, %(account_id)s, %(role)s, %(scopes)s, %(expires_at)s,
       %(spend_limit_micro_usd)s, %(spend_reset)s, %(requests_per_minute)s, %(tokens_per_minute)s
WHERE (SELECT count(*) FROM api_keys WHERE account_id = %(account_id)s AND revoked_at IS NULL
       AND (expires_at IS NULL OR expires_at > now())) < %(keys_max)s
RETURNING created_at
"""
"""A new key; no row comes back when the account has as many active ones as it may have."""

LOCK_ACCOUNT_KEYS = "SELECT pg_advisory_xact_lock(hashtextextended('api_keys:' || %s, 0))"
"""One creation at a time for an account, so that its keys can be counted."""

ACCOUNT_KEYS = """
SELECT key_id, label, name, role, scopes, expires_at, spend_limit_micro_usd, spend_reset, requests_per_minute,
       tokens_per_minute, created_at, last_used_at, revoked_at FROM api_keys
WHERE account_id = %(account_id)s
    AND (%(include_revoked)s OR (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())))
ORDER BY created_at DESC, key_id LIMIT 1000
"""
REVOKED_AMONG = "SELECT key_id FROM api_keys WHERE key_id = ANY(%s) AND revoked_at IS NOT NULL"

SET_ACCOUNT_LIMITS = """
INSERT INTO account_limits (account_id, requests_per_second, request_burst, tokens_per_minute) VALUES (%s, %s, %s, %s)
ON CONFLICT (account_id) DO UPDATE SET requests_per_second = excluded.requests_per_second,
    request_burst = excluded.request_burst, tokens_per_minute = excluded.tokens_per_minute
"""

INSERT_PROVIDER_TOKEN = "INSERT INTO provider_tokens (token_hash, account_id) VALUES (%s, %s)"
FIND_PROVIDER_TOKEN = "SELECT account_id FROM provider_tokens WHERE token_hash = %s AND revoked_at IS NULL"

# --- replies to requests that carry an idempotency key --------------------------------------------------------------

CLAIM_REPLY = """
INSERT INTO replies (name, fingerprint, claim_id, gateway_id, expires_at)
VALUES (%(name)s, %(fingerprint)s, %(claim_id)s, %(gateway_id)s, now() + make_interval(secs => %(seconds)s))
ON CONFLICT (name) DO UPDATE SET fingerprint = excluded.fingerprint, claim_id = excluded.claim_id,
    gateway_id = excluded.gateway_id, expires_at = excluded.expires_at, sealed = NULL
WHERE replies.expires_at < now() OR (replies.sealed IS NULL AND NOT EXISTS (
    SELECT FROM gateways g WHERE g.gateway_id = replies.gateway_id AND g.lease_until > now()))
RETURNING claim_id
"""
"""Be the first to use a key. What a dead gateway began does not count, nor what is past its time."""

FIND_REPLY = "SELECT fingerprint, sealed FROM replies WHERE name = %s"

KEEP_REPLY = """
WITH old AS (DELETE FROM replies WHERE name IN (SELECT name FROM replies WHERE expires_at < now() LIMIT 100))
UPDATE replies SET sealed = %(sealed)s, expires_at = now() + make_interval(secs => %(seconds)s)
WHERE name = %(name)s AND claim_id = %(claim_id)s
"""
"""Keep a reply for a while, and forget some that are past theirs."""

DROP_REPLY = "DELETE FROM replies WHERE name = %(name)s AND claim_id = %(claim_id)s AND sealed IS NULL"

# --- auditors --------------------------------------------------------------------------------------------------------

INSERT_ACCESS = "INSERT INTO audit_accesses (key_id, endpoint, parameters) VALUES (%s, %s, %s)"
"""Who asked what; the time is the database's own."""

INTERRUPT_DEAD_REPLAYS = """
UPDATE replay_runs SET status = 'interrupted', finished_at = alive_until
WHERE status = 'running' AND alive_until < now()
"""
"""A run whose process no longer says that it lives never ends by itself."""

BEGIN_REPLAY = """
INSERT INTO replay_runs (run_id, requested_by, projections, to_position, status, alive_until)
VALUES (%s, %s, %s, %s, 'running', now() + make_interval(secs => %s))
ON CONFLICT ((true)) WHERE status = 'running' DO NOTHING RETURNING run_id
"""
"""Begin a run; no row comes back while another one is active."""

KEEP_REPLAY = "UPDATE replay_runs SET alive_until = now() + make_interval(secs => %s) WHERE run_id = %s"

END_REPLAY = """
UPDATE replay_runs SET status = %s, outcome = %s, finished_at = now() WHERE run_id = %s AND status = 'running'
"""

REPLAY_RUN = """
SELECT CASE WHEN status = 'running' AND alive_until < now() THEN 'interrupted' ELSE status END, projections,
       to_position, started_at, finished_at, outcome FROM replay_runs WHERE run_id = %s
"""

# --- gateway leases --------------------------------------------------------------------------------------------------

TAKE_LEASE = """
INSERT INTO gateways (gateway_id, internal_url, lease_until) VALUES (%s, %s, now() + make_interval(secs => %s))
"""
RENEW_LEASE = """
UPDATE gateways SET lease_until = now() + make_interval(secs => %s)
WHERE gateway_id = %s AND lease_until > now() RETURNING gateway_id
"""
"""Only a lease that still stands can be renewed: once lapsed, others may act on its end."""

END_LEASE = "UPDATE gateways SET lease_until = least(lease_until, now()) WHERE gateway_id = %s"
"""A gateway that stops in order. The ends that it handed to the scheduler have the grace of a lapsed lease."""

END_ALL_LEASES = "UPDATE gateways SET lease_until = '-infinity' WHERE lease_until > now()"
"""For the one process that owns an embedded database: whoever held a lease before it is dead."""

GATEWAY_URL = "SELECT internal_url FROM gateways WHERE gateway_id = %s"

ABANDONED_REQUESTS = """
SELECT r.request_id, r.account_id FROM open_requests r LEFT JOIN gateways g USING (gateway_id)
WHERE g.gateway_id IS NULL OR g.lease_until < now() - make_interval(secs => %s) OR r.expires_at < now()
ORDER BY r.admitted_at LIMIT %s
"""
"""Open requests whose gateway's lease lapsed long enough ago, or whose hold has expired."""

DROP_ENDED_GATEWAYS = """
DELETE FROM gateways g WHERE g.lease_until < now() - interval '1 day'
AND NOT EXISTS (SELECT FROM open_requests r WHERE r.gateway_id = g.gateway_id)
"""

# --- the fleet -------------------------------------------------------------------------------------------------------

ANNOUNCE_MACHINE = """
INSERT INTO fleet (session_id, gateway_id, models, capacity, routable, snapshot, busy)
VALUES (%(session_id)s, %(gateway_id)s, %(models)s, %(capacity)s, %(routable)s, %(snapshot)s,
        (SELECT count(*) FROM claims WHERE session_id = %(session_id)s))
ON CONFLICT (session_id) DO UPDATE SET gateway_id = excluded.gateway_id, models = excluded.models,
    capacity = excluded.capacity, routable = excluded.routable, snapshot = excluded.snapshot, updated_at = now()
RETURNING greatest(capacity - busy, 0)
"""
"""Keep one connected machine true; returns its free slots. ``busy`` moves only with claims, so it is left alone."""

# Whoever changes claims locks their machines' rows first, so that two of them never wait for each other.

WITHDRAW_MACHINE = """
WITH gone AS (DELETE FROM fleet WHERE session_id = %(session_id)s RETURNING session_id)
DELETE FROM claims WHERE session_id = %(session_id)s AND (SELECT count(*) FROM gone) >= 0
"""

CANDIDATES = """
SELECT f.snapshot, count(c.request_id) AS requests_all,
       count(c.request_id) FILTER (WHERE c.model = %(model)s) AS requests_model,
       coalesce(sum(c.output_tokens) FILTER (WHERE c.model = %(model)s), 0)::bigint AS output_tokens_model
FROM fleet f LEFT JOIN claims c USING (session_id)
WHERE f.models @> ARRAY[%(model)s] AND f.routable AND f.gateway_id = %(gateway_id)s
GROUP BY f.session_id
"""
"""The machines that offer a model, with what is in flight on each."""

CLAIM_SLOT = """
WITH slot AS (
    UPDATE fleet SET busy = busy + 1
    WHERE session_id = %(session_id)s AND routable AND busy < capacity
    RETURNING session_id
), served AS (
    DELETE FROM waiters WHERE request_id = %(request_id)s AND EXISTS (SELECT FROM slot)
)
INSERT INTO claims (request_id, attempt, session_id, model, output_tokens, gateway_id, expires_at)
SELECT %(request_id)s, %(attempt)s, session_id, %(model)s, %(output_tokens)s, %(gateway_id)s,
       now() + make_interval(secs => %(seconds)s)
FROM slot RETURNING session_id
"""
"""Take one slot, or none. Counter, claim and the end of waiting go together; a claim that exists undoes it all."""

RELEASE_CLAIM = """
WITH held AS (
    SELECT f.session_id FROM fleet f JOIN claims c USING (session_id)
    WHERE c.request_id = %(request_id)s AND c.attempt = %(attempt)s FOR UPDATE OF f
), gone AS (
    DELETE FROM claims WHERE request_id = %(request_id)s AND attempt = %(attempt)s AND (SELECT count(*) FROM held) >= 0
    RETURNING session_id
)
UPDATE fleet SET busy = busy - 1 FROM gone WHERE fleet.session_id = gone.session_id RETURNING fleet.models
"""
"""Give a slot back; giving it back twice does nothing."""

CLAIM_OF = "SELECT session_id FROM claims WHERE request_id = %s AND attempt = %s"

MODEL_OFFERS = """
SELECT snapshot FROM fleet
WHERE routable AND gateway_id = %(gateway_id)s AND (%(model)s::text IS NULL OR models @> ARRAY[%(model)s])
"""
"""A gateway's routable machines, all or those that offer one model."""

LOCK_QUEUE = "SELECT pg_advisory_xact_lock(7224318, hashtext(%s))"
"""One request at a time looks at the queue of a model and joins it; else several would take its last place."""

PARK_WAITER = """
INSERT INTO waiters (request_id, attempt, model, gateway_id, deadline, message)
SELECT %(request_id)s, %(attempt)s, %(model)s, %(gateway_id)s, now() + make_interval(secs => %(seconds)s), %(message)s
WHERE (SELECT count(*) FROM waiters WHERE model = %(model)s AND deadline > now() AND request_id <> %(request_id)s)
      < %(depth_max)s AND EXISTS (SELECT FROM open_requests WHERE request_id = %(request_id)s)
ON CONFLICT (request_id, attempt) DO UPDATE SET woken_at = NULL
RETURNING enqueued_at
"""
"""Let a request wait for a slot, or keep its place. No row comes back when the queue of its model is full,
or the request has ended."""

WAKE_WAITER = """
WITH oldest AS (
    SELECT request_id, attempt FROM waiters
    WHERE model = ANY(%(models)s) AND (%(gateway_id)s::uuid IS NULL OR gateway_id = %(gateway_id)s)
        AND woken_at IS NULL AND deadline > now()
    ORDER BY enqueued_at FOR UPDATE SKIP LOCKED LIMIT %(count)s
)
UPDATE waiters w SET woken_at = now() FROM oldest o
WHERE w.request_id = o.request_id AND w.attempt = o.attempt
RETURNING w.message
"""
"""Wake the requests that waited longest, of one gateway or of all; they keep their place until they are dispatched."""

REMOVE_WAITER = "DELETE FROM waiters WHERE request_id = %s"

SWEEP_FLEET = """
WITH lapsed AS MATERIALIZED (
    SELECT f.session_id FROM fleet f LEFT JOIN gateways g USING (gateway_id)
    WHERE g.gateway_id IS NULL OR g.lease_until < now() OR f.updated_at < now() - interval '3 minutes'
    FOR UPDATE OF f SKIP LOCKED
), stale AS MATERIALIZED (
    SELECT c.request_id, c.attempt, c.session_id FROM claims c
    WHERE c.expires_at < now() OR c.session_id IN (SELECT session_id FROM lapsed)
        OR (c.claimed_at < now() - interval '10 seconds'
            AND NOT EXISTS (SELECT FROM open_requests r WHERE r.request_id = c.request_id))
), held AS MATERIALIZED (
    SELECT session_id FROM fleet
    WHERE session_id IN (SELECT session_id FROM stale EXCEPT SELECT session_id FROM lapsed) FOR UPDATE SKIP LOCKED
), free AS MATERIALIZED (
    SELECT c.request_id, c.attempt FROM claims c JOIN stale s USING (request_id, attempt)
    WHERE c.session_id IN (SELECT session_id FROM held UNION SELECT session_id FROM lapsed)
        OR NOT EXISTS (SELECT FROM fleet f WHERE f.session_id = c.session_id)
    FOR UPDATE OF c SKIP LOCKED
), stale_claims AS (
    DELETE FROM claims c USING free f WHERE c.request_id = f.request_id AND c.attempt = f.attempt
    RETURNING c.session_id
), stale_waiters AS (
    DELETE FROM waiters WHERE deadline < now() - interval '60 seconds'
), lost_wakes AS (
    UPDATE waiters SET woken_at = NULL WHERE woken_at < now() - interval '5 seconds'
), freed AS (
    UPDATE fleet f SET busy = f.busy - s.n
    FROM (SELECT session_id, count(*)::int AS n FROM stale_claims GROUP BY session_id) s
    WHERE f.session_id = s.session_id AND f.session_id NOT IN (SELECT session_id FROM lapsed)
)
DELETE FROM fleet WHERE session_id IN (SELECT session_id FROM lapsed)
"""
"""Forget machines of lapsed gateways or without a heartbeat, and claims whose request has ended or expired; let
requests whose wake was lost be woken again. What somebody else is just changing is left to the next sweep."""

WAITING_MODELS = "SELECT DISTINCT model FROM waiters WHERE woken_at IS NULL AND deadline > now()"

# --- roles -----------------------------------------------------------------------------------------------------------
# Names in braces are put in as quoted identifiers.

ROLE_FACTS = """
SELECT r.rolsuper OR pg_has_role(r.oid, c.relowner, 'MEMBER')
FROM pg_roles r, pg_class c WHERE r.rolname = %s AND c.oid = 'events'::regclass
"""
"""Whether a role is above grants, as a superuser or as the owner of the tables. No row: there is no such role."""

TABLES_TO_GRANT = """
SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum),
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'append_only')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
GROUP BY c.oid, c.relname ORDER BY c.relname
"""
"""Every table with its columns, and whether it is append-only."""

REVOKE_ALL = """
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role};
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {role};
REVOKE ALL ON SCHEMA public FROM {role};
GRANT USAGE ON SCHEMA public TO {role};
"""
GRANT_READ = "GRANT SELECT ON {table} TO {role}"
GRANT_READ_COLUMNS = "GRANT SELECT ({columns}) ON {table} TO {role}"
GRANT_APPEND = "GRANT SELECT, INSERT ON {table} TO {role}"
GRANT_MOVE = "GRANT SELECT, UPDATE ON {table} TO {role}"
GRANT_WRITE = "GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}"
GRANT_SEQUENCES = "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"
