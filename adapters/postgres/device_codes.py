"""Codes by which a machine is linked to an account. Only hashes rest here, keyed for the code that a person types."""

from __future__ import annotations

from collections.abc import Callable

from psycopg_pool import AsyncConnectionPool

from adapters.postgres import sql
from adapters.postgres.credentials import hash_of, new_provider_token
from adapters.postgres.pool import AsyncConnection, connection_of
from domain.errors import AlreadyUsed, CodeExpired, CodeNotFound, GrantExpired, GrantNotFound
from domain.people import AskingMachine, LinkRefused


class StoredDeviceCodes:
    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], code_hash: Callable[..., str]) -> None:
        self._pool = pool
        self._code_hash = code_hash

    async def add(
        self, device_code: str, user_code: str, seconds: float, *, machine_name: str = "", chip: str = ""
    ) -> bool:
        """Whether the codes were free."""
        values = {
            "device_hash": hash_of(device_code),
            "user_code_hash": self._code_hash("device", user_code),
            "seconds": seconds,
            "machine_name": machine_name,
            "chip": chip,
        }
        async with connection_of(self._pool) as connection:
            return await (await connection.execute(sql.ADD_DEVICE_CODE, values)).fetchone() is not None

    async def approve(self, user_code: str, account_id: str) -> None:
        """Let the machine that shows this code earn for an account.

        Raises:
            CodeNotFound, CodeExpired, AlreadyUsed: it cannot be approved.
        """
        user_code_hash = self._code_hash("device", user_code)
        values = {"user_code_hash": user_code_hash, "account_id": account_id, "label": f"device-{user_code}"}
        async with connection_of(self._pool) as connection:
            if await (await connection.execute(sql.APPROVE_DEVICE, values)).fetchone() is not None:
                return
        await self.who_asks(user_code)
        raise AlreadyUsed  # just now

    async def refuse(self, user_code: str) -> None:
        """Never link the machine that shows this code. Raises the same."""
        async with connection_of(self._pool) as connection:
            values = (self._code_hash("device", user_code),)
            if await (await connection.execute(sql.REFUSE_DEVICE, values)).fetchone() is not None:
                return
        await self.who_asks(user_code)
        raise AlreadyUsed

    async def who_asks(self, user_code: str) -> AskingMachine:
        """The machine that shows a code which can still be approved. Raises the same."""
        async with connection_of(self._pool) as connection:
            values = (self._code_hash("device", user_code),)
            row = await (await connection.execute(sql.USER_CODE_STATE, values)).fetchone()
        if row is None:
            raise CodeNotFound
        is_used, is_past, *described = row
        if is_used or is_past:
            raise AlreadyUsed if is_used else CodeExpired
        return AskingMachine(*described)

    async def redeem(self, device_code: str) -> tuple[str, str] | None:
        """The machine's own token and the account, once; None while nobody has approved the code.

        Raises:
            GrantNotFound: there is no such code. GrantExpired: it is past its time, or was redeemed.
            LinkRefused: the owner refused it.
        """
        device_hash = hash_of(device_code)
        async with connection_of(self._pool) as connection, connection.transaction():
            row = await (await connection.execute(sql.CONSUME_DEVICE_CODE, (device_hash,))).fetchone()
            if row is not None:
                account_id, label = row
                token = new_provider_token()
                await connection.execute(sql.INSERT_PROVIDER_TOKEN, (hash_of(token), account_id, label))
                return token, account_id
            row = await (await connection.execute(sql.DEVICE_CODE_STATE, (device_hash,))).fetchone()
        if row is None:
            raise GrantNotFound
        is_past, is_refused = row
        if is_refused:
            raise LinkRefused
        if is_past:
            raise GrantExpired
        return None

    async def revoke_token(self, token: str) -> bool:
        """Take back a machine's token; False when it was none."""
        async with connection_of(self._pool) as connection:
            return await (await connection.execute(sql.REVOKE_PROVIDER_TOKEN, (hash_of(token),))).fetchone() is not None
