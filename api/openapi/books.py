"""The endpoints that read what is there, and those that manage keys."""

from __future__ import annotations

from typing import get_args

from api.openapi.shapes import (
    IDEMPOTENCY_KEY,
    MANAGING,
    READING,
    Json,
    array,
    boolean,
    errors,
    full,
    integer,
    json_answer,
    json_body,
    nullable,
    operation,
    ref,
    text,
    thing,
)
from domain.key_budgets import Reset
from domain.keys import NAME_CHARACTERS_MAX, ROLES, SCOPES

_MOMENT = text(format="date-time")
_DOLLARS = text("Dollars, exactly.", pattern=r"^-?\d+\.\d{6}$")
_KEY_MEMBERS: Json = {
    "id": text(pattern="^key_[0-9a-f]{16}$"),
    "name": text(),
    "label": text("How to recognise the key without its secret."),
    "role": {"enum": list(ROLES)},
    "scopes": array({"enum": list(SCOPES)}),
    "created_at": _MOMENT,
    "expires_at": nullable(_MOMENT),
    "last_used_at": nullable(_MOMENT),
    "active": boolean(),
    "limit_micro_usd": nullable(integer(minimum=1)),
    "limit_usd": nullable(_DOLLARS),
    "limit_reset": {"enum": list(get_args(Reset))},
    "rpm_limit": nullable(integer(minimum=1)),
    "tpm_limit": nullable(integer(minimum=1)),
}
_PRICING = thing({name: text() for name in ("prompt", "completion", "input_cache_read", "image", "audio_minute")})
_USAGE_ENTRY: Json = {
    "request_id": text(),
    "job_id": text(),
    "model": text(),
    "prompt_tokens": integer(minimum=0),
    "completion_tokens": integer(minimum=0),
    "cost_micro_usd": integer(minimum=0),
    "timestamp": _MOMENT,
}
_GENERATION: Json = {
    "id": text(),
    "object": {"enum": ["generation"]},
    "job_id": text(format="uuid"),
    "model": text(),
    "prompt_tokens": integer(minimum=0),
    "completion_tokens": integer(minimum=0),
    "total_tokens": integer(minimum=0),
    "cost_micro_usd": integer(minimum=0),
    "cost_usd": _DOLLARS,
    "settled_at": _MOMENT,
}
_PARTICULARS: Json = {
    "cached_tokens": integer("Those of the prompt that were charged as remembered; absent when 0.", minimum=1),
    "unit": {"enum": ["pixel", "audio_ms"]},
    "units": integer("What was metered beside tokens; absent when nothing was.", minimum=0),
}

SCHEMAS: Json = {
    "Model": thing(
        {
            "id": text(),
            "object": {"enum": ["model"]},
            "created": integer(),
            "owned_by": text(),
            "display_name": text(),
            "context_length": integer(),
            "pricing": _PRICING,
            "trust_level": text(),
        },
        ("id", "object", "created", "owned_by", "display_name", "context_length", "pricing", "trust_level"),
    ),
    "Key": full(**_KEY_MEMBERS),
    "NewKey": thing(
        {
            "name": nullable(text(maxLength=NAME_CHARACTERS_MAX, pattern="^[ -~]*$")),
            "scopes": nullable(array({"enum": list(SCOPES)}, minItems=1)),
            "expires_at": nullable(
                {"type": "string", "enum": ["2099-12-31T00:00:00Z"], "description": "In the future."}
            ),
            "limit_micro_usd": nullable(integer(minimum=1, maximum=10**15)),
            "limit_reset": nullable({"enum": list(get_args(Reset))}),
            "rpm_limit": nullable(integer(minimum=1, maximum=10**9)),
            "tpm_limit": nullable(integer(minimum=1, maximum=10**9)),
        }
    ),
}

_MODEL_ID = {"name": "model_id", "in": "path", "required": True, "schema": text(minLength=1)}
_GENERATION_ID = {"name": "generation_id", "in": "path", "required": True, "schema": text(minLength=1)}


def _query(name: str, about: str, schema: Json | None = None) -> Json:
    return {"name": name, "in": "query", "required": False, "description": about, "schema": schema or text()}


