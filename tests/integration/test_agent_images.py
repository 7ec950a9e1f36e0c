"""Images with real MLX and a tiny FLUX.2, without any socket."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

from agent.engine.choice import Threads, engine_for
from agent.engine.media import Image, ImageJob, Used
from agent.engine.serial import SerialEngine
from agent.errors import JobRefused, ModelRejected
from agent.models import fingerprint, inspect
from agent.testing.tiny_flux import build_random_flux, with_small_decoder
from domain.kinds import IMAGE

CANARY = "canary-7148"

Painter = SerialEngine[ImageJob, Image | Used]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Painter]:
    with_small_decoder()
    threads = Threads()
    engine = engine_for(inspect(folder), threads, 4)
    assert isinstance(engine, SerialEngine)
    asyncio.run(_started(engine))
    yield engine
    engine.close()
    assert threads.close()


async def _started(engine: Painter) -> None:
    await engine.start()


async def made(engine: Painter, job: ImageJob) -> tuple[list[bytes], Used]:
    images, used = [], None
    async for event in engine.submit(job):
        if isinstance(event, Used):
            used = event
        else:
            images.append(event.content)
    assert used is not None
    return images, used


def size_of(content: bytes) -> tuple[int, int]:
    return PIL.Image.open(io.BytesIO(content), formats=["PNG"]).size


async def test_an_image_has_the_size_that_was_asked_for_and_counts_as_a_whole_one(engine: Painter) -> None:
    images, used = await made(engine, ImageJob("a red house", 1, 50, 33, steps=1))
    assert [size_of(image) for image in images] == [(50, 33)]
    assert used == Used(units=1_048_576)


async def test_a_seed_gives_one_image_and_several_images_differ(engine: Painter) -> None:
    first, used = await made(engine, ImageJob("a red house", 2, 32, 32, steps=1, seed=5))
    again, _ = await made(engine, ImageJob("a red house", 2, 32, 32, steps=1, seed=5))
    assert first == again
    assert first[0] != first[1]
    assert used == Used(units=2 * 1_048_576)


async def test_the_file_holds_pixels_and_not_the_prompt(
    engine: Painter, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    (image,), _ = await made(engine, ImageJob(CANARY, 1, 32, 32, steps=2))
    assert CANARY.encode() not in image
    assert b"tEXt" not in image
    said = capfd.readouterr()
    assert said.out + said.err + caplog.text == ""


async def test_a_cancelled_job_ends_and_the_next_one_is_made(engine: Painter) -> None:
    work = engine.submit(ImageJob("a red house", 4, 64, 64, steps=50))
    work.cancel()
    assert [event async for event in work] == []
    assert len((await made(engine, ImageJob("a red house", 1, 32, 32, steps=1)))[0]) == 1


async def test_what_the_model_does_not_have_is_refused_by_name(engine: Painter) -> None:
    with pytest.raises(JobRefused, match="negative_prompt"):
        await made(engine, ImageJob("a red house", 1, 32, 32, negative_prompt="blue"))


def test_the_folder_tells_what_it_is(folder: Path) -> None:
    found = inspect(folder)
    assert (found.kind, found.model_type, found.id) == (IMAGE, "flux2", "flux")
    assert found.size_bytes > 1_000_000


def test_every_weight_file_counts_in_the_fingerprint(tmp_path: Path) -> None:
    for part in ("transformer", "text_encoder", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.safetensors").write_bytes(part.encode())
    before = fingerprint(tmp_path)
    (tmp_path / "vae" / "0.safetensors").write_bytes(b"other")
    assert fingerprint(tmp_path) != before
    (tmp_path / "vae" / "0.safetensors").unlink()
    with pytest.raises(ModelRejected, match="vae has no weights"):
        inspect(tmp_path)
