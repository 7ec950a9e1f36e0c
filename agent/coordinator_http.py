"""The coordinator's HTTP endpoints, as far as the agent calls them."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from agent.errors import CoordinatorFailed
from agent.log import printable
from agent.version import agent_version

SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 64 * 1024


class Answer(NamedTuple):
    """``body`` is empty when it was no JSON object."""

    status: int
    body: dict[str, Any]

    def text(self, name: str) -> str:
        value = self.body.get(name)
        return printable(value) if isinstance(value, str) else ""

    @property
    def problem(self) -> str:
        """What the coordinator says went wrong."""
        error = self.body.get("error")
        message = error.get("message") if isinstance(error, dict) else None
        return printable(message) if isinstance(message, str) else f"HTTP status {self.status}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A secret goes to no other place than the one that was named."""


_opener = urllib.request.build_opener(_NoRedirect)


def post(url: str, body: dict[str, Any] | None = None, *, bearer: str = "") -> Answer:
    """Send a POST and read its answer, whatever its status.

    Raises:
        CoordinatorFailed: there was no answer.
    """
    headers = {"User-Agent": f"darkbloom/{agent_version()}", "Content-Type": "application/json"}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    content = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, headers, method="POST")  # noqa: S310  # settings allow http and https
    try:
        with _opener.open(request, timeout=SECONDS_MAX) as answer:
            return Answer(answer.status, _json(answer.read(ANSWER_BYTES_MAX)))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, _json(error.read(ANSWER_BYTES_MAX)))
    except (OSError, http.client.HTTPException) as error:
        reason = printable(str(getattr(error, "reason", error))) or type(error).__name__
        raise CoordinatorFailed(f"{url.partition('/v1/')[0]} cannot be reached: {reason}") from None


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
