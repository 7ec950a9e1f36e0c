"""Reads a multipart form in memory: what it carries may not touch a disk (RFC 7578)."""

from __future__ import annotations

from email.message import Message
from typing import NamedTuple

from starlette.requests import Request

from api.consumer.body import read_body
from domain.errors import InvalidRequest

PARTS_MAX = 20
HEAD_BYTES_MAX = 8 * 1024


class Part(NamedTuple):
    """``filename`` is empty for a part that is no file."""

    filename: str
    content: bytes


async def read_form(request: Request, bytes_max: int) -> dict[str, Part]:
    """The parts by their names.

    Raises:
        PayloadTooLarge: the form is over the bound.
        InvalidRequest: it is no form, or a name comes twice.
    """
    kind = _header("content-type", request.headers.get("content-type", ""))
    boundary = kind.get_param("boundary")
    if kind.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary.isascii():
        raise InvalidRequest("Send a form of the type multipart/form-data.")
    body = b"\r\n" + await read_body(request, bytes_max)
    _, *pieces = body.split(b"\r\n--" + boundary.encode(), PARTS_MAX + 1)
    if len(pieces) < 2 or not pieces.pop().startswith(b"--"):
        raise InvalidRequest(f"The form is cut, or has more than {PARTS_MAX} parts.")
    form: dict[str, Part] = {}
    for piece in pieces:
        name, part = _part(piece)
        if name in form:
            raise InvalidRequest("A part of the form comes twice.", param=name[:64])
        form[name] = part
    return form


def _part(piece: bytes) -> tuple[str, Part]:
    head, found, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    if not found or len(head) > HEAD_BYTES_MAX:
        raise InvalidRequest("A part of the form has no head.")
    for line in head.split(b"\r\n"):
        field, _, value = line.partition(b":")
        if field.strip().lower() == b"content-disposition":
            disposition = _header("content-disposition", value.decode("utf-8", "replace").strip())
            name = disposition.get_param("name", header="content-disposition")
            if isinstance(name, str):
                filename = disposition.get_filename() or ""
                return name, Part(filename.replace("%22", '"'), content)  # as a form writes a quotation mark
    raise InvalidRequest("A part of the form has no name.")


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = value.replace("\r", " ").replace("\n", " ")
    return message
