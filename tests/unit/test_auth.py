from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from api.consumer.auth import authenticate, require_scope, token_of
from domain.errors import AuthenticationFailed, Forbidden
from domain.keys import ROLES, SCOPES, Caller, KeySettings, Role, Scope, default_scopes

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
        assert await authenticate(Headers({"X-Api-Key": TOKEN}), OneKey()) == Caller("ada", "key")

    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
    async def test_anybody_else_is_refused(self, headers: dict[str, str]) -> None:
        with pytest.raises(AuthenticationFailed) as refused:
            await authenticate(Headers(headers), OneKey())
        assert refused.value.http_status == 401
        assert "wrong" not in refused.value.message

    async def test_a_provider_token_is_refused_without_being_looked_up(self) -> None:
        credentials = OneKey()
        with pytest.raises(AuthenticationFailed, match="provider token"):
            await authenticate(Headers({"X-Api-Key": "eigeninference-pt-abc"}), credentials)
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
