"""Writes a chat completion as chunk texts, each ``data: `` and compact JSON (provider protocol, section 3.4).

A streamed answer begins with its role together with its first text, not before: the first chunk that a coordinator sees
fixes this machine as the one that answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from agent.engine.job import Alternative, ChoiceEnd, Finished, FinishReason, Piece, TokenLogprob

_encode = msgspec.json.Encoder().encode


class Answer(Protocol):
    """One way to write an answer down."""

    def piece(self, piece: Piece) -> list[bytes]:
        """The chunks for some more of a choice."""
        ...

    def end(self, end: ChoiceEnd) -> list[bytes]:
        """The chunks that end a choice."""
        ...

    def finish(self, finished: Finished) -> list[bytes]:
        """The chunks that end the answer."""
        ...


class _Function(msgspec.Struct, omit_defaults=True):
    name: str = ""
    arguments: str | None = None


class _ToolCall(msgspec.Struct, omit_defaults=True, kw_only=True):
    """In a stream ``index`` tells the calls apart, and only the first piece of each has id, type and name."""

    index: int | None = None
    id: str = ""
    type: Literal["", "function"] = ""
    function: _Function


class _Delta(msgspec.Struct, omit_defaults=True):
    role: str = ""
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[_ToolCall, ...] = ()


class _Ranked(msgspec.Struct):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class _Logprob(_Ranked):
    top_logprobs: tuple[_Ranked, ...]


class _Logprobs(msgspec.Struct):
    content: tuple[_Logprob, ...]


class _StreamChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: _Delta
    logprobs: _Logprobs | msgspec.UnsetType = msgspec.UNSET
    finish_reason: FinishReason | None = None
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET


class _StreamChunk(msgspec.Struct, tag_field="object", tag="chat.completion.chunk"):
    id: str
    created: int
    model: str
    choices: tuple[_StreamChoice, ...]


class _Message(msgspec.Struct, kw_only=True):
    role: str = "assistant"
    content: str | None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[_ToolCall] | msgspec.UnsetType = msgspec.UNSET


class _Choice(msgspec.Struct, kw_only=True):
    index: int
    message: _Message
    logprobs: _Logprobs | msgspec.UnsetType = msgspec.UNSET
    finish_reason: FinishReason
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET


class _PromptDetails(msgspec.Struct):
    cached_tokens: int


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails


class _Completion(msgspec.Struct, tag_field="object", tag="chat.completion"):
    id: str
    created: int
    model: str
    choices: tuple[_Choice, ...]
    usage: _Usage


class StreamedAnswer:
    """A chunk for each piece, and for each choice one with its finish reason."""

    def __init__(self, job_id: str, model: str, created: int) -> None:
        """``model`` is the public id, ``created`` in seconds since 1970."""
        self._id = f"chatcmpl-{job_id}"
        self._model = model
        self._created = created
        self._begun: set[int] = set()

    def piece(self, piece: Piece) -> list[bytes]:
        choice = _StreamChoice(index=piece.choice, delta=_delta(piece), logprobs=_logprobs(piece.logprobs))
        return [*self._role(piece.choice), self._chunk(choice)]

    def end(self, end: ChoiceEnd) -> list[bytes]:
        choice = _StreamChoice(
            index=end.choice, delta=_Delta(), finish_reason=end.finish_reason, stop_reason=_stop_reason(end)
        )
        return [*self._role(end.choice), self._chunk(choice)]

    def finish(self, finished: Finished) -> list[bytes]:
        # The counts of a stream are told by the message that follows it.
        return []

    def _role(self, index: int) -> list[bytes]:
        if index in self._begun:
            return []
        self._begun.add(index)
        return [self._chunk(_StreamChoice(index=index, delta=_Delta(role="assistant", content="")))]

    def _chunk(self, choice: _StreamChoice) -> bytes:
        return b"data: " + _encode(_StreamChunk(self._id, self._created, self._model, (choice,)))


class WholeAnswer:
    """Nothing until the end, then one chunk with everything."""

    def __init__(self, job_id: str, model: str, created: int) -> None:
        self._id = f"chatcmpl-{job_id}"
        self._model = model
        self._created = created
        self._gathered: dict[int, _Gathered] = {}
        self._choices: dict[int, _Choice] = {}

    def piece(self, piece: Piece) -> list[bytes]:
        self._gathered.setdefault(piece.choice, _Gathered()).take(piece)
        return []

    def end(self, end: ChoiceEnd) -> list[bytes]:
        gathered = self._gathered.pop(end.choice, _Gathered())
        self._choices[end.choice] = _Choice(
            index=end.choice,
            message=gathered.message(),
            logprobs=_logprobs(gathered.logprobs),
            finish_reason=end.finish_reason,
            stop_reason=_stop_reason(end),
        )
        return []

    def finish(self, finished: Finished) -> list[bytes]:
        completion = _Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=tuple(choice for _, choice in sorted(self._choices.items())),
            usage=_Usage(
                finished.prompt_tokens,
                finished.completion_tokens,
                finished.prompt_tokens + finished.completion_tokens,
                _PromptDetails(finished.cached_tokens),
                _CompletionDetails(finished.reasoning_tokens),
            ),
        )
        return [b"data: " + _encode(completion)]


class _Gathered:
    """What one choice of a whole answer has said so far."""

    def __init__(self) -> None:
        self.logprobs: list[TokenLogprob] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []

    def take(self, piece: Piece) -> None:
        self.logprobs += piece.logprobs
        if piece.channel == "content":
            self._content.append(piece.text)
        elif piece.channel == "reasoning":
            self._reasoning.append(piece.text)
        else:
            if piece.head is not None:
                self._calls.append((piece.head.id, piece.head.name, []))
            self._calls[piece.call][2].append(piece.text)

    def message(self) -> _Message:
        calls = [
            _ToolCall(id=call_id, type="function", function=_Function(name, "".join(arguments)))
            for call_id, name, arguments in self._calls
        ]
        content = "".join(self._content)
        return _Message(
            content=None if calls and not content else content,
            reasoning_content="".join(self._reasoning) or msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )


def _delta(piece: Piece) -> _Delta:
    if piece.channel == "content":
        return _Delta(content=piece.text)
    if piece.channel == "reasoning":
        return _Delta(reasoning_content=piece.text)
    if piece.head is None:
        return _Delta(tool_calls=(_ToolCall(index=piece.call, function=_Function(arguments=piece.text)),))
    function = _Function(piece.head.name, piece.text)
    return _Delta(tool_calls=(_ToolCall(index=piece.call, id=piece.head.id, type="function", function=function),))


def _stop_reason(end: ChoiceEnd) -> str | msgspec.UnsetType:
    return msgspec.UNSET if end.stop_text is None else end.stop_text


def _logprobs(logprobs: Iterable[TokenLogprob]) -> _Logprobs | msgspec.UnsetType:
    content = tuple(
        _Logprob(
            token=each.drawn.token,
            logprob=each.drawn.logprob,
            bytes=tuple(each.drawn.bytes),
            top_logprobs=tuple(_ranked(alternative) for alternative in each.top),
        )
        for each in logprobs
    )
    return _Logprobs(content) if content else msgspec.UNSET


def _ranked(alternative: Alternative) -> _Ranked:
    return _Ranked(alternative.token, alternative.logprob, tuple(alternative.bytes))
