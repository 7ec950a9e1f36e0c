"""Privy's user API: the details of a person who is seen for the first time (consumer API, section 3.4)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from domain.people import Details

log = logging.getLogger(__name__)

ISSUER = "privy.io"
SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 256 * 1024
_VERIFIED = ("verified_at", "first_verified_at", "latest_verified_at")


class PrivyUsers:
    def __init__(self, base_url: str, app_id: str, app_secret: str, *, seconds_max: float = SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._client = httpx.AsyncClient(
            base_url=base_url,
            auth=(app_id, app_secret),
            headers={"Privy-App-Id": app_id, "Accept": "application/json"},
            timeout=seconds_max,
            trust_env=False,
        )

    async def details_of(self, subject: str) -> Details:
        """What Privy knows of somebody; empty details when it cannot be asked."""
        try:
            async with asyncio.timeout(self._seconds_max):
                return _details(await self._ask(subject))
        except (httpx.HTTPError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            log.warning("a new account has no details, because Privy could not be asked: %s", type(error).__name__)
            return Details()

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, subject: str) -> Any:
        received = bytearray()
        async with self._client.stream("GET", f"/api/v1/users/{quote(subject, safe='')}") as answer:
            answer.raise_for_status()
            async for part in answer.aiter_bytes():
                received += part
                if len(received) > ANSWER_BYTES_MAX:
                    raise ValueError("too long an answer")
        return msgspec.json.decode(bytes(received))


def _details(user: Any) -> Details:
    email = wallet_address = wallet_id = ""
    linked = user.get("linked_accounts") if isinstance(user, dict) else None
    for account in linked if isinstance(linked, list) else ():
        if not isinstance(account, dict):
            continue
        if account.get("type") == "email" and not email and any(account.get(name) for name in _VERIFIED):
            email = _text(account.get("address")).lower()
        elif account.get("type") == "wallet" and account.get("chain_type") == "solana" and not wallet_address:
            wallet_address, wallet_id = _text(account.get("address")), _text(account.get("id"))
    return Details(email, wallet_address, wallet_id)


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= 254 and value.isprintable() else ""
