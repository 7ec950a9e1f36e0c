"""Seals requests to a Darkbloom coordinator and opens its sealed answers, below an unmodified SDK.

    transport = SealedTransport("https://api.darkbloom.dev")
    client = openai.OpenAI(
        base_url="https://api.darkbloom.dev/v1", api_key=key, http_client=httpx.Client(transport=transport)
    )

Needs httpx and PyNaCl. Every request to an endpoint that can be sealed is sealed, and an answer to it that claims
success in plain text is refused. Requests to other endpoints, such as the list of models, go out as they are.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

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

ENCODED = "identity"
"""A compressed answer could not be told from its sealed form, so none is asked for."""


class NotSealed(httpx.TransportError):
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


class _Stream(httpx.SyncByteStream):
    def __init__(self, outer: httpx.SyncByteStream, exchange: Exchange) -> None:
        self._outer = outer
        self._events = _Events(exchange)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._outer:
            yield from self._events.add(part)
        self._events.end()

    def close(self) -> None:
        self._outer.close()


class _AsyncStream(httpx.AsyncByteStream):
    def __init__(self, outer: httpx.AsyncByteStream, exchange: Exchange) -> None:
        self._outer = outer
        self._events = _Events(exchange)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._outer:
            for event in self._events.add(part):
                yield event
        self._events.end()

    async def aclose(self) -> None:
        await self._outer.aclose()


class _Keys:
    """The coordinator's key, and how requests and answers are turned. ``kid`` pins the key: another is refused."""

    def __init__(self, url: str, kid: str | None) -> None:
        self._url = httpx.URL(url)
        self._pinned = kid
        self._key: CoordinatorKey | None = None
        self._fetched_at = 0.0

    def is_sealed(self, request: httpx.Request) -> bool:
        return request.method == "POST" and request.url.path in SEALABLE

    def known(self) -> CoordinatorKey | None:
        return self._key if time.monotonic() - self._fetched_at < KEY_SECONDS else None

    def forget(self) -> None:
        self._key = None

    def request(self) -> httpx.Request:
        return httpx.Request("GET", self._url.copy_with(raw_path=b"/v1/encryption-key"))

    def learn(self, response: httpx.Response) -> CoordinatorKey:
        if response.status_code != 200:
            raise NotSealed(f"the coordinator has no key to seal to: status {response.status_code}")
        answer = response.json()
        if self._pinned is not None and answer["kid"] != self._pinned:
            raise NotSealed("the coordinator shows another key than the one that was pinned")
        self._key = CoordinatorKey(answer["kid"], base64.b64decode(answer["public_key"]))
        self._fetched_at = time.monotonic()
        return self._key

    def sealed(self, request: httpx.Request, exchange: Exchange, body: bytes) -> httpx.Request:
        headers = request.headers.copy()
        for name in ("content-length", "transfer-encoding"):
            headers.pop(name, None)
        headers["content-type"] = MEDIA_TYPE
        headers["accept-encoding"] = ENCODED
        return httpx.Request(
            request.method, request.url, headers=headers, content=exchange.seal(body), extensions=request.extensions
        )


def _is_stream(response: httpx.Response) -> bool:
    return response.headers.get("content-type", "").startswith("text/event-stream")


def _must_be_error(response: httpx.Response) -> None:
    if response.status_code < 400:
        raise NotSealed("the answer claims success in plain text")


def _turned(response: httpx.Response, body: bytes) -> httpx.Response:
    headers = response.headers.copy()
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(body))
    return httpx.Response(response.status_code, headers=headers, content=body, extensions=response.extensions)


def _streaming(response: httpx.Response, stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> httpx.Response:
    return httpx.Response(response.status_code, headers=response.headers, stream=stream, extensions=response.extensions)


def _is_old_key(response: httpx.Response, body: bytes) -> bool:
    return response.status_code == 400 and b'"kid_mismatch"' in body


class SealedTransport(httpx.BaseTransport):
    """``url`` is the coordinator's address, ``inner`` what carries the sealed bytes."""

    def __init__(self, url: str, inner: httpx.BaseTransport | None = None, *, kid: str | None = None) -> None:
        self._keys = _Keys(url, kid)
        self._inner = inner or httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self._keys.is_sealed(request):
            return self._inner.handle_request(request)
        body = request.read()
        for may_be_old in (True, False):
            exchange = Exchange(self._keys.known() or self._fetch_key())
            response = self._inner.handle_request(self._keys.sealed(request, exchange, body))
            if response.headers.get("x-eigen-sealed") == "true" and _is_stream(response):
                assert isinstance(response.stream, httpx.SyncByteStream)
                return _streaming(response, _Stream(response.stream, exchange))
            try:
                answer = response.read()
            finally:
                response.close()
            if response.headers.get("x-eigen-sealed") == "true":
                return _turned(response, exchange.open_body(answer))
            _must_be_error(response)
            if not (may_be_old and _is_old_key(response, answer)):
                return _turned(response, answer)
            self._keys.forget()
        raise AssertionError("the second try returns")

    def close(self) -> None:
        self._inner.close()

    def _fetch_key(self) -> CoordinatorKey:
        response = self._inner.handle_request(self._keys.request())
        try:
            response.read()
        finally:
            response.close()
        return self._keys.learn(response)


class AsyncSealedTransport(httpx.AsyncBaseTransport):
    """The same for asyncio."""

    def __init__(self, url: str, inner: httpx.AsyncBaseTransport | None = None, *, kid: str | None = None) -> None:
        self._keys = _Keys(url, kid)
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._keys.is_sealed(request):
            return await self._inner.handle_async_request(request)
        body = await request.aread()
        for may_be_old in (True, False):
            exchange = Exchange(self._keys.known() or await self._fetch_key())
            response = await self._inner.handle_async_request(self._keys.sealed(request, exchange, body))
            if response.headers.get("x-eigen-sealed") == "true" and _is_stream(response):
                assert isinstance(response.stream, httpx.AsyncByteStream)
                return _streaming(response, _AsyncStream(response.stream, exchange))
            try:
                answer = await response.aread()
            finally:
                await response.aclose()
            if response.headers.get("x-eigen-sealed") == "true":
                return _turned(response, exchange.open_body(answer))
            _must_be_error(response)
            if not (may_be_old and _is_old_key(response, answer)):
                return _turned(response, answer)
            self._keys.forget()
        raise AssertionError("the second try returns")

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _fetch_key(self) -> CoordinatorKey:
        response = await self._inner.handle_async_request(self._keys.request())
        try:
            await response.aread()
        finally:
            await response.aclose()
        return self._keys.learn(response)
