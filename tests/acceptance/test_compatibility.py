"""Runs every parameter that the official packages know against a real coordinator and agent, and holds
``docs/reference/compatibility.md`` to what came out. With ``WRITE_COMPATIBILITY=1`` it writes that page instead."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import openai
import pydantic
import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.audio.transcription_create_params import TranscriptionCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as LegacyParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.image_generate_params import ImageGenerateParamsBase
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from agent.testing.tiny_embedder import build_random_embedder
from agent.testing.tiny_flux import build_random_flux
from agent.testing.tiny_whisper import build_random_whisper, sine_wav
from tests.support.machine import MODEL
from tests.support.processes import Coordinator, Process, agent, eventually

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "compatibility.md"

QUESTION = "What is a hold?"
ASK = [{"role": "user", "content": QUESTION}]
FUNCTION = {"name": "f", "description": "Does it.", "parameters": {"type": "object", "properties": {}}}

WORKS, IGNORED, REFUSED, ABSENT = "works", "accepted, not used", "refused by name", "does not exist"

IGNORABLE = {
    "background",
    "quality",
    "style",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "cache_control",
    "user_profile_id",
    "workspace_id",
}
"""Hints and names that change nothing in an answer, so that taking them in silence misleads nobody."""

EMBEDDER, PAINTER, LISTENER = "tiny-embedder", "tiny-flux", "tiny-whisper"
SOUND = ("tone.wav", sine_wav(0.2))

EMBEDDINGS: dict[str, Any] = {
    "dimensions": 4,
    "encoding_format": "base64",
    "input": ["a", "b"],
    "model": EMBEDDER,
    "user": "u",
}
IMAGES: dict[str, Any] = {
    "background": "transparent",
    "complexity": "high",
    "frame_count": 2,
    "frame_duration_ms": 100,
    "model": PAINTER,
    "moderation": "low",
    "n": 2,
    "output_compression": 50,
    "output_format": "webp",
    "partial_images": 1,
    "prompt": "a",
    "quality": "hd",
    "response_format": "b64_json",
    "safety_identifier": "s",
    "size": "32x16",
    "stream": True,
    "style": "vivid",
    "svg": True,
    "user": "u",
}
TRANSCRIPTIONS: dict[str, Any] = {
    "chunking_strategy": "auto",
    "file": SOUND,
    "include": ["logprobs"],
    "keywords": ["a"],
    "known_speaker_names": ["a"],
    "known_speaker_references": ["a"],
    "language": "en",
    "languages": ["en"],
    "model": LISTENER,
    "prompt": "a",
    "response_format": "verbose_json",
    "stream": True,
    "temperature": 0.5,
    "timestamp_granularities": ["segment"],
}

# A value for each parameter that asks for something.
CHAT: dict[str, Any] = {
    "messages": ASK,
    "model": MODEL,
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [FUNCTION],
    "logit_bias": {"1": 1},
    "logprobs": True,
    "max_completion_tokens": 4,
    "max_tokens": 4,
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "n": 2,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "seed": 1,
    "service_tier": "auto",
    "stop": ["\n"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": FUNCTION}],
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
    # These are no parameters of the package, but other engines have them too.
    "chat_template_kwargs": {"enable_thinking": False},
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "top_k": 5,
}
# What a parameter needs beside it to ask for something.
CHAT_BESIDE = {"tool_choice": {"tools": CHAT["tools"]}, "top_logprobs": {"logprobs": True}}
LEGACY: dict[str, Any] = {
    "model": MODEL,
    "prompt": [QUESTION, QUESTION],
    "best_of": 2,
    "echo": True,
    "suffix": "x",
    "logprobs": 1,
} | {name: CHAT[name] for name in LegacyParams.__annotations__ if name in CHAT and name not in ("model", "logprobs")}
RESPONSES: dict[str, Any] = {
    "input": QUESTION,
    "model": MODEL,
    "access_programs": ["p"],
    "background": True,
    "background_options": {"a": 1},
    "context_management": [{"type": "compaction"}],
    "conversation": "c",
    "image": {"a": 1},
    "include": ["message.output_text.logprobs"],
    "instructions": "Be brief.",
    "max_output_tokens": 16,
    "max_tool_calls": 1,
    "metadata": {"a": "b"},
    "moderation": {"model": "m"},
    "parallel_tool_calls": True,
    "previous_response_id": "resp_1",
    "prompt": {"id": "p"},
    "reasoning": {"effort": "low"},
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "text": {"format": {"type": "json_object"}},
    "tool_choice": "required",
    "tools": [{"type": "function", **FUNCTION}],
    "truncation": "auto",
} | {
    name: CHAT[name]
    for name in ResponseCreateParamsBase.__annotations__
    if name in CHAT and name not in ("text", "tools")
}
RESPONSES["tools"] = [{"type": "function", **FUNCTION}]
RESPONSES_BESIDE = {"tool_choice": {"tools": RESPONSES["tools"]}}
MESSAGES: dict[str, Any] = {
    "max_tokens": 4,
    "messages": ASK,
    "model": MODEL,
    "cache_control": {"type": "ephemeral"},
    "container": "c",
    "diagnostics": {"previous_message_id": "m"},
    "inference_geo": "eu",
    "metadata": {"user_id": "u"},
    "output_config": {"effort": "low"},
    "service_tier": "auto",
    "speed": "fast",
    "stop_sequences": ["\n"],
    "stream": True,
    "system": [{"type": "text", "text": "Be brief."}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tool_choice": {"type": "any"},
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    "user_profile_id": "u",
    "workspace_id": "w",
    # These are no parameters of the current package, but of the API.
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
}
MESSAGES_BESIDE = {"tool_choice": {"tools": MESSAGES["tools"]}}


class Holding(pydantic.BaseModel):
    a: bool


@pytest.fixture
def clients(
    up: Coordinator, real_agent: Process, media_agents: None
) -> Iterator[tuple[openai.OpenAI, anthropic.Anthropic]]:
    key = up.books.open_account(50_000_000)
    with (
        openai.OpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as of_openai,
        anthropic.Anthropic(base_url=up.url, api_key=key.secret, max_retries=0) as of_anthropic,
    ):
        yield of_openai, of_anthropic


@pytest.fixture
def media_agents(up: Coordinator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real agent for each kind of media."""
    key, models = up.books.open_account(0), tmp_path_factory.mktemp("media")
    with ExitStack() as agents:
        for model, module in (
            (build_random_embedder(models / EMBEDDER), "agent"),
            (build_random_flux(models / PAINTER), "agent.testing.tiny_flux"),
            (build_random_whisper(models / LISTENER), "agent"),
        ):
            folder = tmp_path_factory.mktemp(model.name)
            agents.enter_context(agent(folder, up.url, model, module=module))
        wanted = {EMBEDDER, PAINTER, LISTENER}
        eventually(lambda: wanted <= set(up.models(key.secret)), "the agents to be routable")
        yield


