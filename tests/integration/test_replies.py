"""First answers on a real database: one claim a key, whatever happens at once, and nothing readable at rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import pytest

from adapters.postgres import sql
from adapters.postgres.pool import make_async_pool
from adapters.postgres.replies import ReplyClaim, StoredReplies
from domain.errors import IdempotencyConflict, IdempotencyInFlight
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]

SECRET = "eigeninference-" + "1" * 64


@pytest.fixture
async def replies(ledger: str) -> AsyncGenerator[StoredReplies, None]:
    async with make_async_pool(ledger, size_max=8) as pool:
        yield StoredReplies(pool, claim_seconds=60, keep_seconds=60)


@pytest.fixture
def gateway(look: Connection) -> UUID:
    """A gateway with a lease."""
    gateway_id = uuid4()
    look.execute(sql.TAKE_LEASE, (gateway_id, "http://127.0.0.1:1", 3_600))
    return gateway_id


async def claim(replies: StoredReplies, gateway: UUID, body: bytes = b"{}", secret: str = SECRET) -> bytes | ReplyClaim:
    return await replies.claim(secret, "retry-1", "POST /v1/messages", body, gateway)


async def claimed(replies: StoredReplies, gateway: UUID) -> ReplyClaim:
    found = await claim(replies, gateway)
    assert isinstance(found, ReplyClaim)
    return found


async def test_a_kept_reply_is_found_by_the_same_request_alone(replies: StoredReplies, gateway: UUID) -> None:
    await (await claimed(replies, gateway)).keep(b"an answer")
    assert await claim(replies, gateway) == b"an answer"
    with pytest.raises(IdempotencyConflict):
        await claim(replies, gateway, b'{"other":1}')
    assert isinstance(await claim(replies, gateway, secret="eigeninference-" + "2" * 64), ReplyClaim)


async def test_of_many_at_once_one_may_answer(replies: StoredReplies, gateway: UUID) -> None:
    found = await asyncio.gather(*(claim(replies, gateway) for _ in range(20)), return_exceptions=True)
    assert len([one for one in found if isinstance(one, ReplyClaim)]) == 1
    assert len([one for one in found if isinstance(one, IdempotencyInFlight)]) == 19


async def test_a_claim_that_is_given_up_is_free_again(replies: StoredReplies, gateway: UUID, look: Connection) -> None:
    first = await claimed(replies, gateway)
    first.give_up()
    while look.execute("SELECT FROM replies").fetchall():
        await asyncio.sleep(0.01)
    await (await claimed(replies, gateway)).keep(b"an answer")
    first.give_up()
    assert await claim(replies, gateway) == b"an answer"


async def test_the_claim_of_a_dead_gateway_is_taken_over_and_its_late_answer_changes_nothing(
    replies: StoredReplies, gateway: UUID, look: Connection
) -> None:
    late = await claimed(replies, gateway)
    with pytest.raises(IdempotencyInFlight):
        await claim(replies, gateway)
    look.execute(sql.END_LEASE, (gateway,))
    other = uuid4()
    look.execute(sql.TAKE_LEASE, (other, "http://127.0.0.1:2", 3_600))
    ours = await claimed(replies, other)
    await late.keep(b"late")
    await ours.keep(b"ours")
    assert await claim(replies, other) == b"ours"


async def test_a_reply_is_forgotten_after_its_time(replies: StoredReplies, gateway: UUID, look: Connection) -> None:
    await (await claimed(replies, gateway)).keep(b"an answer")
    look.execute("UPDATE replies SET expires_at = now() - interval '1 second'")
    again = await claimed(replies, gateway)
    await again.keep(b"another answer")
    assert await claim(replies, gateway, b"{}") == b"another answer"


async def test_old_replies_are_swept_away_by_new_ones(replies: StoredReplies, gateway: UUID, look: Connection) -> None:
    await (await claimed(replies, gateway)).keep(b"an answer")
    look.execute("UPDATE replies SET expires_at = now() - interval '1 second'")
    fresh = await replies.claim(SECRET, "retry-2", "POST /v1/messages", b"{}", gateway)
    assert isinstance(fresh, ReplyClaim)
    await fresh.keep(b"fresh")
    assert len(look.execute("SELECT FROM replies").fetchall()) == 1


async def test_nothing_at_rest_tells_what_was_asked_or_answered(
    replies: StoredReplies, gateway: UUID, look: Connection
) -> None:
    found = await replies.claim(SECRET, "retry-1", "POST /v1/messages", b'{"a secret question":1}', gateway)
    assert isinstance(found, ReplyClaim)
    await found.keep(b"a secret answer")
    (row,) = look.execute("SELECT name || fingerprint || sealed FROM replies").fetchall()
    for word in (b"secret", b"retry-1", b"messages", SECRET.encode()):
        assert word not in bytes(row[0])
