"""Speech to text with real MLX and a tiny Whisper, without any socket."""

from __future__ import annotations

import asyncio
import shutil
import struct
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine import sound
from agent.engine.choice import Threads, engine_for
from agent.engine.job import ChatJob, ChatMessage, Piece, Sampling
from agent.engine.media import SpeechJob, Transcript, Used
from agent.engine.serial import SerialEngine
from agent.engine.sound import SAMPLE_RATE, samples_of
from agent.errors import EngineFailed, FormatNotServed, JobRefused, ModelRejected
from agent.models import inspect
from agent.testing.tiny_model import build_reciting_model
from agent.testing.tiny_whisper import build_random_whisper, sine_wav
from domain.kinds import TRANSCRIPTION

CANARY = "canary-7147"

Listener = SerialEngine[SpeechJob, Transcript | Used]


@pytest.fixture(scope="module")
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    assert threads.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, threads: Threads) -> Iterator[Listener]:
    folder = inspect(build_random_whisper(tmp_path_factory.mktemp("models") / "whisper"))
    assert (folder.kind, folder.model_type) == (TRANSCRIPTION, "whisper")
    engine = engine_for(folder, threads, 4)
    assert isinstance(engine, SerialEngine)
    asyncio.run(_started(engine))
    yield engine
    engine.close()


async def _started(engine: Listener) -> None:
    await engine.start()


async def heard(engine: Listener, job: SpeechJob) -> tuple[Transcript, Used]:
    transcript, used = None, None
    async for event in engine.submit(job):
        if isinstance(event, Used):
            used = event
        else:
            transcript = event
    assert transcript is not None
    assert used is not None
    return transcript, used


async def refusal(engine: Listener, job: SpeechJob) -> str:
    with pytest.raises(JobRefused) as caught:
        await heard(engine, job)
    return str(caught.value)


async def test_a_sound_has_a_transcript_a_language_and_its_true_length(engine: Listener) -> None:
    transcript, used = await heard(engine, SpeechJob(sine_wav(1.5), "wav", temperature=0))
    assert used == Used(units=1_500)
    assert transcript.duration == 1.5
    assert transcript.language
    assert transcript.segments
    assert all(0 <= one["start"] <= one["end"] <= 1.5 for one in transcript.segments)
    assert all(isfinite(one["avg_logprob"]) for one in transcript.segments)


async def test_one_sound_has_one_transcript(engine: Listener) -> None:
    job = SpeechJob(sine_wav(1.0), "wav", language="de", temperature=0)
    first, _ = await heard(engine, job)
    again, _ = await heard(engine, job)
    assert first == again
    assert first.language == "german"


async def test_more_than_one_window_is_heard_to_the_end(engine: Listener) -> None:
    _, used = await heard(engine, SpeechJob(sine_wav(61.0), "wav", language="en", temperature=0))
    assert used == Used(units=61_000)


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (SpeechJob(sine_wav(1), "wav", language="xx"), "language: this model does not know it"),
        (SpeechJob(sine_wav(1), "wav", prompt="<|endoftext|>"), "prompt: it must not hold control tokens"),
        (SpeechJob(sine_wav(5), "wav", stated_ms=1_000), "file: it is longer than its own header says"),
        (SpeechJob(sine_wav(1)[:40], "wav"), "file: it is not a complete WAV file"),
        (SpeechJob(sine_wav(0), "wav"), "file: there is no sound in it"),
    ],
)
async def test_what_cannot_be_heard_is_refused_by_name(engine: Listener, job: SpeechJob, says: str) -> None:
    assert await refusal(engine, job) == says


async def test_a_cancelled_job_stops_at_the_next_window(engine: Listener) -> None:
    work = engine.submit(SpeechJob(sine_wav(120.0), "wav", language="en", temperature=0))
    work.cancel()
    assert [event async for event in work] == []
    await heard(engine, SpeechJob(sine_wav(0.5), "wav", language="en", temperature=0))


async def test_a_failure_is_the_jobs_own_and_nothing_of_it_is_logged(
    engine: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError(CANARY)

    with monkeypatch.context() as patch:
        patch.setattr("agent.engine.speech.transcribe", explode)
        with pytest.raises(EngineFailed):
            await heard(engine, SpeechJob(sine_wav(0.5), "wav", prompt=CANARY))
    assert CANARY not in caplog.text


def test_a_folder_without_weights_is_rejected(tmp_path: Path) -> None:
    folder = build_random_whisper(tmp_path / "whisper")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelRejected, match=r"weights\.npz"):
        inspect(folder)


