"""Seals requests to a Darkbloom coordinator and opens its sealed answers, below an unmodified SDK.

    transport = SealedTransport("https://api.darkbloom.dev")
    client = openai.OpenAI(
        base_url="https://api.darkbloom.dev/v1", api_key=key, http_client=httpx.Client(transport=transport)
    )

For Anthropic's SDK, which uses httpx2, give that library: ``SealedTransport(url, library=httpx2)`` and
``httpx2.Client(transport=…)``. Needs PyNaCl.

Every request to an endpoint that can be sealed is sealed, and an answer to it that claims success in plain text is
refused. Requests to other endpoints, such as the list of models, go out as they are.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any, NamedTuple, Self

import httpx
from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

MEDIA_TYPE = "application/eigeninference-sealed+json"
SEALABLE = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/images/generations",
)
KEY_SECONDS = 3600.0
"""How long the coordinator's key is used before it is fetched again."""


class NotSealed(Exception):
    """The answer is not sealed to this request, or was changed on its way. Nothing of it was used."""


class CoordinatorKey(NamedTuple):
    kid: str
    public_key: bytes


class Exchange:
    """One request and its answer, under a key pair that nothing else uses."""

    def __init__(self, key: CoordinatorKey) -> None:
        self._kid = key.kid
        self._secret = PrivateKey.generate()
        self._box = Box(self._secret, PublicKey(key.public_key))

    def seal(self, body: bytes) -> bytes:
        """The envelope of a request."""
        envelope = {
            "kid": self._kid,
            "ephemeral_public_key": base64.b64encode(bytes(self._secret.public_key)).decode(),
            "ciphertext": base64.b64encode(self._box.encrypt(body)).decode(),
        }
        return json.dumps(envelope).encode()

    def open_body(self, body: bytes) -> bytes:
        """A whole answer. Raises NotSealed."""
        try:
            ciphertext = json.loads(body)["ciphertext"]
        except (ValueError, KeyError, TypeError):
            raise NotSealed("the answer is no sealed envelope") from None
        return self._open(ciphertext)

    def open_event(self, event: bytes) -> bytes:
        """One event of a stream, with the blank line that ends it. Raises NotSealed."""
        if not event.startswith(b"data: "):
            raise NotSealed("an event of the stream is not sealed")
        return self._open(event[len(b"data: ") :].decode("ascii", "replace")) + b"\n\n"

    def _open(self, ciphertext: Any) -> bytes:
        try:
            return self._box.decrypt(base64.b64decode(ciphertext, validate=True))
        except (CryptoError, ValueError, TypeError):
            raise NotSealed("the answer does not open") from None


