"""Who calls: API keys in either of the two headers (consumer API, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers

from api.ports import Credentials
from domain.errors import AuthenticationFailed, Forbidden
from domain.keys import Caller, Scope
from domain.protocol import PROVIDER_TOKEN_PREFIX


def token_of(headers: Headers) -> str:
    """The credential that was sent, or an empty text. ``Authorization`` wins over ``X-Api-Key``."""
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("x-api-key", "").strip()
    scheme, _, token = authorization.strip().partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and " " not in token else ""


_DEEDS: Mapping[Scope, str] = {"inference": "run inference", "keys": "manage keys"}


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raises Forbidden when the key was not made for that."""
    if caller.key.role != "consumer":
        raise Forbidden(f"An {caller.key.role} key cannot {_DEEDS[scope]}; use a consumer key.")
    if scope not in caller.key.scopes:
        raise Forbidden(f"This API key lacks the scope '{scope}'.")


async def authenticate(headers: Headers, credentials: Credentials) -> Caller:
    """Raises AuthenticationFailed for a missing, unknown, revoked or foreign credential."""
    token = token_of(headers)
    if not token:
        raise AuthenticationFailed
    if token.startswith(PROVIDER_TOKEN_PREFIX):
        raise AuthenticationFailed("A provider token cannot call this endpoint; use an API key.")
    caller = await credentials.find_api_key(token)
    if caller is None:
        raise AuthenticationFailed(
            "This API key is unknown, expired or revoked; create one with 'darkbloomd keys create'."
        )
    return caller
