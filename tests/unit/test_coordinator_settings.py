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


def test_administrators_are_named_by_their_addresses_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKBLOOM_ADMIN_EMAILS", " Ada@Example.com,, ben@example.com ")
    assert Settings().admin_emails == ("ada@example.com", "ben@example.com")


@pytest.mark.parametrize("prefix", ["DARKBLOOM", "EIGENINFERENCE"])
def test_the_names_of_the_original_work_too(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv(f"{prefix}_ADMIN_KEY", "0123456789abcdef")
    monkeypatch.setenv(f"{prefix}_PRIVY_APP_ID", "app")
    monkeypatch.setenv(f"{prefix}_CONSOLE_URL", "https://console.example/")
    read = Settings()
    assert (read.admin_key, read.privy_app_id, read.console_url) == (
        "0123456789abcdef",
        "app",
        "https://console.example",
    )


def test_a_short_admin_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        Settings(admin_key="short")
