"""What an embeddings request may say, and what is made of it for a machine (consumer API, section 19)."""

from __future__ import annotations

from typing import Any

import msgspec

from api.consumer.admission import Bounds
from api.consumer.chat_request import model_in
from api.consumer.members import whole_number
from domain.catalog import CatalogModel
from domain.errors import InvalidRequest
from domain.kinds import EMBEDDING
from domain.protocol import ENDPOINTS

INPUTS_MAX = 2_048
DIMENSIONS_MAX = 16_384
ENCLOSING_TOKENS_MAX = 8
"""What a tokenizer puts around each text at most."""

Json = dict[str, Any]


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """A valid request; ``dimensions`` is None for all that the model has."""

    model: str
    texts: list[str]
    dimensions: int | None
    as_base64: bool


def parse_embeddings(body: Json) -> EmbeddingsRequest:
    """Raises InvalidRequest, with ``param`` naming the member at fault."""
    model = model_in(body)
    texts = _texts(body.get("input"))
    dimensions = whole_number("dimensions", body.get("dimensions"), 1, DIMENSIONS_MAX)
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise InvalidRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
    return EmbeddingsRequest(model, texts, dimensions, encoding == "base64")


def _texts(found: Any) -> list[str]:
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not 1 <= len(texts) <= INPUTS_MAX:
        raise InvalidRequest(f"'input' must be a text or a list of 1 to {INPUTS_MAX} texts.", param="input")
    if any(isinstance(text, int | list) for text in texts):
        raise InvalidRequest("'input' must be text: the tokens of one model mean nothing to another.", param="input")
    if not all(isinstance(text, str) and text for text in texts):
        raise InvalidRequest("'input' must not hold an empty text, or anything that is none.", param="input")
    return texts


def bounds_of_embeddings(request: EmbeddingsRequest, model: CatalogModel) -> Bounds:
    """A token is at least one byte of its text. Nothing is written, so there is no output to bound."""
    sizes = [len(text.encode()) for text in request.texts]
    return Bounds(
        prompt_bound=sum(min(size + ENCLOSING_TOKENS_MAX, model.context_length) for size in sizes),
        output_bound=0,
        prompt_estimate=max(1, sum(sizes) // 4),
        output_estimate=0,
    )


def embeddings_body(request: EmbeddingsRequest, model: CatalogModel) -> bytes:
    body: Json = {"endpoint": ENDPOINTS[EMBEDDING], "model": model.id, "input": request.texts}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return msgspec.json.encode(body)
