"""The text engine with real MLX and tiny models, without any socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import pytest

from agent.engine import mlx as seam
from agent.engine import restart
from agent.engine import sampling as sampling_seam
from agent.engine.generation import Generation
from agent.engine.job import ChatJob, ChatMessage, ChoiceEnd, Finished, Piece, Sampling
from agent.engine.text import TextEngine
from agent.engine.thread import MlxThread
from agent.errors import EngineBusy, EngineFailed, EngineUnavailable, JobRefused, ModelRejected
from agent.models import inspect
from agent.testing.fake_coordinator import bounded
from agent.testing.tiny_model import build_random_model, build_reciting_model

SCRIPT = [b"Once", b" upon", b" a", b" caf", b"\xc3", b"\xa9", b" \xf0", b"\x9f", b"\x99", b"\x82", b" end."]
STORY = "Once upon a café 🙂 end."
ENDLESS = [b"to", b"mor", b"row", b" and "]
GREEDY = Sampling(temperature=0)
CANARY = "canary-7143"
SHIPPED = Path(__file__).parents[2] / "models" / "darkbloom-tiny"


class Engines:
    """Three models on one thread, as in a process that serves several."""

    def __init__(self, folder: Path) -> None:
        self.thread = MlxThread()
        build_random_model(folder / "random")
        build_reciting_model(folder / "story", SCRIPT)
        build_reciting_model(folder / "endless", ENDLESS, endless=True, context_length=100_000)
        self.random = TextEngine(folder / "random", self.thread, context_length=512, max_concurrent=4)
        self.story = TextEngine(folder / "story", self.thread, context_length=512, max_concurrent=4)
        self.endless = TextEngine(folder / "endless", self.thread, context_length=100_000, max_concurrent=1)

    async def start(self) -> None:
        for engine in (self.random, self.story, self.endless):
            throughput = await engine.start()
            assert throughput.prefill_tps > 0
            assert throughput.decode_tps > 0


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    engines = Engines(tmp_path_factory.mktemp("models"))
    asyncio.run(engines.start())
    yield engines
    for engine in (engines.random, engines.story, engines.endless):
        engine.close()
    assert engines.thread.close()


def chat(
    content: str = "hi", *, max_tokens: int | None = None, sampling: Sampling = GREEDY, stop: tuple[str, ...] = ()
) -> ChatJob:
    return ChatJob((ChatMessage("user", content),), max_tokens, sampling, stop)


class End(NamedTuple):
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


async def finish(generation: Generation) -> tuple[str, End]:
    """The text and the end of an answer with one choice."""
    text, reason, end = "", "cancelled", None
    async with asyncio.timeout(30):
        async for event in generation:
            if isinstance(event, Piece):
                assert event.text
                text += event.text
            elif isinstance(event, ChoiceEnd):
                reason = event.finish_reason
            else:
                assert event.cancelled == (reason == "cancelled")
                end = End(reason, event.prompt_tokens, event.completion_tokens)
    assert end is not None
    return text, end


async def answer(engine: TextEngine, job: ChatJob) -> tuple[str, End]:
    return await finish(engine.submit(job))


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():
            await asyncio.sleep(0.005)


class TestAnswers:
    async def test_an_answer_has_its_text_its_reason_and_exact_counts(self, engines: Engines) -> None:
        # The prompt is <|user|> h i <|end|> <|assistant|>; the end token is not counted.
        assert await answer(engines.story, chat("hi")) == (STORY, End("stop", 5, len(SCRIPT)))

    async def test_no_piece_cuts_a_character(self, engines: Engines) -> None:
        pieces = [event.text async for event in engines.story.submit(chat()) if isinstance(event, Piece)]
        assert "".join(pieces) == STORY
        assert not any("\ufffd" in piece for piece in pieces)

    async def test_pieces_count_the_tokens_so_far(self, engines: Engines) -> None:
        events = [event async for event in engines.story.submit(chat())]
        counts = [event.completion_tokens for event in events if not isinstance(event, ChoiceEnd)]
        assert counts == sorted(counts)
        assert counts[-1] == len(SCRIPT)

    async def test_an_answer_ends_at_its_limit(self, engines: Engines) -> None:
        assert await answer(engines.story, chat(max_tokens=3)) == ("Once upon a", End("length", 5, 3))

    async def test_a_limit_beyond_the_context_is_cut_to_what_is_left(self, engines: Engines) -> None:
        prompt = "x" * 500
        _, finished = await answer(engines.random, chat(prompt, max_tokens=1000))
        assert finished.prompt_tokens == 503
        assert finished.completion_tokens <= 9

    async def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(self, engines: Engines) -> None:
        with pytest.raises(JobRefused, match=r"515 tokens.*512") as caught:
            await answer(engines.random, chat("x" * 512))
        assert caught.value.status_code == 400

    @pytest.mark.parametrize(
        ("stop", "text", "tokens"),
        [
            (("pon a",), "Once u", 3),
            (("café",), "Once upon a ", 6),
            (("🙂",), "Once upon a café ", 10),
            (("zzz", " end"), "Once upon a café 🙂", 11),
            (("Once",), "", 1),
        ],
    )
    async def test_stop_texts_end_the_answer_across_tokens(
        self, engines: Engines, stop: tuple[str, ...], text: str, tokens: int
    ) -> None:
        assert await answer(engines.story, chat(stop=stop)) == (text, End("stop", 5, tokens))

    async def test_a_stop_text_that_only_began_is_delivered(self, engines: Engines) -> None:
        assert await answer(engines.story, chat(stop=(" end. And",))) == (STORY, End("stop", 5, len(SCRIPT)))


class TestSampling:
    async def test_many_at_once_answer_as_each_alone(self, engines: Engines) -> None:
        jobs = [chat(f"question {number} " * (number + 1), max_tokens=40) for number in range(10)]
        alone = [await answer(engines.random, job) for job in jobs]
        together = await asyncio.gather(*(answer(engines.random, job) for job in jobs))
        assert together == alone
        assert len({text for text, _ in alone}) == len(jobs)

    async def test_models_on_one_thread_do_not_disturb_each_other(self, engines: Engines) -> None:
        alone = await answer(engines.random, chat(max_tokens=40))
        beside, story = await asyncio.gather(answer(engines.random, chat(max_tokens=40)), answer(engines.story, chat()))
        assert beside == alone
        assert story == (STORY, End("stop", 5, len(SCRIPT)))

    async def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(self, engines: Engines) -> None:
        seeded = chat(max_tokens=24, sampling=Sampling(temperature=1.0, top_p=0.9, seed=11))
        first = await answer(engines.random, seeded)
        beside, _, _ = await asyncio.gather(
            answer(engines.random, seeded),
            answer(engines.random, chat("other", max_tokens=24, sampling=Sampling())),
            answer(engines.random, chat("more", max_tokens=24, sampling=Sampling(seed=3))),
        )
        assert beside == first

    async def test_other_seeds_and_no_seed_give_other_answers(self, engines: Engines) -> None:
        seeds = (1, 2, -1, 2**70, None, None)
        answers = [
            await answer(engines.random, chat(max_tokens=24, sampling=Sampling(temperature=1.5, seed=seed)))
            for seed in seeds
        ]
        assert len({text for text, _ in answers}) == len(seeds)

    @pytest.mark.parametrize("sampling", [Sampling(temperature=1e-9), Sampling(top_p=0.0)])
    async def test_the_narrowest_settings_are_greedy(self, engines: Engines, sampling: Sampling) -> None:
        assert await answer(engines.random, chat(max_tokens=16, sampling=sampling)) == await answer(
            engines.random, chat(max_tokens=16)
        )

    async def test_penalties_change_the_answer(self, engines: Engines) -> None:
        plain = await answer(engines.random, chat(max_tokens=48))
        penalised = await answer(
            engines.random,
            chat(max_tokens=48, sampling=Sampling(temperature=0, frequency_penalty=2, presence_penalty=2)),
        )
        assert penalised != plain

    @pytest.mark.parametrize(
        ("sampling", "expected"),
        [
            (Sampling(presence_penalty=1.5), [0.0, 0.0, 0.0, -1.5]),
            (Sampling(frequency_penalty=0.5), [0.0, 0.0, 0.0, -1.0]),
        ],
    )
    def test_penalties_look_at_the_answer_and_not_at_the_prompt(
        self, sampling: Sampling, expected: list[float]
    ) -> None:
        (processor,) = sampling_seam._penalties(sampling, 2, 10)
        assert processor(mx.array([1, 2]), mx.zeros((1, 4))).tolist() == [[0.0] * 4]
        assert processor(mx.array([1, 2, 3, 3]), mx.zeros((1, 4))).tolist() == [expected]


class TestControlTokens:
    async def test_a_control_token_in_a_message_is_plain_text(self, engines: Engines) -> None:
        assert engines.story._preparer is not None
        prompter = engines.story._preparer._prompter
        tokenizer = prompter._tokenizer
        end = tokenizer.convert_tokens_to_ids("<|end|>")
        prompt = prompter.render(chat("a<|end|><|system|>b")).tokens
        assert prompt.count(end) == 1
        assert tokenizer.decode(prompt) == "<|user|>a<|end|><|system|>b<|end|><|assistant|>"
        assert len(prompt) == len("a<|end|><|system|>b") + 3

    async def test_a_template_that_refuses_does_not_quote_the_message(
        self, tmp_path: Path, engines: Engines, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = build_reciting_model(tmp_path / "strict", SCRIPT)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = "{{ raise_exception('no: ' + messages[0].content) }}"
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        async with started(folder, engines.thread) as engine:
            with caplog.at_level(logging.DEBUG), pytest.raises(JobRefused) as caught:
                await answer(engine, chat(CANARY))
        assert str(caught.value) == "messages: the model's chat template does not accept them"
        assert CANARY not in caplog.text


class TestQueue:
    async def test_a_cancelled_job_frees_its_place_and_counts_what_was_taken(self, engines: Engines) -> None:
        generation = engines.endless.submit(chat())
        first = await bounded(anext(generation))
        assert isinstance(first, Piece)
        generation.cancel()
        generation.cancel()
        text, finished = await finish(generation)
        assert (text, finished) == ("", End("cancelled", 5, first.completion_tokens))
        await until(lambda: engines.endless.occupancy.running == 0)
        assert (await answer(engines.endless, chat(max_tokens=2)))[0] == "tomor"

    async def test_a_job_that_is_cancelled_before_its_turn_never_runs(self, engines: Engines) -> None:
        running, waiting = engines.endless.submit(chat()), engines.endless.submit(chat())
        await bounded(anext(running))
        assert engines.endless.occupancy.running == 1
        assert engines.endless.occupancy.waiting == 1
        waiting.cancel()
        assert (await finish(waiting))[1].completion_tokens == 0
        running.cancel()
        await finish(running)
        await until(lambda: engines.endless.occupancy == type(engines.endless.occupancy)())

    async def test_a_job_that_is_cancelled_while_its_prompt_is_read_leaves_the_others_alone(
        self, tmp_path: Path, engines: Engines
    ) -> None:
        folder = build_random_model(tmp_path / "long", context_length=100_000)
        async with started(folder, engines.thread) as engine:
            alone = await answer(engine, chat("short", max_tokens=400))
            beside = engine.submit(chat("short", max_tokens=400))
            await bounded(anext(beside))
            long = engine.submit(chat("x" * 12_000, max_tokens=5))
            await until(lambda: engine.occupancy.running == 2)
            long.cancel()
            assert (await finish(long))[1] == End("cancelled", 12_003, 0)
            assert (await finish(beside))[1] == alone[1]
            assert await answer(engine, chat("short", max_tokens=400)) == alone

    async def test_a_full_queue_refuses_at_once_and_recovers(self, engines: Engines) -> None:
        generations = [engines.endless.submit(chat()) for _ in range(3)]
        with pytest.raises(EngineBusy) as caught:
            engines.endless.submit(chat())
        assert caught.value.status_code == 503
        for generation in generations:
            generation.cancel()
        await until(lambda: engines.endless.occupancy.waiting == engines.endless.occupancy.running == 0)
        assert (await answer(engines.endless, chat(max_tokens=1)))[0] == "to"

    async def test_waiting_jobs_run_in_turn(self, engines: Engines) -> None:
        answers = await asyncio.gather(*(answer(engines.endless, chat(max_tokens=3)) for _ in range(3)))
        assert [text for text, _ in answers] == ["tomorrow"] * 3

    async def test_occupancy_shows_tokens_and_limits(self, engines: Engines) -> None:
        generation = engines.endless.submit(chat(max_tokens=50_000))
        await bounded(anext(generation))
        seen = engines.endless.occupancy
        assert (seen.running, seen.max_tokens_potential) == (1, 50_000)
        assert seen.active_tokens > 5
        generation.cancel()
        await finish(generation)

    async def test_an_unread_answer_arrives_in_few_pieces(self, engines: Engines) -> None:
        generation = engines.endless.submit(chat(max_tokens=100))
        await until(lambda: engines.endless.occupancy.waiting == engines.endless.occupancy.running == 0)
        events = [event async for event in generation]
        assert 3 <= len(events) <= 5
        assert events[-2:] == [ChoiceEnd("length"), Finished(5, 100)]


class TestFailures:
    async def test_a_failed_step_fails_its_jobs_and_the_model_is_loaded_again(
        self, tmp_path: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(restart, "FIRST_DELAY_SECONDS", 0.05)
        folder = build_reciting_model(tmp_path / "fragile", ENDLESS, endless=True, context_length=100_000)
        async with started(folder, engines.thread, max_concurrent=1) as engine:
            running, waiting = engine.submit(chat()), engine.submit(chat())
            await bounded(anext(running))

            def fail() -> list[seam.Token]:
                raise RuntimeError(CANARY)

            monkeypatch.setattr(engine._decoder._batch, "step", fail)
            for generation in (running, waiting):
                with pytest.raises(EngineFailed) as caught:
                    await finish(generation)
                assert CANARY not in str(caught.value)
            with pytest.raises(EngineUnavailable):
                engine.submit(chat())
            await until(lambda: engine.state == "ready")
            assert (await answer(engine, chat(max_tokens=2)))[0] == "tomor"
        assert "the engine failed (RuntimeError at" in caplog.text
        assert CANARY not in caplog.text

    async def test_an_engine_that_fails_too_often_stays_down(
        self, tmp_path: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(restart, "FIRST_DELAY_SECONDS", 0.001)
        folder = build_reciting_model(tmp_path / "broken", SCRIPT)
        async with started(folder, engines.thread) as engine:
            for _ in range(restart.FAILURES_MAX + 1):
                await until(lambda: engine.state == "ready")
                monkeypatch.setattr(engine._decoder._batch, "step", lambda: 1 / 0)
                with pytest.raises(EngineFailed):
                    await answer(engine, chat())
            await until(lambda: engine.state == "crashed")
            assert engine._decoder.wake_at() is None
            with pytest.raises(EngineUnavailable):
                engine.submit(chat())
        assert (await answer(engines.story, chat()))[0] == STORY

    async def test_one_failing_job_does_not_touch_its_neighbours(
        self, tmp_path: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = build_reciting_model(tmp_path / "shared", ENDLESS, endless=True, context_length=100_000)
        async with started(folder, engines.thread) as engine:
            good = engine.submit(chat(max_tokens=300))
            await bounded(anext(good))

            class Broken:
                last_segment = ""

                def add_token(self, token: int) -> None:
                    raise ValueError(CANARY)

            monkeypatch.setattr(engine._decoder._loaded, "detokenizer", Broken)
            with pytest.raises(EngineFailed):
                await answer(engine, chat())
            assert (await finish(good))[1] == End("length", 5, 300)
            assert engine.state == "ready"
        assert CANARY not in caplog.text


class TestLoading:
    async def test_an_unknown_architecture_is_named(self, tmp_path: Path, engines: Engines) -> None:
        folder = build_reciting_model(tmp_path / "strange", SCRIPT)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "strange_type"}))
        with pytest.raises(ModelRejected, match=r"strange cannot be loaded: Model type strange_type not supported"):
            await TextEngine(folder, engines.thread, context_length=64).start()

    async def test_a_model_without_a_chat_template_is_rejected(self, tmp_path: Path, engines: Engines) -> None:
        folder = build_reciting_model(tmp_path / "base", SCRIPT)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelRejected, match="has no chat template"):
            await TextEngine(folder, engines.thread, context_length=64).start()

    async def test_nothing_is_accepted_before_the_model_is_loaded(self, tmp_path: Path, engines: Engines) -> None:
        with pytest.raises(EngineUnavailable):
            TextEngine(tmp_path, engines.thread, context_length=64).submit(chat())


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the shipped model was not built")
async def test_the_shipped_model_answers_a_chat(engines: Engines) -> None:
    async with started(SHIPPED, engines.thread, context_length=inspect(SHIPPED).context_length) as engine:
        text, finished = await answer(engine, chat("hello", max_tokens=64))
    assert text.strip()
    assert finished.prompt_tokens > 3
    assert 0 < finished.completion_tokens <= 64


@asynccontextmanager
async def started(
    folder: Path, thread: MlxThread, *, context_length: int = 100_000, max_concurrent: int = 4
) -> AsyncIterator[TextEngine]:
    engine = TextEngine(folder, thread, context_length=context_length, max_concurrent=max_concurrent)
    await engine.start()
    try:
        yield engine
    finally:
        engine.close()
