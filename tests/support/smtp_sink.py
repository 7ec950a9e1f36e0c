"""An SMTP server on a real socket that keeps what it is sent."""

from __future__ import annotations

import base64
import socketserver
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


class Received(NamedTuple):
    """``was_encrypted`` and ``user`` are of the connection that it came over."""

    sender: str
    recipients: list[str]
    message: EmailMessage
    was_encrypted: bool
    user: str


class Sink:
    def __init__(self, tls: ssl.SSLContext | None, password: str) -> None:
        self.tls = tls
        self.password = password
        self.received: list[Received] = []
        self.refuses_recipients = False
        self.port = 0


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        sink: Sink = self.server.sink  # type: ignore[attr-defined]
        sender, recipients, user, is_encrypted = "", list[str](), "", False
        self._say("220 sink ESMTP")
        while line := self.rfile.readline(4_096).strip().decode("ascii", "replace"):
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    offers = ["sink", *(["STARTTLS"] if sink.tls and not is_encrypted else []), "AUTH PLAIN"]
                    for number, offer in enumerate(offers, 1):
                        self._say(f"250{' ' if number == len(offers) else '-'}{offer}")
                case "STARTTLS" if sink.tls:
                    self._say("220 go on")
                    self.request = sink.tls.wrap_socket(self.request, server_side=True)
                    self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
                    is_encrypted = True
                case "AUTH":
                    _, user, password = base64.b64decode(rest.removeprefix("PLAIN ")).decode().split("\0")
                    self._say("235 welcome" if password == sink.password else "535 wrong password")
                case "MAIL":
                    sender, recipients = _address(rest), []
                    self._say("250 ok")
                case "RCPT":
                    recipients.append(_address(rest))
                    self._say("550 no such user" if sink.refuses_recipients else "250 ok")
                case "DATA":
                    self._say("354 go on")
                    lines = []
                    while (text := self.rfile.readline(4_096)) not in (b".\r\n", b""):
                        lines.append(text.removeprefix(b"."))
                    message = cast("EmailMessage", message_from_bytes(b"".join(lines), policy=default))
                    sink.received.append(Received(sender, recipients, message, is_encrypted, user))
                    self._say("250 kept")
                case "QUIT":
                    self._say("221 bye")
                    return
                case _:
                    self._say("250 ok")

    def finish(self) -> None:
        super().finish()
        self.request.close()  # which is another one than at the beginning once it is encrypted

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


def _address(rest: str) -> str:
    return rest.partition("<")[2].partition(">")[0]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is part of some tests."""


@contextmanager
def smtp_sink(tls: ssl.SSLContext | None = None, password: str = "") -> Generator[Sink, None, None]:
    sink = Sink(tls, password)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.sink = sink  # type: ignore[attr-defined]
    sink.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for a server at 127.0.0.1, and for clients that trust exactly its certificate."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sink")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    pem = folder / "sink.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cadata=certificate.public_bytes(Encoding.PEM).decode())
