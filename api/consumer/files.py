"""/v1/files: what batches read and write. A file belongs to the API key that uploaded it, and no other opens it."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from api.consumer.auth import authenticate, require_scope, token_of
from api.consumer.idempotency import answered_once
from api.consumer.multipart import read_form
from api.consumer.paging import listing, page_of
from api.coordinator import Coordinator
from domain.batches import FILE_BYTES_MAX, PURPOSES, StoredFile
from domain.errors import Forbidden, InvalidRequest, NotFound
from domain.keys import Caller

FORM_BYTES_MAX = FILE_BYTES_MAX + 64 * 1024
NAME_CHARACTERS_MAX = 255

router = APIRouter()


@router.post("/v1/files")
async def upload_file(request: Request) -> Response:
    coordinator, caller = await owner(request)
    coordinator.rate_limits.count_request(caller, request.scope)
    form = await read_form(request, FORM_BYTES_MAX, file_bytes_max=FILE_BYTES_MAX)
    for name in form:
        if name not in ("file", "file_name", "purpose"):
            raise InvalidRequest(f"'{name[:64]}' is not supported here; leave it out.", param=name[:64])
    if form.get("purpose") != "batch":
        raise InvalidRequest("The purpose of a file must be 'batch'.", param="purpose")
    if not form.get("file_name") or not isinstance(form.get("file"), bytes):
        raise InvalidRequest("Send the file as a part named 'file' with a file name.", param="file")
    name, content = form["file_name"], form["file"]
    if len(name) > NAME_CHARACTERS_MAX:
        raise InvalidRequest(f"A file's name has at most {NAME_CHARACTERS_MAX} characters.", param="file")
    if not content:
        raise InvalidRequest("The file is empty.", param="file")

    async def put() -> bytes:
        made = await coordinator.files.put(caller, token_of(request.headers), name, content)
        return msgspec.json.encode(_shown(made))

    sent = {"purpose": "batch", "name": name, "sha256": hashlib.sha256(content).hexdigest()}
    return await answered_once(request, coordinator, sent, put)


@router.get("/v1/files")
async def list_files(request: Request) -> Response:
    coordinator, caller = await owner(request)
    page = page_of(request)
    purpose = request.query_params.get("purpose")
    if purpose not in (None, *PURPOSES):
        raise InvalidRequest(f"'purpose' must be one of {', '.join(PURPOSES)}.", param="purpose")
    found = await coordinator.files.list_of(
        caller, token_of(request.headers), after=page.after, limit=page.limit + 1, purpose=purpose
    )
    return listing([_shown(entry) for entry in found], page)


@router.get("/v1/files/{file_id}")
async def get_file(request: Request, file_id: str) -> Response:
    coordinator, caller = await owner(request)
    found = await coordinator.files.find(caller, token_of(request.headers), file_id)
    if found is None:
        raise _missing()
    return Response(msgspec.json.encode(_shown(found)), media_type="application/json")


@router.get("/v1/files/{file_id}/content")
async def get_file_content(request: Request, file_id: str) -> Response:
    coordinator, caller = await owner(request)
    content = await coordinator.files.content(caller, token_of(request.headers), file_id)
    if content is None:
        raise _missing()
    return Response(content, media_type="application/octet-stream", headers={"Cache-Control": "private, no-store"})


@router.delete("/v1/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> Response:
    coordinator, caller = await owner(request)
    if not await coordinator.files.delete(caller, file_id):
        raise _missing()
    deleted = {"id": file_id, "object": "file", "deleted": True}
    return Response(msgspec.json.encode(deleted), media_type="application/json")


async def owner(request: Request) -> tuple[Coordinator, Caller]:
    coordinator: Coordinator = request.app.state.coordinator
    caller = await authenticate(request.headers, coordinator.credentials)
    require_scope(caller, "inference")
    if caller.credential != "key":
        raise Forbidden("The secret of an API key opens files and batches; call with one.")
    return coordinator, caller


def _missing() -> NotFound:
    return NotFound("This API key has no file of that id.")


def _shown(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }
