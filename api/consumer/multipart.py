"""Reads a form with a file, in memory alone (consumer API, sections 2.4 and 11.1).

The usual readers of forms put what is large into temporary files, and a consumer's sound must never be on a disk.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.consumer.body import read_body
from domain.errors import InvalidRequest, PayloadTooLarge

FIELD_BYTES_MAX = 64 * 1024
PARTS_MAX = 32
HEAD_BYTES_MAX = 8 * 1024

NO_FORM = "The request must be a form of the type multipart/form-data."


class _Part:
    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.name = ""
        self.filename: str | None = None
        self.content = bytearray()

    def read_disposition(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise InvalidRequest("A part of the form has no name.")
        self.name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            self.filename = options[b"filename"].decode("utf-8", "replace").replace("%22", '"')


class _Form:
    """Takes the parser's calls."""

    def __init__(self, file_bytes_max: int) -> None:
        self._file_bytes_max = file_bytes_max
        self.parts: list[_Part] = []
        self.complete = False
        self._header = bytearray()
        self._value = bytearray()

    def on_part_begin(self) -> None:
        if len(self.parts) == PARTS_MAX:
            raise InvalidRequest(f"The form has more than {PARTS_MAX} parts.")
        self.parts.append(_Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._bound_head()

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bound_head()

    def _bound_head(self) -> None:
        if len(self._header) + len(self._value) > HEAD_BYTES_MAX:
            raise InvalidRequest("A part of the form has too long a head.")

    def on_header_end(self) -> None:
        self.parts[-1].headers[bytes(self._header).lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        self.parts[-1].read_disposition()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.content += data[start:end]
        if part.filename is None and len(part.content) > FIELD_BYTES_MAX:
            raise PayloadTooLarge(f"A field of the form has more than {FIELD_BYTES_MAX} bytes.")
        if len(part.content) > self._file_bytes_max:
            what = f"The file has more than the {self._file_bytes_max} bytes that this endpoint accepts."
            raise PayloadTooLarge(what, param=part.name[:64])

    def on_end(self) -> None:
        self.complete = True

    def members(self) -> dict[str, Any]:
        """Of a field that comes twice, the last value counts. A file is its content under the part's name, and its name
        under that name with ``_name``; a part whose name ends in ``[]`` is one of a list."""
        members: dict[str, Any] = {}
        for part in self.parts:
            if part.filename is not None and part.name in members:
                raise InvalidRequest("A file of the form comes twice.", param=part.name[:64])
            if part.filename is not None:
                members |= {part.name: bytes(part.content), f"{part.name}_name": part.filename}
            elif part.name.endswith("[]"):
                name = part.name.removesuffix("[]")
                before = members.get(name)
                members[name] = [*(before if isinstance(before, list) else ()), _text(part)]
            else:
                members[part.name] = _text(part)
        return members


async def read_form(request: Request, bytes_max: int, *, file_bytes_max: int) -> dict[str, Any]:
    """The form's members: texts, lists of texts, and files as bytes.

    Raises:
        InvalidRequest: it is no such form, or not a complete one.
        PayloadTooLarge: the form, a file or a field is over its bound.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest(NO_FORM)
    form = _Form(file_bytes_max)
    names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
    raw = await read_body(request, bytes_max)
    try:
        parser = MultipartParser(boundary, {f"on_{name}": getattr(form, f"on_{name}") for name in names})  # type: ignore[arg-type]
        parser.write(raw)
        parser.finalize()
    except FormParserError:
        raise InvalidRequest("The form cannot be read; its parts and its boundary do not fit.") from None
    if not form.complete:
        raise InvalidRequest("The form is not complete.")
    return form.members()


def _text(part: _Part) -> str:
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("A field of the form is not UTF-8.") from None
