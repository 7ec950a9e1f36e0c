"""What the tests of the database's roles share."""

from __future__ import annotations

from typing import NamedTuple


class Owned(NamedTuple):
    """The URL of one database for its owner, for the application's role and for the auditor's."""

    owner: str
    application: str
    auditor: str
