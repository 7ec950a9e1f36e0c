"""The account behind a person, known to the ledger from the first sight on."""

from __future__ import annotations

from api.identity.ports import People
from api.ports import Ledger
from domain.eventsourced import Actor
from domain.ledger import OpenAccount
from domain.people import Person


async def ensure_open(person: Person, people: People, ledger: Ledger) -> None:
    """Open a new person's account. A crash in between leaves it to the next sight of the person."""
    if person.is_open:
        return
    account_id = person.account_id
    await ledger.run(OpenAccount(actor=Actor("consumer", account_id), correlation_id=account_id, account_id=account_id))
    await people.mark_open(account_id)
