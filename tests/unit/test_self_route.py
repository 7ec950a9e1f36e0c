"""Requests that are restricted to machines of the consumer's own account: free, and without any hold."""

from __future__ import annotations

import msgspec
import pytest

from domain.errors import Conflict
from domain.eventsourced import DomainEvent
from domain.invariants import LogCheck, Logged, Violation
from domain.ledger import Release
from domain.requests import RequestAdmitted, RequestReleased, RequestSettled
from domain.wallet import Wallet
from tests.support.examples import REQUEST, admit, dispatch, grant, settle
from tests.support.memory_ledger import MemoryLedger


def names(ledger: MemoryLedger) -> list[str]:
    return [type(event).__name__ for event in ledger.events]


def test_an_empty_wallet_is_enough_and_nothing_is_held_or_charged() -> None:
    ledger = MemoryLedger()
    admission = ledger.execute(admit("me", self_route=True))
    assert (admission.self_route, admission.reserved) == (True, 0)

    assert ledger.execute(dispatch(owner="me")) is True
    end = ledger.execute(settle("me"))

    assert isinstance(end, RequestSettled)
    assert (end.cost, end.free, end.provider_amount) == (0, True, 0)
    assert names(ledger) == ["RequestAdmitted", "JobDispatched", "JobCompleted", "RequestSettled"]
    assert ledger.state_of(Wallet, "me").balance == 0


def test_a_release_returns_no_hold_that_never_was() -> None:
    ledger = MemoryLedger()
    ledger.execute(admit("me", self_route=True))
    end = ledger.execute(Release(request_id=REQUEST, account_id="me", reason="failed"))
    assert isinstance(end, RequestReleased)
    assert names(ledger) == ["RequestAdmitted", "RequestReleased"]


def test_it_goes_to_no_machine_of_somebody_else() -> None:
    ledger = MemoryLedger()
    ledger.execute(admit("me", self_route=True))
    with pytest.raises(Conflict):
        ledger.execute(dispatch(owner="somebody"))
    assert names(ledger) == ["RequestAdmitted"]


def test_to_prefer_one_s_own_machine_takes_a_hold_and_returns_it_all() -> None:
    ledger = MemoryLedger()
    ledger.execute(grant("me", 10_000))
    ledger.execute(admit("me"))
    assert ledger.state_of(Wallet, "me").held > 0
    ledger.execute(dispatch(owner="me"))
    ledger.execute(settle("me"))
    assert (ledger.state_of(Wallet, "me").held, ledger.state_of(Wallet, "me").balance) == (0, 10_000)


def served(*, released: bool = False) -> list[DomainEvent]:
    """The log of a request that was restricted to one's own machines."""
    ledger = MemoryLedger()
    ledger.execute(admit("me", self_route=True))
    ledger.execute(dispatch(owner="me"))
    ledger.execute(Release(request_id=REQUEST, account_id="me", reason="failed") if released else settle("me"))
    return ledger.events


def violations(log: list[DomainEvent], *, whole: bool = True) -> list[Violation]:
    found: list[Violation] = []
    check = LogCheck(found.append) if whole else LogCheck(found.append, after_position=1, whole=False)
    for position, event in enumerate(log, 1 if whole else 2):
        check.read(Logged(position, event.timestamp, event))
    check.close()
    return found


@pytest.mark.parametrize("released", [False, True])
def test_the_books_are_sound_without_its_hold(released: bool) -> None:
    log = served(released=released)
    assert violations(log) == []
    assert violations(log[1:], whole=False) == []


def test_a_request_that_was_charged_without_a_hold_is_found() -> None:
    log = served()
    log[-1] = msgspec.structs.replace(log[-1], free=False)
    assert [found.invariant for found in violations(log)] == [5]


def test_a_hold_for_a_request_that_claims_to_need_none_is_found() -> None:
    ledger = MemoryLedger()
    ledger.execute(grant("me", 10_000))
    ledger.execute(admit("me"))
    ledger.execute(Release(request_id=REQUEST, account_id="me", reason="failed"))
    log = ledger.events
    admitted = next(at for at, event in enumerate(log) if isinstance(event, RequestAdmitted))
    log[admitted] = msgspec.structs.replace(log[admitted], self_route=True, reserved=0)
    assert 5 in {found.invariant for found in violations(log)}