async def test_text_goes_on_while_a_sound_is_heard(tmp_path: Path, threads: Threads, engine: Listener) -> None:
    """The two threads that make MLX calls do not get in each other's way."""
    script = [f" word{number}".encode() for number in range(20)]
    folder = build_reciting_model(tmp_path / "endless", script, endless=True, context_length=100_000)
    text = engine_for(inspect(folder), threads, 4)
    await text.start()
    chat = ChatJob((ChatMessage("user", "go on"),), 2_000, Sampling(temperature=0))

    async def read() -> str:
        return "".join([event.text async for event in text.submit(chat) if isinstance(event, Piece)])

    alone = await read()
    job = SpeechJob(sine_wav(10), "wav", language="en", temperature=0)
    said, first = await asyncio.gather(read(), heard(engine, job))
    again, _ = await heard(engine, job)
    text.close()
    assert said == alone
    assert first[0] == again


# --- files -----------------------------------------------------------------------------------------------------------


def wav(coding: int, bits: int, data: bytes, *, channels: int = 1, rate: int = SAMPLE_RATE) -> bytes:
    frame = channels * bits // 8
    layout = struct.pack("<HHIIHH", coding, channels, rate, rate * frame, frame, bits)
    head = b"WAVEfmt " + struct.pack("<I", 16) + layout + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    return b"RIFF\0\0\0\0" + head + b"data" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    ("coding", "bits", "data"),
    [
        (1, 8, bytes((0, 128, 192))),
        (1, 16, struct.pack("<3h", -(2**15), 0, 2**14)),
        (1, 24, b"\x00\x00\x80" + b"\0\0\0" + b"\x00\x00\x40"),
        (1, 32, struct.pack("<3i", -(2**31), 0, 2**30)),
        (3, 32, struct.pack("<3f", -1, 0, 0.5)),
    ],
)
def test_every_plain_coding_gives_the_same_samples(coding: int, bits: int, data: bytes) -> None:
    assert samples_of(wav(coding, bits, data), "wav").tolist() == [-1, 0, 0.5]


def test_channels_are_mixed_and_other_rates_resampled() -> None:
    stereo = wav(1, 16, struct.pack("<4h", 2**14, 0, 0, 2**14), channels=2)
    assert samples_of(stereo, "wav").tolist() == [0.25, 0.25]
    for rate in (8_000, 44_100, 48_000):
        samples = samples_of(sine_wav(1.0, rate=rate, channels=2), "wav")
        assert abs(samples.size - SAMPLE_RATE) <= 1
        expected = samples_of(sine_wav(1.0), "wav")
        middle = slice(1_000, 15_000)
        assert np.abs(samples[middle] - expected[middle]).max() < 0.02


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_file_whose_writer_did_not_know_its_size_is_read_to_its_end(size: int) -> None:
    content = sine_wav(0.1)
    streamed = content[:40] + struct.pack("<I", size) + content[44:]
    assert samples_of(streamed, "wav").size == 1_600


def test_nothing_longer_than_two_hours_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "MINUTES_MAX", 1)
    samples_of(sine_wav(60), "wav")
    with pytest.raises(JobRefused, match="longer than"):
        samples_of(sine_wav(60.1), "wav")


def test_without_ffmpeg_other_formats_are_left_to_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(FormatNotServed) as caught:
        samples_of(b"ID3", "mp3")
    assert caught.value.status_code == 404


class TestFfmpeg:
    @pytest.fixture(autouse=True)
    def ffmpeg(self) -> None:
        if shutil.which("ffmpeg") is None:
            pytest.skip("ffmpeg is not installed")

    def test_it_reads_what_is_no_plain_wav(self) -> None:
        content = sine_wav(0.5)
        samples = samples_of(content, "mp3")  # ffmpeg looks at the content, not at the name
        assert np.abs(samples - samples_of(content, "wav")).max() < 1e-3

    def test_what_it_cannot_read_is_refused_without_its_words(self) -> None:
        with pytest.raises(JobRefused, match="damaged"):
            samples_of(CANARY.encode() * 100, "mp3")
