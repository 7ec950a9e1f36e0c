"""Mail through a real SMTP conversation."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from adapters.mail import smtp
from adapters.mail.log import LoggedMail
from adapters.mail.smtp import MailSettingsInvalid, SmtpMail
from domain.errors import ServiceUnavailable
from tests.support.smtp_sink import contexts, smtp_sink

SENDER = "Darkbloom <codes@example.com>"


async def test_a_mail_arrives_as_it_was_written() -> None:
    with smtp_sink() as sink:
        await SmtpMail(f"smtp://127.0.0.1:{sink.port}", SENDER).send("ada@example.org", "Code: 1", "Grüße, 123456\n")
    (received,) = sink.received
    assert (received.sender, received.recipients) == ("codes@example.com", ["ada@example.org"])
    assert received.message["Subject"] == "Code: 1"
    assert received.message["To"] == "ada@example.org"
    assert received.message["Message-ID"].endswith("@example.com>")
    assert received.message.get_content().strip() == "Grüße, 123456"


async def test_it_is_encrypted_where_the_server_can_and_the_password_goes_over_that(tmp_path: Path) -> None:
    server, client = contexts(tmp_path)
    with smtp_sink(server, "pass word") as sink:
        mail = SmtpMail(f"smtp://user%40host:pass%20word@127.0.0.1:{sink.port}", SENDER, tls=client)
        await mail.send("ada@example.org", "Code", "1")
    (received,) = sink.received
    assert (received.was_encrypted, received.user) == (True, "user@host")


async def test_a_server_with_a_certificate_of_its_own_making_gets_nothing(tmp_path: Path) -> None:
    server, _ = contexts(tmp_path)
    with smtp_sink(server) as sink:
        with pytest.raises(ServiceUnavailable):
            await SmtpMail(f"smtp://127.0.0.1:{sink.port}", SENDER).send("ada@example.org", "Code", "1")
    assert sink.received == []


async def test_a_server_elsewhere_that_offers_no_encryption_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp, "_LOOPBACK", ())
    with smtp_sink() as sink:
        with pytest.raises(ServiceUnavailable):
            await SmtpMail(f"smtp://127.0.0.1:{sink.port}", SENDER).send("ada@example.org", "Code", "1")
    assert sink.received == []


async def test_what_the_server_refuses_is_an_error_without_the_address(caplog: pytest.LogCaptureFixture) -> None:
    with smtp_sink() as sink:
        sink.refuses_recipients = True
        with pytest.raises(ServiceUnavailable) as failed:
            await SmtpMail(f"smtp://127.0.0.1:{sink.port}", SENDER).send("ada@example.org", "Code", "123456")
    for text in (failed.value.message, caplog.text):
        assert "ada@example.org" not in text
        assert "123456" not in text


async def test_a_wrong_password_and_a_server_that_is_not_there_are_errors() -> None:
    with smtp_sink(password="right") as sink:
        with pytest.raises(ServiceUnavailable):
            await SmtpMail(f"smtp://user:wrong@127.0.0.1:{sink.port}", SENDER).send("ada@example.org", "Code", "1")
    with pytest.raises(ServiceUnavailable):
        await SmtpMail(f"smtp://127.0.0.1:{sink.port}", SENDER).send("ada@example.org", "Code", "1")


async def test_an_address_cannot_bring_headers_of_its_own() -> None:
    with smtp_sink() as sink:
        with pytest.raises(ValueError, match="linefeed"):
            await SmtpMail(f"smtp://127.0.0.1:{sink.port}", SENDER).send("a@b.c\nBcc: x@y.z", "Code", "1")
    assert sink.received == []


@pytest.mark.parametrize("url", ["", "http://mail", "smtp://", "smtp://host:port", "mail.example.com"])
def test_an_address_of_a_server_that_cannot_be_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(MailSettingsInvalid):
        SmtpMail(url, SENDER)


async def test_in_development_the_log_has_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await LoggedMail().send("ada@example.org", "Code", "Your code is\n123456")
    assert "123456" in caplog.text
