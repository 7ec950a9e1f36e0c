from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import Box
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Scope

from adapters.crypto.transport import KeyRing, SealedRequest, TransportKey, TransportKeys
from api import errors
from api.consumer import encryption_key
from api.consumer.body import read_json_object
from api.consumer.sealed_answer import SEALED_MEDIA_TYPE, SealedAnswer
from api.consumer.sealed_transport import SEALABLE, SEALED, SealedTransport
from api.edge import Edge
from domain.errors import AuthenticationFailed, DecryptionFailed, EncryptionUnavailable, InsufficientFunds
from tests.unit.test_transport_keys import KEY, sealed

SECRET = "the-secret-of-a-prompt"
CHAT = "/v1/chat/completions"


class Opener:
    """Opens each request once; without keys it opens none."""

    def __init__(self, keys: TransportKeys | None) -> None:
        self._keys = keys
        self._seen: set[bytes] = set()

    def key(self) -> TransportKey:
        if self._keys is None:
            raise EncryptionUnavailable
        return self._keys.current

    async def open(self, kid: str, ephemeral_public_key: str, ciphertext: str) -> SealedRequest:
        assert self._keys is not None
        opened = self._keys.open(kid, ephemeral_public_key, ciphertext)
        if opened.use in self._seen:
            raise DecryptionFailed
        self._seen.add(opened.use)
        return opened


def app_of(keys: TransportKeys | None = None) -> FastAPI:
    app = FastAPI()
    errors.install(app)
    app.include_router(encryption_key.router)
    app.state.coordinator = SimpleNamespace(
        sealed_requests=Opener(keys), settings=SimpleNamespace(inference_body_bytes_max=5_000)
    )

    @app.post("/v1/auth/keys")
    @app.post(CHAT)
    async def answer(request: Request) -> Response:
        if "authorization" not in request.headers:
            raise AuthenticationFailed
        body = await read_json_object(request, 5_000)
        match body.get("do"):
            case "stream":
                return StreamingResponse(_stream(), media_type="text/event-stream")
            case "refuse":
                raise InsufficientFunds
            case "crash":
                raise RuntimeError(SECRET)
            case "crash late":
                return StreamingResponse(_crashing(), media_type="text/event-stream")
        proofs = {"X-Response-Hash": "ab" * 32, "X-SE-Signature": "c2ln", "X-Inference-Job-ID": "job"}
        return Response(msgspec.json.encode(body | {"sealed": SEALED in request.scope}), headers=proofs)

    app.add_middleware(SealedTransport)
    app.add_middleware(Edge, development=False, origins=("https://console.example",))
    return app


async def _stream() -> AsyncIterator[bytes]:
    yield f'event: a\ndata: {{"text":"{SECRET}"}}\n\ndata: sec'.encode()
    yield b"ond\n"
    yield b"\n: keep-alive\n\n"
    yield b"data: [DONE]\n\nrest"


async def _crashing() -> AsyncIterator[bytes]:
    yield b"data: first\n\n"
    raise RuntimeError(SECRET)


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://x", headers={"Authorization": "Bearer k"})


@pytest.fixture
def client() -> httpx.AsyncClient:
    return client_of(app_of(TransportKeys(lambda: KeyRing(KEY))))


def envelope_of(body: Any) -> tuple[dict[str, str], Box]:
    kid, ephemeral, ciphertext, box = sealed(KEY, body if isinstance(body, bytes) else json.dumps(body).encode())
    return {"kid": kid, "ephemeral_public_key": ephemeral, "ciphertext": ciphertext}, box


async def post(
    client: httpx.AsyncClient, envelope: Any, *, path: str = CHAT, media_type: str = SEALED_MEDIA_TYPE
) -> httpx.Response:
    content = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return await client.post(path, content=content, headers={"Content-Type": media_type})


def opened(answer: httpx.Response, box: Box) -> Any:
    envelope = answer.json()
    assert set(envelope) == {"kid", "ciphertext"}
    assert answer.headers["content-type"] == SEALED_MEDIA_TYPE
    assert (answer.headers["x-eigen-sealed"], answer.headers["x-eigen-sealed-kid"]) == ("true", KEY.kid)
    return json.loads(box.decrypt(base64.b64decode(envelope["ciphertext"])))


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert "x-eigen-sealed" not in answer.headers
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()["error"]["type"]