class _Events:
    """Cuts a stream at its blank lines."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._pending = b""

    def add(self, part: bytes) -> Iterator[bytes]:
        *events, self._pending = (self._pending + part).split(b"\n\n")
        for event in events:
            yield self._exchange.open_event(event)

    def end(self) -> None:
        if self._pending:
            raise NotSealed("the stream was cut in the middle of an event")


class _Stream:
    def __init__(self, outer: Any, exchange: Exchange) -> None:
        self._outer = outer
        self._events = _Events(exchange)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._outer:
            yield from self._events.add(part)
        self._events.end()

    def close(self) -> None:
        self._outer.close()


class _AsyncStream:
    def __init__(self, outer: Any, exchange: Exchange) -> None:
        self._outer = outer
        self._events = _Events(exchange)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._outer:
            for event in self._events.add(part):
                yield event
        self._events.end()

    async def aclose(self) -> None:
        await self._outer.aclose()


class _Turning:
    """What both transports share: the coordinator's key, and how requests and answers are turned."""

    def __init__(self, url: str, library: ModuleType, kid: str | None) -> None:
        self._library: Any = library
        self._url = url.rstrip("/")
        self._pinned = kid
        self._key: CoordinatorKey | None = None
        self._fetched_at = 0.0

    def _is_plain(self, request: Any) -> bool:
        return request.method != "POST" or request.url.path not in SEALABLE

    def _known(self) -> CoordinatorKey | None:
        return self._key if time.monotonic() - self._fetched_at < KEY_SECONDS else None

    def _key_request(self) -> Any:
        return self._library.Request("GET", f"{self._url}/v1/encryption-key")

    def _learn(self, response: Any) -> CoordinatorKey:
        if response.status_code != 200:
            raise NotSealed(f"the coordinator has no key to seal to: status {response.status_code}")
        answer = response.json()
        if self._pinned is not None and answer["kid"] != self._pinned:
            raise NotSealed("the coordinator shows another key than the one that was pinned")
        self._key = CoordinatorKey(answer["kid"], base64.b64decode(answer["public_key"]))
        self._fetched_at = time.monotonic()
        return self._key

    def _sealed(self, request: Any, exchange: Exchange, body: bytes) -> Any:
        headers = request.headers.copy()
        for name in ("content-length", "transfer-encoding"):
            headers.pop(name, None)
        headers["content-type"] = MEDIA_TYPE
        headers["accept-encoding"] = "identity"  # what is sealed does not get smaller
        return self._library.Request(
            request.method, request.url, headers=headers, content=exchange.seal(body), extensions=request.extensions
        )

    def _streamed(self, response: Any, kind: type, base: type, exchange: Exchange) -> Any | None:
        """The answer, if it is a sealed stream."""
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        if not (is_stream and _is_sealed(response)):
            return None
        stream = type(kind.__name__, (kind, base), {})(response.stream, exchange)
        return self._library.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    def _opened(self, response: Any, exchange: Exchange, *, may_be_old: bool) -> Any | None:
        """The answer that was read; None when the key is an old one and the request is to be sealed again."""
        body = response.content
        if _is_sealed(response):
            body = exchange.open_body(body)
        elif response.status_code < 400:
            raise NotSealed("the answer claims success in plain text")
        elif may_be_old and response.status_code == 400 and b'"kid_mismatch"' in body:
            self._key = None
            return None
        headers = response.headers.copy()
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        return self._library.Response(
            response.status_code, headers=headers, content=body, extensions=response.extensions
        )


def _is_sealed(response: Any) -> bool:
    return bool(response.headers.get("x-eigen-sealed") == "true")


class SealedTransport(_Turning):
    """``url`` is the coordinator's address, ``inner`` what carries the sealed bytes. ``kid`` pins the coordinator's
    key: another one is refused."""

    def __init__(self, url: str, inner: Any = None, *, kid: str | None = None, library: ModuleType = httpx) -> None:
        super().__init__(url, library, kid)
        self._inner = inner or library.HTTPTransport()

    def handle_request(self, request: Any) -> Any:
        if self._is_plain(request):
            return self._inner.handle_request(request)
        body = request.read()
        answer = None
        for may_be_old in (True, False):
            exchange = Exchange(self._known() or self._learn(self._read(self._key_request())))
            response = self._inner.handle_request(self._sealed(request, exchange, body))
            answer = self._streamed(response, _Stream, self._library.SyncByteStream, exchange)
            if answer is None:
                answer = self._opened(_finished(response), exchange, may_be_old=may_be_old)
            if answer is not None:
                break
        return answer

    def _read(self, request: Any) -> Any:
        return _finished(self._inner.handle_request(request))

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._inner.__exit__(*problem)


def _finished(response: Any) -> Any:
    try:
        response.read()
    finally:
        response.close()
    return response


class AsyncSealedTransport(_Turning):
    """The same for asyncio."""

    def __init__(self, url: str, inner: Any = None, *, kid: str | None = None, library: ModuleType = httpx) -> None:
        super().__init__(url, library, kid)
        self._inner = inner or library.AsyncHTTPTransport()

    async def handle_async_request(self, request: Any) -> Any:
        if self._is_plain(request):
            return await self._inner.handle_async_request(request)
        body = await request.aread()
        answer = None
        for may_be_old in (True, False):
            exchange = Exchange(self._known() or self._learn(await self._read(self._key_request())))
            response = await self._inner.handle_async_request(self._sealed(request, exchange, body))
            answer = self._streamed(response, _AsyncStream, self._library.AsyncByteStream, exchange)
            if answer is None:
                answer = self._opened(await _afinished(response), exchange, may_be_old=may_be_old)
            if answer is not None:
                break
        return answer

    async def _read(self, request: Any) -> Any:
        return await _afinished(await self._inner.handle_async_request(request))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *problem: Any) -> None:
        await self._inner.__aexit__(*problem)


async def _afinished(response: Any) -> Any:
    try:
        await response.aread()
    finally:
        await response.aclose()
    return response
