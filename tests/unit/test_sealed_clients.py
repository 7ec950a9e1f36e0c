"""The two clients and the coordinator agree on every byte."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import httpx
import pytest
from nacl.public import Box, PrivateKey, PublicKey

from adapters.crypto.transport import KeyRing, TransportKey, TransportKeys
from clients.darkbloom_sealed import AsyncSealedTransport, CoordinatorKey, Exchange, NotSealed, SealedTransport
from tests.support.node import run_client

KEY = TransportKey(bytes.fromhex("32c2f4d9e1c15c41c390b8a26ed14488548ed6033648eb9e38a08421792ce17b"))
PUBLIC = bytes(KEY.secret.public_key)
CONSUMER = PrivateKey(bytes(range(1, 33)))
NONCE = bytes(range(24))
TEXT = '{"model":"m","messages":[{"role":"user","content":"Grüße, 世界"}]}'

VECTOR = {
    "kid": "96293a4d0473cb36",
    "ephemeral_public_key": "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw=",
    "ciphertext": base64.b64encode(bytes(Box(CONSUMER, PublicKey(PUBLIC)).encrypt(TEXT.encode(), NONCE))).decode(),
}


class TestVectors:
    def test_javascript_seals_to_the_same_bytes_as_python(self) -> None:
        sealed = run_client(
            "seal",
            secret=bytes(CONSUMER).hex(),
            publicKey=PUBLIC.hex(),
            kid=KEY.kid,
            nonce=NONCE.hex(),
            text=TEXT,
        )
        assert sealed == VECTOR

    def test_the_coordinator_opens_them(self) -> None:
        opened = TransportKeys(lambda: KeyRing(KEY)).open(*VECTOR.values())
        assert opened.body.decode() == TEXT

    @pytest.mark.parametrize("text", ["", TEXT, "x" * 100_000])
    def test_javascript_opens_what_the_coordinator_seals(self, text: str) -> None:
        answer = TransportKeys(lambda: KeyRing(KEY)).open(*VECTOR.values()).channel.seal(text.encode())
        opened = run_client("open", secret=bytes(CONSUMER).hex(), publicKey=PUBLIC.hex(), ciphertext=answer)
        assert opened == {"text": text}

    @pytest.mark.parametrize("ciphertext", ["", "AAAA", "not base64!", "A" * 80])
    def test_javascript_refuses_what_does_not_open(self, ciphertext: str) -> None:
        opened = run_client("open", secret=bytes(CONSUMER).hex(), publicKey=PUBLIC.hex(), ciphertext=ciphertext)
        assert opened == {"refused": True}

    def test_python_seals_for_the_coordinator_and_opens_its_answer(self) -> None:
        exchange = Exchange(CoordinatorKey(KEY.kid, PUBLIC))
        opened = TransportKeys(lambda: KeyRing(KEY)).open(**json.loads(exchange.seal(TEXT.encode())))
        assert opened.body.decode() == TEXT
        whole = json.dumps({"kid": KEY.kid, "ciphertext": opened.channel.seal(b"answer")}).encode()
        assert exchange.open_body(whole) == b"answer"
        event = b"data: " + opened.channel.seal(b"event: a\ndata: b").encode()
        assert exchange.open_event(event) == b"event: a\ndata: b\n\n"


class Parts(httpx.SyncByteStream):
    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts


class FakeCoordinator(httpx.MockTransport):
    """Shows a key, opens requests with it, and answers as a test says."""

    def __init__(self, answer: str = "echo") -> None:
        self.key = KEY
        self.answer = answer
        self.seen: list[httpx.Request] = []
        super().__init__(self._handle)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if request.url.path == "/v1/encryption-key":
            if self.answer == "none":
                return httpx.Response(503)
            return httpx.Response(200, json={"kid": self.key.kid, "public_key": self.key.public_key})
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"plain": True})
        envelope = json.loads(request.content)
        if envelope["kid"] != self.key.kid:
            return httpx.Response(400, json={"error": {"type": "kid_mismatch"}})
        opened = TransportKeys(lambda: KeyRing(self.key)).open(**envelope)
        sealed = opened.channel.seal(opened.body)
        match self.answer:
            case "plain":
                return httpx.Response(200, content=opened.body)
            case "error":
                return httpx.Response(429, json={"error": {"type": "rate_limit_exceeded"}})
            case "stream" | "cut" | "mixed":
                event = f"data: {opened.channel.seal(b'data: one')}\n\n".encode()
                parts = {"stream": (event[:9], event[9:] + event), "cut": (event, event[:-2]), "mixed": (b": hi\n\n",)}
                headers = {"X-Eigen-Sealed": "true", "Content-Type": "text/event-stream"}
                return httpx.Response(200, headers=headers, stream=Parts(*parts[self.answer]))
            case "foreign":
                sealed = base64.b64encode(bytes(80)).decode()
        headers = {"X-Eigen-Sealed": "true", "Content-Type": "application/eigeninference-sealed+json"}
        return httpx.Response(200, headers=headers, json={"kid": self.key.kid, "ciphertext": sealed})


def ask(coordinator: FakeCoordinator, *, kid: str | None = None, times: int = 1) -> httpx.Response:
    with httpx.Client(transport=SealedTransport("http://x", coordinator, kid=kid)) as client:
        for _ in range(times):
            answer = client.post("http://x/v1/chat/completions", json={"secret": "canary"})
        return answer


class TestPython:
    def test_a_request_goes_out_sealed_and_the_answer_comes_back_open(self) -> None:
        coordinator = FakeCoordinator()
        answer = ask(coordinator, times=2)
        assert answer.json() == {"secret": "canary"}
        assert answer.headers["content-type"] == "application/json"
        key, *asked = coordinator.seen
        assert key.url.path == "/v1/encryption-key"
        assert len(asked) == 2  # the key is fetched once
        assert len({request.content for request in asked}) == 2
        for request in asked:
            assert request.headers["content-type"] == "application/eigeninference-sealed+json"
            assert b"canary" not in request.content

    def test_an_endpoint_that_cannot_be_sealed_is_asked_plainly(self) -> None:
        with httpx.Client(transport=SealedTransport("http://x", FakeCoordinator())) as client:
            assert client.get("http://x/v1/models").json() == {"plain": True}

    def test_a_stream_is_opened_event_by_event(self) -> None:
        assert ask(FakeCoordinator("stream")).content == b"data: one\n\ndata: one\n\n"

    @pytest.mark.parametrize("answer", ["plain", "foreign", "cut", "mixed", "none"])
    def test_an_answer_that_is_not_sealed_is_refused(self, answer: str) -> None:
        with pytest.raises(NotSealed):
            ask(FakeCoordinator(answer))

    def test_an_error_from_before_the_opening_is_passed_on(self) -> None:
        answer = ask(FakeCoordinator("error"))
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_exceeded")

    def test_after_a_rotation_the_new_key_is_fetched_once(self) -> None:
        coordinator = FakeCoordinator()
        with httpx.Client(transport=SealedTransport("http://x", coordinator)) as client:
            client.post("http://x/v1/messages", json={})
            coordinator.key = TransportKey(b"n" * 32)
            assert client.post("http://x/v1/messages", json={"a": 1}).json() == {"a": 1}
        assert [request.url.path for request in coordinator.seen].count("/v1/encryption-key") == 2

    def test_a_pinned_key_is_not_exchanged(self) -> None:
        assert ask(FakeCoordinator(), kid=KEY.kid).status_code == 200
        with pytest.raises(NotSealed, match="another key"):
            ask(FakeCoordinator(), kid="0" * 16)

    async def test_it_works_with_asyncio_too(self) -> None:
        transport = AsyncSealedTransport("http://x", FakeCoordinator())
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.post("http://x/v1/responses", json={"a": 1})
            assert answer.json() == {"a": 1}
