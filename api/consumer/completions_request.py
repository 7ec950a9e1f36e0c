"""OpenAI's legacy completions, lowered to a chat completion (consumer API, section 8.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from api.consumer.chat_request import ChatRequest, model_in, parse_chat, refuse
from domain.errors import InvalidRequest

Json = dict[str, Any]

_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "A suffix is"),
    "logprobs": ((), "Log probabilities are"),
}
_LOWERED = frozenset({"prompt", "echo", *_REFUSED})


class CompletionRequest(msgspec.Struct, frozen=True):
    """``echo`` is the text that stands in front of the answer: the prompt, or nothing."""

    chat: ChatRequest
    echo: str


def parse_completion(body: Json) -> CompletionRequest:
    """Check a legacy completion body: the prompt becomes the one message of a user.

    Raises:
        InvalidRequest: with ``param`` naming the member at fault.
    """
    model_in(body)
    prompt = _prompt(body.get("prompt"))
    refuse(body, _REFUSED)
    echo = body.get("echo")
    if echo is not None and not isinstance(echo, bool):
        raise InvalidRequest("'echo' must be true or false.", param="echo")
    lowered = {name: value for name, value in body.items() if name not in _LOWERED}
    lowered["messages"] = [{"role": "user", "content": prompt}]
    return CompletionRequest(parse_chat(lowered), prompt if echo else "")


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise InvalidRequest("'prompt' must be a text.", param="prompt")
    if not all(isinstance(text, str) for text in prompt):
        raise InvalidRequest("'prompt' must be text; tokens are not supported here.", param="prompt")
    if len(prompt) > 1:
        raise InvalidRequest("More than one prompt is not supported here; send one request each.", param="prompt")
    return str(prompt[0])
