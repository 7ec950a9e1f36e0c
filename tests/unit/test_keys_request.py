from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from api.consumer.keys_request import read_key_settings
from domain.errors import InvalidRequest
from domain.key_budgets import KeyLimit
from domain.keys import KeySettings

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_an_empty_body_is_a_key_without_limits() -> None:
    assert read_key_settings({}, NOW) == KeySettings()


def test_everything_can_be_chosen() -> None:
    body = {
        "name": "ci",
        "scopes": ["keys", "inference", "keys"],
        "expires_at": "2026-06-01T00:00:00Z",
        "limit_usd": "2.50",
        "limit_reset": "monthly",
        "rpm_limit": 60,
        "tpm_limit": 100_000,
    }
    assert read_key_settings(body, NOW) == KeySettings(
        name="ci",
        scopes=("inference", "keys"),
        expires_at=datetime(2026, 6, 1, tzinfo=UTC),
        spend_limit=KeyLimit(2_500_000, "monthly"),
        requests_per_minute=60,
        tokens_per_minute=100_000,
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": 5}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["admin"]}, "scopes"),
        ({"scopes": [{}]}, "scopes"),
        ({"scopes": "keys"}, "scopes"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"expires_at": 5}, "expires_at"),
        ({"expires_at": "2026-06-01T00:00:00"}, "expires_at"),
        ({"expires_at": "2026-04-30T00:00:00Z"}, "expires_at"),
        ({"limit_usd": 2.5}, "limit_usd"),
        ({"limit_usd": "0"}, "limit_usd"),
        ({"limit_usd": "-1"}, "limit_usd"),
        ({"limit_usd": "9" * 10_000}, "limit_usd"),
        ({"limit_usd": "1", "limit_micro_usd": 1}, "limit_usd"),
        ({"limit_micro_usd": 1.5}, "limit_micro_usd"),
        ({"limit_micro_usd": True}, "limit_micro_usd"),
        ({"limit_micro_usd": 0}, "limit_micro_usd"),
        ({"limit_reset": "hourly"}, "limit_reset"),
        ({"limit_reset": {}}, "limit_reset"),
        ({"rpm_limit": 0}, "rpm_limit"),
        ({"tpm_limit": "many"}, "tpm_limit"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_key_settings(body, NOW)
    assert refused.value.param == param
