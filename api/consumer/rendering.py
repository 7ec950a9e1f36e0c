"""What every dialect does: turn the events of one answer into bytes in its own form."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol

from api.consumer.answers import ProviderDelta, Whole
from api.consumer.attempt import Started
from api.consumer.chat_request import ChatRequest
from api.consumer.inference import Finished
from domain.errors import DarkbloomError

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


class Call(NamedTuple):
    """A valid request of any dialect: what the pipeline works on, and how its answer is written. There is more than one
    chat only where a dialect asks for answers to several prompts at once."""

    chats: tuple[ChatRequest, ...]
    renderer: Renderer


def proofs_of(finished: Finished) -> dict[str, str]:
    """The machine's two proofs as it sent them, when it made both and they look like what they should be."""
    if not (_HASH.fullmatch(finished.response_hash) and _SIGNATURE.fullmatch(finished.se_signature)):
        return {}
    return {"se_signature": finished.se_signature, "response_hash": finished.response_hash}


def cost_of(finished: Finished) -> dict[str, Any]:
    """The member that says what was charged, once that is known."""
    return {} if finished.cost_micro_usd is None else {"cost_micro_usd": finished.cost_micro_usd}
