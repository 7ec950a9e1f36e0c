"""GET /openapi.json."""

from __future__ import annotations

from importlib.metadata import version

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from api.openapi import batches, books, identity, inference, machines, media
from api.openapi.shapes import Json, full, nullable, text, thing

router = APIRouter(include_in_schema=False)

_ERROR = full(error=full(message=text(), type=text(), code=text(), param=nullable(text())))
_ANTHROPIC_ERROR = thing(
    {"type": {"enum": ["error"]}, "error": thing({"type": text(), "message": text()}, ("type", "message"))},
    ("type", "error"),
)


def document() -> Json:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Darkbloom",
            "version": version("darkbloom"),
            "description": "Private inference on other people's machines, in the dialects of OpenAI and Anthropic.",
        },
        "security": [{"bearer": []}, {"header": []}],
        "paths": inference.PATHS | media.PATHS | batches.PATHS | books.PATHS | machines.PATHS | identity.PATHS,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
            "schemas": {"Error": _ERROR, "AnthropicError": _ANTHROPIC_ERROR}
            | inference.SCHEMAS
            | media.SCHEMAS
            | batches.SCHEMAS
            | books.SCHEMAS
            | machines.SCHEMAS
            | identity.SCHEMAS,
        },
    }


_bytes = msgspec.json.encode(document())


@router.get("/openapi.json")
async def get_document() -> Response:
    return Response(_bytes, media_type="application/json", headers={"Cache-Control": "public, max-age=300"})
