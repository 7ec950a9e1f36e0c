"""Which read models there are, and who keeps each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from projections.audit.holds import HoldHistory
from projections.audit.marks import TrialBalanceMarks
from projections.balances import BalancesReplay
from projections.earning_totals import EarningTotals
from projections.earnings import Earnings
from projections.invite_codes import InviteCodes
from projections.journal import JournalLines
from projections.leaderboard import LeaderboardDaily
from projections.ledger_lines import LedgerLines
from projections.open_requests import OpenRequests
from projections.projection import Projection
from projections.sub_account_balances import SubAccountBalances
from projections.trial_balance import TrialBalance
from projections.usage import UsageEntries
from projections.usage_minute import UsageMinute
from projections.usage_totals import UsageTotals

INLINE: Mapping[str, Callable[[], Projection]] = {
    "wallet_balances": BalancesReplay,
    "usage_entries": UsageEntries,
    "open_requests": OpenRequests,
}
"""Tables that the ledger's writer keeps true itself; these replay them."""

LAGGING: Mapping[str, Callable[[], Projection]] = {
    "journal_lines": JournalLines,
    "trial_balance_marks": TrialBalanceMarks,
    "hold_history": HoldHistory,
    "trial_balance": TrialBalance,
    "sub_account_balances": SubAccountBalances,
    "ledger_lines": LedgerLines,
    "provider_earnings": Earnings,
    "earning_totals": EarningTotals,
    "leaderboard_daily": LeaderboardDaily,
    "usage_minute": UsageMinute,
    "usage_totals": UsageTotals,
    "invite_codes": InviteCodes,
}
"""Tables that a runner keeps, and that follow the log."""

READ_MODELS: Mapping[str, Callable[[], Projection]] = {**INLINE, **LAGGING}


class UnknownProjection(ValueError):
    """There is no read model of that name."""


def lagging() -> list[Projection]:
    """What a runner keeps."""
    return [make() for make in LAGGING.values()]


def replaying(names: tuple[str, ...] = ()) -> list[Projection]:
    """Fresh projections for one replay, of the named tables or of all.

    Raises:
        UnknownProjection: a name is not in this registry; the message lists those that are.
    """
    for name in names:
        if name not in READ_MODELS:
            raise UnknownProjection(f"there is no read model {name!r}; there are {', '.join(sorted(READ_MODELS))}")
    return [make() for name, make in READ_MODELS.items() if not names or name in names]
