"""POST /v1/embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.consumer.admission import Bounds
from api.consumer.answers import Made, ReadText, Whole
from api.consumer.attempt import Started
from api.consumer.embeddings_answer import Embeddings, EmbeddingsReader, write_embeddings
from api.consumer.embeddings_request import (
    EmbeddingsRequest,
    bounds_of_embeddings,
    embeddings_body,
    parse_embeddings,
)
from api.consumer.inference import Finished
from api.consumer.rendering import WholeOnly
from api.consumer.serving import serve
from domain.catalog import CatalogModel
from domain.kinds import EMBEDDING, ModelKind


async def create_embeddings(request: Request) -> Response:
    return await serve(request, read_embeddings)


ROUTES = (Route("/v1/embeddings", create_embeddings, methods=["POST"]),)


def read_embeddings(body: dict[str, Any]) -> EmbeddingsCall:
    """Raises InvalidRequest as ``parse_embeddings`` does."""
    return EmbeddingsCall(parse_embeddings(body))


@dataclass(frozen=True, slots=True)
class EmbeddingsCall(WholeOnly):
    request: EmbeddingsRequest
    kind: ClassVar[ModelKind] = EMBEDDING

    @property
    def model(self) -> str:
        return self.request.model

    def bounds(self, model: CatalogModel) -> Bounds:
        return bounds_of_embeddings(self.request, model)

    def body(self, model: CatalogModel, bounds: Bounds, cache_salt: str) -> bytes:
        return embeddings_body(self.request, model)

    def reader(self) -> ReadText:
        return EmbeddingsReader(self.request)

    def whole(self, started: Started, answer: Whole | Made, finished: Finished) -> bytes:
        assert isinstance(answer, Embeddings)
        return write_embeddings(self.request, answer, finished)
