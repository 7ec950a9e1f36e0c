"""Embeddings with real MLX and tiny models, without any socket."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

from agent.engine.choice import Threads, engine_for
from agent.engine.embeddings import EmbeddingModel
from agent.engine.media import EmbeddingJob, Used, Vector
from agent.engine.serial import WAITING_MAX, SerialEngine, Work
from agent.errors import EngineBusy, EngineFailed, EngineUnavailable, JobRefused, ModelRejected
from agent.models import inspect
from agent.testing.tiny_embedder import DIMENSIONS, build_random_embedder
from agent.testing.tiny_model import build_random_model
from domain.kinds import EMBEDDING

CANARY = "canary-7146"
POOLINGS = ("lasttoken", "mean_tokens", "cls_token")

Embedder = SerialEngine[EmbeddingJob, Vector | Used]


@pytest.fixture(scope="module")
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    assert threads.close()


@pytest.fixture(scope="module", params=POOLINGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_embedder(tmp_path_factory.mktemp("models") / request.param, pooling=request.param)


@pytest.fixture
def engine(folder: Path, threads: Threads) -> Iterator[Embedder]:
    engine = engine_for(inspect(folder), threads, 4)
    assert isinstance(engine, SerialEngine)
    asyncio.run(_started(engine))
    yield engine
    engine.close()


async def _started(engine: Embedder) -> None:
    await engine.start()


async def vectors(engine: Embedder, *texts: str, dimensions: int | None = None) -> tuple[list[list[float]], Used]:
    made, used = [], None
    async for event in engine.submit(EmbeddingJob(texts, dimensions)):
        if isinstance(event, Used):
            used = event
        else:
            made.append(array("f", event.content).tolist())
    assert used is not None
    return made, used


def close(one: list[float], other: list[float]) -> bool:
    return math.dist(one, other) < 1e-4


async def test_each_text_has_a_vector_of_length_one_and_its_tokens_are_counted(engine: Embedder) -> None:
    made, used = await vectors(engine, "a hold", "a capture", "ä")
    assert [len(vector) for vector in made] == [DIMENSIONS] * 3
    assert all(abs(math.hypot(*vector) - 1) < 1e-5 for vector in made)
    assert used == Used(prompt_tokens=len("a hold") + len("a capture") + 2)


async def test_a_vector_does_not_depend_on_its_neighbours(engine: Embedder) -> None:
    alone, _ = await vectors(engine, "ledger")
    among, _ = await vectors(engine, "x", "ledger", "a much longer text than the others " * 5)
    assert close(alone[0], among[1])


async def test_other_texts_have_other_vectors_and_equal_ones_the_same(folder: Path, engine: Embedder) -> None:
    made, _ = await vectors(engine, "debit", "credit", "debit")
    assert close(made[0], made[2])
    assert not close(made[0], made[1])


async def test_what_does_not_fit_into_one_step_is_read_in_several(engine: Embedder) -> None:
    made, used = await vectors(engine, *(f"{number} " * 100 for number in range(30)))
    assert len(made) == 30
    assert used.prompt_tokens == sum(len(f"{number} " * 100) for number in range(30))


async def test_fewer_dimensions_are_the_first_ones_at_length_one(engine: Embedder) -> None:
    (whole,), _ = await vectors(engine, "ledger")
    (cut,), _ = await vectors(engine, "ledger", dimensions=8)
    scale = math.hypot(*whole[:8])
    assert close(cut, [value / scale for value in whole[:8]])


async def test_the_pooling_is_the_one_that_the_folder_names(
    tmp_path: Path, threads: Threads, folder: Path, engine: Embedder
) -> None:
    (found,), _ = await vectors(engine, "abc")
    model, tokenizer = mlx_lm.load(str(folder))[:2]
    rows = model.model(mx.array([tokenizer.encode("abc")]))[0]
    pooled = {"lasttoken": rows[-1], "mean_tokens": rows.mean(axis=0), "cls_token": rows[0]}[folder.name]
    assert close(found, (pooled / mx.linalg.norm(pooled)).tolist())


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (EmbeddingJob(("ok", "x" * 513)), "input[1]: it has 513 tokens, and the model reads 1 to 512"),
        (EmbeddingJob(("x",), DIMENSIONS + 1), f"dimensions: this model has {DIMENSIONS}"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_by_name(engine: Embedder, job: EmbeddingJob, says: str) -> None:
    with pytest.raises(JobRefused) as caught:
        async for _ in engine.submit(job):
            pass
    assert str(caught.value) == says
    assert len((await vectors(engine, "still there"))[0]) == 1


async def test_a_failure_costs_one_job_and_its_text_is_not_logged(
    engine: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError(CANARY)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingModel, "_embed", explode)
        with pytest.raises(EngineFailed) as caught:
            await vectors(engine, CANARY)
    assert CANARY not in str(caught.value)
    assert CANARY not in caplog.text
    assert len((await vectors(engine, "again"))[0]) == 1


async def test_more_than_may_wait_is_refused_and_a_cancelled_job_makes_room(engine: Embedder) -> None:
    long = EmbeddingJob(("word " * 100,) * 200)
    accepted: list[Work[Vector | Used]] = [engine.submit(long) for _ in range(WAITING_MAX + 1)]
    with pytest.raises(EngineBusy):
        engine.submit(long)
    for work in accepted:
        work.cancel()
    assert [event async for event in accepted[0]] == []
    async with asyncio.timeout(30):
        while engine.occupancy.running or engine.occupancy.waiting:
            await asyncio.sleep(0.005)
    assert len((await vectors(engine, "again"))[0]) == 1


async def test_closing_ends_what_waits(tmp_path: Path, threads: Threads) -> None:
    engine: Embedder = SerialEngine(
        "m", threads.short_steps, lambda: EmbeddingModel.load(build_random_embedder(tmp_path / "m"), 512)
    )
    with pytest.raises(EngineUnavailable):
        engine.submit(EmbeddingJob(("x",)))
    await engine.start()
    work = engine.submit(EmbeddingJob(("word " * 100,) * 400))
    engine.close()
    with pytest.raises(EngineUnavailable):
        async for _ in work:
            pass
    assert engine.state == "loading"


async def test_a_folder_with_an_unknown_pooling_is_rejected(tmp_path: Path, threads: Threads) -> None:
    folder = inspect(build_random_embedder(tmp_path / "m", pooling="weightedmean_tokens"))
    assert folder.kind == EMBEDDING
    with pytest.raises(ModelRejected, match="only cls, mean and lasttoken"):
        await engine_for(folder, threads, 4).start()


def test_a_folder_without_pooling_is_a_text_model(tmp_path: Path) -> None:
    assert inspect(build_random_model(tmp_path / "m")).kind == "text"
