"""Writes a chat completion as chunk texts, each ``data: `` and compact JSON (provider protocol, section 3.4).

A streamed answer begins with its role together with its first text, not before: the first chunk that a coordinator sees
fixes this machine as the one that answers.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from agent.engine.job import Finished

_encode = msgspec.json.Encoder().encode


class Answer(Protocol):
    """One way to write an answer down."""

    def piece(self, text: str) -> list[bytes]:
        """The chunks for some more text."""
        ...

    def finish(self, finished: Finished) -> list[bytes]:
        """The chunks that end the answer."""
        ...


class _Delta(msgspec.Struct, omit_defaults=True):
    role: str = ""
    content: str | None = None


class _StreamChoice(msgspec.Struct, kw_only=True):
    index: int = 0
    delta: _Delta
    finish_reason: str | None = None


class _StreamChunk(msgspec.Struct, tag_field="object", tag="chat.completion.chunk"):
    id: str
    created: int
    model: str
    choices: tuple[_StreamChoice, ...]


class _Message(msgspec.Struct, kw_only=True):
    role: str = "assistant"
    content: str


class _Choice(msgspec.Struct, kw_only=True):
    index: int = 0
    message: _Message
    finish_reason: str


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Completion(msgspec.Struct, tag_field="object", tag="chat.completion"):
    id: str
    created: int
    model: str
    choices: tuple[_Choice, ...]
    usage: _Usage


class StreamedAnswer:
    """A chunk for each piece, then one with the finish reason."""

    def __init__(self, job_id: str, model: str, created: int) -> None:
        """``model`` is the public id, ``created`` in seconds since 1970."""
        self._id = f"chatcmpl-{job_id}"
        self._model = model
        self._created = created
        self._begun = False

    def piece(self, text: str) -> list[bytes]:
        return [*self._role(), self._chunk(_StreamChoice(delta=_Delta(content=text)))]

    def finish(self, finished: Finished) -> list[bytes]:
        return [*self._role(), self._chunk(_StreamChoice(delta=_Delta(), finish_reason=finished.finish_reason))]

    def _role(self) -> list[bytes]:
        if self._begun:
            return []
        self._begun = True
        return [self._chunk(_StreamChoice(delta=_Delta(role="assistant", content="")))]

    def _chunk(self, choice: _StreamChoice) -> bytes:
        return b"data: " + _encode(_StreamChunk(self._id, self._created, self._model, (choice,)))


class WholeAnswer:
    """Nothing until the end, then one chunk with everything."""

    def __init__(self, job_id: str, model: str, created: int) -> None:
        self._id = f"chatcmpl-{job_id}"
        self._model = model
        self._created = created
        self._texts: list[str] = []

    def piece(self, text: str) -> list[bytes]:
        self._texts.append(text)
        return []

    def finish(self, finished: Finished) -> list[bytes]:
        completion = _Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=(_Choice(message=_Message(content="".join(self._texts)), finish_reason=finished.finish_reason),),
            usage=_Usage(
                finished.prompt_tokens,
                finished.completion_tokens,
                finished.prompt_tokens + finished.completion_tokens,
            ),
        )
        return [b"data: " + _encode(completion)]
