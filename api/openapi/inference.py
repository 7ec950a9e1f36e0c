"""The endpoints that ask a model."""

from __future__ import annotations

from typing import Any

from api.consumer.chat_request import (
    BIASES_MAX,
    CHOICES_MAX,
    EFFORTS,
    STOP_SEQUENCES_MAX,
    TEMPLATE_ARGUMENT,
    TEMPLATE_ARGUMENTS_MAX,
    TEMPLATE_TEXT_CHARACTERS_MAX,
    TOP_LOGPROBS_MAX,
)
from api.consumer.completions_request import LOGPROBS_MAX, PROMPTS_MAX
from api.consumer.members import STOP_CHARACTERS_MAX
from api.consumer.messages_request import EFFORTS as MESSAGES_EFFORTS
from api.consumer.messages_request import STOP_SEQUENCES_MAX as MESSAGES_STOPS_MAX
from api.consumer.responses_request import LOGPROBS
from api.consumer.tools_request import CALL_ID_CHARACTERS_MAX, NAME, TOOLS_MAX
from api.openapi.shapes import (
    ASKING,
    IDEMPOTENCY_KEY,
    ROUTE,
    Json,
    array,
    boolean,
    errors,
    full,
    integer,
    json_answer,
    json_body,
    nullable,
    number,
    only,
    operation,
    ref,
    text,
    thing,
)

MODEL = "darkbloom-tiny"
"""The model of the examples, which development mode has."""

_STREAM = {"text/event-stream": {"schema": thing({"event": text(), "data": text()}, ("data",), "One event.")}}
_TOKENS = integer(minimum=0, maximum=2**31 - 1)
_STOP = text(minLength=1, maxLength=STOP_CHARACTERS_MAX)
_QUESTION = "What is a hold?"


def _text_part(*kinds: str) -> Json:
    return thing({"type": {"enum": list(kinds)}, "text": text()}, ("type", "text"))


def _answer(schema: str, about: str) -> Json:
    answer = json_answer(ref(schema), about)
    answer["content"] |= _STREAM
    return answer


_COMMON = {
    "model": text("An id from GET /v1/models.", minLength=1),
    "stream": nullable(boolean("Send the answer as server-sent events.")),
    "temperature": nullable(number(minimum=0, maximum=2)),
    "top_p": nullable(number(exclusiveMinimum=0, maximum=1)),
}
_SAMPLING = {
    "max_tokens": nullable(_TOKENS | {"description": "At most the model's own limit; 0 counts as not set."}),
    "stop": nullable({"anyOf": [_STOP, array(_STOP, maxItems=STOP_SEQUENCES_MAX)]}),
    "seed": nullable(integer(minimum=-(2**63), maximum=2**63 - 1)),
    "frequency_penalty": nullable(number(minimum=-2, maximum=2)),
    "presence_penalty": nullable(number(minimum=-2, maximum=2)),
    "stream_options": nullable(thing({"include_usage": nullable(boolean())})),
    "n": nullable(integer("How many answers to give.", minimum=1, maximum=CHOICES_MAX)),
    "logit_bias": nullable(
        {
            "type": "object",
            "description": "From ids of tokens to what is added to their logits.",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": number(minimum=-100, maximum=100),
            "maxProperties": BIASES_MAX,
        }
    ),
    "top_k": nullable(integer("0 and -1 keep all tokens.", minimum=-1, maximum=2**31 - 1)),
    "min_p": nullable(number(minimum=0, maximum=1)),
    "repetition_penalty": nullable(number(exclusiveMinimum=0, maximum=2)),
}
_EFFORT = {"enum": [*EFFORTS]}
_TOP_LOGPROBS = integer(minimum=0, maximum=TOP_LOGPROBS_MAX)
_NAME = text(pattern=f"^{NAME.pattern}$")
_CALL_ID = text(minLength=1, maxLength=CALL_ID_CHARACTERS_MAX)
_SCHEMA = thing({"type": {"enum": ["object"]}}, about="A JSON schema without references to other documents.")
_FUNCTION = {
    "name": _NAME,
    "description": nullable(text()),
    "parameters": nullable(_SCHEMA),
    "strict": nullable(boolean()),
}
_PARALLEL = nullable(boolean("Whether one answer may hold more than one call. Default true."))
_CHOICES = {"enum": ["none", "auto", "required"], "description": "What is required must be among the tools."}
_CALL = thing(
    {"id": _CALL_ID, "type": {"enum": ["function"]}, "function": full(name=_NAME, arguments=text("JSON."))},
    ("id", "type", "function"),
)


