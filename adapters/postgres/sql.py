"""Every statement that the adapters send, by name. What they say runs on PostgreSQL 15 and newer.

The read models' own statements stand with them in ``projections``.
"""

# --- the event log ---------------------------------------------------------------------------------------------------

LOOK_UP_BY_KEY = """
SELECT set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),
       set_config('enable_mergejoin', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('jit', 'off', false)
"""
"""For the writer's session, whose statements all look rows up by their keys. A plan that was made while the log was
small would scan it for ever, because a prepared statement keeps its plan until the statistics are renewed. The few
scans that must be (the head is one row) look dear to the planner then, so it must not compile them."""

LIMIT_WAITS = """
SELECT set_config('idle_in_transaction_session_timeout', %(milliseconds)s, false),
       set_config('statement_timeout', %(milliseconds)s, false)
"""
"""How long a writer may be silent in a transaction, and how long a statement of it may take or wait."""

END_SILENT_WRITERS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = %s AND pid <> pg_backend_pid()
    AND wait_event_type = 'Client' AND xact_start < now() - make_interval(secs => %s)
"""
"""End sessions of writers that began a transaction so many seconds ago and are waited for in the middle of it. The
server ends by itself only those that have said all they had to say for now."""

LOCK_HEAD = """
SELECT head.position, head.recorded_at, head.stops, clock_timestamp()
FROM (SELECT position, recorded_at, stops FROM ledger_head FOR UPDATE) AS head
"""
"""Take the log's one lock; nobody else decides or appends until this transaction ends. The clock, one for all writers,
is read after that, because waiting for the lock can last: what locks rows is not merged into the query around it."""

HEAD_AT_START = "SELECT position, stops FROM ledger_head"
"""Where the log stands, and how often the writers were stopped before this one began."""

LOAD_AGGREGATES = """
SELECT s.originator_id, s.originator_version, NULL AS topic, s.state
FROM unnest(%(ids)s::uuid[], %(class_versions)s::int[]) AS wanted (originator_id, class_version)
JOIN snapshots s USING (originator_id, class_version)
UNION ALL
SELECT e.originator_id, e.originator_version, e.topic, e.state
FROM unnest(%(ids)s::uuid[], %(class_versions)s::int[]) AS wanted (originator_id, class_version)
LEFT JOIN snapshots s USING (originator_id, class_version)
CROSS JOIN LATERAL (
    SELECT * FROM events e
    WHERE e.originator_id = wanted.originator_id AND e.originator_version > coalesce(s.originator_version, 0)
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

MOVE_HEAD = """
WITH moved AS (UPDATE ledger_head SET position = %s, recorded_at = %s RETURNING position)
SELECT pg_notify('ledger', position::text) FROM moved
"""
"""Who follows the log hears of it at the commit."""

COMMIT_WITHOUT_WAITING = "SET LOCAL synchronous_commit TO off"

EVENT_AT = "SELECT originator_id, originator_version, state FROM events WHERE position = %s"
"""Whether a batch whose commit got no answer was committed: its first event stands there or does not."""

# --- credentials -----------------------------------------------------------------------------------------------------

INSERT_API_KEY = """
INSERT INTO api_keys (key_hash, key_id, label, name, account_id, role, scopes)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
FIND_API_KEY = """
SELECT k.account_id, k.key_id, k.role, k.scopes, k.expires_at, k.spend_limit_micro_usd, k.spend_reset,
       k.requests_per_minute, k.tokens_per_minute, a.requests_per_second, a.request_burst, a.tokens_per_minute,
       k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute' AS use_is_news
FROM api_keys k LEFT JOIN account_limits a USING (account_id)
WHERE k.key_hash = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
"""
"""An active key with its own limits and its account's."""

FIND_API_KEY_BY_ID = """
SELECT k.account_id, k.key_id, k.role, k.scopes, k.expires_at, k.spend_limit_micro_usd, k.spend_reset,
       k.requests_per_minute, k.tokens_per_minute, a.requests_per_second, a.request_burst, a.tokens_per_minute, false
FROM api_keys k LEFT JOIN account_limits a USING (account_id)
WHERE k.key_id = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
"""
"""The same by its id, for work that goes on without its secret."""

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

INSERT_PROVIDER_TOKEN = "INSERT INTO provider_tokens (token_hash, account_id, label) VALUES (%s, %s, %s)"
FIND_PROVIDER_TOKEN = "SELECT account_id FROM provider_tokens WHERE token_hash = %s AND revoked_at IS NULL"
REVOKE_PROVIDER_TOKEN = """
UPDATE provider_tokens SET revoked_at = now() WHERE token_hash = %s AND revoked_at IS NULL RETURNING account_id
"""

# --- people and their sessions ---------------------------------------------------------------------------------------

FIND_SESSION = """
SELECT i.account_id, coalesce(d.email, ''), i.is_open, a.requests_per_second, a.request_burst, a.tokens_per_minute,
       s.session_id IS NOT NULL AND s.expires_at > now() AS stands, s.revoked_at IS NOT NULL AS is_revoked
FROM (SELECT %(issuer)s::text, %(subject)s::text, %(session_id)s::text) AS asked (issuer, subject, session_id)
LEFT JOIN identities i USING (issuer, subject)
LEFT JOIN personal_details d ON d.account_id = i.account_id
LEFT JOIN account_limits a ON a.account_id = i.account_id
LEFT JOIN sessions s USING (session_id)
"""
"""Always one row: whom a session is of, as far as that is known, and how the session stands."""

ADD_IDENTITY = """
INSERT INTO identities (issuer, subject, account_id) VALUES (%s, %s, %s) ON CONFLICT (issuer, subject) DO NOTHING
RETURNING account_id
"""
"""A person seen for the first time; of several at once, one gets a row."""

ADD_DETAILS = """
INSERT INTO personal_details (account_id, email, wallet_address, wallet_id, signs_in) VALUES (%s, %s, %s, %s, %s)
"""
IDENTITY_OF = "SELECT account_id, is_open FROM identities WHERE issuer = %s AND subject = %s"
MARK_OPEN = "UPDATE identities SET is_open = true WHERE account_id = %s"

LOCK_ADDRESS = "SELECT pg_advisory_xact_lock(hashtextextended('address:' || %s, 0))"
"""One sign-in at a time for an address, so that its codes can be counted and its account is made once."""

PERSON_AT = """
SELECT i.account_id, i.subject, i.is_open FROM personal_details d JOIN identities i USING (account_id)
WHERE d.email = %s AND d.signs_in
"""

OPEN_SESSION = """
WITH old AS (DELETE FROM sessions WHERE session_id IN
    (SELECT session_id FROM sessions WHERE expires_at < now() - interval '1 day' LIMIT 100))
INSERT INTO sessions (session_id, account_id, refresh_hash, expires_at)
VALUES (%(session_id)s, %(account_id)s, %(refresh_hash)s, now() + make_interval(secs => %(seconds)s))
"""
"""A new session; some that are long past are forgotten."""

REFRESH_SESSION = """
UPDATE sessions s SET spent_hash = s.refresh_hash, refresh_hash = %(next_hash)s, last_used_at = now()
FROM identities i
WHERE s.refresh_hash = %(refresh_hash)s AND i.account_id = s.account_id AND s.revoked_at IS NULL
    AND s.expires_at > now() AND s.last_used_at > now() - make_interval(secs => %(idle_seconds)s)
RETURNING s.session_id, i.subject, s.account_id
"""
REVOKE_BY_SPENT_HASH = """
UPDATE sessions SET revoked_at = now() WHERE spent_hash = %s AND revoked_at IS NULL RETURNING session_id
"""
"""A refresh token that comes twice was copied: neither copy goes on."""

REVOKE_SESSION = """
INSERT INTO sessions (session_id, account_id, expires_at, revoked_at) VALUES (%s, %s, to_timestamp(%s), now())
ON CONFLICT (session_id) DO UPDATE SET revoked_at = coalesce(sessions.revoked_at, now())
"""
"""Sign out. A session of another issuer gets a row by it, which stands until its token has expired."""

REVOKE_SESSIONS_OF = """
UPDATE sessions SET revoked_at = now() WHERE account_id = %s AND revoked_at IS NULL
"""

CODES_SENT = """
SELECT count(*) FILTER (WHERE created_at > now() - interval '1 hour'), count(*) FROM sign_in_codes
WHERE email = %s AND created_at > now() - interval '1 day'
"""
ADD_CODE = """
WITH old AS (DELETE FROM sign_in_codes WHERE code_id IN
    (SELECT code_id FROM sign_in_codes WHERE created_at < now() - interval '1 day' LIMIT 100))
INSERT INTO sign_in_codes (email, challenge_hash, code_hash, expires_at)
VALUES (%(email)s, %(challenge_hash)s, %(code_hash)s, now() + make_interval(secs => %(seconds)s))
"""
"""A code that was sent; addresses of the day before yesterday are forgotten."""

TRY_CODE = """
UPDATE sign_in_codes SET tries = tries + 1 WHERE tries < %(tries_max)s AND code_id = (
    SELECT code_id FROM sign_in_codes
    WHERE email = %(email)s AND challenge_hash IS NOT DISTINCT FROM %(challenge_hash)s::text
        AND spent_at IS NULL AND expires_at > now()
    ORDER BY created_at DESC LIMIT 1)
RETURNING code_id, code_hash
"""
"""Count a try before its outcome is known, so that tries at once are bounded too."""

SPEND_CODE = "UPDATE sign_in_codes SET spent_at = now() WHERE code_id = %s AND spent_at IS NULL RETURNING code_id"

# --- device login ----------------------------------------------------------------------------------------------------

ADD_DEVICE_CODE = """
WITH old AS (DELETE FROM device_codes WHERE device_hash IN
    (SELECT device_hash FROM device_codes WHERE expires_at < now() - interval '1 hour' LIMIT 100))
INSERT INTO device_codes (device_hash, user_code_hash, machine_name, chip, expires_at)
VALUES (%(device_hash)s, %(user_code_hash)s, %(machine_name)s, %(chip)s, now() + make_interval(secs => %(seconds)s))
ON CONFLICT DO NOTHING RETURNING device_hash
"""
"""A code for a machine; no row comes back when one like it is in use."""

APPROVE_DEVICE = """
UPDATE device_codes SET account_id = %(account_id)s, label = %(label)s, approved_at = now()
WHERE user_code_hash = %(user_code_hash)s AND approved_at IS NULL AND refused_at IS NULL AND expires_at > now()
RETURNING device_hash
"""
REFUSE_DEVICE = """
UPDATE device_codes SET refused_at = now()
WHERE user_code_hash = %s AND approved_at IS NULL AND refused_at IS NULL AND expires_at > now() RETURNING device_hash
"""
USER_CODE_STATE = """
SELECT approved_at IS NOT NULL OR refused_at IS NOT NULL AS is_used, expires_at <= now() AS is_past, machine_name, chip,
       created_at
FROM device_codes WHERE user_code_hash = %s
"""
CONSUME_DEVICE_CODE = """
UPDATE device_codes SET consumed_at = now()
WHERE device_hash = %s AND approved_at IS NOT NULL AND consumed_at IS NULL AND expires_at > now()
RETURNING account_id, label
"""
"""The first success takes the code; whoever comes later gets nothing."""

DEVICE_CODE_STATE = """
SELECT expires_at <= now() OR consumed_at IS NOT NULL AS is_past, refused_at IS NOT NULL AS is_refused
FROM device_codes WHERE device_hash = %s
"""

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

# --- sealed requests -------------------------------------------------------------------------------------------------

SEE_SEALED_REQUEST = """
WITH old AS (DELETE FROM sealed_requests WHERE digest IN (
    SELECT digest FROM sealed_requests WHERE expires_at < now() AND digest <> %(digest)s LIMIT 100)),
soon AS (SELECT set_config('synchronous_commit', 'off', true))
INSERT INTO sealed_requests (digest, expires_at)
SELECT %(digest)s, now() + make_interval(secs => %(seconds)s) FROM soon
ON CONFLICT (digest) DO UPDATE SET expires_at = excluded.expires_at WHERE sealed_requests.expires_at < now()
RETURNING digest
"""
"""Be the first to open a request, and forget some that are past their time. It does not wait for the disk: the
admission that charges the request is committed later, and takes this row to the disk with it."""

# --- files and batches -----------------------------------------------------------------------------------------------

LOCK_FILES = "SELECT pg_advisory_xact_lock(hashtextextended('files:' || %s, 0))"
"""One request of a key at a time counts its files or batches and adds one."""

INSERT_FILE = """
INSERT INTO files (file_id, account_id, key_id, purpose, sealed_name, sealed, size_bytes, expires_at)
SELECT %(file_id)s, %(account_id)s, %(key_id)s, 'batch', %(sealed_name)s, %(sealed)s, %(size_bytes)s,
       now() + make_interval(secs => %(seconds)s)
WHERE (SELECT count(*) FROM files WHERE key_id = %(key_id)s) < %(files_max)s
RETURNING created_at, expires_at
"""
"""No row comes back when the key has as many files as it may have."""

FIND_FILES = """
SELECT file_id, purpose, sealed_name, size_bytes, created_at, expires_at, batch_id, of_errors FROM files
WHERE key_id = %(key_id)s AND expires_at > now() AND (%(file_id)s::text IS NULL OR file_id = %(file_id)s)
    AND (%(purpose)s::text IS NULL OR purpose = %(purpose)s)
    AND (%(after)s::text IS NULL
         OR (created_at, file_id) < (SELECT created_at, file_id FROM files WHERE file_id = %(after)s))
ORDER BY created_at DESC, file_id DESC LIMIT %(limit)s
"""
"""One file of a key, or a page of them, the newest first."""

FILE_CONTENT = "SELECT sealed FROM files WHERE file_id = %s AND key_id = %s"

RESULTS = """
SELECT result FROM batch_lines WHERE batch_id = %s AND failed = %s AND result IS NOT NULL ORDER BY number
"""
"""What a file of a batch holds, line by line."""

DELETE_FILE = """
WITH gone AS (DELETE FROM files WHERE file_id = %s AND key_id = %s RETURNING file_id, batch_id, of_errors),
erased AS (UPDATE batch_lines l SET result = NULL FROM gone g WHERE l.batch_id = g.batch_id AND l.failed = g.of_errors)
SELECT file_id FROM gone
"""

FORGET_OLD_FILES = """
WITH old AS (DELETE FROM batches WHERE batch_id IN (
    SELECT batch_id FROM batches WHERE finished_at < now() - make_interval(secs => %(seconds)s) LIMIT 10))
DELETE FROM files WHERE file_id IN (SELECT file_id FROM files WHERE expires_at < now() LIMIT 10)
"""
"""A few at a time: their rows may be large."""

INSERT_BATCH = """
INSERT INTO batches (batch_id, account_id, key_id, endpoint, input_file_id, status, total, errors, sealed_metadata,
                     consumer_key, kid, wrapped_key, expires_at, finished_at)
SELECT %(batch_id)s, %(account_id)s, %(key_id)s, %(endpoint)s, %(input_file_id)s, %(status)s, %(total)s, %(errors)s,
       %(sealed_metadata)s, %(consumer_key)s, %(kid)s, %(wrapped_key)s, now() + make_interval(secs => %(seconds)s),
       CASE WHEN %(wrapped_key)s::bytea IS NULL THEN now() END
WHERE (SELECT count(*) FROM batches WHERE key_id = %(key_id)s AND finished_at IS NULL) < %(batches_max)s
RETURNING batch_id
"""
"""No row comes back when the key has as many unfinished ones as it may have."""

INSERT_BATCH_LINE = "INSERT INTO batch_lines (batch_id, number, sealed) VALUES (%s, %s, %s)"

FIND_BATCHES = """
SELECT batch_id, account_id, key_id, endpoint, input_file_id,
       (SELECT file_id FROM files f WHERE f.batch_id = b.batch_id AND NOT of_errors) AS output_file_id,
       (SELECT file_id FROM files f WHERE f.batch_id = b.batch_id AND of_errors) AS error_file_id,
       status, errors, created_at, expires_at, cancelling_at, finished_at, total,
       (SELECT count(*) FROM batch_lines l WHERE l.batch_id = b.batch_id AND state = 'done' AND NOT failed),
       (SELECT count(*) FROM batch_lines l WHERE l.batch_id = b.batch_id AND state = 'done' AND failed),
       sealed_metadata
FROM batches b WHERE key_id = %(key_id)s AND (%(batch_id)s::uuid IS NULL OR batch_id = %(batch_id)s)
    AND (%(after)s::uuid IS NULL
         OR (created_at, batch_id) < (SELECT created_at, batch_id FROM batches WHERE batch_id = %(after)s))
ORDER BY created_at DESC, batch_id DESC LIMIT %(limit)s
"""
"""One batch of a key, or a page of them, the newest first."""

CANCEL_BATCH = """
UPDATE batches SET status = 'cancelling', cancelling_at = now()
WHERE batch_id = %(batch_id)s AND key_id = %(key_id)s AND status = 'in_progress'
"""

TAKE_BATCHES = """
UPDATE batches b SET gateway_id = %(gateway_id)s
WHERE b.batch_id IN (
    SELECT c.batch_id FROM batches c
    WHERE c.finished_at IS NULL AND c.batch_id <> ALL(%(known)s::uuid[]) AND (c.gateway_id IS NULL
        OR c.gateway_id = %(gateway_id)s
        OR NOT EXISTS (SELECT FROM gateways g WHERE g.gateway_id = c.gateway_id AND g.lease_until > now()))
    ORDER BY c.created_at FOR UPDATE SKIP LOCKED LIMIT %(limit)s)
RETURNING batch_id, account_id, key_id, endpoint, kid, wrapped_key, consumer_key
"""
"""The oldest batches that no living gateway works on."""

BATCH_STATE = """
SELECT status, expires_at < now() FROM batches
WHERE batch_id = %(batch_id)s AND gateway_id = %(gateway_id)s AND finished_at IS NULL
"""
LINES_IN = """
SELECT number, tries, sealed, draft FROM batch_lines
WHERE batch_id = %s AND state = %s AND state <> 'done' ORDER BY number LIMIT %s
"""

BEGIN_LINE = """
UPDATE batch_lines SET state = 'running', tries = tries + 1, draft = NULL
WHERE batch_id = %(batch_id)s AND number = %(number)s AND state = 'waiting'
    AND EXISTS (SELECT FROM batches b WHERE b.batch_id = %(batch_id)s AND b.gateway_id = %(gateway_id)s)
RETURNING tries
"""
PUT_BACK_LINE = """
UPDATE batch_lines SET state = 'waiting', draft = NULL
WHERE batch_id = %(batch_id)s AND number = %(number)s AND state = 'running'
    AND EXISTS (SELECT FROM batches b WHERE b.batch_id = %(batch_id)s AND b.gateway_id = %(gateway_id)s)
RETURNING tries
"""
KEEP_DRAFT = """
UPDATE batch_lines SET draft = %(draft)s
WHERE batch_id = %(batch_id)s AND number = %(number)s AND state = 'running'
    AND EXISTS (SELECT FROM batches b WHERE b.batch_id = %(batch_id)s AND b.gateway_id = %(gateway_id)s)
RETURNING tries
"""
FINISH_LINE = """
UPDATE batch_lines SET state = 'done', failed = %(failed)s, result = %(result)s, result_bytes = %(result_bytes)s,
    sealed = NULL, draft = NULL
WHERE batch_id = %(batch_id)s AND number = %(number)s AND state <> 'done'
    AND EXISTS (SELECT FROM batches b WHERE b.batch_id = %(batch_id)s AND b.gateway_id = %(gateway_id)s)
RETURNING tries
"""
"""Each of these four changes a line for the one gateway that works on its batch."""

END_BATCH = """
UPDATE batches SET status = %(status)s, finished_at = now(), wrapped_key = NULL, gateway_id = NULL
WHERE batch_id = %(batch_id)s AND gateway_id = %(gateway_id)s AND finished_at IS NULL RETURNING batch_id
"""
ERASE_LINES = "UPDATE batch_lines SET sealed = NULL, draft = NULL WHERE batch_id = %(batch_id)s AND sealed IS NOT NULL"

MAKE_BATCH_FILE = """
INSERT INTO files (file_id, account_id, key_id, purpose, size_bytes, batch_id, of_errors, expires_at)
SELECT %(file_id)s, b.account_id, b.key_id, 'batch_output', sum(l.result_bytes), b.batch_id, %(of_errors)s,
       now() + make_interval(secs => %(seconds)s)
FROM batches b JOIN batch_lines l USING (batch_id)
WHERE b.batch_id = %(batch_id)s AND l.failed = %(of_errors)s AND l.result IS NOT NULL
GROUP BY b.batch_id
"""
"""A file that is a view of the results of its batch; none when there are none."""

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

LIVING_GATEWAYS = "SELECT gateway_id::text FROM gateways WHERE lease_until > now() ORDER BY gateway_id"

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

# Whoever changes claims locks their machines' rows first, so that two of them never wait for each other.

ANNOUNCE_MACHINES = """
WITH told AS (
    SELECT * FROM unnest(%(sessions)s::uuid[], %(gateways)s::uuid[], %(machines)s::text[], %(accounts)s::text[],
                         %(serials)s::text[], %(trusts)s::smallint[], %(capacities)s::int[], %(routables)s::boolean[],
                         %(snapshots)s::bytea[])
    AS told (session_id, gateway_id, machine_id, account_id, serial, trust, capacity, routable, snapshot)
), kept AS (
    INSERT INTO fleet (session_id, gateway_id, machine_id, account_id, serial, capacity, routable, snapshot, busy)
    SELECT session_id, gateway_id, machine_id, account_id, serial, capacity, routable, snapshot,
           (SELECT count(*) FROM claims c WHERE c.session_id = told.session_id)
    FROM told ORDER BY session_id
    ON CONFLICT (session_id) DO UPDATE SET gateway_id = excluded.gateway_id, account_id = excluded.account_id,
        capacity = excluded.capacity, routable = excluded.routable, snapshot = excluded.snapshot, updated_at = now()
    RETURNING session_id, machine_id, capacity, routable, busy, xmax = 0 AS is_new
), offered AS (
    INSERT INTO fleet_models (session_id, model, gateway_id, trust, routable, capacity, busy, requests_model,
                              output_tokens_model, short_ms, usual_ms, long_ms, reading_ms, queue_ms, in_flight,
                              room_gb, put_aside_until)
    SELECT k.session_id, m.model, t.gateway_id, t.trust, m.routable, k.capacity, k.busy, c.requests, c.output_tokens,
           m.short_ms, m.usual_ms, m.long_ms, m.reading_ms, m.queue_ms, m.in_flight, m.room_gb,
           to_timestamp(CASE WHEN k.is_new THEN coalesce(
               (SELECT (convert_from(h.health, 'UTF8')::jsonb ->> 'put_aside_until')::float8
                FROM machine_health h WHERE h.machine_id = k.machine_id), 0.0) ELSE m.put_aside_until END)
    FROM unnest(%(model_sessions)s::uuid[], %(models)s::text[], %(model_routables)s::boolean[], %(short_ms)s::real[],
                %(usual_ms)s::real[], %(long_ms)s::real[], %(reading_ms)s::real[], %(queue_ms)s::real[],
                %(in_flight)s::int[], %(room_gb)s::real[], %(put_aside_until)s::float8[])
         AS m (session_id, model, routable, short_ms, usual_ms, long_ms, reading_ms, queue_ms, in_flight, room_gb,
               put_aside_until)
    JOIN kept k USING (session_id) JOIN told t USING (session_id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS requests, coalesce(sum(output_tokens), 0) AS output_tokens
        FROM claims WHERE session_id = k.session_id AND model = m.model
    ) c
    ON CONFLICT (session_id, model) DO UPDATE SET gateway_id = excluded.gateway_id, trust = excluded.trust,
        routable = excluded.routable, capacity = excluded.capacity, busy = excluded.busy,
        short_ms = excluded.short_ms, usual_ms = excluded.usual_ms, long_ms = excluded.long_ms,
        reading_ms = excluded.reading_ms,
        queue_ms = excluded.queue_ms, in_flight = excluded.in_flight, room_gb = excluded.room_gb,
        (requests_model, output_tokens_model) = (
            SELECT CASE WHEN is_new THEN excluded.requests_model ELSE fleet_models.requests_model END,
                   CASE WHEN is_new THEN excluded.output_tokens_model ELSE fleet_models.output_tokens_model END
            FROM kept WHERE session_id = excluded.session_id)
    WHERE (fleet_models.gateway_id, fleet_models.trust, fleet_models.routable, fleet_models.capacity,
           fleet_models.busy, fleet_models.short_ms, fleet_models.usual_ms, fleet_models.long_ms,
           fleet_models.reading_ms, fleet_models.queue_ms, fleet_models.in_flight, fleet_models.room_gb)
        IS DISTINCT FROM (excluded.gateway_id, excluded.trust, excluded.routable, excluded.capacity, excluded.busy,
           excluded.short_ms, excluded.usual_ms, excluded.long_ms, excluded.reading_ms, excluded.queue_ms,
           excluded.in_flight, excluded.room_gb)
        OR EXISTS (SELECT FROM kept WHERE session_id = excluded.session_id AND is_new)
)
SELECT session_id, greatest(capacity - busy, 0) FROM kept WHERE routable
"""
"""Keep many connected machines true; returns the free slots of those that may be routed to. Counters move only with
claims, so they are left alone unless the machine is new here. What did not change is not written, because every row
that is costs an entry in each index. Until when a machine is put aside is written by whoever saw it fail, which may be
another gateway than its own; what that one wrote counts for a machine that is new here too. The models of a session
never become fewer. A machine that may be given a slot is routable, and so is what it offers to everybody: one that
serves its owner alone is, and none of its models."""

TOUCH_MACHINES = """
WITH held AS MATERIALIZED (
    SELECT session_id FROM fleet WHERE session_id = ANY(%s::uuid[]) ORDER BY session_id FOR UPDATE
)
UPDATE fleet f SET updated_at = now() FROM held WHERE f.session_id = held.session_id RETURNING f.session_id
"""
"""Machines that are there, and about which nothing changed; returns those that the table knows."""

WITHDRAW_MACHINE = """
WITH gone AS (DELETE FROM fleet WHERE session_id = %(session_id)s RETURNING session_id),
offers AS (DELETE FROM fleet_models WHERE session_id = %(session_id)s AND (SELECT count(*) FROM gone) >= 0)
DELETE FROM claims WHERE session_id = %(session_id)s AND (SELECT count(*) FROM gone) >= 0
"""

CHEAPEST_FOR_SHORT = """
SELECT f.snapshot, c.busy, c.requests_model, c.output_tokens_model, h.health
FROM unnest(%(trusts)s::smallint[]) AS wanted (trust)
CROSS JOIN LATERAL (
    SELECT m.session_id, m.busy, m.requests_model, m.output_tokens_model FROM fleet_models m
    WHERE m.model = %(model)s AND m.trust = wanted.trust AND m.routable AND m.busy < m.capacity
        AND (%(gateway_id)s::uuid IS NULL OR m.gateway_id = %(gateway_id)s)
        AND m.room_gb >= %(room_gb)s AND m.put_aside_until <= now()
    ORDER BY m.short_ms + m.queue_ms * greatest(m.busy, m.in_flight) LIMIT 24
) c JOIN fleet f USING (session_id) LEFT JOIN machine_health h USING (machine_id)
"""
"""Of each trust level the machines that an index puts first for a short request, with what is in flight on each and
how they fared."""

CHEAPEST_FOR_USUAL = """
SELECT f.snapshot, c.busy, c.requests_model, c.output_tokens_model, h.health
FROM unnest(%(trusts)s::smallint[]) AS wanted (trust)
CROSS JOIN LATERAL (
    SELECT m.session_id, m.busy, m.requests_model, m.output_tokens_model FROM fleet_models m
    WHERE m.model = %(model)s AND m.trust = wanted.trust AND m.routable AND m.busy < m.capacity
        AND (%(gateway_id)s::uuid IS NULL OR m.gateway_id = %(gateway_id)s)
        AND m.room_gb >= %(room_gb)s AND m.put_aside_until <= now()
    ORDER BY m.usual_ms + m.queue_ms * greatest(m.busy, m.in_flight) LIMIT 24
) c JOIN fleet f USING (session_id) LEFT JOIN machine_health h USING (machine_id)
"""
"""The same for a request of the usual size."""

CHEAPEST_FOR_LONG = """
SELECT f.snapshot, c.busy, c.requests_model, c.output_tokens_model, h.health
FROM unnest(%(trusts)s::smallint[]) AS wanted (trust)
CROSS JOIN LATERAL (
    SELECT m.session_id, m.busy, m.requests_model, m.output_tokens_model FROM fleet_models m
    WHERE m.model = %(model)s AND m.trust = wanted.trust AND m.routable AND m.busy < m.capacity
        AND (%(gateway_id)s::uuid IS NULL OR m.gateway_id = %(gateway_id)s)
        AND m.room_gb >= %(room_gb)s AND m.put_aside_until <= now()
    ORDER BY m.long_ms + m.queue_ms * greatest(m.busy, m.in_flight) LIMIT 24
) c JOIN fleet f USING (session_id) LEFT JOIN machine_health h USING (machine_id)
"""
"""The same for a long one."""

CHEAPEST_FOR_READING = """
SELECT f.snapshot, c.busy, c.requests_model, c.output_tokens_model, h.health
FROM unnest(%(trusts)s::smallint[]) AS wanted (trust)
CROSS JOIN LATERAL (
    SELECT m.session_id, m.busy, m.requests_model, m.output_tokens_model FROM fleet_models m
    WHERE m.model = %(model)s AND m.trust = wanted.trust AND m.routable AND m.busy < m.capacity
        AND (%(gateway_id)s::uuid IS NULL OR m.gateway_id = %(gateway_id)s)
        AND m.room_gb >= %(room_gb)s AND m.put_aside_until <= now()
    ORDER BY m.reading_ms + m.queue_ms * greatest(m.busy, m.in_flight) LIMIT 24
) c JOIN fleet f USING (session_id) LEFT JOIN machine_health h USING (machine_id)
"""
"""The same for a long prompt with a short answer."""

MACHINES_FOR = """
SELECT f.snapshot, m.busy, m.requests_model, m.output_tokens_model, h.health
FROM fleet f JOIN fleet_models m USING (session_id) LEFT JOIN machine_health h USING (machine_id)
WHERE m.model = %(model)s AND (m.routable OR (f.routable AND f.account_id = %(own_account)s::text))
    AND (%(gateway_id)s::uuid IS NULL OR f.gateway_id = %(gateway_id)s)
    AND (%(account_id)s::text IS NULL OR f.account_id = %(account_id)s)
    AND (%(allowed)s::text[] IS NULL OR f.machine_id = ANY(%(allowed)s) OR f.serial = ANY(%(allowed)s))
    AND (%(session_id)s::uuid IS NULL OR f.session_id = %(session_id)s)
LIMIT 20000
"""
"""All machines that offer a model to everybody, and those that only ``own_account`` may ask; of one account, of those
that a request names, or one session: where the index does not help, or did not suffice."""

CLAIM_SLOT = """
WITH slot AS (
    UPDATE fleet SET busy = busy + 1
    WHERE session_id = %(session_id)s AND routable AND busy < capacity AND (busy = 0 OR NOT %(alone)s)
    RETURNING session_id, busy
), offers AS (
    UPDATE fleet_models m SET busy = slot.busy,
        requests_model = requests_model + CASE WHEN model = %(model)s THEN 1 ELSE 0 END,
        output_tokens_model = output_tokens_model
            + CASE WHEN model = %(model)s THEN %(output_tokens)s::bigint ELSE 0 END
    FROM slot WHERE m.session_id = slot.session_id
), served AS (
    DELETE FROM waiters WHERE request_id = %(request_id)s AND EXISTS (SELECT FROM slot)
)
INSERT INTO claims (request_id, attempt, session_id, account_id, model, output_tokens, gateway_id, expires_at)
SELECT %(request_id)s, %(attempt)s, session_id, %(account_id)s, %(model)s, %(output_tokens)s, %(gateway_id)s,
       now() + make_interval(secs => %(seconds)s)
FROM slot RETURNING session_id
"""
"""Take one slot, or none; ``alone`` only of a machine that does nothing else. Counters, claim and the end of waiting
go together; a claim that exists undoes it all."""

RELEASE_CLAIMS = """
WITH wanted AS (
    SELECT request_id, attempt FROM unnest(%(request_ids)s::uuid[], %(attempts)s::int[]) AS given (request_id, attempt)
), held AS (
    SELECT f.session_id FROM fleet f
    WHERE f.session_id IN (SELECT c.session_id FROM claims c JOIN wanted USING (request_id, attempt))
    ORDER BY f.session_id FOR UPDATE OF f
), gone AS (
    DELETE FROM claims c USING wanted w
    WHERE c.request_id = w.request_id AND c.attempt = w.attempt AND (SELECT count(*) FROM held) >= 0
    RETURNING c.session_id, c.model, c.output_tokens, extract(epoch FROM now() - c.claimed_at)::float8 AS seconds
), freed AS (
    UPDATE fleet f SET busy = f.busy - g.slots
    FROM (SELECT session_id, count(*) AS slots FROM gone GROUP BY session_id) g WHERE f.session_id = g.session_id
    RETURNING f.session_id, f.busy
), offers AS (
    UPDATE fleet_models m SET busy = freed.busy,
        requests_model = m.requests_model - (
            SELECT count(*) FROM gone g WHERE (g.session_id, g.model) = (m.session_id, m.model)),
        output_tokens_model = m.output_tokens_model - (
            SELECT coalesce(sum(g.output_tokens), 0) FROM gone g
            WHERE (g.session_id, g.model) = (m.session_id, m.model))
    FROM freed WHERE m.session_id = freed.session_id RETURNING m.model
)
SELECT gone.model, gone.seconds, ARRAY(SELECT session_id FROM freed), ARRAY(SELECT DISTINCT model FROM offers)
FROM gone
"""
"""Give slots back; giving one back twice does nothing. Returns for each its model and for how long it was taken, and
with each the machines that have a free slot now, and the models that these offer."""

CLAIM_OF = "SELECT session_id FROM claims WHERE request_id = %s AND attempt = %s"

MODEL_OFFERS = """
SELECT f.snapshot FROM fleet f
WHERE f.routable AND (%(gateway_id)s::uuid IS NULL OR f.gateway_id = %(gateway_id)s)
    AND EXISTS (
    SELECT FROM fleet_models m WHERE m.session_id = f.session_id AND (%(model)s::text IS NULL OR m.model = %(model)s)
        AND (m.routable OR f.account_id = %(own_account)s::text))
"""
"""The machines of one gateway or of all that everybody may ask, and those that ``own_account`` may: all of them, or
those that offer one model."""

IDLE_FOR_MODEL = """
SELECT FROM fleet_models m JOIN fleet f USING (session_id)
WHERE m.model = %(model)s AND m.routable AND f.busy = 0 AND m.in_flight = 0
    AND m.trust >= %(trust)s AND m.put_aside_until <= now()
    AND (%(gateway_id)s::uuid IS NULL OR m.gateway_id = %(gateway_id)s)
    AND NOT EXISTS (SELECT FROM waiters w WHERE w.model = %(model)s AND w.deadline > now())
LIMIT 1
"""
"""Whether a trusted machine in good health has nothing to do, for a model that nobody waits for."""

ROOM_TO_SPARE = """
SELECT NOT EXISTS (SELECT FROM waiters WHERE model = %(model)s) AND coalesce(sum(free), 0) >= 2
FROM (SELECT capacity - busy AS free FROM fleet_models
      WHERE model = %(model)s AND routable AND busy < capacity AND put_aside_until <= now() LIMIT 2) AS free_slots
"""
"""Whether a model has two free slots and nobody waits for it."""

MODEL_SUPPLY = """
SELECT count(*)::int, count(*) FILTER (WHERE m.put_aside_until <= now())::int, coalesce(sum(m.capacity), 0)::int,
       (SELECT slot_seconds FROM model_demand WHERE model = %(model)s)
FROM fleet_models m
WHERE m.model = %(model)s
    AND (m.routable AND m.trust = ANY(%(trusts)s)
         OR %(own_account)s::text IS NOT NULL AND m.trust = ANY(%(own_trusts)s) AND EXISTS (
             SELECT FROM fleet f
             WHERE f.session_id = m.session_id AND f.routable AND f.account_id = %(own_account)s))
    AND (%(gateway_id)s::uuid IS NULL OR m.gateway_id = %(gateway_id)s)
    AND (%(account_id)s::text IS NULL AND %(allowed)s::text[] IS NULL OR EXISTS (
        SELECT FROM fleet f WHERE f.session_id = m.session_id
            AND (%(account_id)s::text IS NULL OR f.account_id = %(account_id)s)
            AND (%(allowed)s::text[] IS NULL OR f.machine_id = ANY(%(allowed)s) OR f.serial = ANY(%(allowed)s))))
"""
"""How many machines offer a model to whoever asks, busy or not, how many of them are healthy, their slots together, and
for how long a request lately took one."""

# --- how machines fare -----------------------------------------------------------------------------------------------

MEET_MACHINE = """
WITH older AS (
    UPDATE fleet SET routable = false
    WHERE machine_id = %(machine_id)s AND session_id <> %(session_id)s AND routable RETURNING session_id
), offers AS (
    UPDATE fleet_models m SET routable = false FROM older WHERE m.session_id = older.session_id
)
INSERT INTO machine_health (machine_id, account_id, chip, machine_model, models, health)
VALUES (%(machine_id)s, %(account_id)s, %(chip)s, %(machine_model)s, %(models)s, %(neutral)s)
ON CONFLICT (machine_id) DO UPDATE SET account_id = excluded.account_id, chip = excluded.chip,
    machine_model = excluded.machine_model, models = excluded.models, last_seen_at = now()
RETURNING health
"""
"""A machine proved who it is; returns how it fared so far. A connection that it had before, on whichever gateway, gets
no more work: most likely nobody is at its other end, and its gateway finds that out only after a while."""

LOCK_HEALTH = """
SELECT machine_id, health FROM machine_health WHERE machine_id = ANY(%s) ORDER BY machine_id FOR UPDATE
"""

WRITE_HEALTH = """
UPDATE machine_health h SET health = seen.health, last_seen_at = greatest(h.last_seen_at, to_timestamp(seen.at))
FROM unnest(%s::text[], %s::bytea[], %s::float8[]) AS seen (machine_id, health, at)
WHERE h.machine_id = seen.machine_id
"""

PUT_ASIDE = """
UPDATE fleet_models m SET put_aside_until = to_timestamp(aside.until)
FROM unnest(%s::text[], %s::float8[]) AS aside (machine_id, until) JOIN fleet f USING (machine_id)
WHERE m.session_id = f.session_id
"""
"""Let an index pass over machines for a while, or no longer."""

MACHINES_OF_ACCOUNT = """
SELECT h.machine_id, h.account_id, h.chip, h.machine_model, h.models, h.last_seen_at, h.health, s.snapshot,
       s.updated_at,
       (SELECT json_agg(json_build_array(m.model, m.busy, m.requests_model, m.output_tokens_model))
        FROM fleet_models m WHERE m.session_id = s.session_id),
       (SELECT json_object_agg(d.model, extract(epoch FROM d.asked_at)) FROM model_demand d
        WHERE d.model = ANY(h.models) AND d.asked_at IS NOT NULL)
FROM machine_health h
LEFT JOIN LATERAL (
    SELECT f.session_id, f.snapshot, f.updated_at FROM fleet f WHERE f.machine_id = h.machine_id
    ORDER BY f.updated_at DESC LIMIT 1
) s ON true
WHERE h.account_id = %(account_id)s AND (%(machine_id)s::text IS NULL OR h.machine_id = %(machine_id)s)
ORDER BY h.machine_id LIMIT 1000
"""
"""The machines of an account with their connection, if there is one, what is in flight on it, and when each model was
last asked for."""

FLEET_MACHINES = """
SELECT coalesce(h.machine_id, f.machine_id), coalesce(h.account_id, f.account_id), coalesce(h.chip, ''),
       coalesce(h.machine_model, ''), offered.models, coalesce(h.last_seen_at, f.updated_at), h.health, f.snapshot,
       f.updated_at,
       (SELECT json_agg(json_build_array(m.model, m.busy, m.requests_model, m.output_tokens_model))
        FROM fleet_models m WHERE m.session_id = f.session_id),
       (SELECT json_object_agg(d.model, extract(epoch FROM d.asked_at)) FROM model_demand d
        WHERE d.model = ANY(offered.models) AND d.asked_at IS NOT NULL)
FROM (SELECT * FROM fleet JOIN gateways g USING (gateway_id) WHERE g.lease_until > now()) f
FULL JOIN machine_health h ON h.machine_id = f.machine_id
CROSS JOIN LATERAL (
    SELECT coalesce(h.models, ARRAY(SELECT model FROM fleet_models WHERE session_id = f.session_id)) AS models
) offered
ORDER BY f.session_id IS NULL, coalesce(f.updated_at, h.last_seen_at) DESC, 1 LIMIT %s
"""
"""The same for all machines: those that are connected to a living gateway first, then those that were here last."""

QUEUES = """
SELECT w.model, count(*)::int, count(DISTINCT w.account_id)::int,
       extract(epoch FROM now() - min(w.enqueued_at))::float8, max(d.slot_seconds)
FROM waiters w LEFT JOIN model_demand d USING (model) WHERE w.deadline > now() GROUP BY w.model ORDER BY w.model
"""
"""The queues that are not empty: requests, accounts, seconds that the oldest waits, and for how long a request lately
took a slot."""

NOTE_DEMAND = """
INSERT INTO model_demand (model, asked_at) VALUES (%s, now())
ON CONFLICT (model) DO UPDATE SET asked_at = excluded.asked_at
"""
NOTE_SLOT_SECONDS = """
INSERT INTO model_demand (model, slot_seconds)
SELECT * FROM unnest(%s::text[], %s::float8[]) AS took (model, seconds) ORDER BY model
ON CONFLICT (model) DO UPDATE
SET slot_seconds = coalesce(model_demand.slot_seconds * 0.8 + excluded.slot_seconds * 0.2, excluded.slot_seconds)
"""
"""For how long requests lately took a slot, the newest counting most."""

# --- the queue -------------------------------------------------------------------------------------------------------

LOCK_QUEUE = "SELECT pg_advisory_xact_lock(7224318, hashtext(%s))"
"""One request at a time looks at the queue of a model and joins it; else several would take its last place."""

PARK_WAITER = """
INSERT INTO waiters (request_id, attempt, account_id, model, gateway_id, turn, deadline, message)
SELECT %(request_id)s, %(attempt)s, %(account_id)s, %(model)s, %(gateway_id)s,
       1 + greatest(
           coalesce((SELECT turn FROM model_demand WHERE model = %(model)s), 0)
               + (SELECT count(*) FROM claims WHERE account_id = %(account_id)s AND model = %(model)s)
               + (SELECT count(*) FROM waiters
                  WHERE account_id = %(account_id)s AND model = %(model)s AND deadline > now()),
           (SELECT max(turn) FROM waiters
            WHERE account_id = %(account_id)s AND model = %(model)s AND deadline > now())),
       now() + make_interval(secs => %(seconds)s), %(message)s
WHERE (SELECT count(*) FROM waiters WHERE model = %(model)s AND deadline > now() AND request_id <> %(request_id)s)
      < %(depth_max)s AND EXISTS (SELECT FROM open_requests WHERE request_id = %(request_id)s)
ON CONFLICT (request_id, attempt) DO UPDATE SET woken_at = NULL
RETURNING turn, enqueued_at, xmax = 0
"""
"""Let a request wait for a slot, or keep its place. Its turn comes later by each request of its account that is served
or waits already, so accounts share what comes free, and after all of those that wait, so that each account keeps its
own order. Returns whether it is new there. No row comes back when the queue
of its model is full, or the request has ended."""

SHED_WAITER = """
WITH shares AS (
    SELECT account_id, count(*) AS waiting FROM waiters WHERE model = %(model)s AND deadline > now() GROUP BY account_id
), last AS (
    SELECT w.request_id, w.attempt FROM waiters w JOIN shares s USING (account_id)
    WHERE w.model = %(model)s AND w.deadline > now() AND w.woken_at IS NULL
        AND s.waiting > 1 + coalesce((SELECT waiting FROM shares WHERE account_id = %(account_id)s), 0)
        AND EXISTS (SELECT FROM open_requests WHERE request_id = %(request_id)s)
    ORDER BY s.waiting DESC, w.turn DESC, w.enqueued_at DESC FOR UPDATE OF w SKIP LOCKED LIMIT 1
)
DELETE FROM waiters w USING last l WHERE w.request_id = l.request_id AND w.attempt = l.attempt RETURNING w.message
"""
"""Make room in a full queue: the account with the most requests in it gives up its last one, when it still keeps as
many as the account that comes."""

PLACE_IN_QUEUE = """
SELECT count(*)::int FROM waiters
WHERE model = %s AND deadline > now() AND (turn, enqueued_at) <= (%s, %s)
"""
"""How many are served before, and this one."""

WHO_WAITS = """
WITH lines AS (
    SELECT message, enqueued_at, row_number() OVER (PARTITION BY model ORDER BY turn, enqueued_at) AS place
    FROM waiters
    WHERE model = ANY(%(models)s) AND (%(gateway_id)s::uuid IS NULL OR gateway_id = %(gateway_id)s)
        AND woken_at IS NULL AND deadline > now()
)
SELECT message FROM lines ORDER BY place, enqueued_at LIMIT %(count)s
"""
"""The requests that sleep, of one gateway or of all, in their turn: the first of each model's queue, the oldest of
those first."""

VACANCIES = """
SELECT f.snapshot, f.busy, h.health,
       (SELECT json_object_agg(m.model, m.requests_model) FROM fleet_models m WHERE m.session_id = f.session_id)
FROM fleet f LEFT JOIN machine_health h USING (machine_id)
WHERE f.session_id = ANY(%s::uuid[]) AND f.routable AND f.busy < f.capacity ORDER BY f.session_id
"""
"""Those of some machines that have a free slot, and what is in flight on them for each model."""

WAKE_THESE = """
WITH wanted AS (
    SELECT * FROM unnest(%s::uuid[], %s::int[]) WITH ORDINALITY AS given (request_id, attempt, place)
), next AS (
    SELECT w.request_id, w.attempt, g.place FROM waiters w JOIN wanted g USING (request_id, attempt)
    WHERE w.woken_at IS NULL FOR UPDATE OF w SKIP LOCKED
), woken AS (
    UPDATE waiters w SET woken_at = now() FROM next n
    WHERE w.request_id = n.request_id AND w.attempt = n.attempt RETURNING w.message, w.model, w.turn, n.place
), reached AS (
    INSERT INTO model_demand (model, turn) SELECT model, max(turn) FROM woken GROUP BY model ORDER BY model
    ON CONFLICT (model) DO UPDATE SET turn = greatest(model_demand.turn, excluded.turn)
)
SELECT message FROM woken ORDER BY place
"""
"""Wake these requests, unless somebody else just did. They keep their place until they are dispatched; new ones queue
up behind the turn that was reached."""

WAKE_WAITER = """
WITH lines AS (
    SELECT request_id, attempt, enqueued_at, row_number() OVER (PARTITION BY model ORDER BY turn, enqueued_at) AS place
    FROM waiters
    WHERE model = ANY(%(models)s) AND (%(gateway_id)s::uuid IS NULL OR gateway_id = %(gateway_id)s)
        AND woken_at IS NULL AND deadline > now()
), next AS (
    SELECT w.request_id, w.attempt, l.place FROM waiters w JOIN lines l USING (request_id, attempt)
    WHERE w.woken_at IS NULL ORDER BY l.place, l.enqueued_at FOR UPDATE OF w SKIP LOCKED LIMIT %(count)s
), woken AS (
    UPDATE waiters w SET woken_at = now() FROM next n
    WHERE w.request_id = n.request_id AND w.attempt = n.attempt
    RETURNING w.message, w.model, w.turn, n.place, w.enqueued_at
), reached AS (
    INSERT INTO model_demand (model, turn) SELECT model, max(turn) FROM woken GROUP BY model ORDER BY model
    ON CONFLICT (model) DO UPDATE SET turn = greatest(model_demand.turn, excluded.turn)
)
SELECT message FROM woken ORDER BY place, enqueued_at
"""
"""Wake the requests whose turn it is, whether something is free for them or not."""

ANYBODY_WAITS = "SELECT FROM waiters WHERE model = %s AND deadline > now() LIMIT 1"

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
    RETURNING c.session_id, c.model, c.output_tokens
), stale_waiters AS (
    DELETE FROM waiters WHERE deadline < now() - interval '60 seconds'
), lost_wakes AS (
    UPDATE waiters SET woken_at = NULL
    WHERE woken_at < now() - interval '5 seconds' AND deadline >= now() - interval '60 seconds'
), freed AS (
    UPDATE fleet f SET busy = f.busy - s.n
    FROM (SELECT session_id, count(*)::int AS n FROM stale_claims GROUP BY session_id) s
    WHERE f.session_id = s.session_id AND f.session_id NOT IN (SELECT session_id FROM lapsed)
    RETURNING f.session_id, f.busy
), freed_offers AS (
    UPDATE fleet_models m SET busy = freed.busy,
        requests_model = m.requests_model - (SELECT count(*) FROM stale_claims s
                                             WHERE s.session_id = m.session_id AND s.model = m.model),
        output_tokens_model = m.output_tokens_model - (SELECT coalesce(sum(s.output_tokens), 0) FROM stale_claims s
                                                       WHERE s.session_id = m.session_id AND s.model = m.model)
    FROM freed WHERE m.session_id = freed.session_id
), gone_offers AS (
    DELETE FROM fleet_models m WHERE m.session_id IN (SELECT session_id FROM lapsed)
        OR NOT EXISTS (SELECT FROM fleet f WHERE f.session_id = m.session_id)
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
GRANT_GROW = "GRANT SELECT, INSERT, UPDATE ON {table} TO {role}"
GRANT_MOVE = "GRANT SELECT, UPDATE ON {table} TO {role}"
GRANT_WRITE = "GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}"
GRANT_SEQUENCES = "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"