class TestRequests:
    @pytest.mark.parametrize("media_type", [SEALED_MEDIA_TYPE, SEALED_MEDIA_TYPE.upper() + " ; charset=utf-8"])
    async def test_the_handler_sees_the_plain_body_and_the_answer_is_sealed(
        self, client: httpx.AsyncClient, media_type: str
    ) -> None:
        envelope, box = envelope_of({"text": SECRET})
        answer = await post(client, envelope, media_type=media_type)
        assert answer.status_code == 200
        assert opened(answer, box) == {"text": SECRET, "sealed": True}
        assert SECRET not in answer.text
        assert answer.headers["content-length"] == str(len(answer.content))

    async def test_a_header_that_would_confirm_a_guess_does_not_pass(self, client: httpx.AsyncClient) -> None:
        answer = await post(client, envelope_of({})[0])
        assert "x-response-hash" not in answer.headers
        assert "x-se-signature" not in answer.headers
        assert answer.headers["x-inference-job-id"] == "job"
        assert "X-Eigen-Sealed-Kid" in (
            (await client.get("/x", headers={"Origin": "https://console.example"}))
            .headers["access-control-expose-headers"]
            .split(", ")
        )

    async def test_a_plain_request_passes_as_it_is(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(CHAT, json={"a": 1})
        assert answer.json() == {"a": 1, "sealed": False}
        assert answer.headers["x-response-hash"] == "ab" * 32

    async def test_an_envelope_is_opened_once(self, client: httpx.AsyncClient) -> None:
        envelope, _ = envelope_of({})
        assert (await post(client, envelope)).status_code == 200
        assert refused(await post(client, envelope)) == (400, "decryption_failed")

    async def test_another_endpoint_takes_none(self, client: httpx.AsyncClient) -> None:
        answer = await post(client, envelope_of({})[0], path="/v1/auth/keys")
        assert refused(answer) == (400, "invalid_sealed_envelope")
        assert (await client.get("/v1/encryption-key", headers={"Content-Type": SEALED_MEDIA_TYPE})).status_code == 200

    async def test_all_sealable_endpoints_are_those_of_the_contract(self) -> None:
        assert len(SEALABLE) == 6


class TestChecks:
    async def test_without_a_key_nothing_can_be_sealed(self) -> None:
        client = client_of(app_of())
        assert refused(await post(client, b"x" * 6_000)) == (503, "encryption_unavailable")
        assert refused(await client.get("/v1/encryption-key")) == (503, "encryption_unavailable")

    async def test_the_credential_comes_first(self, client: httpx.AsyncClient) -> None:
        del client.headers["authorization"]
        assert refused(await post(client, b"nonsense")) == (401, "authentication_error")

    async def test_a_large_envelope_is_refused_before_it_is_read(self, client: httpx.AsyncClient) -> None:
        answer = await post(client, b"x" * 5_001)
        assert (*refused(answer), answer.json()["error"]["code"]) == (413, "invalid_request_error", "payload_too_large")

    async def test_a_large_envelope_that_hides_its_length_is_refused_too(self, client: httpx.AsyncClient) -> None:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"x" * 1_000

        answer = await client.post(CHAT, content=parts(), headers={"Content-Type": SEALED_MEDIA_TYPE})
        assert refused(answer)[0] == 413

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff",
            b"[" * 4_000,
            b'{"kid":5}',
            b'{"ciphertext":[]}',
            b'{"ephemeral_public_key":null}',
        ],
    )
    async def test_what_is_no_envelope_is_refused(self, client: httpx.AsyncClient, content: bytes) -> None:
        assert refused(await post(client, content)) == (400, "invalid_sealed_envelope")

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"kid": "0" * 16}, "kid_mismatch"),
            ({"kid": "0" * 16, "ephemeral_public_key": "", "ciphertext": ""}, "kid_mismatch"),
            ({"kid": KEY.kid.upper()}, "kid_mismatch"),
            ({"ephemeral_public_key": "", "ciphertext": ""}, "invalid_sealed_envelope"),
            ({"ciphertext": "AAAA"}, "invalid_sealed_envelope"),
            ({"ciphertext": "A" * 64}, "decryption_failed"),
            ({"ephemeral_public_key": KEY.public_key}, "decryption_failed"),
        ],
    )
    async def test_the_checks_come_in_their_order(
        self, client: httpx.AsyncClient, changes: dict[str, str], expected: str
    ) -> None:
        assert refused(await post(client, envelope_of({})[0] | changes)) == (400, expected)

    @pytest.mark.parametrize("kid", ["", None])
    async def test_the_present_key_need_not_be_named(self, client: httpx.AsyncClient, kid: str | None) -> None:
        envelope, box = envelope_of({})
        assert opened(await post(client, envelope | {"kid": kid}), box) == {"sealed": True}

    @given(st.dictionaries(st.sampled_from(["kid", "ephemeral_public_key", "ciphertext"]), st.text() | st.integers()))
    def test_no_envelope_makes_the_server_fail_or_fall_back(self, changes: dict[str, Any]) -> None:
        async def ask() -> httpx.Response:
            keys = TransportKeys(lambda: KeyRing(KEY))
            envelope: dict[str, Any] = {**envelope_of({})[0], **changes}
            return await post(client_of(app_of(keys)), envelope)

        answer = asyncio.run(ask())
        if answer.status_code == 200:
            assert answer.headers["x-eigen-sealed"] == "true"
        else:
            assert refused(answer)[0] == 400


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"no json", 400, "invalid_request_error"),
            (b"[]", 400, "invalid_request_error"),
            ({"do": "refuse"}, 402, "insufficient_quota"),
            ({"do": "crash"}, 500, "internal_error"),
        ],
    )
    async def test_what_fails_after_opening_is_sealed_with_its_own_status(
        self, client: httpx.AsyncClient, body: Any, status: int, code: str
    ) -> None:
        envelope, box = envelope_of(body)
        answer = await post(client, envelope)
        assert answer.status_code == status
        assert opened(answer, box)["error"]["code"] == code

    async def test_a_crash_in_a_stream_cuts_it_and_says_nothing(self) -> None:
        envelope, box = envelope_of({"do": "crash late"})
        start, first = await sent_for(envelope)
        assert (start["status"], first["more_body"]) == (200, True)
        assert box.decrypt(base64.b64decode(first["body"].removeprefix(b"data: ").rstrip())) == b"data: first"

    @pytest.mark.parametrize("body", [{"text": SECRET}, {"do": "stream"}, {"do": "refuse"}])
    async def test_an_answer_that_cannot_be_sealed_is_not_sent(
        self, monkeypatch: pytest.MonkeyPatch, body: dict[str, str]
    ) -> None:
        def fail(*_: object) -> str:
            raise MemoryError

        monkeypatch.setattr("adapters.crypto.box.SealedChannel.seal", fail)
        sent = await sent_for(envelope_of(body)[0])
        assert SECRET not in str(sent)
        assert "insufficient" not in str(sent)
        assert (sent[0]["status"], len(sent)) in ((500, 2), (200, 1))


