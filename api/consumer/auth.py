"""Who calls: a session, the admin key or an API key, in either of the two headers (consumer API, section 3)."""

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


SESSION_TOKEN_PREFIX = "eyJ"
"""How every JWT begins, and no key of ours."""


async def authenticate(headers: Headers, credentials: Credentials) -> Caller:
    """Raises AuthenticationFailed for a missing, unknown, revoked or foreign credential."""
    token = token_of(headers)
    if not token:
        raise AuthenticationFailed
    if token.startswith(SESSION_TOKEN_PREFIX) and credentials.takes_sessions:
        return await credentials.find_session(token)
    admin = credentials.find_admin(token)
    if admin is not None:
        return admin
    if token.startswith(PROVIDER_TOKEN_PREFIX):
        raise AuthenticationFailed("A provider token cannot call this endpoint; use an API key.")
    caller = await credentials.find_api_key(token)
    if caller is None:
        raise AuthenticationFailed(
            "This API key is unknown, expired or revoked; create one with 'darkbloomd keys create'."
        )
    return caller


async def authenticate_session(headers: Headers, credentials: Credentials) -> Caller:
    """Only somebody who signed in.

    Raises:
        AuthenticationFailed: nothing was sent, or a session that is not valid. Forbidden: another credential was sent.
    """
    token = token_of(headers)
    if not token:
        raise AuthenticationFailed("Nobody is signed in; send a session's token as 'Authorization: Bearer <token>'.")
    if not token.startswith(SESSION_TOKEN_PREFIX) or not credentials.takes_sessions:
        raise Forbidden("A key is not enough here; sign in and send the session's token.")
    return await credentials.find_session(token)
