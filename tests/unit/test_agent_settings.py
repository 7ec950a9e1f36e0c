"""The command line and the environment, made into settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import SettingsInvalid
from agent.settings import loggable_address, serve_settings, socket_url


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8000", "ws://localhost:8000/ws/provider"),
        ("https://api.example.org", "wss://api.example.org/ws/provider"),
        ("https://api.example.org/", "wss://api.example.org/ws/provider"),
        ("ws://127.0.0.1:9/other/path", "ws://127.0.0.1:9/other/path"),
        ("wss://api.example.org/ws/provider?x=1", "wss://api.example.org/ws/provider?x=1"),
        ("HTTP://localhost", "ws://localhost/ws/provider"),
    ],
)
def test_every_form_of_the_url_becomes_the_sockets(given: str, expected: str) -> None:
    assert socket_url(given) == expected


@pytest.mark.parametrize("given", ["", "localhost:8000", "ftp://x", "ws://", "ws://host:port", "http://[", "ws://x/#y"])
def test_other_urls_are_usage_errors(given: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        socket_url(given)
    assert caught.value.exit_code == 2


def test_secrets_in_the_url_are_not_logged() -> None:
    assert loggable_address("wss://user:pass@host:1/ws?key=1") == "wss://host:1/ws"


def test_defaults_stand_below_the_home_directory() -> None:
    settings = serve_settings("ws://x", ("/models/a",), 4, {"DARKBLOOM_HOME": "/state"})
    assert settings.home == Path("/state")
    assert settings.auth_token_path == Path("/state/auth_token")
    assert settings.drain_timeout_seconds == 600
    assert settings.model_paths == (Path("/models/a"),)


def test_the_environment_sets_the_rest() -> None:
    environment = {"DARKBLOOM_AUTH_TOKEN_PATH": "/tokens/mine", "DARKBLOOM_DRAIN_TIMEOUT_SECONDS": "1.5"}
    settings = serve_settings("ws://x", ("a",), 4, environment)
    assert settings.auth_token_path == Path("/tokens/mine")
    assert settings.drain_timeout_seconds == 1.5
    assert settings.home == Path.home() / ".darkbloom"


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_drain_timeout_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(SettingsInvalid):
        serve_settings("ws://x", ("a",), 4, {"DARKBLOOM_DRAIN_TIMEOUT_SECONDS": text})


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsInvalid, match="tiny"):
        serve_settings("ws://x", ("/a/tiny", "/b/tiny/"), 4, {})
