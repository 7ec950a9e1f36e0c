"""How a scheduler of its own tells a gateway, over connections that are kept and may have died since."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Generator
from typing import Any
from uuid import uuid4

import pytest

from adapters.relay.mailbox import GatewayUnreachable, HttpMailbox
from domain.dispatch import Refused

NOTICE = Refused(request_id=uuid4(), attempt=1, reason="hopeless")
GATEWAY = uuid4()


class Gateway:
    """Answers one request after the other with a status, and hangs up unannounced after some answers."""

    def __init__(self, status: int, hangs_up_after: int) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answer = f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode()
        self._hangs_up_after = hangs_up_after
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                with connection:
                    for _ in range(self._hangs_up_after):
                        request = b""
                        while not request.endswith(b"}"):
                            more = connection.recv(65_536)
                            if not more:
                                break
                            request += more
                        if not request:
                            break
                        self.requests.append(request)
                        connection.sendall(self._answer)


class Pool:
    """A database that knows the address of every gateway, or of none."""

    def __init__(self, url: str | None) -> None:
        self._url = url

    @contextlib.contextmanager
    def connection(self) -> Generator[Any, None, None]:
        yield self

    def execute(self, *_: object) -> Any:
        return self

    def fetchone(self) -> tuple[str] | None:
        return None if self._url is None else (self._url,)


@pytest.fixture
def gateway(request: pytest.FixtureRequest) -> Generator[Gateway, None, None]:
    running = Gateway(*request.param)
    yield running
    running.close()


@contextlib.contextmanager
def mailbox_to(url: str | None) -> Generator[HttpMailbox, None, None]:
    mailbox = HttpMailbox(Pool(url), "secret")  # type: ignore[arg-type]  # all that it asks of a pool
    with contextlib.closing(mailbox):
        yield mailbox


@pytest.mark.parametrize("gateway", [(204, 2)], indirect=True)
def test_notices_go_over_a_kept_connection_and_over_a_new_one_when_it_died(gateway: Gateway) -> None:
    with mailbox_to(gateway.url) as mailbox:
        for _ in range(5):
            mailbox.deliver(GATEWAY, NOTICE)

    assert len(gateway.requests) == 5
    assert gateway.connections == 3
    assert all(request.startswith(b"POST /internal/notices ") for request in gateway.requests)
    assert all(b"X-Darkbloom-Internal: secret\r\n" in request for request in gateway.requests)


@pytest.mark.parametrize("gateway", [(410, 2)], indirect=True)
def test_a_gateway_that_knows_the_request_no_more_is_not_asked_again(gateway: Gateway) -> None:
    with mailbox_to(gateway.url) as mailbox, pytest.raises(GatewayUnreachable, match="410"):
        mailbox.deliver(GATEWAY, NOTICE)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9"])
def test_a_gateway_that_is_gone_is_unreachable(url: str | None) -> None:
    with mailbox_to(url) as mailbox, pytest.raises(GatewayUnreachable):
        mailbox.deliver(GATEWAY, NOTICE)
