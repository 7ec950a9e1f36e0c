"""Folds the aggregates that have a snapshot through their own events, and compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from domain.eventsourced import Aggregate
from domain.invariants import Logged
from domain.invariants.catalogue import Report, Violation
from domain.invites import InviteCode
from domain.key_budgets import KeyBudget
from domain.machines import ProviderMachine
from domain.wallet import Wallet
from projections.page import Connection

SNAPSHOTTED: Mapping[str, type[Aggregate]] = {cls.KIND: cls for cls in (Wallet, ProviderMachine, KeyBudget, InviteCode)}
"""The aggregates that get snapshots, by the first part of their events' topics."""

SNAPSHOTS = "SELECT originator_id, originator_version, class_version, state FROM snapshots"


class SnapshotCheck:
    """Reads the whole log beside others. A snapshot is kept in memory until its version has been read."""

    def __init__(self, connection: Connection, report: Report) -> None:
        self._report = report
        self._pending: dict[UUID, tuple[Any, ...]] = {
            row[0]: tuple(row[1:]) for row in connection.execute(SNAPSHOTS, binary=True)
        }
        self._aggregates: dict[UUID, Aggregate] = {}

    def read(self, logged: Logged) -> None:
        event = logged.event
        aggregate_id = event.originator_id
        snapshot = self._pending.get(aggregate_id)
        if snapshot is None:
            return
        aggregate = self._aggregates.get(aggregate_id)
        if aggregate is None:
            kind = SNAPSHOTTED.get(event.TOPIC.partition(".")[0])
            if kind is None:
                self._say(logged.position, aggregate_id, "a snapshot is of an aggregate that gets none")
                return
            aggregate = self._aggregates[aggregate_id] = kind(aggregate_id)
        try:
            event.evolve(aggregate)
        except Exception as error:  # noqa: BLE001  # a damaged log breaks in any way; the rest is still compared
            self._say(logged.position, aggregate_id, f"a snapshot cannot be compared: {type(error).__name__}")
            return
        version, class_version, state = snapshot
        if aggregate.version != version:
            return
        # One of another form is never read; one of this form has one way to be written.
        if class_version != aggregate.SNAPSHOT_VERSION or aggregate.state() == state:
            self._forget(aggregate_id)
        else:
            self._say(logged.position, aggregate_id, "a snapshot differs from its events")

    def close(self) -> None:
        """The log ends here."""
        for aggregate_id in list(self._pending):
            self._say(0, aggregate_id, "a snapshot is of a version that is not in the log")

    def _say(self, position: int, aggregate_id: UUID, what: str) -> None:
        self._report(Violation(12, position, f"snapshots {aggregate_id}", what))
        self._forget(aggregate_id)

    def _forget(self, aggregate_id: UUID) -> None:
        del self._pending[aggregate_id]
        self._aggregates.pop(aggregate_id, None)
