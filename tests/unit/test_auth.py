from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.datastructures import Headers

from api.consumer.auth import authenticate, authenticate_session, require_scope, token_of
from api.identity.doorkeeper import Doorkeeper, Sessions
from domain.accounts import Account
from domain.errors import AccountLookupFailed, AuthenticationFailed, Forbidden, ServiceUnavailable
from domain.keys import ADMIN, ROLES, SCOPES, AccountLimits, Caller, KeySettings, Role, Scope, default_scopes
from domain.people import Details, FoundSession, Person, SessionClaims
from tests.support.memory_ledger import MemoryLedger

TOKEN = "eigeninference-0123456789abcdef"


class OneKey:
    """Knows one API key, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def find_api_key(self, token: str) -> Caller | None:
        self.asked.append(token)
        return Caller("ada", "key") if token == TOKEN else None

    async def find_provider_token(self, token: str) -> str | None:
        raise AssertionError("a consumer is not looked up among the providers")


ADMIN_KEY = "the-operators-own-admin-key"
SESSION = "eyJ.ada"


class Tokens:
    """Issues nothing, and believes every token: its text is the subject."""

    def verify(self, token: str) -> SessionClaims:
        if token == "eyJ.bad":
            raise AuthenticationFailed
        return SessionClaims("privy.io", token, f"ses_{token}", 2**31, ours=False)


class People:
    """In memory, with a pause before each answer so that visitors overlap."""

    def __init__(self) -> None:
        self.by_subject: dict[str, Person] = {}
        self.ended: set[str] = set()
        self.is_down = False

    async def find(self, claims: SessionClaims) -> FoundSession:
        await asyncio.sleep(0)
        if self.is_down:
            raise ServiceUnavailable
        return FoundSession(self.by_subject.get(claims.subject), claims.session_id not in self.ended)

    async def add(self, issuer: str, subject: str, details: Details) -> Person:
        await asyncio.sleep(0)
        new = Person(f"account-{len(self.by_subject)}", details.email, limits=AccountLimits(3.0))
        return self.by_subject.setdefault(subject, new)

    async def mark_open(self, account_id: str) -> None:
        for subject, person in self.by_subject.items():
            if person.account_id == account_id:
                self.by_subject[subject] = person._replace(is_open=True)


class Ledger(MemoryLedger):
    halted = False

    async def run(self, command: Any) -> Any:  # type: ignore[override]
        return self.execute(command)

    def execute(self, command: Any) -> Any:
        result = super().run(command)
        self.commit()
        return result


class Source:
    def __init__(self) -> None:
        self.asked: list[str] = []

    async def details_of(self, subject: str) -> Details:
        self.asked.append(subject)
        await asyncio.sleep(0)
        return Details("Boss@example.com".lower() if subject == "eyJ.boss" else "")


def doorkeeper(people: People | None = None, ledger: Ledger | None = None, source: Source | None = None) -> Doorkeeper:
    sessions: Any = Sessions(
        Tokens(),
        people or People(),
        ledger or Ledger(),
        {"privy.io": source or Source()},  # type: ignore[arg-type]
    )
    return Doorkeeper(OneKey(), sessions=sessions, admin_key=ADMIN_KEY, admin_emails=["boss@example.com"])


def bearer(token: str) -> Headers:
    return Headers({"Authorization": f"Bearer {token}"})


class TestSessions:
    async def test_a_session_stands_for_its_account_wherever_a_key_does(self) -> None:
        caller = await authenticate(bearer(SESSION), doorkeeper())
        assert (caller.account_id, caller.credential, caller.is_admin) == ("account-0", "session", False)
        assert caller.account_limits == AccountLimits(3.0)
        for scope in SCOPES:
            require_scope(caller, scope)

    async def test_visitors_who_come_at_once_for_the_first_time_get_one_account(self) -> None:
        people, ledger = People(), Ledger()
        keeper = doorkeeper(people, ledger)
        callers = await asyncio.gather(*(keeper.find_session(SESSION) for _ in range(20)))
        assert {caller.account_id for caller in callers} == {"account-0"}
        assert [event.TOPIC for event in ledger.events] == ["Account.AccountOpened"]
        assert ledger.state_of(Account, "account-0").exists

    async def test_what_an_issuer_knows_is_asked_once(self) -> None:
        source = Source()
        keeper = doorkeeper(source=source)
        for _ in range(3):
            await keeper.find_session(SESSION)
        assert source.asked == [SESSION]

    async def test_an_administrator_is_known_by_the_address(self) -> None:
        keeper = doorkeeper()
        assert (await keeper.find_session("eyJ.boss")).is_admin
        assert not (await keeper.find_session(SESSION)).is_admin

    async def test_no_address_is_no_administrators(self) -> None:
        assert not Doorkeeper(OneKey(), admin_emails=[""]).is_admin("")

    async def test_an_ended_session_is_refused(self) -> None:
        people = People()
        people.ended.add(f"ses_{SESSION}")
        with pytest.raises(AuthenticationFailed, match="ended"):
            await authenticate(bearer(SESSION), doorkeeper(people))

    async def test_a_store_that_is_down_is_no_wrong_credential(self) -> None:
        people = People()
        people.is_down = True
        with pytest.raises(AccountLookupFailed) as failed:
            await authenticate(bearer(SESSION), doorkeeper(people))
        assert (failed.value.http_status, failed.value.type) == (500, "auth_error")

    async def test_a_bad_session_is_not_looked_up_as_a_key(self) -> None:
        keys = OneKey()
        sessions: Any = Sessions(Tokens(), People(), Ledger(), {})  # type: ignore[arg-type]
        with pytest.raises(AuthenticationFailed):
            await authenticate(bearer("eyJ.bad"), Doorkeeper(keys, sessions=sessions))
        assert keys.asked == []

    async def test_without_sessions_such_a_token_is_an_unknown_key(self) -> None:
        keys = OneKey()
        with pytest.raises(AuthenticationFailed, match="unknown"):
            await authenticate(bearer(SESSION), Doorkeeper(keys))
        assert keys.asked == [SESSION]

    @pytest.mark.parametrize(
        ("token", "error"),
        [
            ("", AuthenticationFailed),
            ("eyJ.bad", AuthenticationFailed),
            (TOKEN, Forbidden),
            (ADMIN_KEY, Forbidden),
            ("eigeninference-pt-abc", Forbidden),
            ("unknown", Forbidden),
        ],
    )
    async def test_where_only_people_may_come_no_key_is_enough(self, token: str, error: type[Exception]) -> None:
        assert (await authenticate_session(bearer(SESSION), doorkeeper())).credential == "session"
        with pytest.raises(error):
            await authenticate_session(bearer(token), doorkeeper())

    async def test_where_nobody_can_sign_in_a_session_is_forbidden(self) -> None:
        with pytest.raises(Forbidden):
            await authenticate_session(bearer(SESSION), Doorkeeper(OneKey()))


class TestAdminKey:
    async def test_it_acts_as_an_account_of_its_own_without_limits(self) -> None:
        caller = await authenticate(bearer(ADMIN_KEY), doorkeeper())
        assert caller == ADMIN
        assert (caller.account_id, caller.is_admin, caller.account_limits.requests_per_second) == ("admin", True, 0.0)

    @pytest.mark.parametrize("token", [ADMIN_KEY[:-1], ADMIN_KEY + "x", ADMIN_KEY.upper()])
    async def test_nothing_else_is_it(self, token: str) -> None:
        with pytest.raises(AuthenticationFailed):
            await authenticate(bearer(token), doorkeeper())

    def test_without_one_an_empty_key_is_not_it(self) -> None:
        assert Doorkeeper(OneKey()).find_admin("") is None


class TestToken:
    @pytest.mark.parametrize(
        ("headers", "token"),
        [
            ({}, ""),
            ({"Authorization": f"Bearer {TOKEN}"}, TOKEN),
            ({"Authorization": f"bearer  {TOKEN} "}, TOKEN),
            ({"Authorization": f"BEARER {TOKEN}"}, TOKEN),
            ({"X-Api-Key": f" {TOKEN} "}, TOKEN),
            ({"X-Api-Key": "other", "Authorization": f"Bearer {TOKEN}"}, TOKEN),
            ({"X-Api-Key": TOKEN, "Authorization": "Basic abc"}, ""),
            ({"X-Api-Key": TOKEN, "Authorization": ""}, ""),
            ({"Authorization": TOKEN}, ""),
            ({"Authorization": "Bearer"}, ""),
            ({"Authorization": "Bearer "}, ""),
            ({"Authorization": f"Bearer {TOKEN} {TOKEN}"}, ""),
        ],
    )
    def test_it_stands_in_one_of_two_headers(self, headers: dict[str, str], token: str) -> None:
        assert token_of(Headers(headers)) == token


class TestAuthenticate:
    async def test_a_known_key_has_a_caller(self) -> None:
        assert await authenticate(Headers({"X-Api-Key": TOKEN}), Doorkeeper(OneKey())) == Caller("ada", "key")

    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
    async def test_anybody_else_is_refused(self, headers: dict[str, str]) -> None:
        with pytest.raises(AuthenticationFailed) as refused:
            await authenticate(Headers(headers), Doorkeeper(OneKey()))
        assert refused.value.http_status == 401
        assert "wrong" not in refused.value.message

    async def test_a_provider_token_is_refused_without_being_looked_up(self) -> None:
        credentials = OneKey()
        with pytest.raises(AuthenticationFailed, match="provider token"):
            await authenticate(Headers({"X-Api-Key": "eigeninference-pt-abc"}), Doorkeeper(credentials))
        assert credentials.asked == []


class TestScope:
    @pytest.mark.parametrize("scope", SCOPES)
    def test_a_consumers_key_does_what_its_scopes_say(self, scope: Scope) -> None:
        require_scope(Caller("ada", "key", KeySettings(scopes=(scope,))), scope)
        for other in set(SCOPES) - {scope}:
            with pytest.raises(Forbidden, match=f"lacks the scope '{other}'"):
                require_scope(Caller("ada", "key", KeySettings(scopes=(scope,))), other)

    @pytest.mark.parametrize("role", [role for role in ROLES if role != "consumer"])
    @pytest.mark.parametrize(("scope", "deed"), [("inference", "run inference"), ("keys", "manage keys")])
    def test_keys_of_the_other_roles_are_told_to_use_a_consumers(self, role: Role, scope: Scope, deed: str) -> None:
        caller = Caller("ada", "key", KeySettings(role=role, scopes=default_scopes(role)))
        with pytest.raises(Forbidden, match=f"An {role} key cannot {deed}; use a consumer key"):
            require_scope(caller, scope)