def outcome(call: Callable[[], Any], name: str = "") -> str:
    """What came of a call; the answer is read to its end."""
    try:
        answer = call()
        if hasattr(answer, "__next__"):
            for _ in answer:
                pass
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return refusal(error, name)
    return IGNORED if name in IGNORABLE else WORKS


def refusal(error: openai.APIStatusError | anthropic.APIStatusError, name: str) -> str:
    body: Any = error.body
    body = body.get("error", body)
    if error.status_code == 400 and body["param"] == name:
        return REFUSED
    if body["code"] in ("endpoint_not_found", "method_not_allowed"):
        return ABSENT
    raise AssertionError(f"{name}: {error.status_code} {body}")


def parameters(
    create: Callable[..., Any],
    least: dict[str, Any],
    samples: dict[str, Any],
    known: dict[str, Any],
    beside: dict[str, dict[str, Any]],
) -> Iterator[tuple[str, str]]:
    """(parameter, outcome), each asked for on its own beside the least that a request needs."""
    missing = set(known) - set(samples)
    assert not missing, f"the package has new parameters: {missing}"
    for name in sorted(samples):
        base = least | beside.get(name, {})
        if name in known or name == "stream":
            yield name, outcome(lambda name=name, base=base: create(**(base | {name: samples[name]})), name)  # type: ignore[misc]
        else:
            yield name, outcome(lambda name=name, base=base: create(**base, extra_body={name: samples[name]}), name)  # type: ignore[misc]


