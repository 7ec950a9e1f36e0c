"""POST /v1/audio/transcriptions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.admission import Bounds
from api.consumer.answers import Made, ReadText, Whole
from api.consumer.attempt import Started
from api.consumer.inference import Finished
from api.consumer.multipart import read_form
from api.consumer.rendering import WholeOnly
from api.consumer.serving import serve
from api.consumer.transcriptions_answer import WRITERS, Transcript, TranscriptReader
from api.consumer.transcriptions_request import (
    TranscriptionRequest,
    bounds_of_transcription,
    parse_transcription,
    transcription_body,
)
from domain.catalog import CatalogModel
from domain.kinds import TRANSCRIPTION, ModelKind

FILE_BYTES_MAX = 25 * 1024 * 1024
FORM_BYTES_MAX = 26 * 1024 * 1024

router = APIRouter()


@router.post("/v1/audio/transcriptions")
async def create_transcription(request: Request) -> Response:
    read_body = partial(read_form, file_bytes_max=FILE_BYTES_MAX)
    return await serve(request, read_transcription, read_body=read_body, bytes_max=FORM_BYTES_MAX)


def read_transcription(form: dict[str, Any]) -> TranscriptionCall:
    """Raises InvalidRequest as ``parse_transcription`` does."""
    return TranscriptionCall(parse_transcription(form))


@dataclass(frozen=True, slots=True)
class TranscriptionCall(WholeOnly):
    request: TranscriptionRequest
    kind: ClassVar[ModelKind] = TRANSCRIPTION

    @property
    def model(self) -> str:
        return self.request.model

    @property
    def content_type(self) -> str:
        return WRITERS[self.request.response_format][0]

    def bounds(self, model: CatalogModel) -> Bounds:
        return bounds_of_transcription(self.request)

    def body(self, model: CatalogModel, bounds: Bounds, cache_salt: str) -> bytes:
        return transcription_body(self.request, model)

    def reader(self) -> ReadText:
        return TranscriptReader(self.request)

    def whole(self, started: Started, answer: Whole | Made, finished: Finished) -> bytes:
        assert isinstance(answer, Transcript)
        return WRITERS[self.request.response_format][1](answer, finished)
