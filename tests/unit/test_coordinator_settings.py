from __future__ import annotations

from typing import Any

import pytest

from adapters.settings import Settings


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, (0.0, 0.0, 0)),
        ({"environment": "production"}, (1.0, 0.2, 20)),
        (
            {"rate_limit_rps": 5, "financial_rate_limit_rps": 3, "wrong_credentials_per_minute": 7},
            (5.0, 3.0, 7),
        ),
        (
            {
                "environment": "production",
                "rate_limit_rps": 0,
                "financial_rate_limit_rps": 0,
                "wrong_credentials_per_minute": 0,
            },
            (0.0, 0.0, 0),
        ),
    ],
)
def test_rate_limits_are_on_in_production_off_in_development_and_as_set_otherwise(
    settings: dict[str, Any], limits: tuple[float, float, int]
) -> None:
    read = Settings(**settings)
    assert (read.requests_per_second, read.financial_requests_per_second, read.wrong_credentials_max) == limits
