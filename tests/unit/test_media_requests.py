"""What embeddings, images and transcriptions may ask for, what they hold, and forms that are none."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.consumer.embeddings_request import (
    ENCLOSING_TOKENS_MAX,
    bounds_of_embeddings,
    embeddings_body,
    parse_embeddings,
)
from api.consumer.images_request import bounds_of_images, images_body, parse_images
from api.consumer.multipart import FIELD_BYTES_MAX, PARTS_MAX, read_form
from api.consumer.transcriptions import FILE_BYTES_MAX
from api.consumer.transcriptions_request import (
    bounds_of_transcription,
    parse_transcription,
    transcription_body,
)
from domain.catalog import CatalogModel
from domain.errors import InvalidRequest, PayloadTooLarge
from domain.kinds import EMBEDDING, IMAGE, TRANSCRIPTION
from domain.pricing import quote_for

read_any_form = partial(read_form, file_bytes_max=FILE_BYTES_MAX)

EMBEDDER = CatalogModel(id="m", display_name="M", kind=EMBEDDING, context_length=100, output_max=0)


class TestHolds:
    @given(st.lists(st.text(min_size=1, max_size=50), min_size=1, max_size=20))
    def test_a_text_never_has_more_tokens_than_are_held(self, texts: list[str]) -> None:
        bounds = bounds_of_embeddings(parse_embeddings({"model": "m", "input": texts}), EMBEDDER)
        worst = sum(min(len(text.encode()) + ENCLOSING_TOKENS_MAX, 100) for text in texts)
        assert (bounds.prompt_bound, bounds.output_bound, bounds.units_bound) == (worst, 0, 0)

    @given(st.integers(1, 4), st.integers(1, 2_048), st.integers(1, 2_048))
    def test_images_cost_the_price_times_their_number_and_size(self, count: int, width: int, height: int) -> None:
        bounds = bounds_of_images(parse_images({"prompt": "x", "n": count, "size": f"{width}x{height}"}))
        quote = quote_for("flux", IMAGE)
        expected = 1_500 * count * max(width * height, 1_048_576) // 1_048_576
        assert quote.charge_micro_usd(0, 0, bounds.units_bound) == max(100, expected)

    @pytest.mark.parametrize(
        ("ms", "cost"), [(1, 100), (6_000, 100), (60_000, 1_000), (90_000, 1_500), (61_001, 1_016)]
    )
    def test_sound_costs_a_price_a_minute_and_the_minimum(self, ms: int, cost: int) -> None:
        assert quote_for("whisper", TRANSCRIPTION).charge_micro_usd(0, 0, ms) == cost

    @given(st.integers(1, 100_000))
    def test_a_sound_of_unknown_length_is_held_by_its_size(self, size: int) -> None:
        request = parse_transcription({"file": b"x" * size, "file_name": "a.webm", "model": "m"})
        assert request.stated_ms is None
        assert bounds_of_transcription(request).units_bound == -(-size * 1000 // 16_000)


class TestBodies:
    def test_a_machine_gets_what_it_needs_and_nothing_of_the_caller(self) -> None:
        image = parse_images({"prompt": "p", "user": "ada", "quality": "hd", "steps": 3.0})
        model = CatalogModel(id="flux", display_name="F", kind=IMAGE)
        assert json.loads(images_body(image, model)) == {
            "endpoint": "/v1/images/generations",
            "model": "flux",
            "prompt": "p",
            "n": 1,
            "width": 1024,
            "height": 1024,
            "steps": 3,
        }
        embedding = parse_embeddings({"model": "m", "input": "x", "user": "ada", "dimensions": 3})
        assert json.loads(embeddings_body(embedding, EMBEDDER)) == {
            "endpoint": "/v1/embeddings",
            "model": "m",
            "input": ["x"],
            "dimensions": 3,
        }
        sound = parse_transcription({"file": b"abc", "file_name": "a.mp3", "model": "whisper-1", "language": "en"})
        assert sound.model == ""
        assert json.loads(transcription_body(sound, CatalogModel(id="w", display_name="W"))) == {
            "endpoint": "/v1/audio/transcriptions",
            "model": "w",
            "audio": "YWJj",
            "format": "mp3",
            "language": "en",
        }

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "prompt"),
            ({"prompt": 1}, "prompt"),
            ({"prompt": "x", "model": 1}, "model"),
            ({"prompt": "x", "n": True}, "n"),
            ({"prompt": "x", "n": 1.5}, "n"),
            ({"prompt": "x", "n": 0}, "n"),
            ({"prompt": "x", "size": "0x10"}, "size"),
            ({"prompt": "x", "size": "10x10x10"}, "size"),
            ({"prompt": "x", "size": ["10x10"]}, "size"),
            ({"prompt": "x", "seed": -1}, "seed"),
            ({"prompt": "x", "stream": True}, "stream"),
            ({"prompt": "x", "negative_prompt": {}}, "negative_prompt"),
        ],
    )
    def test_images_that_cannot_be_made_are_refused_by_name(self, body: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            parse_images(body)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        ("name", "expected"), [("a.MP3", "mp3"), ("a", "wav"), ("", "wav"), ("a.b/c.txt", "wav"), (".webm", "wav")]
    )
    def test_the_name_of_a_file_tells_its_format(self, name: str, expected: str) -> None:
        assert parse_transcription({"file": b"x", "file_name": name, "model": "m"}).audio_format == expected

    @pytest.mark.parametrize(
        ("form", "param"),
        [
            ({}, "file"),
            ({"file": "a text"}, "file"),
            ({"file": b""}, "file"),
            ({"model": None}, "model"),
            ({"language": ["en"]}, "language"),
            ({"temperature": "nan"}, "temperature"),
            ({"temperature": ["1"]}, "temperature"),
            ({"prompt": "x" * 4_001}, "prompt"),
            ({"timestamp_granularities": ["segment", "word"]}, "timestamp_granularities"),
            ({"file": b"fLaC" + b"\0" * 14 + ((1 << 44) | 7_201).to_bytes(8, "big")}, "file"),
        ],
    )
    def test_forms_that_ask_for_what_is_not_there_are_refused_by_name(self, form: dict[str, Any], param: str) -> None:
        good = {"file": b"x", "file_name": "a.wav", "model": "m"} if form else {}
        with pytest.raises(InvalidRequest) as caught:
            parse_transcription(good | form)
        assert caught.value.param == param


def post(body: bytes, content_type: str = "multipart/form-data; boundary=b") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    headers = [(b"content-type", content_type.encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def part(name: str, content: bytes, filename: str = "") -> bytes:
    of_file = f'; filename="{filename}"' if filename else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n\r\n'.encode() + content + b"\r\n"


END = b"--b--\r\n"
LIMIT = 64 * 1024 * 1024


class TestForms:
    async def test_files_fields_and_lists_are_told_apart(self) -> None:
        raw = part("file", b"\x00\r\n--c", "ä.wav") + part("model", b"m") + part("g[]", b"1") + part("g[]", b"2") + END
        assert await read_any_form(post(raw), LIMIT) == {
            "file": b"\x00\r\n--c",
            "file_name": "ä.wav",
            "model": "m",
            "g": ["1", "2"],
        }

    @pytest.mark.parametrize(
        ("raw", "content_type"),
        [
            (b"{}", "application/json"),
            (part("model", b"m") + END, "multipart/form-data"),
            (part("model", b"m"), "multipart/form-data; boundary=b"),
            (part("model", b"m") + END, "multipart/form-data; boundary=other"),
            (b"", "multipart/form-data; boundary=b"),
            (b"--b\r\nContent-Dis", "multipart/form-data; boundary=b"),
            (part("model", b"\xff") + END, "multipart/form-data; boundary=b"),
            (part("a", b"") * (PARTS_MAX + 1) + END, "multipart/form-data; boundary=b"),
        ],
    )
    async def test_what_is_no_complete_form_is_refused(self, raw: bytes, content_type: str) -> None:
        with pytest.raises(InvalidRequest):
            await read_any_form(post(raw, content_type), LIMIT)

    @pytest.mark.parametrize(
        "raw",
        [
            part("file", b"x" * (FILE_BYTES_MAX + 1), "a.wav") + END,
            part("model", b"x" * (FIELD_BYTES_MAX + 1)) + END,
        ],
    )
    async def test_what_is_too_large_is_refused(self, raw: bytes) -> None:
        with pytest.raises(PayloadTooLarge):
            await read_any_form(post(raw), LIMIT)

    async def test_a_form_over_the_bound_is_not_read(self) -> None:
        with pytest.raises(PayloadTooLarge):
            await read_any_form(post(part("file", b"x" * 100, "a.wav") + END), 50)

    @given(st.binary(max_size=300))
    async def test_no_bytes_break_it(self, raw: bytes) -> None:
        with contextlib.suppress(InvalidRequest):
            assert isinstance(await read_any_form(post(b"--b\r\n" + raw), LIMIT), dict)
