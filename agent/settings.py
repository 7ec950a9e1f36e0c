"""What ``darkbloom serve`` was asked for, parsed and checked (provider agent, sections 3.4 and 4.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from agent.errors import SettingsInvalid

DEFAULT_COORDINATOR = "wss://api.darkbloom.dev/ws/provider"
SOCKET_PATH = "/ws/provider"
DEFAULT_DRAIN_TIMEOUT_SECONDS = 600.0

_SOCKET_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_HTTP_SCHEMES = {"ws": "http", "wss": "https"}


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """``coordinator_url`` is the socket's address; ``coordinator_address`` is the part of it that may be logged."""

    coordinator_url: str
    coordinator_address: str
    model_paths: tuple[Path, ...]
    max_concurrent: int
    private_only: bool
    once: bool
    home: Path
    auth_token_path: Path
    drain_timeout_seconds: float


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """``base_url`` is where the coordinator's HTTP endpoints begin, without a slash at its end."""

    base_url: str
    auth_token_path: Path


def serve_settings(
    coordinator: str,
    models: tuple[str, ...],
    max_concurrent: int,
    environment: Mapping[str, str],
    *,
    private_only: bool = False,
    once: bool = False,
) -> ServeSettings:
    """Combine the command line with the environment.

    Raises:
        SettingsInvalid: a URL, a duration or the list of models cannot be used.
    """
    paths = tuple(Path(model).expanduser().resolve() for model in models)
    names = [path.name for path in paths]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise SettingsInvalid(f"Two --model folders are named {doubled[0]}; a model's id is its folder's name.")
    home = _home(environment)
    url = socket_url(coordinator)
    return ServeSettings(
        coordinator_url=url,
        coordinator_address=loggable_address(url),
        model_paths=paths,
        max_concurrent=max_concurrent,
        private_only=private_only,
        once=once,
        home=home,
        auth_token_path=_auth_token_path(environment),
        drain_timeout_seconds=_drain_timeout_seconds(environment.get("DARKBLOOM_DRAIN_TIMEOUT_SECONDS", "")),
    )


def link_settings(coordinator: str, environment: Mapping[str, str]) -> LinkSettings:
    """The same for the commands that link and unlink this machine.

    Raises:
        SettingsInvalid: the URL cannot be used.
    """
    parts = urlsplit(socket_url(coordinator))
    base_path = parts.path.removesuffix(SOCKET_PATH).rstrip("/")
    base_url = urlunsplit((_HTTP_SCHEMES[parts.scheme], parts.netloc, base_path, "", ""))
    return LinkSettings(base_url, _auth_token_path(environment))


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("DARKBLOOM_HOME") or "~/.darkbloom").expanduser()


def _auth_token_path(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("DARKBLOOM_AUTH_TOKEN_PATH") or _home(environment) / "auth_token").expanduser()


def socket_url(coordinator: str) -> str:
    """The socket's URL for an ``http``, ``https``, ``ws`` or ``wss`` URL; without a path, the provider socket's.

    Raises:
        SettingsInvalid: it is not such a URL.
    """
    try:
        parts = urlsplit(coordinator.strip())
        scheme, host = _SOCKET_SCHEMES.get(parts.scheme), parts.hostname
        parts.port  # noqa: B018 - raises when the port is not a number
    except ValueError:
        scheme = host = None
    if scheme is None or not host or parts.fragment:
        raise SettingsInvalid("--coordinator must be a URL such as https://api.darkbloom.dev or ws://localhost:8000.")
    path = parts.path if parts.path not in ("", "/") else SOCKET_PATH
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def loggable_address(url: str) -> str:
    """The URL without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _drain_timeout_seconds(text: str) -> float:
    if not text:
        return DEFAULT_DRAIN_TIMEOUT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise SettingsInvalid("DARKBLOOM_DRAIN_TIMEOUT_SECONDS must be a number of seconds, 0 or more.")
    return seconds
