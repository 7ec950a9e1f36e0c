"""Short words for JSON schemas, and the answers that many operations share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]


def text(about: str = "", **more: Any) -> Json:
    return _described({"type": "string", **more}, about)


def integer(about: str = "", **more: Any) -> Json:
    return _described({"type": "integer", **more}, about)


def number(about: str = "", **more: Any) -> Json:
    return _described({"type": "number", **more}, about)


def boolean(about: str = "") -> Json:
    return _described({"type": "boolean"}, about)


def array(items: Json, about: str = "", **more: Any) -> Json:
    return _described({"type": "array", "items": items, **more}, about)


def thing(properties: Json, required: Iterable[str] = (), about: str = "") -> Json:
    """An object; members that are not named are allowed."""
    return _described({"type": "object", "properties": properties, "required": list(required)}, about)


def full(**properties: Json) -> Json:
    """An object that always has all of these members."""
    return thing(properties, properties)


def nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def only(*values: Any, about: str) -> Json:
    """A member that may only ask for nothing."""
    return {"enum": [*values, None], "description": f"{about}; anything else is refused by name."}


def _described(schema: Json, about: str) -> Json:
    return schema | ({"description": about} if about else {})


def json_answer(schema: Json, about: str) -> Json:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


_ERRORS = {
    400: "The request is not valid, or asks for something that is refused by name.",
    401: "The API key is missing, unknown, expired or revoked.",
    402: "The balance or the key's spend limit does not cover the most that the request can cost.",
    403: "The API key may not do that.",
    404: "There is no such thing.",
    409: "The idempotency key is in use, or the request contradicts what is there.",
    413: "The body is too large.",
    429: "Too many requests or tokens; see Retry-After.",
    500: "The coordinator made a mistake.",
    502: "The machine that served the request failed.",
    503: "No machine is free, or the service is not ready.",
    504: "No answer came in time.",
}


def errors(*statuses: int, schema: str = "Error") -> Json:
    """The answers of an operation that are errors."""
    return {str(status): json_answer(ref(schema), _ERRORS[status]) for status in statuses}


READING = (401, 429, 503)
MANAGING = (400, 401, 403, 409, 413, 429, 503)
ASKING = (400, 401, 402, 403, 404, 409, 413, 429, 500, 502, 503, 504)

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "The first answer to a request with this key is given again, at no cost.",
}

ROUTE = {
    "name": "X-Darkbloom-Route",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "enum": ["self", "prefer"]},
    "description": "The account's own machines only, free of charge, or those first.",
}


def operation(
    name: str,
    about: str,
    answers: Json,
    *,
    parameters: Iterable[Json] = (),
    body: Json | None = None,
    public: bool = False,
) -> Json:
    described: Json = {"operationId": name, "summary": about, "responses": answers}
    if parameters:
        described["parameters"] = list(parameters)
    if body is not None:
        described["requestBody"] = body
    return described | ({"security": []} if public else {})


def json_body(schema: Json, examples: dict[str, Json], *, required: bool = True) -> Json:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"required": required, "content": {"application/json": {"schema": schema, "examples": named}}}
