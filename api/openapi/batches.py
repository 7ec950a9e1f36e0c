"""Files and batches."""

from __future__ import annotations

from api.openapi.shapes import (
    IDEMPOTENCY_KEY,
    READING,
    Json,
    array,
    boolean,
    errors,
    full,
    integer,
    json_answer,
    json_body,
    nullable,
    operation,
    ref,
    text,
    thing,
)
from domain.batches import ENDPOINTS, PURPOSES

_SECONDS = integer("Unix seconds.", minimum=0)
_MAYBE = nullable(_SECONDS)

SCHEMAS: Json = {
    "File": full(
        id=text(),
        object={"enum": ["file"]},
        bytes=integer(minimum=0),
        created_at=_SECONDS,
        expires_at=_SECONDS,
        filename=text(),
        purpose={"enum": [*PURPOSES]},
        status={"enum": ["processed"]},
    ),
    "Batch": full(
        id=text(),
        object={"enum": ["batch"]},
        endpoint={"enum": [*ENDPOINTS]},
        errors=nullable(
            full(
                object={"enum": ["list"]},
                data=array(
                    thing(
                        {
                            "code": text(),
                            "message": text(),
                            "line": nullable(integer(minimum=1)),
                            "param": nullable(text()),
                        },
                        ("code", "message"),
                    )
                ),
            )
        ),
        input_file_id=text(),
        completion_window={"enum": ["24h"]},
        status={"enum": ["failed", "in_progress", "cancelling", "completed", "expired", "cancelled"]},
        output_file_id=nullable(text()),
        error_file_id=nullable(text()),
        created_at=_SECONDS,
        in_progress_at=_MAYBE,
        expires_at=_SECONDS,
        finalizing_at=_MAYBE,
        completed_at=_MAYBE,
        failed_at=_MAYBE,
        expired_at=_MAYBE,
        cancelling_at=_MAYBE,
        cancelled_at=_MAYBE,
        request_counts=full(total=integer(minimum=0), completed=integer(minimum=0), failed=integer(minimum=0)),
        metadata=nullable({"type": "object", "additionalProperties": text()}),
    ),
}


def _page(of: str) -> Json:
    return full(
        object={"enum": ["list"]},
        data=array(ref(of)),
        has_more=boolean(),
        first_id=nullable(text()),
        last_id=nullable(text()),
    )


def _query(name: str, about: str, **schema: object) -> Json:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": {"type": "string", **schema},
        "description": about,
    }


def _path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


_PAGING = (
    _query("limit", "1 to 100, default 20; more count as 100.", pattern="^[1-9][0-9]{0,3}$"),
    _query("after", "The last id of the page before."),
)
_CREATING = (400, 401, 403, 409, 413, 429, 503)
_FILE = json_answer(ref("File"), "The file.")
_BATCH = json_answer(ref("Batch"), "The batch.")

PATHS: Json = {
    "/v1/files": {
        "post": operation(
            "createFile",
            "Upload a file of requests for a batch.",
            {"200": _FILE} | errors(*_CREATING),
            parameters=[IDEMPOTENCY_KEY],
            body={
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": thing(
                            {"purpose": {"enum": ["batch"]}, "file": text("JSON lines.", format="binary", minLength=1)},
                            ("purpose", "file"),
                        )
                        | {"additionalProperties": False}
                    }
                },
            },
        ),
        "get": operation(
            "listFiles",
            "The files of this API key, newest first.",
            {"200": json_answer(_page("File"), "A page.")} | errors(*READING, 400, 403, 404),
            parameters=[*_PAGING, _query("purpose", "Only these.", enum=[*PURPOSES])],
        ),
    },
    "/v1/files/{file_id}": {
        "get": operation(
            "getFile",
            "One file of this API key.",
            {"200": _FILE} | errors(*READING, 403, 404),
            parameters=[_path("file_id")],
        ),
        "delete": operation(
            "deleteFile",
            "Delete a file, and with a file of results the results.",
            {"200": json_answer(full(id=text(), object={"enum": ["file"]}, deleted={"enum": [True]}), "It is deleted.")}
            | errors(*READING, 403, 404),
            parameters=[_path("file_id")],
        ),
    },
    "/v1/files/{file_id}/content": {
        "get": operation(
            "getFileContent",
            "What is in a file.",
            {
                "200": {
                    "description": "The file's bytes.",
                    "content": {"application/octet-stream": {"schema": text(format="binary")}},
                }
            }
            | errors(*READING, 403, 404),
            parameters=[_path("file_id")],
        )
    },
    "/v1/batches": {
        "post": operation(
            "createBatch",
            "Run the requests of a file while machines are idle, at half price.",
            {"200": _BATCH} | errors(*_CREATING, 404),
            parameters=[IDEMPOTENCY_KEY],
            body=json_body(
                thing(
                    {
                        "input_file_id": text("A file of the purpose batch."),
                        "endpoint": {"enum": [*ENDPOINTS]},
                        "completion_window": {"enum": ["24h"]},
                        "metadata": nullable(
                            {
                                "type": "object",
                                "maxProperties": 16,
                                "propertyNames": {"maxLength": 64},
                                "additionalProperties": text(maxLength=512),
                            }
                        ),
                    },
                    ("input_file_id", "endpoint", "completion_window"),
                ),
                {},
            ),
        ),
        "get": operation(
            "listBatches",
            "The batches of this API key, newest first.",
            {"200": json_answer(_page("Batch"), "A page.")} | errors(*READING, 400, 403, 404),
            parameters=list(_PAGING),
        ),
    },
    "/v1/batches/{batch_id}": {
        "get": operation(
            "getBatch",
            "One batch of this API key.",
            {"200": _BATCH} | errors(*READING, 403, 404),
            parameters=[_path("batch_id")],
        )
    },
    "/v1/batches/{batch_id}/cancel": {
        "post": operation(
            "cancelBatch",
            "Start nothing more of a batch.",
            {"200": _BATCH} | errors(*READING, 403, 404),
            parameters=[_path("batch_id")],
        )
    },
}
