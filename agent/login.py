"""Links this machine to an account, in the manner of RFC 8628 (provider agent, section 3.11)."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from agent import hardware
from agent.auth_token import read_auth_token
from agent.coordinator_http import Answer, post
from agent.errors import CoordinatorFailed, NotLinked
from agent.files import replace_private
from agent.settings import LinkSettings
from domain.protocol import PROVIDER_TOKEN_PREFIX

TOKEN_CHARACTERS_MAX = 256
INTERVAL_SECONDS = 5.0
INTERVAL_SECONDS_MAX = 30.0
EXPIRY_SECONDS = 900.0

_TOKEN = re.compile(re.escape(PROVIDER_TOKEN_PREFIX) + r"[0-9A-Za-z]{16,200}")


def login(settings: LinkSettings, *, force: bool, open_browser: bool) -> None:
    """Show a code, wait until somebody approves it, and keep the token.

    Raises:
        NotLinked: nobody approved in time, or the coordinator refused. CoordinatorFailed: it did not answer.
    """
    if _is_linked(settings, force=force):
        return
    code = post(f"{settings.base_url}/v1/device/code", _description())
    device_code, page = code.text("device_code"), code.text("verification_uri")
    if code.status != 200 or not device_code or not page:
        raise CoordinatorFailed(f"{settings.base_url} gives out no code: {code.problem}")
    expires_in = _seconds(code, "expires_in", EXPIRY_SECONDS, EXPIRY_SECONDS)
    click.echo(f"Open {page} and enter the code {code.text('user_code')}")
    click.echo(f"It holds for {math.ceil(expires_in / 60)} minutes. Waiting …")
    if open_browser:
        _open(code.text("verification_uri_complete") or page)
    interval = _seconds(code, "interval", INTERVAL_SECONDS, INTERVAL_SECONDS_MAX)
    _keep(settings.auth_token_path, _wait(settings, device_code, interval, expires_in))
    click.echo("This machine is linked to your account. An agent that runs takes that up when it connects anew.")


def take_over(settings: LinkSettings, token: str, *, force: bool) -> None:
    """Keep a token that was made elsewhere. Raises NotLinked when it is none."""
    if _is_linked(settings, force=force):
        return
    _keep(settings.auth_token_path, token.strip())
    click.echo("This machine has its token. An agent that runs takes it up when it connects anew.")


def logout(settings: LinkSettings, *, revoke: bool) -> None:
    """Delete the token, and with ``revoke`` have the coordinator forget it first.

    Raises:
        CoordinatorFailed: it could not be revoked; the file is left as it was.
    """
    token = read_auth_token(settings.auth_token_path)
    if revoke and _TOKEN.fullmatch(token):
        answer = post(f"{settings.base_url}/v1/device/revoke", bearer=token)
        if answer.status not in (200, 401):
            raise CoordinatorFailed(f"the token could not be revoked: {answer.problem}")
    if not settings.auth_token_path.exists():
        click.echo("This machine is not linked to an account.")
        return
    settings.auth_token_path.unlink()
    click.echo("This machine is no longer linked. What it does from its next connection on is credited to nobody.")


def _is_linked(settings: LinkSettings, *, force: bool) -> bool:
    if force or not read_auth_token(settings.auth_token_path):
        return False
    click.echo("This machine is linked to an account already; --force links it anew.")
    return True


def _description() -> dict[str, Any]:
    """By what its owner knows this machine on the page."""
    return {"machine_name": platform.node(), "chip": hardware.detect().chip_name}


def _wait(settings: LinkSettings, device_code: str, interval: float, expires_in: float) -> str:
    """Poll until there is a token. Whatever may pass, such as a lost network, is waited out."""
    deadline = time.monotonic() + expires_in
    while time.monotonic() + interval < deadline:
        time.sleep(interval)
        try:
            answer = post(f"{settings.base_url}/v1/device/token", {"device_code": device_code})
        except CoordinatorFailed:
            continue
        if answer.status == 429:
            interval = min(2 * interval, INTERVAL_SECONDS_MAX)
        elif answer.status in (404, 410):
            raise NotLinked(f"The code was not approved: {answer.problem}")
        elif answer.body.get("status") == "authorized":
            return answer.text("token")
        elif answer.body.get("status") == "access_denied":
            raise NotLinked("The owner of the account refused to link this machine.")
        elif answer.body.get("status") not in (None, "authorization_pending"):
            raise NotLinked(f"The coordinator says: {answer.text('status') or answer.problem}.")
    raise NotLinked("Nobody approved the code in time. Run 'darkbloom login' again.")


def _keep(path: Path, token: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise NotLinked("That is no provider token.")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_private(path, f"{token}\n".encode())


def _seconds(answer: Answer, name: str, default: float, most: float) -> float:
    value: Any = answer.body.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return min(float(value), most) if is_number and value > 0 else default


def _open(page: str) -> None:
    """A browser helps, and nobody needs it."""
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    has_screen = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if not page.startswith(("http://", "https://")) or not has_screen or shutil.which(opener) is None:
        return
    with contextlib.suppress(OSError):
        subprocess.Popen(
            [opener, page],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
