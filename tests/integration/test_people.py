"""People, sessions, sign-in codes and device codes on a real database."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import NamedTuple

import pytest

from adapters.identity.session_key import ISSUER
from adapters.postgres.credentials import StoredCredentials
from adapters.postgres.device_codes import StoredDeviceCodes
from adapters.postgres.people import StoredPeople
from adapters.postgres.pool import make_async_pool
from adapters.postgres.sign_in_codes import CODES_A_DAY_MAX, CODES_AN_HOUR_MAX, TRIES_MAX, StoredSignInCodes
from domain.errors import AlreadyUsed, CodeExpired, CodeNotFound, GrantExpired, GrantNotFound, RateLimited
from domain.people import Details, SessionClaims
from tests.support.ledger_waiting import Connection

pytest_plugins = ["tests.support.ledger_fixtures"]

ADA = "ada@example.com"
WEEK = 7 * 86_400.0


def keyed_hash(*parts: str) -> str:
    return hashlib.sha256("|".join(("not in the database", *parts)).encode()).hexdigest()


class Stored(NamedTuple):
    people: StoredPeople
    codes: StoredSignInCodes
    devices: StoredDeviceCodes
    credentials: StoredCredentials


@pytest.fixture
async def stored(ledger: str) -> AsyncGenerator[Stored, None]:
    async with make_async_pool(ledger, size_max=8) as pool:
        yield Stored(
            StoredPeople(pool, ISSUER),
            StoredSignInCodes(pool, keyed_hash),
            StoredDeviceCodes(pool, keyed_hash),
            StoredCredentials(pool),
        )


def everything_stored(look: Connection) -> str:
    tables = look.execute("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return "\n".join(str(row) for (table,) in tables for row in look.execute(f"SELECT t::text FROM {table} t"))


def claims(subject: str, session_id: str, *, ours: bool = False) -> SessionClaims:
    return SessionClaims(ISSUER if ours else "privy.io", subject, session_id, 4_000_000_000, ours)


class TestPeople:
    async def test_of_many_first_sights_one_makes_the_account(self, stored: Stored, look: Connection) -> None:
        added = await asyncio.gather(*(stored.people.add("privy.io", "did:1", Details(ADA)) for _ in range(20)))
        assert len({person.account_id for person in added}) == 1
        assert look.execute("SELECT count(*) FROM identities").fetchone() == (1,)
        found = await stored.people.find(claims("did:1", "ses_1"))
        assert found.person is not None
        assert (found.person.email, found.person.is_open, found.is_live) == (ADA, False, True)

    async def test_the_same_subject_of_two_issuers_are_two_people(self, stored: Stored) -> None:
        one, other = [await stored.people.add(issuer, "did:1", Details(ADA)) for issuer in ("privy.io", "else")]
        assert one.account_id != other.account_id

    async def test_an_address_that_another_issuer_told_of_signs_in_nobody(self, stored: Stored) -> None:
        theirs = await stored.people.add("privy.io", "did:1", Details(ADA))
        ours, _ = await stored.people.at_address(ADA)
        assert ours.account_id != theirs.account_id

    async def test_of_many_sign_ins_at_a_new_address_one_makes_the_account(self, stored: Stored) -> None:
        found = await asyncio.gather(*(stored.people.at_address(ADA) for _ in range(20)))
        assert len({(person.account_id, subject) for person, subject in found}) == 1

    async def test_personal_data_can_be_erased_and_the_address_begins_anew(
        self, stored: Stored, look: Connection
    ) -> None:
        before, _ = await stored.people.at_address(ADA)
        look.execute("DELETE FROM personal_details WHERE account_id = %s", (before.account_id,))
        assert ADA not in everything_stored(look)
        after, _ = await stored.people.at_address(ADA)
        assert after.account_id != before.account_id


class TestSessions:
    async def test_a_session_lives_until_it_is_ended(self, stored: Stored) -> None:
        person, subject = await stored.people.at_address(ADA)
        session_id, _ = await stored.people.open_session(person.account_id, WEEK)
        mine = claims(subject, session_id, ours=True)
        assert (await stored.people.find(mine)).is_live
        await stored.people.sign_out(mine, person.account_id)
        assert not (await stored.people.find(mine)).is_live

    async def test_a_token_of_ours_without_a_session_is_nobodys(self, stored: Stored) -> None:
        _, subject = await stored.people.at_address(ADA)
        assert not (await stored.people.find(claims(subject, "ses_made_up", ours=True))).is_live

    async def test_a_session_past_its_time_is_over(self, stored: Stored, look: Connection) -> None:
        person, subject = await stored.people.at_address(ADA)
        session_id, refresh_token = await stored.people.open_session(person.account_id, WEEK)
        look.execute("UPDATE sessions SET expires_at = now()")
        assert not (await stored.people.find(claims(subject, session_id, ours=True))).is_live
        assert await stored.people.refresh(refresh_token, WEEK) is None

    async def test_another_issuers_session_can_be_ended_here_too(self, stored: Stored) -> None:
        person = await stored.people.add("privy.io", "did:1", Details())
        await stored.people.sign_out(claims("did:1", "ses_1"), person.account_id)
        assert not (await stored.people.find(claims("did:1", "ses_1"))).is_live
        assert (await stored.people.find(claims("did:1", "ses_2"))).is_live

    async def test_everywhere_means_every_session_of_the_account_alone(self, stored: Stored) -> None:
        (ada, ada_subject), (ben, ben_subject) = [await stored.people.at_address(f"{name}@b.c") for name in "ab"]
        mine = [(await stored.people.open_session(ada.account_id, WEEK))[0] for _ in range(3)]
        other, _ = await stored.people.open_session(ben.account_id, WEEK)
        await stored.people.sign_out_everywhere(ada.account_id)
        live = [(await stored.people.find(claims(ada_subject, one, ours=True))).is_live for one in mine]
        assert live == [False] * 3
        assert (await stored.people.find(claims(ben_subject, other, ours=True))).is_live

    async def test_a_refresh_token_works_once_and_coming_twice_ends_the_session(self, stored: Stored) -> None:
        person, subject = await stored.people.at_address(ADA)
        session_id, first = await stored.people.open_session(person.account_id, WEEK)
        refreshed = await stored.people.refresh(first, WEEK)
        assert refreshed is not None
        session, second = refreshed
        assert (session.session_id, session.subject, session.account_id) == (session_id, subject, person.account_id)
        assert await stored.people.refresh(first, WEEK) is None
        assert await stored.people.refresh(second, WEEK) is None
        assert not (await stored.people.find(claims(subject, session_id, ours=True))).is_live

    async def test_of_refreshes_at_once_one_is_answered(self, stored: Stored) -> None:
        person, _ = await stored.people.at_address(ADA)
        _, token = await stored.people.open_session(person.account_id, WEEK)
        answers = await asyncio.gather(*(stored.people.refresh(token, WEEK) for _ in range(10)))
        assert len([answer for answer in answers if answer is not None]) == 1

    async def test_an_idle_session_is_not_refreshed(self, stored: Stored, look: Connection) -> None:
        person, _ = await stored.people.at_address(ADA)
        _, token = await stored.people.open_session(person.account_id, WEEK)
        look.execute("UPDATE sessions SET last_used_at = now() - interval '2 hours'")
        assert await stored.people.refresh(token, 3_600.0) is None
        assert await stored.people.refresh(token, 10_800.0) is not None

    async def test_no_secret_rests_in_the_database(self, stored: Stored, look: Connection) -> None:
        person, _ = await stored.people.at_address(ADA)
        _, token = await stored.people.open_session(person.account_id, WEEK)
        await stored.codes.keep(ADA, "the-challenge", "123456", 60.0)
        await stored.devices.add("the-device-code", "ABCD-EFGH", 60.0)
        written = everything_stored(look)
        for secret in (token, "the-challenge", "123456", "the-device-code", "ABCD-EFGH"):
            assert secret not in written
            assert hashlib.sha256(secret.encode()).hexdigest() not in written or len(secret) > 12


class TestSignInCodes:
    async def test_a_code_works_once(self, stored: Stored) -> None:
        await stored.codes.keep(ADA, "c", "123456", 60.0)
        assert await stored.codes.use(ADA, "c", "123456")
        assert not await stored.codes.use(ADA, "c", "123456")

    async def test_used_by_many_at_once_it_still_works_once(self, stored: Stored) -> None:
        await stored.codes.keep(ADA, "c", "123456", 60.0)
        assert sum(await asyncio.gather(*(stored.codes.use(ADA, "c", "123456") for _ in range(20)))) == 1

    @pytest.mark.parametrize(
        ("email", "challenge", "code"),
        [
            (ADA, "c", "123457"),
            (ADA, "other", "123456"),
            (ADA, "", "123456"),
            ("ben@example.com", "c", "123456"),
            (ADA, "c", ""),
        ],
    )
    async def test_nothing_else_works(self, stored: Stored, email: str, challenge: str, code: str) -> None:
        await stored.codes.keep(ADA, "c", "123456", 60.0)
        assert not await stored.codes.use(email, challenge, code)
        assert await stored.codes.use(ADA, "c", "123456")

    async def test_after_five_tries_it_is_dead(self, stored: Stored) -> None:
        await stored.codes.keep(ADA, "c", "123456", 60.0)
        tries = await asyncio.gather(*(stored.codes.use(ADA, "c", f"{number:06}") for number in range(3 * TRIES_MAX)))
        assert not any(tries)
        assert not await stored.codes.use(ADA, "c", "123456")

    async def test_a_code_past_its_time_is_dead(self, stored: Stored) -> None:
        await stored.codes.keep(ADA, "c", "123456", -1.0)
        assert not await stored.codes.use(ADA, "c", "123456")

    async def test_an_address_gets_so_many_an_hour_and_a_day(self, stored: Stored, look: Connection) -> None:
        kept = await asyncio.gather(
            *(stored.codes.keep(ADA, f"c{number}", "1", 60.0) for number in range(2 * CODES_AN_HOUR_MAX)),
            return_exceptions=True,
        )
        assert kept.count(None) == CODES_AN_HOUR_MAX
        assert all(isinstance(error, RateLimited) for error in kept if error is not None)
        await stored.codes.keep("ben@example.com", "c", "1", 60.0)
        look.execute("UPDATE sign_in_codes SET created_at = now() - interval '2 hours'")
        for number in range(CODES_A_DAY_MAX - CODES_AN_HOUR_MAX):
            await stored.codes.keep(ADA, f"d{number}", "1", 60.0)
        look.execute("UPDATE sign_in_codes SET created_at = now() - interval '2 hours'")
        with pytest.raises(RateLimited):
            await stored.codes.keep(ADA, "e", "1", 60.0)
        look.execute("UPDATE sign_in_codes SET created_at = now() - interval '25 hours'")
        await stored.codes.keep(ADA, "f", "1", 60.0)

    async def test_addresses_of_two_days_ago_are_forgotten(self, stored: Stored, look: Connection) -> None:
        await stored.codes.keep(ADA, "c", "1", 60.0)
        look.execute("UPDATE sign_in_codes SET created_at = now() - interval '2 days'")
        await stored.codes.keep("ben@example.com", "c", "1", 60.0)
        assert ADA not in everything_stored(look)


class TestDeviceCodes:
    async def test_a_machine_gets_its_token_once_after_the_approval(self, stored: Stored, look: Connection) -> None:
        assert await stored.devices.add("device", "ABCD-EFGH", 60.0)
        assert await stored.devices.redeem("device") is None
        await stored.devices.approve("ABCD-EFGH", "acct-1")
        redeemed = await stored.devices.redeem("device")
        assert redeemed is not None
        token, account_id = redeemed
        assert (account_id, await stored.credentials.find_provider_token(token)) == ("acct-1", "acct-1")
        assert look.execute("SELECT label FROM provider_tokens").fetchone() == ("device-ABCD-EFGH",)
        with pytest.raises(GrantExpired):
            await stored.devices.redeem("device")

    async def test_of_many_polls_at_once_one_gets_it(self, stored: Stored, look: Connection) -> None:
        await stored.devices.add("device", "ABCD-EFGH", 60.0)
        await stored.devices.approve("ABCD-EFGH", "acct-1")
        polls = await asyncio.gather(*(stored.devices.redeem("device") for _ in range(20)), return_exceptions=True)
        assert len([poll for poll in polls if isinstance(poll, tuple)]) == 1
        assert len([poll for poll in polls if isinstance(poll, GrantExpired)]) == 19
        assert look.execute("SELECT count(*) FROM provider_tokens").fetchone() == (1,)

    async def test_of_many_approvals_at_once_one_holds(self, stored: Stored) -> None:
        await stored.devices.add("device", "ABCD-EFGH", 60.0)
        approvals = await asyncio.gather(
            *(stored.devices.approve("ABCD-EFGH", f"acct-{number}") for number in range(10)), return_exceptions=True
        )
        winner = approvals.index(None)
        assert sum(isinstance(approval, AlreadyUsed) for approval in approvals) == 9
        redeemed = await stored.devices.redeem("device")
        assert redeemed is not None
        assert redeemed[1] == f"acct-{winner}"

    async def test_what_is_unknown_or_past_its_time_is_said_so(self, stored: Stored) -> None:
        with pytest.raises(CodeNotFound):
            await stored.devices.approve("ABCD-EFGH", "acct-1")
        with pytest.raises(GrantNotFound):
            await stored.devices.redeem("device")
        await stored.devices.add("device", "ABCD-EFGH", -1.0)
        with pytest.raises(CodeExpired):
            await stored.devices.approve("ABCD-EFGH", "acct-1")
        with pytest.raises(GrantExpired):
            await stored.devices.redeem("device")

    async def test_an_approved_code_past_its_time_gives_no_token(self, stored: Stored, look: Connection) -> None:
        await stored.devices.add("device", "ABCD-EFGH", 60.0)
        await stored.devices.approve("ABCD-EFGH", "acct-1")
        look.execute("UPDATE device_codes SET expires_at = now()")
        with pytest.raises(GrantExpired):
            await stored.devices.redeem("device")

    async def test_a_code_in_use_is_not_given_out_again(self, stored: Stored) -> None:
        assert await stored.devices.add("device", "ABCD-EFGH", 60.0)
        assert not await stored.devices.add("another", "ABCD-EFGH", 60.0)

    async def test_a_token_that_was_given_back_links_nothing(self, stored: Stored) -> None:
        await stored.devices.add("device", "ABCD-EFGH", 60.0)
        await stored.devices.approve("ABCD-EFGH", "acct-1")
        redeemed = await stored.devices.redeem("device")
        assert redeemed is not None
        assert await stored.devices.revoke_token(redeemed[0])
        assert not await stored.devices.revoke_token(redeemed[0])
        assert await stored.credentials.find_provider_token(redeemed[0]) is None
