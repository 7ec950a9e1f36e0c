"""What machines send for embeddings, images and transcripts: read part by part, or refused."""

from __future__ import annotations

import base64
import json
import struct
from array import array
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.consumer.embeddings_answer import Embeddings, EmbeddingsReader, write_embeddings
from api.consumer.embeddings_request import parse_embeddings
from api.consumer.images_answer import Images, ImagesReader, write_images
from api.consumer.images_request import ImagesRequest, parse_images
from api.consumer.inference import Finished
from api.consumer.transcriptions_answer import WRITERS, Transcript, TranscriptReader
from api.consumer.transcriptions_request import parse_transcription
from domain.protocol import Usage

FINISHED = Finished(Usage(5, 0, units=1_500), "", "", 100)


def line(**members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode()


class TestEmbeddings:
    def vector(self, *values: float) -> str:
        return base64.b64encode(array("f", values).tobytes()).decode()

    def reader(self, count: int = 2, **members: Any) -> EmbeddingsReader:
        return EmbeddingsReader(parse_embeddings({"model": "m", "input": ["x"] * count, **members}))

    def test_the_last_vector_completes_the_answer(self) -> None:
        read = self.reader()
        assert read(line(index=0, embedding=self.vector(1, 0))) is None
        made = read(line(index=1, embedding=self.vector(0, 1)))
        assert isinstance(made, Embeddings)
        assert made.units == 0
        request = parse_embeddings({"model": "m", "input": ["x", "y"]})
        body = json.loads(write_embeddings(request, made, FINISHED))
        assert [one["embedding"] for one in body["data"]] == [[1, 0], [0, 1]]
        assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5, "cost_micro_usd": 100}

    @pytest.mark.parametrize(
        "chunks",
        [
            [{"index": 1, "embedding": "AACAPw=="}],
            [{"index": 0, "embedding": "AACAPw=="}, {"index": 0, "embedding": "AACAPw=="}],
            [{"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": "AACAPwAAgD8="}],
            [{"index": 0, "embedding": ""}],
            [{"index": 0, "embedding": "AAA="}],
            [{"index": 0, "embedding": base64.b64encode(struct.pack("<f", float("nan"))).decode()}],
            [{"index": 0}],
        ],
    )
    def test_what_is_no_vector_in_its_turn_is_refused(self, chunks: list[dict[str, Any]]) -> None:
        read = self.reader()
        *before, last = chunks
        for chunk in before:
            assert read(line(**chunk)) is None
        with pytest.raises(ValueError, match=r".+"):
            read(line(**last))

    def test_dimensions_that_were_not_asked_for_are_refused(self) -> None:
        with pytest.raises(ValueError, match="length"):
            self.reader(dimensions=2)(line(index=0, embedding=self.vector(1, 0, 0)))


def png(width: int = 4, height: int = 4, pixels: bytes = b"p" * 100) -> bytes:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    return head + pixels + b"\0\0\0\0IEND\xaeB`\x82"


class TestImages:
    def request(self, **members: Any) -> ImagesRequest:
        return parse_images({"prompt": "x", "size": "4x4", **members})

    @given(st.lists(st.integers(1, 200), min_size=1, max_size=50))
    def test_parts_of_any_size_make_the_image_again(self, sizes: list[int]) -> None:
        content, read = png(pixels=b"p" * 500), ImagesReader(self.request())
        assert read(line(index=0, bytes=len(content))) is None
        at, made = 0, None
        for size in [*sizes, *[100] * 100]:
            if at < len(content):
                made = read(content[at : at + size])
                at += size
        assert isinstance(made, Images)
        assert made.files == [content]
        assert made.units == 1_048_576

    def test_nothing_counts_before_the_last_image(self) -> None:
        read = ImagesReader(self.request(n=2, size="2048x1024"))
        content = png(2048, 1024)
        for number in range(2):
            assert read(line(index=number, bytes=len(content))) is None
            made = read(content)
            assert (made is None) is (number == 0)
        assert made is not None
        assert made.units == 2 * 2048 * 1024

    @pytest.mark.parametrize(
        "chunks",
        [
            [line(index=1, bytes=100)],
            [line(index=0, bytes=10)],
            [line(index=0, bytes=10**9)],
            [png()],
            [line(index=0, bytes=len(png())), png() + b"x"],
            [line(index=0, bytes=len(png())), b""],
            [line(index=0, bytes=len(png())), png(4, 5)],
            [line(index=0, bytes=len(png())), b"x" * len(png())],
        ],
    )
    def test_what_is_no_image_of_that_size_is_refused(self, chunks: list[bytes]) -> None:
        read = ImagesReader(self.request())
        *before, last = chunks
        for chunk in before:
            assert read(chunk) is None
        with pytest.raises(ValueError, match=r".+"):
            read(last)

    def test_an_image_is_in_the_answer_or_behind_a_url(self) -> None:
        images = Images(files=[png()], units=1_048_576)
        inside = json.loads(write_images(self.request(response_format="b64_json"), images, FINISHED, lambda _: "u"))
        assert base64.b64decode(inside["data"][0]["b64_json"]) == png()
        outside = json.loads(write_images(self.request(), images, FINISHED, lambda _: "u"))
        assert outside["data"] == [{"url": "u"}]


class TestTranscripts:
    SEGMENTS = ({"start": 0, "end": 1.5, "text": " one --> two\n"}, {"start": 3_599.9996, "end": 3_661, "text": "b"})

    def transcript(self, **members: Any) -> Transcript:
        form = {"file": b"x" * 32_000, "file_name": "a.webm", "model": "whisper-1"}
        made = TranscriptReader(parse_transcription(form))(
            line(**{"text": " one ", "duration": 1.5, "language": "english", "segments": self.SEGMENTS, **members})
        )
        assert isinstance(made, Transcript)
        return made

    def written(self, response_format: Any) -> str:
        return WRITERS[response_format][1](self.transcript(), FINISHED).decode()

    def test_what_can_be_charged_is_what_the_gateway_knows_of_the_sound(self) -> None:
        assert self.transcript(duration=1e5).units == 2_000

    def test_json_has_the_text_and_the_seconds_that_were_charged(self) -> None:
        assert json.loads(self.written("json")) == {
            "text": "one",
            "usage": {"type": "duration", "seconds": 1.5, "cost_micro_usd": 100},
        }

    def test_subtitles_have_their_clocks_and_no_second_arrow(self) -> None:
        assert self.written("srt") == (
            "1\n00:00:00,000 --> 00:00:01,500\none -> two\n\n2\n01:00:00,000 --> 01:01:01,000\nb\n\n"
        )
        assert self.written("vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none -> two\n\n")
        assert self.written("text") == "one\n"

    @pytest.mark.parametrize("members", [{"text": 1}, {"duration": -1}, {"segments": [{"start": None}]}])
    def test_what_is_no_transcript_is_refused(self, members: dict[str, Any]) -> None:
        with pytest.raises(msgspec.ValidationError):
            self.transcript(**members)
