"""What an image request may say, and what is made of it for a machine (consumer API, section 10.1)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from api.consumer.admission import Bounds
from api.consumer.members import whole_number
from domain.catalog import CatalogModel
from domain.errors import InvalidRequest
from domain.kinds import IMAGE
from domain.protocol import ENDPOINTS, billed_pixels

BODY_BYTES_MAX = 64 * 1024
PROMPT_CHARACTERS_MAX = 4_000
IMAGES_MAX = 4
SIDE_MAX = 2_048
STEPS_MAX = 50
DEFAULT_SIZE = "1024x1024"

Json = dict[str, Any]

_ONLY: Json = {
    "stream": False,
    "partial_images": 0,
    "output_format": "png",
    "output_compression": 100,
    "moderation": "auto",
    "complexity": None,
    "frame_count": 1,
    "frame_duration_ms": None,
    "svg": False,
}
"""Members that may only ask for nothing. Hints such as quality and style are taken and not used."""

_SIZE = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")


class ImagesRequest(msgspec.Struct, frozen=True):
    """A valid request; ``model`` is empty when it names none. ``as_base64`` puts the images into the answer itself."""

    model: str
    prompt: str
    count: int
    width: int
    height: int
    negative_prompt: str | None
    steps: int | None
    seed: int | None
    as_base64: bool

    @property
    def units(self) -> int:
        """The pixels that all images together are charged for."""
        return self.count * billed_pixels(self.width, self.height)


def parse_images(body: Json) -> ImagesRequest:
    """Raises InvalidRequest, with ``param`` naming the member at fault."""
    model = body.get("model")
    if model is not None and (not isinstance(model, str) or not model):
        raise InvalidRequest("'model' must name an image model, or be left out.", param="model")
    prompt = _text("prompt", body.get("prompt"))
    if prompt is None:
        raise InvalidRequest("'prompt' must say what the image is to show.", param="prompt")
    for name, neutral in _ONLY.items():
        if body.get(name) not in (None, neutral):
            raise InvalidRequest(f"'{name}' is not supported here; leave it out.", param=name)
    if body.get("response_format") not in (None, "url", "b64_json"):
        raise InvalidRequest("'response_format' must be 'url' or 'b64_json'.", param="response_format")
    width, height = _size(body.get("size"))
    return ImagesRequest(
        model=model or "",
        prompt=prompt,
        count=whole_number("n", body.get("n"), 1, IMAGES_MAX) or 1,
        width=width,
        height=height,
        negative_prompt=_text("negative_prompt", body.get("negative_prompt")),
        steps=whole_number("steps", body.get("steps"), 1, STEPS_MAX),
        seed=whole_number("seed", body.get("seed"), 0, 2**63 - 1),
        as_base64=body.get("response_format") == "b64_json",
    )


def _text(name: str, found: Any) -> str | None:
    if found is None:
        return None
    if not isinstance(found, str) or not 1 <= len(found) <= PROMPT_CHARACTERS_MAX:
        raise InvalidRequest(f"'{name}' must be a text of 1 to {PROMPT_CHARACTERS_MAX} characters.", param=name)
    return found


def _size(found: Any) -> tuple[int, int]:
    text = DEFAULT_SIZE if found in (None, "auto") else found
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None or max(width := int(match[1]), height := int(match[2])) > SIDE_MAX:
        raise InvalidRequest(f"'size' must be a width and a height up to {SIDE_MAX}, such as 1024x768.", param="size")
    return width, height


def bounds_of_images(request: ImagesRequest) -> Bounds:
    return Bounds(prompt_bound=0, output_bound=0, prompt_estimate=0, output_estimate=0, units_bound=request.units)


def images_body(request: ImagesRequest, model: CatalogModel) -> bytes:
    body: Json = {
        "endpoint": ENDPOINTS[IMAGE],
        "model": model.id,
        "prompt": request.prompt,
        "n": request.count,
        "width": request.width,
        "height": request.height,
        "negative_prompt": request.negative_prompt,
        "steps": request.steps,
        "seed": request.seed,
    }
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None})
