"""What a transcription request may say, and what is made of it for a machine (consumer API, section 11.1)."""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import Any, Literal, cast, get_args

import msgspec

from api.consumer.admission import Bounds
from api.consumer.audio_length import length_ms
from domain.catalog import CatalogModel
from domain.errors import InvalidRequest
from domain.kinds import TRANSCRIPTION
from domain.protocol import ENDPOINTS

FORMATS = frozenset({"flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "ogg", "wav", "webm"})
DEFAULT_FORMAT = "wav"
DEFAULT_MODEL = "whisper-1"
"""The name by which the packages ask for the network's own speech model."""

ASSUMED_BYTES_PER_SECOND = 16_000
"""What a second of sound takes whose headers do not say how long it is."""

MINUTES_MAX = 120
PROMPT_CHARACTERS_MAX = 4_000

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Json = dict[str, Any]

_LANGUAGE = re.compile(r"[a-z]{2,3}")
_ONLY = {
    "stream": "false",
    "chunking_strategy": "",
    "include": [],
    "keywords": [],
    "known_speaker_names": [],
    "known_speaker_references": [],
    "languages": [],
}
"""Parts that may only ask for nothing."""


class TranscriptionRequest(msgspec.Struct, frozen=True):
    """A valid request. ``stated_ms`` is how long the sound says that it is, None when it does not."""

    model: str
    sound: bytes
    audio_format: str
    stated_ms: int | None
    response_format: ResponseFormat
    language: str | None
    prompt: str | None
    temperature: float | None

    @property
    def bound_ms(self) -> int:
        return self.stated_ms or -(-len(self.sound) * 1000 // ASSUMED_BYTES_PER_SECOND)


def parse_transcription(form: Json) -> TranscriptionRequest:
    """Raises InvalidRequest, with ``param`` naming the part at fault."""
    sound = form.get("file")
    if not isinstance(sound, bytes) or not sound:
        raise InvalidRequest("The form needs a part 'file' with a sound in it.", param="file")
    model = form.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("'model' must name a model, such as whisper-1.", param="model")
    suffix = PurePosixPath(form["file_name"]).suffix.removeprefix(".").lower()
    response_format = form.get("response_format") or "json"
    if response_format not in get_args(ResponseFormat):
        known = ", ".join(get_args(ResponseFormat))
        raise InvalidRequest(f"'response_format' must be one of {known}.", param="response_format")
    for name, neutral in _ONLY.items():
        if form.get(name) not in (None, neutral):
            raise InvalidRequest(f"'{name}' is not supported here; leave it out.", param=name)
    if any(one != "segment" for one in form.get("timestamp_granularities") or []):
        raise InvalidRequest("Only 'segment' timestamps are made.", param="timestamp_granularities")
    stated_ms = length_ms(sound)
    if stated_ms is not None and stated_ms > MINUTES_MAX * 60_000:
        raise InvalidRequest(f"The sound is longer than {MINUTES_MAX} minutes; cut it into parts.", param="file")
    return TranscriptionRequest(
        model="" if model == DEFAULT_MODEL else model,
        sound=sound,
        audio_format=suffix if suffix in FORMATS else DEFAULT_FORMAT,
        stated_ms=stated_ms,
        response_format=cast("ResponseFormat", response_format),
        language=_language(form.get("language")),
        prompt=_prompt(form.get("prompt")),
        temperature=_temperature(form.get("temperature")),
    )


def _language(found: Any) -> str | None:
    if not found:
        return None
    if not isinstance(found, str) or not _LANGUAGE.fullmatch(found):
        raise InvalidRequest("'language' must be a language's ISO 639-1 code, such as en.", param="language")
    return found


def _prompt(found: Any) -> str | None:
    if found is None or (isinstance(found, str) and len(found) <= PROMPT_CHARACTERS_MAX):
        return found or None
    raise InvalidRequest(f"'prompt' must be a text of up to {PROMPT_CHARACTERS_MAX} characters.", param="prompt")


def _temperature(found: Any) -> float | None:
    if found is None or found == "":
        return None
    try:
        temperature = float(found)
    except (TypeError, ValueError):
        temperature = math.nan
    if not 0 <= temperature <= 1:
        raise InvalidRequest("'temperature' must be a number from 0 to 1.", param="temperature")
    return temperature


def bounds_of_transcription(request: TranscriptionRequest) -> Bounds:
    return Bounds(prompt_bound=0, output_bound=0, prompt_estimate=0, output_estimate=0, units_bound=request.bound_ms)


def transcription_body(request: TranscriptionRequest, model: CatalogModel) -> bytes:
    """The sound is base64 in it, as all bytes in JSON are."""
    body: Json = {
        "endpoint": ENDPOINTS[TRANSCRIPTION],
        "model": model.id,
        "audio": request.sound,
        "format": request.audio_format,
        "stated_ms": request.stated_ms,
        "language": request.language,
        "prompt": request.prompt,
        "temperature": request.temperature,
    }
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None})