def methods_of_openai(client: openai.OpenAI) -> Iterator[tuple[str, str]]:
    file = ("a.wav", io.BytesIO(b"RIFF"))
    calls: dict[str, Callable[[], Any]] = {
        "chat.completions.create": lambda: client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4),
        "chat.completions.stream": lambda: _drained(
            client.chat.completions.stream(model=MODEL, messages=ASK, max_tokens=4)
        ),
        "chat.completions.parse": lambda: client.chat.completions.parse(
            model=MODEL, messages=ASK, max_tokens=200, temperature=0, response_format=Holding
        ),
        "chat.completions.list": client.chat.completions.list,
        "chat.completions.retrieve": lambda: client.chat.completions.retrieve("c"),
        "responses.create": lambda: client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=4),
        "responses.stream": lambda: _drained(client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=4)),
        "responses.parse": lambda: client.responses.parse(
            model=MODEL, input=QUESTION, max_output_tokens=200, temperature=0, text_format=Holding
        ),
        "responses.retrieve": lambda: client.responses.retrieve("r"),
        "responses.delete": lambda: client.responses.delete("r"),
        "responses.cancel": lambda: client.responses.cancel("r"),
        "responses.input_items.list": lambda: client.responses.input_items.list("r"),
        "conversations.create": client.conversations.create,
        "completions.create": lambda: client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=4),
        "models.list": client.models.list,
        "models.retrieve": lambda: client.models.retrieve(MODEL),
        "embeddings.create": lambda: client.embeddings.create(model=EMBEDDER, input="a"),
        "images.generate": lambda: client.images.generate(model=PAINTER, prompt="a", size="32x32"),
        "images.edit": lambda: client.images.edit(image=file, prompt="a"),
        "audio.transcriptions.create": lambda: client.audio.transcriptions.create(model=LISTENER, file=SOUND),
        "audio.translations.create": lambda: client.audio.translations.create(model="whisper-1", file=file),
        "audio.speech.create": lambda: client.audio.speech.create(model="tts-1", voice="alloy", input="a"),
        "moderations.create": lambda: client.moderations.create(input="a"),
        "files.list": client.files.list,
        "files.create": lambda: client.files.create(file=file, purpose="batch"),
        "files.retrieve": lambda: client.files.retrieve(client.files.list().data[0].id),
        "files.content": lambda: client.files.content(client.files.list().data[0].id),
        "batches.create": lambda: client.batches.create(
            input_file_id=client.files.list().data[0].id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        ),
        "batches.list": client.batches.list,
        "batches.retrieve": lambda: client.batches.retrieve(client.batches.list().data[0].id),
        "batches.cancel": lambda: client.batches.cancel(client.batches.list().data[0].id),
        "files.delete": lambda: client.files.delete(client.files.list().data[0].id),
        "fine_tuning.jobs.list": client.fine_tuning.jobs.list,
        "vector_stores.list": client.vector_stores.list,
    }
    for name, call in calls.items():
        yield name, outcome(call)


def methods_of_anthropic(client: anthropic.Anthropic) -> Iterator[tuple[str, str]]:
    calls: dict[str, Callable[[], Any]] = {
        "messages.create": lambda: client.messages.create(model=MODEL, messages=ASK, max_tokens=4),
        "messages.stream": lambda: _drained(client.messages.stream(model=MODEL, messages=ASK, max_tokens=4)),
        "messages.parse": lambda: client.messages.parse(
            model=MODEL, messages=ASK, max_tokens=200, extra_body={"temperature": 0}, output_format=Holding
        ),
        "messages.count_tokens": lambda: client.messages.count_tokens(model=MODEL, messages=ASK),
        "messages.batches.list": client.messages.batches.list,
        "messages.batches.create": lambda: client.messages.batches.create(requests=[]),
        "models.list": client.models.list,
        "models.retrieve": lambda: client.models.retrieve(MODEL),
        "beta.messages.create": lambda: client.beta.messages.create(model=MODEL, messages=ASK, max_tokens=4),
        "beta.files.list": client.beta.files.list,
    }
    for name, call in calls.items():
        yield name, outcome(call)