def _tools(*tool: Json) -> Json:
    return nullable(
        array({"anyOf": [*tool]}, "What the model may call; each has a name of its own.", maxItems=TOOLS_MAX)
    )


_TEXT_OR_PARTS = {"anyOf": [text(), array(_text_part("text"), minItems=1)]}

_CHAT_REQUEST = thing(
    {
        **_COMMON,
        **_SAMPLING,
        "messages": array(
            {
                "anyOf": [
                    thing(
                        {
                            "role": {"enum": ["developer", "function", "system", "user"]},
                            "content": _TEXT_OR_PARTS,
                        },
                        ("role", "content"),
                    ),
                    thing(
                        {
                            "role": {"enum": ["assistant"]},
                            "content": nullable(_TEXT_OR_PARTS),
                            "tool_calls": nullable(array(_CALL, maxItems=TOOLS_MAX)),
                        },
                        ("role",),
                    ),
                    full(role={"enum": ["tool"]}, content=_TEXT_OR_PARTS, tool_call_id=_CALL_ID),
                ]
            },
            minItems=1,
        ),
        "max_completion_tokens": nullable(_TOKENS),
        "tools": _tools(full(type={"enum": ["function"]}, function=thing(_FUNCTION, ("name",)))),
        "tool_choice": nullable({"anyOf": [_CHOICES, full(type={"enum": ["function"]}, function=full(name=_NAME))]}),
        "parallel_tool_calls": _PARALLEL,
        "response_format": nullable(
            {
                "anyOf": [
                    full(type={"enum": ["text", "json_object"]}),
                    full(
                        type={"enum": ["json_schema"]},
                        json_schema=thing(
                            {"name": _NAME, "schema": _SCHEMA, "strict": nullable(boolean())}, ("name", "schema")
                        ),
                    ),
                ]
            }
        ),
        "logprobs": nullable(boolean("Give the log probability of each token.")),
        "top_logprobs": nullable(_TOP_LOGPROBS | {"description": "Above 0 it needs logprobs to be true."}),
        "reasoning_effort": nullable(_EFFORT),
        "chat_template_kwargs": nullable(
            {
                "type": "object",
                "description": "Arguments of the model's chat template, such as enable_thinking.",
                "propertyNames": {"pattern": f"^{TEMPLATE_ARGUMENT.pattern}$"},
                "additionalProperties": nullable(
                    {"anyOf": [boolean(), number(), text(maxLength=TEMPLATE_TEXT_CHARACTERS_MAX)]}
                ),
                "maxProperties": TEMPLATE_ARGUMENTS_MAX,
            }
        ),
    },
    ("model", "messages"),
)

_COMPLETION_REQUEST = thing(
    {
        **_COMMON,
        **_SAMPLING,
        "prompt": {"anyOf": [text(), array(text(), minItems=1, maxItems=PROMPTS_MAX)]},
        "echo": nullable(boolean("Put the prompt in front of the answer. Not together with logprobs.")),
        "logprobs": nullable(integer(minimum=0, maximum=LOGPROBS_MAX)),
        "suffix": only("", about="No suffix"),
    },
    ("model", "prompt"),
) | {
    "not": {
        "properties": {"echo": {"const": True}, "logprobs": {"type": "integer"}},
        "required": ["echo", "logprobs"],
    }
}

