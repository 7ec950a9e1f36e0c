"""Seals one answer: a whole one in one box, a stream event by event (consumer API, section 14.3)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.types import Message

from api.ports import AnswerChannel

SEALED_MEDIA_TYPE = "application/eigeninference-sealed+json"

_TELLS = ("content-length", "x-se-signature", "x-response-hash")
"""Headers that belong to the plain body. Whoever guesses an answer could confirm it by its hash; the body has both
proofs too."""

_BLANK_LINE = b"\n\n"


class SealedAnswer:
    """Turns the messages of a plain answer into those of a sealed one. What it does not know never passes."""

    def __init__(self, channel: AnswerChannel, kid: str) -> None:
        self.began = False
        self._channel = channel
        self._kid = kid
        self._start: Message = {}
        self._is_stream = False
        self._pending = bytearray()

    def seal(self, message: Message) -> Iterator[Message]:
        """Raises ValueError for a message that cannot be sealed."""
        match message["type"]:
            case "http.response.start":
                yield from self._begin(message)
            case "http.response.body" if self._is_stream:
                yield from self._go_on(message)
            case "http.response.body":
                yield from self._gather(message)
            case other:
                raise ValueError(f"an answer that is sealed cannot have a message {other}")

    def _begin(self, message: Message) -> Iterator[Message]:
        headers = MutableHeaders(raw=list(message.get("headers", ())))
        for name in _TELLS:
            del headers[name]
        headers["X-Eigen-Sealed"] = "true"
        headers["X-Eigen-Sealed-Kid"] = self._kid
        self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
        self._start = {**message, "headers": headers.raw}
        if self._is_stream:
            self.began = True
            yield self._start

    def _go_on(self, message: Message) -> Iterator[Message]:
        more = message.get("more_body", False)
        self._pending += message.get("body", b"")
        *events, rest = bytes(self._pending).split(_BLANK_LINE)
        self._pending = bytearray(rest)
        if rest and not more:
            events.append(rest)
        sealed = b"".join(b"data: " + self._channel.seal(event).encode() + _BLANK_LINE for event in events if event)
        if sealed or not more:
            yield {"type": "http.response.body", "body": sealed, "more_body": more}

    def _gather(self, message: Message) -> Iterator[Message]:
        self._pending += message.get("body", b"")
        if message.get("more_body", False):
            return
        ciphertext = self._channel.seal(bytes(self._pending))
        body = msgspec.json.encode({"kid": self._kid, "ciphertext": ciphertext})
        headers = MutableHeaders(raw=self._start["headers"])
        headers["content-type"] = SEALED_MEDIA_TYPE
        headers["content-length"] = str(len(body))
        self.began = True
        yield self._start
        yield {"type": "http.response.body", "body": body, "more_body": False}
