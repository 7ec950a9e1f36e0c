"""wallet_balances: what each account can spend and withdraw, true at every commit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from domain.events import EVENT_CLASSES
from domain.eventsourced import DomainEvent, Written
from domain.ledger import Balance
from domain.wallet import Wallet
from projections.page import Connection, Page

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

SET_ASIDE_TABLE = """
CREATE TEMP TABLE IF NOT EXISTS wallets_set_aside
    (wallet_id uuid PRIMARY KEY, version int NOT NULL, state bytea NOT NULL)
"""
SET_ASIDE = "INSERT INTO wallets_set_aside SELECT * FROM unnest(%s::uuid[], %s::int[], %s::bytea[])"
TAKE_UP = "DELETE FROM wallets_set_aside WHERE wallet_id = ANY(%s) RETURNING wallet_id, version, state"
"""Wallets that a replay has no room for in memory."""


class Balances:
    """Written with the events themselves, from the wallets that they left behind."""

    needs_final_state = True

    def statements(self, written: Written) -> Iterable[tuple[str, Sequence[Any]]]:
        wallets = written.changed(Wallet)
        if wallets:
            yield UPSERT, _columns(wallets)


class BalancesReplay:
    """The same table from the events alone: folds them through the wallets, as loading one does.

    It keeps ``wallets_max`` wallets in memory and sets the others aside in a temporary table, so it needs one session
    from the first page to the last.
    """

    name = "wallet_balances"
    events: Sequence[type[DomainEvent]] = tuple(
        event for event in EVENT_CLASSES if event.TOPIC.startswith(f"{Wallet.KIND}.")
    )
    only_adds = False

    def __init__(self, wallets_max: int = 20_000) -> None:
        self._wallets_max = wallets_max
        # By the number inside of the id, whose hash costs a third of the id's own.
        self._wallets: OrderedDict[int, Wallet] = OrderedDict()
        self._any_set_aside = False

    def apply(self, connection: Connection, page: Page) -> None:
        recorded = page.of_any(*self.events)
        changed = {event.originator_id.int: event.originator_id for _, _, event in recorded}
        if not changed:
            return
        wallets = self._wallets
        if self._any_set_aside:
            self._take_up(connection, [wallet_id for number, wallet_id in changed.items() if number not in wallets])
        for number, wallet_id in changed.items():
            if number in wallets:
                wallets.move_to_end(number)
            else:
                wallets[number] = Wallet(wallet_id)
        for _, _, event in recorded:
            event.evolve(wallets[event.originator_id.int])
        connection.execute(UPSERT, _columns([wallets[number] for number in changed]))
        if len(wallets) > self._wallets_max:
            self._set_aside(connection)

    def _set_aside(self, connection: Connection) -> None:
        """Put the wallets away that were not touched for the longest time; half of the room is kept, so it is rare."""
        aside = [self._wallets.popitem(last=False)[1] for _ in range(len(self._wallets) - self._wallets_max // 2)]
        connection.execute(SET_ASIDE_TABLE)
        columns = (
            [wallet.id for wallet in aside],
            [wallet.version for wallet in aside],
            [wallet.state() for wallet in aside],
        )
        connection.execute(SET_ASIDE, columns)
        self._any_set_aside = True

    def _take_up(self, connection: Connection, missing: list[UUID]) -> None:
        for wallet_id, version, state in connection.execute(TAKE_UP, (missing,), binary=True):
            wallet = Wallet(wallet_id)
            wallet.restore(state)
            wallet.version = version
            self._wallets[wallet_id.int] = wallet


def balance_of(row: Sequence[Any] | None) -> Balance:
    """What BALANCE_OF found; an account that never had money reads as zeros."""
    return Balance(row[0], row[1]) if row else Balance(0, 0)


def _columns(wallets: Sequence[Wallet]) -> Sequence[list[Any]]:
    return (
        [wallet.account_id for wallet in wallets],
        [wallet.version for wallet in wallets],
        [wallet.balance for wallet in wallets],
        [wallet.withdrawable for wallet in wallets],
        [wallet.held for wallet in wallets],
    )