_RESPONSES_REQUEST = thing(
    {
        **_COMMON,
        "input": {
            "anyOf": [
                text(minLength=1),
                array(
                    thing(
                        {
                            "type": {"enum": ["message"]},
                            "role": {"enum": ["assistant", "developer", "system", "user"]},
                            "content": {
                                "anyOf": [text(), array(_text_part("input_text", "output_text", "text"), minItems=1)]
                            },
                        },
                        ("content",),
                    ),
                    minItems=1,
                ),
            ]
        },
        "instructions": nullable(text("Becomes a leading system message.")),
        "max_output_tokens": nullable(_TOKENS),
        "previous_response_id": only(about="Responses are not stored"),
        "background": only(False, about="Answers come at once"),
        "tools": _tools(thing({"type": {"enum": ["function"]}} | _FUNCTION, ("type", "name"))),
        "tool_choice": nullable({"anyOf": [_CHOICES, full(type={"enum": ["function"]}, name=_NAME)]}),
        "parallel_tool_calls": _PARALLEL,
        "text": nullable(
            thing(
                {
                    "format": nullable(
                        {
                            "anyOf": [
                                full(type={"enum": ["text", "json_object"]}),
                                full(type={"enum": ["json_schema"]}, name=_NAME, schema=_SCHEMA),
                            ]
                        }
                    )
                }
            )
        ),
        "reasoning": nullable(thing({"effort": nullable(_EFFORT)})),
        "include": nullable(array({"enum": [LOGPROBS]})),
        "top_logprobs": nullable(_TOP_LOGPROBS),
    },
    ("model", "input"),
)

_MESSAGES_TEXT = {"anyOf": [text(), array(_text_part("text"), minItems=1)]}
_COUNT_REQUEST = thing(
    {
        "model": _COMMON["model"],
        "messages": array(
            thing({"role": {"enum": ["user"]}, "content": _MESSAGES_TEXT}, ("role", "content")),
            "Roles are user and assistant; the last message is the user's.",
            minItems=1,
        ),
        "system": nullable({"anyOf": [text(), array(_text_part("text"))]}),
    },
    ("model", "messages"),
)
_MESSAGES_REQUEST = thing(
    {
        **_COUNT_REQUEST["properties"],
        "stream": _COMMON["stream"],
        "temperature": nullable(number(minimum=0, maximum=1)),
        "top_p": _COMMON["top_p"],
        "max_tokens": nullable(integer("Default 8,192.", minimum=1, maximum=2**31 - 1)),
        "stop_sequences": nullable(array(_STOP, maxItems=MESSAGES_STOPS_MAX)),
        "top_k": _SAMPLING["top_k"],
        "thinking": nullable(thing({"type": {"enum": ["adaptive", "disabled", "enabled"]}}, ("type",))),
        "tools": _tools(
            thing({"name": _NAME, "description": nullable(text()), "input_schema": _SCHEMA}, ("name", "input_schema"))
        ),
        "tool_choice": nullable(
            {
                "anyOf": [
                    full(type={"enum": ["auto", "any", "none"]}),
                    full(type={"enum": ["tool"]}, name=_NAME),
                ]
            }
        ),
        "output_config": nullable(
            thing(
                {
                    "effort": nullable({"enum": [*MESSAGES_EFFORTS]}),
                    "format": nullable(full(type={"enum": ["json_schema"]}, schema=_SCHEMA)),
                }
            )
        ),
    },
    ("model", "messages"),
)

_PROOFS = {"se_signature": text(), "response_hash": text()}
_USAGE = thing(
    {
        "prompt_tokens": integer(minimum=0),
        "completion_tokens": integer(minimum=0),
        "total_tokens": integer(minimum=0),
        "prompt_tokens_details": full(cached_tokens=integer("Read from the machine's cache.", minimum=0)),
        "completion_tokens_details": full(reasoning_tokens=integer(minimum=0)),
        "cost_micro_usd": integer("What was charged.", minimum=0),
    },
    ("prompt_tokens", "completion_tokens", "total_tokens"),
)


def _openai_answer(name: str, **choice: Json) -> Json:
    choices = array(full(index=integer(), finish_reason=text(), **choice), minItems=1)
    members = {"id": text(), "object": {"enum": [name]}, "created": integer(), "model": text(), "choices": choices}
    return thing(members | {"usage": _USAGE} | _PROOFS, (*members, "usage"))


