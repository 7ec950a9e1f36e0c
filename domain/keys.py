"""What an API key may do: its role, its scopes, its expiry and its limits (consumer API, sections 4 and 21)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple, get_args

from domain.key_budgets import KeyLimit

Role = Literal["consumer", "auditor", "admin"]
"""A consumer asks models and has scopes, an auditor reads the books, an admin also changes them."""

ROLES: tuple[Role, ...] = get_args(Role)

Scope = Literal["inference", "keys"]
"""``inference`` asks models, ``keys`` manages the keys of the account. Every key may read its account's own books."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

KEYS_MAX = 50
"""Active keys of one account."""

NAME_CHARACTERS_MAX = 64


class KeySettings(NamedTuple):
    """What is chosen when a key is made. None means no limit of the key's own."""

    name: str = ""
    role: Role = "consumer"
    scopes: tuple[Scope, ...] = ("inference",)
    expires_at: datetime | None = None
    spend_limit: KeyLimit | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def default_scopes(role: Role) -> tuple[Scope, ...]:
    """The scopes of a key for which none were chosen. Only a consumer's key has any."""
    return ("inference",) if role == "consumer" else ()


class KeyEntry(NamedTuple):
    """A key as its owner sees it later; its secret was shown once."""

    key_id: str
    label: str
    settings: KeySettings
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class MadeKey(NamedTuple):
    secret: str
    entry: KeyEntry


class AccountLimits(NamedTuple):
    """Where an account's limits differ from the settings: None keeps those, 0 lifts the limit."""

    requests_per_second: float | None = None
    request_burst: int | None = None
    tokens_per_minute: int | None = None


Credential = Literal["key", "session", "admin"]
"""An API key, a session of somebody who signed in, or the operator's admin key."""


class Caller(NamedTuple):
    """Who a credential stands for, and what it may do.

    ``key_id`` names the key or the person in events and notes; it is no secret. ``is_admin`` opens the admin's routes
    to the admin key and to the sessions of administrators; an API key has its role for that.
    """

    account_id: str
    key_id: str
    key: KeySettings = KeySettings()
    account_limits: AccountLimits = AccountLimits()
    credential: Credential = "key"
    is_admin: bool = False


ADMIN = Caller(
    "admin",
    "admin_key",
    KeySettings(name="admin key", scopes=SCOPES),
    AccountLimits(requests_per_second=0.0, tokens_per_minute=0),
    "admin",
    is_admin=True,
)
"""Who the admin key stands for: an account of its own, without rate limits."""


def signed_in(account_id: str, limits: AccountLimits, *, is_admin: bool) -> Caller:
    """Who a session stands for: everything that the account's keys may do, whatever session it is."""
    return Caller(account_id, f"user_{account_id}", KeySettings(scopes=SCOPES), limits, "session", is_admin)
