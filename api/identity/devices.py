"""Linking a machine to an account with a code that a person types (consumer API, section 15)."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from api.identity.limits import IdentityLimits
from api.identity.ports import DeviceCodes
from domain.errors import CodeNotFound, InternalError
from domain.people import AskingMachine

CODE_SECONDS = 900
POLL_SECONDS = 5
ALPHABET = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
"""Without I, L, O, 0 and 1, which look like one another."""


class DeviceCode(NamedTuple):
    """``device_code`` is the machine's secret, ``user_code`` what a person reads off its screen."""

    device_code: str
    user_code: str


def normalised(user_code: str) -> str:
    """A code as it was given out, however it was typed; empty for what cannot be one."""
    letters = "".join(user_code.upper().replace("-", " ").split())
    if len(letters) != 8 or any(letter not in ALPHABET for letter in letters):
        return ""
    return f"{letters[:4]}-{letters[4:]}"


class DeviceLogin:
    def __init__(self, codes: DeviceCodes, limits: IdentityLimits) -> None:
        self._codes = codes
        self._limits = limits

    async def begin(self, *, machine_name: str = "", chip: str = "") -> DeviceCode:
        """Codes for a machine, with what it says of itself."""
        for _ in range(2):
            made = DeviceCode(secrets.token_hex(32), _user_code())
            if await self._codes.add(
                made.device_code, made.user_code, CODE_SECONDS, machine_name=machine_name, chip=chip
            ):
                return made
        raise InternalError("No free code was found; try again.")

    async def redeem(self, device_code: str) -> tuple[str, str] | None:
        """The machine's token and its account, once; None while nobody has approved the code.

        Raises:
            GrantNotFound, GrantExpired, LinkRefused: it never will be.
        """
        return await self._codes.redeem(device_code)

    async def approve(self, user_code: str, account_id: str) -> None:
        """Link the machine that shows a code.

        Raises:
            CodeNotFound, CodeExpired, AlreadyUsed: it is no such code. RateLimited: the account typed too many.
        """
        code = self._typed(user_code, account_id)
        await self._codes.approve(code, account_id)
        self._limits.forgive_typed_code(account_id)

    async def refuse(self, user_code: str, account_id: str) -> None:
        """Never link the machine that shows a code. Raises the same."""
        code = self._typed(user_code, account_id)
        await self._codes.refuse(code)
        self._limits.forgive_typed_code(account_id)

    async def who_asks_for(self, user_code: str, account_id: str) -> AskingMachine:
        """The machine that shows a code. Raises the same."""
        code = self._typed(user_code, account_id)
        found = await self._codes.who_asks(code)
        self._limits.forgive_typed_code(account_id)
        return found

    async def who_asks(self, user_code: str, address: str) -> AskingMachine:
        """The same for a stranger, who may try as often as machines may ask. Raises the same."""
        self._limits.count_device_request(address)
        code = normalised(user_code)
        if not code:
            raise CodeNotFound
        return await self._codes.who_asks(code)

    def _typed(self, user_code: str, account_id: str) -> str:
        self._limits.count_typed_code(account_id)
        code = normalised(user_code)
        if not code:
            raise CodeNotFound
        return code

    async def unlink(self, token: str) -> bool:
        """Take back a machine's own token."""
        return await self._codes.revoke_token(token)


def _user_code() -> str:
    letters = "".join(secrets.choice(ALPHABET) for _ in range(8))
    return f"{letters[:4]}-{letters[4:]}"