SCHEMAS: Json = {
    "ChatRequest": _CHAT_REQUEST,
    "CompletionRequest": _COMPLETION_REQUEST,
    "ResponsesRequest": _RESPONSES_REQUEST,
    "MessagesRequest": _MESSAGES_REQUEST,
    "CountTokensRequest": _COUNT_REQUEST,
    "ChatCompletion": _openai_answer(
        "chat.completion",
        message=thing(
            {"role": {"enum": ["assistant"]}, "content": nullable(text()), "tool_calls": array(_CALL)},
            ("role", "content"),
        ),
    ),
    "Completion": _openai_answer("text_completion", text=text()),
    "Response": thing(
        {
            "id": text(),
            "object": {"enum": ["response"]},
            "created_at": integer(),
            "status": {"enum": ["completed", "incomplete"]},
            "model": text(),
            "output": array(thing({"id": text(), "type": text()}, ("id", "type"))),
            "usage": thing({"input_tokens": integer(), "output_tokens": integer(), "total_tokens": integer()}),
            **_PROOFS,
        },
        ("id", "object", "created_at", "status", "model", "output", "usage"),
    ),
    "Message": thing(
        {
            "id": text(),
            "type": {"enum": ["message"]},
            "role": {"enum": ["assistant"]},
            "model": text(),
            "content": array(thing({"type": text()}, ("type",))),
            "stop_reason": text(),
            "stop_sequence": nullable(text()),
            "usage": thing({"input_tokens": integer(), "output_tokens": integer()}, ("input_tokens", "output_tokens")),
            **_PROOFS,
        },
        ("id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"),
    ),
}


def _asking(
    name: str, about: str, request: str, answer: str, examples: dict[str, Any], errors_in: str = "Error"
) -> Json:
    answers = {"200": _answer(answer, "The answer, whole or as a stream.")} | errors(*ASKING, schema=errors_in)
    body = json_body(ref(request), examples)
    return {"post": operation(name, about, answers, parameters=[IDEMPOTENCY_KEY, ROUTE], body=body)}


_CHAT = {"model": MODEL, "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 16}
_MESSAGE = {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": _QUESTION}]}

PATHS: Json = {
    "/v1/chat/completions": _asking(
        "createChatCompletion",
        "Answer a conversation (OpenAI).",
        "ChatRequest",
        "ChatCompletion",
        {"whole": _CHAT, "stream": _CHAT | {"stream": True, "stream_options": {"include_usage": True}}},
    ),
    "/v1/responses": _asking(
        "createResponse",
        "Answer a conversation (OpenAI's Responses).",
        "ResponsesRequest",
        "Response",
        {
            "whole": {"model": MODEL, "input": _QUESTION, "instructions": "Be brief.", "max_output_tokens": 16},
            "stream": {"model": MODEL, "input": _QUESTION, "max_output_tokens": 16, "stream": True},
        },
    ),
    "/v1/completions": _asking(
        "createCompletion",
        "Complete a text (OpenAI's legacy endpoint).",
        "CompletionRequest",
        "Completion",
        {"whole": {"model": MODEL, "prompt": _QUESTION, "max_tokens": 16}},
    ),
    "/v1/messages": _asking(
        "createMessage",
        "Answer a conversation (Anthropic).",
        "MessagesRequest",
        "Message",
        {"whole": _MESSAGE | {"system": "Be brief."}, "stream": _MESSAGE | {"stream": True}},
        "AnthropicError",
    ),
    "/v1/messages/count_tokens": {
        "post": operation(
            "countTokens",
            "Estimate the tokens of a conversation, free of charge (Anthropic).",
            {"200": json_answer(full(input_tokens=integer(minimum=1)), "The estimate.")}
            | errors(400, 401, 404, 413, 429, 503, schema="AnthropicError"),
            body=json_body(ref("CountTokensRequest"), {"count": {"model": MODEL, "messages": _MESSAGE["messages"]}}),
        )
    },
}
