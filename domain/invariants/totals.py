"""Direct folds over settlements and entries, with which the read models are compared (invariant 12).

A read model that lags is compared as of the position that it has read to.
"""

from __future__ import annotations

from collections import defaultdict

from domain.invariants.log import Logged
from domain.journal import JournalEntryPosted
from domain.requests import RequestSettled


class UsageTotals:
    """By account: charged requests, prompt tokens, completion tokens, and cost in micro-USD."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def read(self, logged: Logged) -> None:
        event = logged.event
        if isinstance(event, RequestSettled) and not event.free:
            row = self.rows[event.account_id]
            row[0] += 1
            row[1] += event.prompt_tokens
            row[2] += event.completion_tokens
            row[3] += event.cost


class EarningTotals:
    """By machine: jobs that earned, prompt tokens, completion tokens, and micro-USD."""

    def __init__(self, upto: int) -> None:
        self._upto = upto
        self.rows: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def read(self, logged: Logged) -> None:
        event = logged.event
        if isinstance(event, RequestSettled) and event.provider_amount and logged.position <= self._upto:
            row = self.rows[event.machine_id]
            row[0] += 1
            row[1] += event.prompt_tokens
            row[2] += event.completion_tokens
            row[3] += event.provider_amount


class JournalTotals:
    """By account of the chart: lines, debits and credits in micro-USD."""

    def __init__(self, upto: int) -> None:
        self._upto = upto
        self.rows: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def read(self, logged: Logged) -> None:
        event = logged.event
        if isinstance(event, JournalEntryPosted) and logged.position <= self._upto:
            for line in event.postings:
                row = self.rows[line.account_code]
                row[0] += 1
                row[1 if line.direction == "debit" else 2] += line.amount
