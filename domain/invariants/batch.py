"""The check of a batch before its commit: what the writer refuses to make true."""

from __future__ import annotations

from uuid import UUID

from domain.errors import InvariantViolated
from domain.eventsourced import Written
from domain.invariants.catalogue import Violation
from domain.invariants.transaction import TransactionCheck
from domain.invites import InviteCode, InviteCodeDeactivated, InviteCodeRedeemed
from domain.requests import InferenceRequest, RequestAdmitted
from domain.wallet import Wallet

HOLDS_CHECKED_EVERY_BATCHES = 64
"""A wallet's open holds are added up in one batch of so many; a busy account has thousands of them."""


class BatchCheck:
    """Checks each batch of one writer, on every batch, between the decisions and COMMIT.

    It needs no state from before the batch: what belongs together is in the batch, the admission of a request that ends
    in it is in the request's aggregate, and the aggregates are compared with the events that made them.
    """

    def __init__(self) -> None:
        self._transaction = TransactionCheck(_stop)
        self._batches = 0

    def check(self, written: Written) -> None:
        """Check what one transaction is about to append.

        Raises:
            InvariantViolated: it must not be committed, and nothing after it by this process either.
        """
        self._batches += 1
        transaction, touched = self._transaction, written.touched
        versions: dict[int, int] = {}
        position = written.first_position - 1
        try:
            for position, event in enumerate(written.events, written.first_position):
                number, version = event.originator_id.int, event.originator_version
                if versions.get(number, version - 1) != version - 1:
                    _stop(Violation(14, position, str(event.originator_id), "the versions of an aggregate have a gap"))
                versions[number] = version
                transaction.read(position, event)
            transaction.close(position, lambda aggregate_id: _admission(written, aggregate_id))
        except InvariantViolated:
            self._transaction = TransactionCheck(_stop)
            raise
        for number, version in versions.items():
            if touched[number].version != version:
                subject = str(touched[number].id)
                _stop(Violation(14, position, subject, "an aggregate and its events differ in their version"))
        for invite in written.changed(InviteCode):
            _check_invite(invite, written, position)
        if self._batches % HOLDS_CHECKED_EVERY_BATCHES == 0:
            for wallet in written.changed(Wallet):
                if wallet.held != sum(wallet.holds.values()):
                    _stop(Violation(5, position, wallet.account_id, "a wallet's holds do not add up"))


def _check_invite(invite: InviteCode, written: Written, position: int) -> None:
    """Compare an invite code with the events that changed it."""
    for event in written.events:
        if event.originator_id != invite.id:
            continue
        if isinstance(event, InviteCodeRedeemed) and event.account_id not in invite.accounts:
            _stop(Violation(11, position, invite.code, "an invite code forgets who used it"))
        if isinstance(event, InviteCodeDeactivated) and invite.is_active:
            _stop(Violation(11, position, invite.code, "an invite code goes on after its end"))


def _admission(written: Written, aggregate_id: UUID) -> RequestAdmitted | None:
    request = written.touched.get(aggregate_id.int)
    return request.admission if isinstance(request, InferenceRequest) else None


def _stop(violation: Violation) -> None:
    raise InvariantViolated(str(violation))