async def sent_for(envelope: dict[str, str]) -> list[Message]:
    """What goes out for a sealed request, message by message."""
    sent: list[Message] = []
    raw = json.dumps(envelope).encode()
    parts = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive() -> Message:
        if parts:
            return parts.pop()
        await asyncio.Event().wait()
        raise AssertionError("nothing more is received")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", SEALED_MEDIA_TYPE.encode()), (b"authorization", b"Bearer k")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
    await app_of(TransportKeys(lambda: KeyRing(KEY)))(scope, receive, send)
    return sent


class TestStreams:
    async def test_each_event_is_sealed_with_its_lines_and_so_is_the_rest(self, client: httpx.AsyncClient) -> None:
        envelope, box = envelope_of({"do": "stream"})
        answer = await post(client, envelope)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-eigen-sealed"] == "true"
        assert "content-length" not in answer.headers
        *events, end = answer.text.split("\n\n")
        assert end == ""
        assert [box.decrypt(base64.b64decode(event.removeprefix("data: "))) for event in events] == [
            f'event: a\ndata: {{"text":"{SECRET}"}}'.encode(),
            b"data: second",
            b": keep-alive",
            b"data: [DONE]",
            b"rest",
        ]

    @given(st.lists(st.binary(max_size=30) | st.just(b"\n"), max_size=12))
    def test_however_it_is_cut_the_same_events_come_out(self, parts: list[bytes]) -> None:
        channel = SimpleNamespace(seal=lambda text: base64.b64encode(text).decode())
        answer = SealedAnswer(channel, "kid")
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        messages = list(answer.seal(start))
        for part in parts:
            messages += answer.seal({"type": "http.response.body", "body": part, "more_body": True})
        messages += answer.seal({"type": "http.response.body"})
        outer = b"".join(message["body"] for message in messages[1:])
        inner = [base64.b64decode(line.removeprefix(b"data: ")) for line in outer.split(b"\n\n")[:-1]]
        assert inner == [event for event in b"".join(parts).split(b"\n\n") if event]
        assert [message["more_body"] for message in messages[1:]][-1] is False


@pytest.mark.parametrize("kind", ["http.response.pathsend", "http.response.trailers", "http.response.zerocopysend"])
async def test_a_message_that_nobody_knows_does_not_pass(kind: str) -> None:
    keys = TransportKeys(lambda: KeyRing(KEY))
    sent: list[Message] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": kind, "path": SECRET})

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(envelope_of({})[0]).encode(), "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    state = SimpleNamespace(coordinator=app_of(keys).state.coordinator)
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [(b"content-type", SEALED_MEDIA_TYPE.encode())],
        "app": SimpleNamespace(state=state),
    }
    with pytest.raises(ValueError, match="cannot have a message"):
        await SealedTransport(app)(scope, receive, send)
    assert SECRET not in str(sent)
