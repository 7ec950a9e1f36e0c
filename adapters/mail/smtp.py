"""Sends mail through an SMTP server."""

from __future__ import annotations

import asyncio
import logging
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from urllib.parse import unquote, urlsplit

from domain.errors import ServiceUnavailable

log = logging.getLogger(__name__)

SECONDS_MAX = 10.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class MailSettingsInvalid(ValueError):
    """The address of the mail server cannot be used."""


class SmtpMail:
    """``url`` is ``smtp://`` (which must offer STARTTLS unless it is on this machine) or ``smtps://``, with user and
    password where the server wants them."""

    def __init__(self, url: str, sender: str, *, tls: ssl.SSLContext | None = None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise MailSettingsInvalid("the port of the mail server is not a number") from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise MailSettingsInvalid("the mail server must be smtp://host:port or smtps://host:port")
        if "@" not in sender or not sender.isprintable():
            raise MailSettingsInvalid("the sender must be an e-mail address")
        self._is_implicit = parts.scheme == "smtps"
        self._host, self._port = parts.hostname, port or (465 if self._is_implicit else 587)
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._sender = sender
        self._tls = tls or ssl.create_default_context()

    async def send(self, address: str, subject: str, text: str) -> None:
        """Raises ServiceUnavailable when the server does not take it."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._sender, address, subject
        message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=self._sender.rpartition("@")[2])
        message.set_content(text)
        try:
            await asyncio.to_thread(self._deliver, message)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            log.error("a mail could not be sent: %s", type(error).__name__)
            raise ServiceUnavailable("The mail with the code could not be sent; try again later.") from None

    def _deliver(self, message: EmailMessage) -> None:
        if self._is_implicit:
            server: smtplib.SMTP = smtplib.SMTP_SSL(self._host, self._port, timeout=SECONDS_MAX, context=self._tls)
        else:
            server = smtplib.SMTP(self._host, self._port, timeout=SECONDS_MAX)
        with server:
            server.ehlo()
            if not self._is_implicit and server.has_extn("starttls"):
                server.starttls(context=self._tls)
            elif not self._is_implicit and self._host not in _LOOPBACK:
                raise smtplib.SMTPNotSupportedError("the server offers no encryption")
            if self._user:
                server.login(self._user, self._password)
            server.send_message(message)
