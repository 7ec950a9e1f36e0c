"""What a request for a new key may say."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast, get_args

from domain.errors import InvalidRequest
from domain.key_budgets import KeyLimit, Reset
from domain.keys import NAME_CHARACTERS_MAX, SCOPES, KeySettings, Scope
from domain.money import NotAnAmount, parse_usd

LIMIT_MICRO_USD_MAX = 10**15
PER_MINUTE_MAX = 10**9


def read_key_settings(body: dict[str, Any], now: datetime) -> KeySettings:
    """Check a body; every member may be missing.

    Raises:
        InvalidRequest: with ``param`` naming the member at fault.
    """
    return KeySettings(
        name=_name(body.get("name")),
        scopes=_scopes(body.get("scopes")),
        expires_at=_expiry(body.get("expires_at"), now),
        spend_limit=_limit(body),
        requests_per_minute=_count("rpm_limit", body.get("rpm_limit"), PER_MINUTE_MAX),
        tokens_per_minute=_count("tpm_limit", body.get("tpm_limit"), PER_MINUTE_MAX),
    )


def _name(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > NAME_CHARACTERS_MAX or not value.isprintable():
        raise InvalidRequest(f"'name' must be a text of up to {NAME_CHARACTERS_MAX} characters.", param="name")
    return value


def _scopes(value: Any) -> tuple[Scope, ...]:
    if value is None:
        return ("inference",)
    if not isinstance(value, list) or not value or not all(scope in SCOPES for scope in value):
        raise InvalidRequest(f"'scopes' must be a list of {', '.join(SCOPES)}.", param="scopes")
    return tuple(scope for scope in SCOPES if scope in value)


def _expiry(value: Any, now: datetime) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or moment <= now:
        raise InvalidRequest(
            "'expires_at' must be a time to come with its zone, as RFC 3339 has it.", param="expires_at"
        )
    return moment


def _limit(body: dict[str, Any]) -> KeyLimit | None:
    reset = "none" if body.get("limit_reset") is None else body["limit_reset"]
    if reset not in get_args(Reset):
        raise InvalidRequest(f"'limit_reset' must be one of {', '.join(get_args(Reset))}.", param="limit_reset")
    amount = _count("limit_micro_usd", body.get("limit_micro_usd"), LIMIT_MICRO_USD_MAX)
    if body.get("limit_usd") is not None:
        if amount is not None:
            raise InvalidRequest("Give 'limit_usd' or 'limit_micro_usd', not both.", param="limit_usd")
        amount = _dollars(body["limit_usd"])
    return None if amount is None else KeyLimit(amount, cast("Reset", reset))


def _dollars(value: Any) -> int:
    try:
        amount = parse_usd(value) if isinstance(value, str) else -1
    except (NotAnAmount, ValueError):
        amount = -1
    if not 0 < amount <= LIMIT_MICRO_USD_MAX:
        raise InvalidRequest("'limit_usd' must be dollars as a text, such as \"2.50\".", param="limit_usd")
    return amount


def _count(name: str, value: Any, most: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 5.0 is a whole number in JSON
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidRequest(f"'{name}' must be a whole number from 1 to {most}.", param=name)
    return value
