"""A scripted machine that has everything a request can ask for: tools, formats, log probabilities, several choices.

What it says follows from the request alone, so that streams can be compared with whole answers, and dialects with each
other.
"""

from __future__ import annotations

from typing import Any

from tests.support.machine import Job, Machine

PROMPT_TOKENS, CACHED_TOKENS, REASONING_TOKENS = 40, 32, 3

THOUGHT = "Hm. "
FORECAST = '{"city": "Ulm", "degrees": 7}'


async def answer_as_asked(machine: Machine, job: Job) -> None:
    await job.accept()
    choices = [_choice(job.body, index) for index in range(job.body.get("n") or 1)]
    if job.body.get("stream"):
        for index, choice in enumerate(choices):
            await _stream(job, index, choice)
        await job.chunk("data: [DONE]")
    else:
        await job.whole(*choices)
    await job.complete(PROMPT_TOKENS, 12 * len(choices), cached_tokens=CACHED_TOKENS, reasoning_tokens=REASONING_TOKENS)


def _choice(body: dict[str, Any], index: int) -> dict[str, Any]:
    last = body["messages"][-1]
    message: dict[str, Any] = {"role": "assistant", "content": None}
    if body.get("reasoning_effort", "none") != "none":
        message["reasoning_content"] = THOUGHT
    if last["role"] == "tool":
        return {"message": message | {"content": f"It is {last['content']}."}}
    if body.get("tools") and body.get("tool_choice") != "none":
        names = [tool["function"]["name"] for tool in body["tools"]]
        calls = [_call(number, name) for number, name in enumerate(names)]
        return {"message": message | {"tool_calls": calls}, "finish_reason": "tool_calls"}
    text = FORECAST if body.get("response_format", {"type": "text"})["type"] != "text" else f"Number {index} says hi."
    choice: dict[str, Any] = {"message": message | {"content": text}}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [_likely(word, body.get("top_logprobs") or 0) for word in _words(text)]}
    return choice


def _call(number: int, name: str) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": '{"city":"Ulm"}'}}


def _likely(word: str, others: int) -> dict[str, Any]:
    likely = {"token": word, "logprob": -0.5, "bytes": list(word.encode())}
    return likely | {"top_logprobs": [likely, *({"token": f"o{n}", "logprob": -2.0} for n in range(others))][:others]}


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


async def _stream(job: Job, index: int, choice: dict[str, Any]) -> None:
    message = choice["message"]
    await job.say({"role": "assistant", "content": ""}, index=index)
    if message.get("reasoning_content"):
        await job.say({"reasoning_content": message["reasoning_content"]}, index=index)
    likely = choice.get("logprobs", {}).get("content", [])
    for number, word in enumerate(_words(message["content"]) if message["content"] else []):
        logprobs = {"logprobs": {"content": likely[number : number + 1]}} if likely else {}
        await job.say({"content": word}, index=index, **logprobs)
    for number, call in enumerate(message.get("tool_calls", [])):
        arguments = call["function"]["arguments"]
        head = call | {"index": number, "function": {"name": call["function"]["name"], "arguments": ""}}
        await job.say({"tool_calls": [head]}, index=index)
        for piece in (arguments[:4], arguments[4:]):
            await job.say({"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, index=index)
    await job.say({}, index=index, finish=choice.get("finish_reason", "stop"))
