"""A key is looked up again when it must be, and only then."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from adapters.postgres.recent_callers import RECENT_SECONDS, RecentCallers
from domain.keys import Caller, KeySettings


class Stored:
    """Credentials that count how often they are asked; ``meanwhile`` runs inside of the next look-up."""

    def __init__(self) -> None:
        self.keys: dict[str, Caller] = {}
        self.asked = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def find_api_key(self, token: str) -> Caller | None:
        self.asked += 1
        found = self.keys.get(token)
        self.meanwhile()
        return found

    async def find_provider_token(self, token: str) -> str | None:
        return f"owner of {token}"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def callers(stored: Stored, clock: Clock) -> RecentCallers:
    return RecentCallers(stored, clock)  # type: ignore[arg-type]  # two methods are all that it uses


ADA = Caller("ada", "key_a")


async def test_a_busy_key_is_looked_up_once_in_five_seconds(
    callers: RecentCallers, stored: Stored, clock: Clock
) -> None:
    stored.keys["secret"] = ADA
    assert [await callers.find_api_key("secret") for _ in range(3)] == [ADA] * 3
    assert stored.asked == 1

    clock.now += RECENT_SECONDS
    assert await callers.find_api_key("secret") == ADA
    assert stored.asked == 2
    assert RECENT_SECONDS <= 5


async def test_a_revoked_key_is_forgotten_at_once_and_others_are_not(callers: RecentCallers, stored: Stored) -> None:
    grace = Caller("grace", "key_g")
    stored.keys |= {"secret": ADA, "other": grace}
    for token in ("secret", "other"):
        await callers.find_api_key(token)
    del stored.keys["secret"]

    callers.forget("key_a")

    assert await callers.find_api_key("secret") is None
    assert await callers.find_api_key("other") == grace
    assert stored.asked == 3


async def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_remembered(
    callers: RecentCallers, stored: Stored
) -> None:
    stored.keys["secret"] = ADA
    stored.meanwhile = lambda: callers.forget("key_a")
    await callers.find_api_key("secret")
    del stored.keys["secret"]

    assert await callers.find_api_key("secret") is None


async def test_a_key_that_is_made_works_at_once(callers: RecentCallers, stored: Stored) -> None:
    assert await callers.find_api_key("secret") is None
    stored.keys["secret"] = ADA

    assert await callers.find_api_key("secret") == ADA


async def test_a_remembered_key_expires_on_time(callers: RecentCallers, stored: Stored) -> None:
    ends = datetime.now(UTC) + timedelta(milliseconds=1)
    stored.keys["secret"] = ADA._replace(key=KeySettings(expires_at=ends))
    await callers.find_api_key("secret")
    stored.keys.clear()  # as the database's own clock has it
    while datetime.now(UTC) < ends:
        continue

    assert await callers.find_api_key("secret") is None


async def test_provider_tokens_are_not_remembered(callers: RecentCallers) -> None:
    assert await callers.find_provider_token("token") == "owner of token"
