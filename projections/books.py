"""The read side of the ledger for consumers: balance and usage, true right after each write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import psycopg

from domain.ledger import Balance
from projections.balances import BALANCE_OF, balance_of
from projections.usage import USAGE_OF, USAGE_PAGE

Connect = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[tuple[Any, ...]]]]


class StoredBooks:
    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    async def balance(self, account_id: str) -> Balance:
        async with self._connect() as connection:
            row = await (await connection.execute(BALANCE_OF, (account_id,), prepare=True)).fetchone()
        return balance_of(row)

    async def usage(self, account_id: str, *, before_position: int, limit: int) -> Sequence[tuple[Any, ...]]:
        """Rows in the order of USAGE_PAGE, newest first."""
        async with self._connect() as connection:
            cursor = await connection.execute(USAGE_PAGE, (account_id, before_position, limit), prepare=True)
            return await cursor.fetchall()

    async def usage_of(self, account_id: str, job_id: UUID) -> tuple[Any, ...] | None:
        """One settled request, if it is the account's."""
        async with self._connect() as connection:
            return await (await connection.execute(USAGE_OF, (job_id, account_id), prepare=True)).fetchone()