def _drained(manager: Any) -> None:
    with manager as stream:
        for _ in stream:
            pass


def page(of_openai: openai.OpenAI, of_anthropic: anthropic.Anthropic) -> str:
    chat = {"model": MODEL, "messages": ASK, "max_tokens": 4}
    legacy = {"model": MODEL, "prompt": QUESTION, "max_tokens": 4}
    responses = {"model": MODEL, "input": QUESTION, "max_output_tokens": 4}
    message = {"model": MODEL, "messages": ASK, "max_tokens": 4}
    count = {"model": MODEL, "messages": ASK}
    counted = {name: MESSAGES[name] for name in MessageCountTokensParams.__annotations__}
    sections = [
        ("`openai`: methods", methods_of_openai(of_openai)),
        (
            "`chat.completions.create`",
            parameters(of_openai.chat.completions.create, chat, CHAT, ChatParams.__annotations__, CHAT_BESIDE),
        ),
        (
            "`responses.create`",
            parameters(
                of_openai.responses.create,
                responses,
                RESPONSES,
                ResponseCreateParamsBase.__annotations__,
                RESPONSES_BESIDE,
            ),
        ),
        (
            "`completions.create`",
            parameters(of_openai.completions.create, legacy, LEGACY, LegacyParams.__annotations__, {}),
        ),
        (
            "`embeddings.create`",
            parameters(
                of_openai.embeddings.create,
                {"model": EMBEDDER, "input": "a"},
                EMBEDDINGS,
                EmbeddingCreateParams.__annotations__,
                {},
            ),
        ),
        (
            "`images.generate`",
            parameters(
                of_openai.images.generate,
                {"model": PAINTER, "prompt": "a", "size": "32x32", "extra_body": {"steps": 1}},
                IMAGES,
                ImageGenerateParamsBase.__annotations__,
                {},
            ),
        ),
        (
            "`audio.transcriptions.create`",
            parameters(
                of_openai.audio.transcriptions.create,
                {"model": LISTENER, "file": SOUND, "temperature": 0},
                TRANSCRIPTIONS,
                TranscriptionCreateParamsBase.__annotations__,
                {},
            ),
        ),
        ("`anthropic`: methods", methods_of_anthropic(of_anthropic)),
        (
            "`messages.create`",
            parameters(
                of_anthropic.messages.create,
                message,
                MESSAGES,
                MessageCreateParamsBase.__annotations__,
                MESSAGES_BESIDE,
            ),
        ),
        (
            "`messages.count_tokens`",
            parameters(
                of_anthropic.messages.count_tokens,
                count,
                counted,
                MessageCountTokensParams.__annotations__,
                MESSAGES_BESIDE,
            ),
        ),
    ]
    parts = [INTRODUCTION]
    for title, rows in sections:
        head = "Method" if title.endswith("methods") else "Parameter"
        table = "\n".join(f"| `{name}` | {came_out} |" for name, came_out in rows)
        parts.append(f"## {title}\n\n| {head} | Outcome |\n|---|---|\n{table}\n")
    return "\n".join(parts)


INTRODUCTION = f"""# Compatibility

What the official packages `openai` and `anthropic` can do here. A test makes this page: it calls every method and every
parameter below against a running coordinator and an agent with the tiny model, and fails when the page says something
else. Each parameter is tried with a value that asks for something. Parameters that the packages do not know are sent as
`extra_body`.

| Outcome | Meaning |
|---|---|
| {WORKS} | It does what it does at its maker's |
| {IGNORED} | A hint or a name that changes nothing in the answer |
| {REFUSED} | Status 400 with the parameter's name, free of charge; a value that asks for nothing is let through |
| {ABSENT} | Status 404 or 405 |

The asynchronous clients send the same requests. The [HTTP API](http-api.md) says what each member may be.
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the packages' own, about their older methods
@pytest.mark.timeout(300)
def test_the_page_says_what_the_official_packages_meet(clients: tuple[openai.OpenAI, anthropic.Anthropic]) -> None:
    found = page(*clients)
    if os.environ.get("WRITE_COMPATIBILITY") == "1":
        PAGE.write_text(found)
    assert PAGE.read_text() == found, "run this test with WRITE_COMPATIBILITY=1 and look at what changed"
