"""wallet_balances: what each account can spend and withdraw, true at every commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from domain.eventsourced import Written
from domain.ledger import Balance
from domain.wallet import Wallet

UPSERT = """
INSERT INTO wallet_balances (account_id, wallet_version, balance_micro_usd, withdrawable_micro_usd, held_micro_usd)
SELECT * FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (account_id) DO UPDATE SET wallet_version = excluded.wallet_version,
    balance_micro_usd = excluded.balance_micro_usd, withdrawable_micro_usd = excluded.withdrawable_micro_usd,
    held_micro_usd = excluded.held_micro_usd
WHERE wallet_balances.wallet_version < excluded.wallet_version
"""
"""Absolute values, guarded by the wallet's version: applying one twice or late changes nothing."""

BALANCE_OF = "SELECT balance_micro_usd, withdrawable_micro_usd FROM wallet_balances WHERE account_id = %s"


class Balances:
    """The inline projection of the wallets."""

    def statements(self, written: Written) -> Iterable[tuple[str, Sequence[Any]]]:
        wallets = written.changed(Wallet)
        if wallets:
            yield (
                UPSERT,
                (
                    [wallet.account_id for wallet in wallets],
                    [wallet.version for wallet in wallets],
                    [wallet.balance for wallet in wallets],
                    [wallet.withdrawable for wallet in wallets],
                    [wallet.held for wallet in wallets],
                ),
            )


def balance_of(row: Sequence[Any] | None) -> Balance:
    """What BALANCE_OF found; an account that never had money reads as zeros."""
    return Balance(row[0], row[1]) if row else Balance(0, 0)
