"""OpenAI's legacy completions, lowered to chat completions (consumer API, section 8.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from api.consumer.chat_request import ChatRequest, model_in, parse_chat
from api.consumer.members import Check, boolean, check_members, only, whole
from domain.errors import InvalidRequest

Json = dict[str, Any]

PROMPTS_MAX = 16
LOGPROBS_MAX = 5
SHARED_BYTES_MAX = 64 * 1024
"""What every one of several prompts is sent with."""

_CHECKS: Mapping[str, Check] = {
    "echo": boolean,
    "logprobs": whole(0, LOGPROBS_MAX),
    "suffix": only(("",), "A suffix is"),
    "tools": only(([],), "Tools are"),
    "top_logprobs": only((), "Top log probabilities beside 'logprobs' are"),
}
_LOWERED = frozenset({"prompt", *_CHECKS})


class CompletionRequest(msgspec.Struct, frozen=True):
    """``chats`` has one request for each prompt; ``echoes`` are the texts that stand in front of the answers to them:
    the prompts, or nothing."""

    chats: tuple[ChatRequest, ...]
    echoes: tuple[str, ...]


def parse_completion(body: Json) -> CompletionRequest:
    """Check a legacy completion body: each prompt becomes the one message of a user.

    Raises:
        InvalidRequest: with ``param`` naming the member at fault.
    """
    model_in(body)
    prompts = _prompts(body.get("prompt"))
    check_members(body, _CHECKS)
    logprobs = body.get("logprobs")
    if body.get("echo") and logprobs is not None:
        raise InvalidRequest("Log probabilities of the prompt are not supported here; leave 'echo' out.", param="echo")
    lowered = {name: value for name, value in body.items() if name not in _LOWERED}
    if logprobs is not None:
        lowered |= {"logprobs": True, "top_logprobs": logprobs}
    if len(prompts) > 1 and len(msgspec.json.encode(lowered)) > SHARED_BYTES_MAX:
        raise InvalidRequest(
            f"Beside more than one 'prompt', all other members may have {SHARED_BYTES_MAX} bytes.", param="prompt"
        )
    return CompletionRequest(
        chats=tuple(parse_chat(lowered | {"messages": [{"role": "user", "content": prompt}]}) for prompt in prompts),
        echoes=prompts if body.get("echo") else ("",) * len(prompts),
    )


def _prompts(prompt: Any) -> tuple[str, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not 1 <= len(prompt) <= PROMPTS_MAX:
        raise InvalidRequest(f"'prompt' must be a text or a list of at most {PROMPTS_MAX} texts.", param="prompt")
    if not all(isinstance(text, str) for text in prompt):
        raise InvalidRequest("'prompt' must be text; tokens are not supported here.", param="prompt")
    return tuple(prompt)
