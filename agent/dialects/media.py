"""Jobs that are no chats: which endpoint a sealed body is for, and how what an engine makes goes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from agent.dialects import embeddings, images, transcriptions
from agent.dialects.task import Task
from domain.kinds import EMBEDDING, IMAGE, TRANSCRIPTION
from domain.protocol import ENDPOINTS


class _Addressed(msgspec.Struct):
    endpoint: str | None = None


_addressed = msgspec.json.Decoder(_Addressed)

_PARSERS: Mapping[str, Callable[[bytes], Task]] = {
    ENDPOINTS[EMBEDDING]: embeddings.parse,
    ENDPOINTS[IMAGE]: images.parse,
    ENDPOINTS[TRANSCRIPTION]: transcriptions.parse,
}


def task_in(body: bytes) -> Task | None:
    """The task that a decrypted body asks for; None for a chat, and for what no dialect here reads.

    Raises:
        JobRefused: the body does not say what its endpoint needs.
    """
    try:
        endpoint = _addressed.decode(body).endpoint
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None  # the chat dialect says what is wrong with it
    parse = _PARSERS.get(endpoint or "")
    return parse(body) if parse else None
