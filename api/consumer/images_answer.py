"""The images that a machine made, from its chunks to OpenAI's list (consumer API, sections 10.2 and 10.3).

Of each image a machine says how many bytes it has, and then sends them in raw parts.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from api.consumer.answers import Made, decoded
from api.consumer.images_request import ImagesRequest
from api.consumer.inference import Finished
from api.consumer.rendering import cost_of, proofs_of
from domain.protocol import billed_pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"IEND\xaeB`\x82"
_LEAST_BYTES = 57
_BYTES_PER_PIXEL = 4
_BYTES_BESIDE_PIXELS = 64 * 1024


class Images(Made, frozen=True, kw_only=True):
    """``files`` are PNG."""

    files: list[bytes]


class _Announced(msgspec.Struct):
    index: int
    bytes: Annotated[int, msgspec.Meta(ge=_LEAST_BYTES)]


_announced = msgspec.json.Decoder(_Announced)


class ImagesReader:
    """Reads one machine's answer. Nothing counts before the last image is whole."""

    def __init__(self, request: ImagesRequest) -> None:
        self._request = request
        self._files: list[bytes] = []
        self._file = bytearray()
        self._missing = 0
        self._bytes_max = request.width * request.height * _BYTES_PER_PIXEL + _BYTES_BESIDE_PIXELS

    def __call__(self, text: bytes) -> Images | None:
        request = self._request
        if not self._missing:
            announced = decoded(_announced, text)
            if announced.index != len(self._files) or announced.index >= request.count:
                raise ValueError("not the next image")
            if announced.bytes > self._bytes_max:
                raise ValueError("more bytes than such an image has")
            self._missing = announced.bytes
            return None
        if not 0 < len(text) <= self._missing:
            raise ValueError("more bytes than were announced")
        self._file += text
        self._missing -= len(text)
        if self._missing:
            return None
        if not _is_png(self._file, request.width, request.height):
            raise ValueError("not a PNG of this size")
        self._files.append(bytes(self._file))
        self._file = bytearray()
        if len(self._files) < request.count:
            return None
        return Images(files=self._files, units=len(self._files) * billed_pixels(request.width, request.height))


def _is_png(content: bytearray, width: int, height: int) -> bool:
    size = struct.pack(">II", width, height)
    return content.startswith(_SIGNATURE) and content[12:24] == b"IHDR" + size and content.endswith(_END)


def write_images(request: ImagesRequest, images: Images, finished: Finished, url_of: Callable[[bytes], str]) -> bytes:
    """``url_of`` keeps an image and says where it can be fetched."""
    listed = [{"b64_json": file} if request.as_base64 else {"url": url_of(file)} for file in images.files]
    usage = {"images": len(images.files), "pixels": finished.usage.units, **cost_of(finished)}
    return msgspec.json.encode({"created": int(time.time()), "data": listed, "cost": usage, **proofs_of(finished)})
