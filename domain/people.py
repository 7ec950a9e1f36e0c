"""Who a person is to the coordinator: claims of a session, an account, and details that stay out of every event."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from domain.keys import AccountLimits


class SessionClaims(NamedTuple):
    """What a verified session token says. ``session_id`` is safe to store and to log; it is no credential.

    A token that is ``ours`` was issued here, and counts only while its session stands in the database.
    """

    issuer: str
    subject: str
    session_id: str
    expires_at: int
    ours: bool


class Details(NamedTuple):
    """Personal data, empty where unknown. The address is in lower case."""

    email: str = ""
    wallet_address: str = ""
    wallet_id: str = ""


class Person(NamedTuple):
    """An account with somebody behind it. ``is_open`` once the ledger knows the account."""

    account_id: str
    email: str = ""
    is_open: bool = False
    limits: AccountLimits = AccountLimits()


class FoundSession(NamedTuple):
    """``person`` is None for a subject that was never seen; ``is_live`` is whether the session may still be used."""

    person: Person | None
    is_live: bool


class OpenedSession(NamedTuple):
    """A session's own id with the subject that its tokens name."""

    session_id: str
    subject: str
    account_id: str


class AskingMachine(NamedTuple):
    """What a machine that asks to be linked says of itself, empty where it says nothing; nobody has checked it."""

    name: str
    chip: str
    asked_at: datetime


class LinkRefused(Exception):
    """The account's owner refused to link a machine."""
