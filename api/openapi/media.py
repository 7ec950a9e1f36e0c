"""The endpoints for what is no conversation: embeddings, images, transcriptions."""

from __future__ import annotations

from typing import get_args

from api.consumer.embeddings_request import DIMENSIONS_MAX, INPUTS_MAX
from api.consumer.images_request import IMAGES_MAX, PROMPT_CHARACTERS_MAX, STEPS_MAX
from api.consumer.transcriptions_answer import WRITERS
from api.consumer.transcriptions_request import ResponseFormat
from api.openapi.shapes import (
    ASKING,
    IDEMPOTENCY_KEY,
    Json,
    array,
    errors,
    full,
    integer,
    json_answer,
    json_body,
    nullable,
    number,
    only,
    operation,
    ref,
    text,
    thing,
)

_PROMPT = text(minLength=1, maxLength=PROMPT_CHARACTERS_MAX)
_INPUT = text(minLength=1)

SCHEMAS: Json = {
    "EmbeddingsRequest": thing(
        {
            "model": text("An embedding model.", minLength=1),
            "input": {"anyOf": [_INPUT, array(_INPUT, minItems=1, maxItems=INPUTS_MAX)]},
            "dimensions": nullable(integer("At most the model's own.", minimum=1, maximum=DIMENSIONS_MAX)),
            "encoding_format": nullable({"enum": ["float", "base64"]}),
        },
        ("model", "input"),
    ),
    "Embeddings": full(
        object={"enum": ["list"]},
        model=text(),
        data=array(
            full(
                object={"enum": ["embedding"]},
                index=integer(minimum=0),
                embedding={"anyOf": [array(number()), text("Little-endian 32-bit floats.")]},
            )
        ),
        usage=thing({"prompt_tokens": integer(minimum=0), "total_tokens": integer(minimum=0)}),
    ),
    "ImagesRequest": thing(
        {
            "prompt": _PROMPT,
            "model": nullable(text("An image model; the network's first one when it is left out.", minLength=1)),
            "n": nullable(integer(minimum=1, maximum=IMAGES_MAX)),
            "size": nullable(text("Width and height, each up to 2048.", pattern="^[1-9][0-9]{0,2}x[1-9][0-9]{0,2}$")),
            "negative_prompt": nullable(_PROMPT),
            "steps": nullable(integer(minimum=1, maximum=STEPS_MAX)),
            "seed": nullable(integer(minimum=0, maximum=2**63 - 1)),
            "response_format": nullable({"enum": ["url", "b64_json"]}),
            "stream": only(False, about="Images come whole"),
            "output_format": only("png", about="Images are PNG"),
        },
        ("prompt",),
    ),
    "Images": full(
        created=integer(),
        data=array(thing({"url": text(), "b64_json": text()})),
        cost=thing({"images": integer(), "pixels": integer(), "cost_micro_usd": integer()}),
    ),
    "TranscriptionRequest": thing(
        {
            "file": text(
                "FLAC, M4A, MP3, MP4, MPEG, MPGA, OGG, WAV or WEBM, up to 25 MiB.", format="binary", minLength=1
            ),
            "model": text("A transcription model; whisper-1 is the network's first one.", minLength=1),
            "language": text("An ISO 639-1 code.", pattern="^[a-z]{2,3}$"),
            "prompt": text(maxLength=PROMPT_CHARACTERS_MAX),
            "temperature": number(minimum=0, maximum=1),
            "response_format": {"enum": list(get_args(ResponseFormat))},
            "timestamp_granularities[]": array({"enum": ["segment"]}, maxItems=1),
        },
        ("file", "model"),
    )
    | {"additionalProperties": False},
    "Transcription": thing(
        {
            "text": text(),
            "usage": thing({"type": {"enum": ["duration"]}, "seconds": number(minimum=0)}),
            "language": text(),
            "duration": number(minimum=0),
            "segments": array(thing({"id": integer(), "start": number(), "end": number(), "text": text()})),
        },
        ("text",),
    ),
}


def _transcripts() -> Json:
    answer = json_answer(ref("Transcription"), "The transcript, in the format that was asked for.")
    for content_type, _ in WRITERS.values():
        answer["content"].setdefault(content_type.partition(";")[0], {"schema": text()})
    return answer


PATHS: Json = {
    "/v1/embeddings": {
        "post": operation(
            "createEmbeddings",
            "Turn texts into vectors of length 1.",
            {"200": json_answer(ref("Embeddings"), "A vector for each text, in their order.")} | errors(*ASKING),
            parameters=[IDEMPOTENCY_KEY],
            body=json_body(
                ref("EmbeddingsRequest"),
                {"two texts": {"model": "Qwen3-Embedding-0.6B-8bit", "input": ["A hold.", "A capture."]}},
            ),
        )
    },
    "/v1/images/generations": {
        "post": operation(
            "createImages",
            "Make images.",
            {"200": json_answer(ref("Images"), "The images, or where to fetch them for an hour.")} | errors(*ASKING),
            parameters=[IDEMPOTENCY_KEY],
            body=json_body(ref("ImagesRequest"), {"one image": {"prompt": "A red house", "size": "512x512"}}),
        )
    },
    "/v1/images/files/{name}": {
        "get": operation(
            "getImage",
            "Fetch an image by the URL that an answer gave.",
            {"200": {"description": "The image.", "content": {"image/png": {"schema": text(format="binary")}}}}
            | errors(404),
            parameters=[
                {"name": "name", "in": "path", "required": True, "schema": text()},
                {"name": "exp", "in": "query", "required": True, "schema": text("Unix seconds.")},
                {"name": "sig", "in": "query", "required": True, "schema": text("The signature of name and time.")},
            ],
            public=True,
        )
    },
    "/v1/audio/transcriptions": {
        "post": operation(
            "createTranscription",
            "Turn speech into text.",
            {"200": _transcripts()} | errors(*ASKING),
            parameters=[IDEMPOTENCY_KEY],
            body={
                "required": True,
                "content": {"multipart/form-data": {"schema": ref("TranscriptionRequest")}},
            },
        )
    },
}
