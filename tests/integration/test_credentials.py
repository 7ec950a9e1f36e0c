"""Keys and tokens on a real database: only their hashes are there, and a revocation holds from that moment on."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator

import psycopg
import pytest

from adapters.postgres import credentials
from adapters.postgres.credentials import StoredCredentials
from adapters.postgres.pool import make_async_pool
from domain.errors import ServiceUnavailable
from domain.keys import ROLES
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]


@pytest.fixture
async def stored(ledger: str) -> AsyncGenerator[StoredCredentials, None]:
    async with make_async_pool(ledger, size_max=2) as pool:
        yield StoredCredentials(pool)


def everything_stored(look: Connection) -> str:
    """Every value of every table, as one text."""
    tables = look.execute("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return "\n".join(str(row) for (table,) in tables for row in look.execute(f"SELECT t::text FROM {table} t"))


async def account_and_key(stored: StoredCredentials, secret: str) -> tuple[str, str] | None:
    found = await stored.find_api_key(secret)
    return found[:2] if found else None


async def test_a_key_is_found_with_its_account_and_its_id(stored: StoredCredentials, look: Connection) -> None:
    first = credentials.create_api_key(look, "acct-1", "laptop")
    second = credentials.create_api_key(look, "acct-2", "server")

    assert await account_and_key(stored, first.secret) == ("acct-1", first.key_id)
    assert await account_and_key(stored, second.secret) == ("acct-2", second.key_id)


async def test_nothing_but_the_secret_itself_finds_a_key(stored: StoredCredentials, look: Connection) -> None:
    key = credentials.create_api_key(look, "acct-1", "laptop")
    digest = hashlib.sha256(key.secret.encode()).hexdigest()
    assert look.execute("SELECT key_hash FROM api_keys").fetchall() == [(digest,)]

    for token in (
        "",
        digest,
        key.key_id,
        key.label,
        key.secret[:-1],
        key.secret + "0",
        key.secret.upper(),
        f" {key.secret}",
        key.secret.removeprefix(credentials.API_KEY_PREFIX),
        "%",
        "' OR true --",
    ):
        assert await stored.find_api_key(token) is None


@pytest.mark.parametrize("by", ["id", "secret"])
async def test_a_revoked_key_is_refused_at_once_and_others_are_not(
    stored: StoredCredentials, look: Connection, by: str
) -> None:
    revoked = credentials.create_api_key(look, "acct-1", "old")
    kept = credentials.create_api_key(look, "acct-1", "new")
    for _ in range(3):
        assert await stored.find_api_key(revoked.secret) is not None

    assert credentials.revoke_api_key(look, revoked.key_id if by == "id" else revoked.secret) is True

    assert await stored.find_api_key(revoked.secret) is None
    assert await account_and_key(stored, kept.secret) == ("acct-1", kept.key_id)
    assert credentials.revoke_api_key(look, revoked.key_id) is False
    assert credentials.revoke_api_key(look, revoked.secret) is False


async def test_revoking_what_does_not_exist_revokes_nothing(stored: StoredCredentials, look: Connection) -> None:
    key = credentials.create_api_key(look, "acct-1", "laptop")
    digest = hashlib.sha256(key.secret.encode()).hexdigest()

    for nothing in ("", "key_0000000000000000", digest, key.label, "%"):
        assert credentials.revoke_api_key(look, nothing) is False

    assert await stored.find_api_key(key.secret) is not None


async def test_the_time_of_a_revocation_is_kept(look: Connection) -> None:
    key = credentials.create_api_key(look, "acct-1", "laptop")
    credentials.revoke_api_key(look, key.key_id)
    first = look.execute("SELECT revoked_at FROM api_keys").fetchone()

    credentials.revoke_api_key(look, key.key_id)

    assert look.execute("SELECT revoked_at FROM api_keys").fetchone() == first


async def test_a_provider_token_is_found_with_its_account(stored: StoredCredentials, look: Connection) -> None:
    token = credentials.create_provider_token(look, "acct-provider")

    assert token.startswith("eigeninference-pt-")
    assert await stored.find_provider_token(token) == "acct-provider"
    for other in ("", token[:-1], hashlib.sha256(token.encode()).hexdigest()):
        assert await stored.find_provider_token(other) is None


async def test_a_revoked_provider_token_is_refused_at_once(stored: StoredCredentials, look: Connection) -> None:
    token = credentials.create_provider_token(look, "acct-provider")
    assert await stored.find_provider_token(token) is not None

    look.execute("UPDATE provider_tokens SET revoked_at = now()")

    assert await stored.find_provider_token(token) is None


async def test_keys_and_tokens_do_not_stand_in_for_each_other(stored: StoredCredentials, look: Connection) -> None:
    key = credentials.create_api_key(look, "acct-1", "laptop")
    token = credentials.create_provider_token(look, "acct-1")

    assert await stored.find_provider_token(key.secret) is None
    assert await stored.find_api_key(token) is None


def test_no_secret_stands_in_any_table(look: Connection) -> None:
    keys = [credentials.create_api_key(look, f"acct-{at}", "name") for at in range(5)]
    tokens = [credentials.create_provider_token(look, "acct-provider") for _ in range(5)]
    credentials.revoke_api_key(look, keys[0].secret)

    stored = everything_stored(look)

    assert all(key.key_id in stored for key in keys)  # the search sees what is there
    for secret in (*(key.secret for key in keys), *tokens):
        random = secret.rpartition("-")[2]
        assert len(random) == 64
        # Not even a part that would make guessing the rest easier; a label shows four characters at each end.
        assert not any(random[at : at + 8] in stored for at in range(len(random) - 7))


def test_secrets_differ_and_labels_show_only_their_ends(look: Connection) -> None:
    keys = [credentials.create_api_key(look, "acct", "name") for _ in range(20)]

    assert len({key.secret for key in keys}) == len({key.key_id for key in keys}) == 20
    for key in keys:
        random = key.secret.removeprefix("eigeninference-")
        assert key.label == f"eigeninference-{random[:4]}…{random[-4:]}"


async def test_a_database_that_is_gone_is_reported_as_such(ledger: str) -> None:
    async with make_async_pool(ledger, size_max=1) as pool:
        stored = StoredCredentials(pool)
        assert await stored.find_api_key("nothing") is None
    # The pool is closed, as at the end of a gateway.
    with pytest.raises(ServiceUnavailable):
        await stored.find_api_key("nothing")


async def test_a_lookup_survives_a_killed_connection(stored: StoredCredentials, look: Connection) -> None:
    key = credentials.create_api_key(look, "acct", "name")
    assert await stored.find_api_key(key.secret) is not None
    look.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    answers = []
    for _ in range(3):
        try:
            answers.append(await account_and_key(stored, key.secret))
        except ServiceUnavailable:
            answers.append(None)

    assert answers[-1] == ("acct", key.key_id)


def test_two_keys_of_one_hash_cannot_be(look: Connection) -> None:
    key = credentials.create_api_key(look, "acct", "name")

    with pytest.raises(psycopg.errors.UniqueViolation):
        look.execute(
            "INSERT INTO api_keys (key_hash, key_id, label, name, account_id) VALUES (%s, 'key_2', '', '', 'thief')",
            (credentials.hash_of(key.secret),),
        )


async def test_a_key_has_the_role_it_was_made_with(stored: StoredCredentials, look: Connection) -> None:
    for role in ROLES:
        key = credentials.create_api_key(look, "acct", "name", role)
        found = await stored.find_api_key(key.secret)
        assert found is not None
        assert found == credentials.find_api_key(look, key.secret)
        assert (found.account_id, found.key_id, found.key.role) == ("acct", key.key_id, role)
    with pytest.raises(psycopg.errors.CheckViolation):
        look.execute("UPDATE api_keys SET role = 'owner'")


async def test_consumers_keys_alone_have_scopes(stored: StoredCredentials, look: Connection) -> None:
    for role, scopes in (("consumer", ("inference",)), ("auditor", ()), ("admin", ())):
        found = await stored.find_api_key(credentials.create_api_key(look, "acct", "name", role).secret)
        assert found is not None
        assert found.key.scopes == scopes
    with pytest.raises(psycopg.errors.CheckViolation):
        credentials.create_api_key(look, "acct", "name", "auditor", ["inference"])
