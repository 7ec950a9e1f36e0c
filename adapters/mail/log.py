"""Writes mail to the log instead of sending it. For development alone: the log then holds sign-in codes."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class LoggedMail:
    async def send(self, address: str, subject: str, text: str) -> None:
        log.warning("mail to %s: %s: %s", address, subject, " ".join(text.split()))
