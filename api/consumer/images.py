"""POST /v1/images/generations, and the files that it points to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.admission import Bounds
from api.consumer.answers import Made, ReadText, Whole
from api.consumer.attempt import Started
from api.consumer.images_answer import Images, ImagesReader, write_images
from api.consumer.images_request import BODY_BYTES_MAX, ImagesRequest, bounds_of_images, images_body, parse_images
from api.consumer.inference import Finished
from api.consumer.rendering import WholeOnly
from api.consumer.sealed_transport import SEALED
from api.consumer.serving import serve
from api.coordinator import Coordinator
from domain.catalog import CatalogModel
from domain.errors import NotFound
from domain.kinds import IMAGE, ModelKind

FILES_PATH = "/v1/images/files"

router = APIRouter()


@router.post("/v1/images/generations")
async def create_images(request: Request) -> Response:
    coordinator: Coordinator = request.app.state.coordinator
    folder = f"{str(request.base_url).rstrip('/')}{FILES_PATH}"

    def url_of(image: bytes) -> str:
        return f"{folder}/{coordinator.image_files.keep(image)}"

    def read(body: dict[str, Any]) -> ImagesCall:
        asked = parse_images(body)
        if SEALED in request.scope:  # a URL would let others see what the seal is to hide
            asked = msgspec.structs.replace(asked, as_base64=True)
        return ImagesCall(asked, url_of)

    return await serve(request, read, bytes_max=BODY_BYTES_MAX)


@router.get(f"{FILES_PATH}/{{name}}")
async def get_image(request: Request, name: str) -> Response:
    """Whoever has the URL may fetch the image: the signature in it is the authority."""
    coordinator: Coordinator = request.app.state.coordinator
    query = request.query_params
    image = coordinator.image_files.find(name, query.get("exp", ""), query.get("sig", ""))
    if image is None:
        raise NotFound("There is no such image, or its hour is over.")
    return Response(image, media_type="image/png", headers={"Cache-Control": "private, no-store"})


@dataclass(frozen=True, slots=True)
class ImagesCall(WholeOnly):
    """``url_of`` keeps an image and says where it can be fetched."""

    request: ImagesRequest
    url_of: Callable[[bytes], str]
    kind: ClassVar[ModelKind] = IMAGE

    @property
    def model(self) -> str:
        return self.request.model

    def bounds(self, model: CatalogModel) -> Bounds:
        return bounds_of_images(self.request)

    def body(self, model: CatalogModel, bounds: Bounds, cache_salt: str) -> bytes:
        return images_body(self.request, model)

    def reader(self) -> ReadText:
        return ImagesReader(self.request)

    def whole(self, started: Started, answer: Whole | Made, finished: Finished) -> bytes:
        assert isinstance(answer, Images)
        return write_images(self.request, answer, finished, self.url_of)
