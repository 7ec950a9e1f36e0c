"""Asking Privy about a person, against a stand-in over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import pytest

from adapters.identity.privy import PrivyUsers
from domain.people import Details
from tests.support.privy import APP_ID, APP_SECRET, Privy, email, privy, solana_wallet

DID = "did:privy:cl/1?x=../"
"""With characters that would lead elsewhere in an address."""


@pytest.fixture
def stand_in() -> Generator[Privy, None, None]:
    with privy() as running:
        yield running


@pytest.fixture
async def users(stand_in: Privy) -> AsyncGenerator[PrivyUsers, None]:
    asking = PrivyUsers(stand_in.url, APP_ID, APP_SECRET, seconds_max=1.0)
    yield asking
    await asking.close()


async def test_the_address_and_the_wallet_are_taken_over(stand_in: Privy, users: PrivyUsers) -> None:
    stand_in.users[DID] = [
        {"type": "wallet", "chain_type": "ethereum", "address": "0xabc", "id": "w0"},
        email("Ada@Example.com"),
        email("second@example.com"),
        solana_wallet("So1anaAddre55", "w1"),
    ]
    assert await users.details_of(DID) == Details("ada@example.com", "So1anaAddre55", "w1")
    assert len(stand_in.asked) == 1


async def test_an_address_that_was_never_verified_is_nobodys(stand_in: Privy, users: PrivyUsers) -> None:
    stand_in.users[DID] = [email("boss@example.com", verified=False)]
    assert await users.details_of(DID) == Details()


@pytest.mark.parametrize("status", [302, 400, 401, 404, 429, 500, 503])
async def test_an_error_leaves_the_details_empty(stand_in: Privy, users: PrivyUsers, status: int) -> None:
    stand_in.users[DID], stand_in.status = [email("ada@example.com")], status
    assert await users.details_of(DID) == Details()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"linked_accounts": null}',
        b'{"linked_accounts": [5, null, {"type": "email", "address": {"a": 1}, "verified_at": 1}]}',
        b'{"linked_accounts": [{"type": "email", "address": "a\\nb@example.com", "verified_at": 1}]}',
        b'{"pad": "' + b"x" * 300_000 + b'"}',
    ],
)
async def test_an_answer_of_another_shape_leaves_them_empty(stand_in: Privy, users: PrivyUsers, raw: bytes) -> None:
    stand_in.raw = raw
    assert await users.details_of(DID) == Details()


async def test_an_answer_that_does_not_come_in_time_is_not_waited_for(stand_in: Privy) -> None:
    stand_in.users[DID], stand_in.delay_seconds = [email("ada@example.com")], 60.0
    asking = PrivyUsers(stand_in.url, APP_ID, APP_SECRET, seconds_max=0.2)
    assert await asking.details_of(DID) == Details()
    await asking.close()


async def test_nobody_listening_leaves_them_empty() -> None:
    asking = PrivyUsers("http://127.0.0.1:1", APP_ID, APP_SECRET)
    assert await asking.details_of(DID) == Details()
    await asking.close()


async def test_a_wrong_secret_is_refused_by_the_stand_in_too(stand_in: Privy) -> None:
    stand_in.users[DID] = [email("ada@example.com")]
    asking = PrivyUsers(stand_in.url, APP_ID, "wrong")
    assert await asking.details_of(DID) == Details()
    await asking.close()