PATHS: Json = {
    "/v1/models": {
        "get": operation(
            "listModels",
            "The models that a machine serves now.",
            {"200": json_answer(full(object={"enum": ["list"]}, data=array(ref("Model"))), "The models.")}
            | errors(*READING),
        )
    },
    "/v1/models/catalog": {
        "get": operation(
            "listCatalog",
            "Every model that the network knows.",
            {
                "200": json_answer(
                    full(models=array(thing({"id": text(), "pricing": _PRICING}, ("id", "pricing")))), "The catalog."
                )
            },
            parameters=[_query("type", "Only models of this type, such as text.")],
            public=True,
        )
    },
    "/v1/models/{model_id}": {
        "get": operation(
            "retrieveModel",
            "One model; its id may contain slashes.",
            {"200": json_answer(ref("Model"), "The model.")} | errors(*READING, 404),
            parameters=[_MODEL_ID],
        )
    },
    "/v1/encryption-key": {
        "get": operation(
            "getEncryptionKey",
            "The key that requests can be sealed to.",
            {
                "200": json_answer(
                    full(kid=text(), public_key=text(), algorithm={"enum": ["x25519-nacl-box"]}), "The key."
                )
            }
            | errors(503),
            public=True,
        )
    },
    "/v1/pricing": {
        "get": operation(
            "getPricing",
            "What models cost, in micro-USD for a million tokens.",
            {
                "200": json_answer(
                    thing(
                        {
                            "prices": array(
                                full(
                                    model=text(),
                                    input_price=integer(minimum=0),
                                    cache_read_price=integer("Of prompt tokens that were remembered.", minimum=0),
                                    output_price=integer(minimum=0),
                                    input_usd=text(),
                                    cache_read_usd=text(),
                                    output_usd=text(),
                                )
                            ),
                            "fallback_input_price": integer(),
                            "fallback_cache_read_price": integer(),
                            "fallback_output_price": integer(),
                            "minimum_charge_micro_usd": integer(),
                        },
                        ("prices", "fallback_input_price", "fallback_output_price", "minimum_charge_micro_usd"),
                    ),
                    "The prices.",
                )
            },
            public=True,
        )
    },
    "/v1/auth/keys": {
        "post": operation(
            "createKey",
            "Make an API key; its secret is shown once. Needs a session, or the scope keys.",
            {"200": json_answer(full(api_key=text(), account_id=text(), **_KEY_MEMBERS), "The key with its secret.")}
            | errors(*MANAGING),
            parameters=[IDEMPOTENCY_KEY],
            body=json_body(
                ref("NewKey"),
                {"limited": {"name": "ci", "limit_micro_usd": 2_500_000, "limit_reset": "monthly"}},
                required=False,
            ),
        ),
        "get": operation(
            "listKeys",
            "The account's keys, newest first. Needs a session, or the scope keys.",
            {"200": json_answer(full(object={"enum": ["list"]}, data=array(ref("Key"))), "The keys.")}
            | errors(*READING, 403),
            parameters=[_query("include_revoked", "1 lists revoked and expired keys too.")],
        ),
        "delete": operation(
            "revokeKey",
            "Revoke a key. Needs a session, or the scope keys.",
            {"200": json_answer(full(status={"enum": ["revoked"]}), "It is revoked.")}
            | errors(400, 401, 403, 413, 429, 503),
            body=json_body(
                thing({"key": text("The key itself.", minLength=1), "id": text("Its id.", minLength=1)})
                | {"anyOf": [{"required": ["key"]}, {"required": ["id"]}]},
                {},
            ),
        ),
    },
    "/v1/payments/balance": {
        "get": operation(
            "getBalance",
            "What the account can spend and withdraw.",
            {
                "200": json_answer(
                    full(
                        balance_micro_usd=integer(minimum=0),
                        balance_usd=_DOLLARS,
                        withdrawable_micro_usd=integer(minimum=0),
                        withdrawable_usd=_DOLLARS,
                    ),
                    "The balance.",
                )
            }
            | errors(*READING),
        )
    },
    "/v1/payments/usage": {
        "get": operation(
            "listUsage",
            "The account's settled requests, newest first.",
            {
                "200": json_answer(
                    full(
                        usage=array(thing(_USAGE_ENTRY | _PARTICULARS, _USAGE_ENTRY)),
                        has_more=boolean(),
                        next_cursor=nullable(text()),
                    ),
                    "A page.",
                )
            }
            | errors(*READING, 400),
            parameters=[_query("limit", "1 to 1,000; anything else counts as 100.")],
        )
    },
    "/v1/generations/{generation_id}": {
        "get": operation(
            "getGeneration",
            "What one answer cost, by its id in any dialect or its job's id.",
            {
                "200": json_answer(
                    thing(_GENERATION | _PARTICULARS, _GENERATION),
                    "The cost.",
                )
            }
            | errors(*READING, 404),
            parameters=[_GENERATION_ID],
        )
    },
    "/health": {
        "get": operation(
            "getHealth",
            "That the gateway is there.",
            {"200": json_answer(full(status={"enum": ["ok"]}, providers=integer(minimum=0)), "It is.")},
            public=True,
        )
    },
}
