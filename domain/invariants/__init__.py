"""The invariants of the books (money, section 12.6), as folds over events that share one set of rules.

``TransactionCheck`` knows what must hold of the events of one transaction by themselves. ``BatchCheck`` asks it before
a commit, on every batch. ``LogCheck`` asks it for each transaction of a whole log, and adds what needs the history:
balances, open holds and requests, positions. So tests, the doctor and the running writer agree on what is right.
"""

from domain.invariants.batch import BatchCheck
from domain.invariants.catalogue import INVARIANTS, Invariant, Violation
from domain.invariants.log import LogCheck, Logged, WalletFold
from domain.invariants.totals import EarningTotals, JournalTotals, UsageTotals
from domain.invariants.transaction import TransactionCheck

__all__ = [
    "INVARIANTS",
    "BatchCheck",
    "EarningTotals",
    "Invariant",
    "JournalTotals",
    "LogCheck",
    "Logged",
    "TransactionCheck",
    "UsageTotals",
    "Violation",
    "WalletFold",
]
