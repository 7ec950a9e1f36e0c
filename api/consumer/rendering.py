"""What every dialect does: turn the events of one answer into bytes in its own form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from api.consumer.admission import Bounds, bounds_of
from api.consumer.answers import Made, ProviderDelta, ReadText, Whole, read_chunk, read_whole
from api.consumer.attempt import Started
from api.consumer.chat_request import ChatRequest, body_for_machine
from api.consumer.expected import Expected
from api.consumer.inference import Finished
from domain.catalog import CatalogModel
from domain.errors import DarkbloomError
from domain.kinds import TEXT, ModelKind

COMMENT = b": keep-alive\n\n"
"""What every reader of server-sent events ignores, and every proxy takes for a sign of life."""

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{1,200}={0,2}")


class Renderer(Protocol):
    """Renders one answer: a stream by ``start``, ``delta``…, ``finish`` or ``error``; a whole answer by ``whole``.

    Everything is bytes as they go to the consumer; empty means that there is nothing to send now.
    """

    @property
    def keep_alive(self) -> bytes:
        """What is sent into a silence."""
        ...

    def start(self, started: Started) -> bytes: ...

    def delta(self, choices: tuple[ProviderDelta, ...]) -> bytes:
        """The events of one machine chunk. What it says of the finish is kept back until the money moved."""
        ...

    def finish(self, finished: Finished) -> bytes: ...

    def error(self, error: DarkbloomError) -> bytes:
        """The last event of a stream that failed."""
        ...

    def whole(self, started: Started, whole: Whole, finished: Finished) -> bytes:
        """The JSON body of an answer in one piece."""
        ...


class Prompt(Protocol):
    """One request of a call: it is admitted, sealed and settled by itself."""

    @property
    def expected(self) -> Expected: ...

    @property
    def allowed(self) -> tuple[str, ...]:
        """The serial numbers of the machines that may serve it; empty for any."""
        ...

    def bounds(self, model: CatalogModel) -> Bounds:
        """Raises InvalidRequest when the request is more than this model takes."""
        ...

    def body(self, model: CatalogModel, bounds: Bounds, cache_salt: str) -> bytes:
        """What is sealed to the machine."""
        ...

    def reader(self) -> ReadText:
        """What reads one attempt's answer."""
        ...


class AnyCall(Protocol):
    """A valid request: what the pipeline needs to know of it, and how its answer is written."""

    @property
    def kind(self) -> ModelKind: ...

    @property
    def model(self) -> str:
        """The model that it names; empty for the first one of the kind."""
        ...

    @property
    def streamed(self) -> Renderer | None:
        """What writes a stream; None when the answer is to come whole."""
        ...

    @property
    def content_type(self) -> str:
        """That of a whole answer."""
        ...

    @property
    def prompts(self) -> Sequence[Prompt]:
        """At least one. There are more only where a dialect asks for answers to several at once; they differ in
        nothing but what is asked."""
        ...

    def whole(self, started: Started, answer: Whole | Made, finished: Finished) -> bytes:
        """The body of a whole answer."""
        ...


class WholeOnly:
    """What calls have in common whose answer is no text and comes in one piece. Each is its own one prompt."""

    __slots__ = ()
    streamed: ClassVar[None] = None
    expected: ClassVar[Expected] = Expected(stream=False)
    allowed: ClassVar[tuple[str, ...]] = ()

    @property
    def content_type(self) -> str:
        return "application/json"

    @property
    def prompts(self) -> tuple[Self]:
        return (self,)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """One conversation to continue."""

    chat: ChatRequest

    @property
    def expected(self) -> Expected:
        return self.chat.expected

    @property
    def allowed(self) -> tuple[str, ...]:
        return self.chat.allowed

    def bounds(self, model: CatalogModel) -> Bounds:
        return bounds_of(self.chat, model)

    def body(self, model: CatalogModel, bounds: Bounds, cache_salt: str) -> bytes:
        return body_for_machine(self.chat, bounds.output_limit, cache_salt)

    def reader(self) -> ReadText:
        return read_chunk if self.chat.expected.stream else read_whole


@dataclass(frozen=True, slots=True)
class Call:
    """Conversations in any dialect."""

    chats: tuple[ChatRequest, ...]
    renderer: Renderer
    kind: ClassVar[ModelKind] = TEXT
    content_type: ClassVar[str] = "application/json"

    @property
    def model(self) -> str:
        return self.chats[0].model

    @property
    def streamed(self) -> Renderer | None:
        return self.renderer if self.chats[0].expected.stream else None

    @property
    def prompts(self) -> tuple[ChatPrompt, ...]:
        return tuple(ChatPrompt(chat) for chat in self.chats)

    def whole(self, started: Started, answer: Whole | Made, finished: Finished) -> bytes:
        assert isinstance(answer, Whole)
        return self.renderer.whole(started, answer, finished)


def proofs_of(finished: Finished) -> dict[str, str]:
    """The machine's two proofs as it sent them, when it made both and they look like what they should be."""
    if not (_HASH.fullmatch(finished.response_hash) and _SIGNATURE.fullmatch(finished.se_signature)):
        return {}
    return {"se_signature": finished.se_signature, "response_hash": finished.response_hash}


def cost_of(finished: Finished) -> dict[str, Any]:
    """The member that says what was charged, once that is known."""
    return {} if finished.cost_micro_usd is None else {"cost_micro_usd": finished.cost_micro_usd}
