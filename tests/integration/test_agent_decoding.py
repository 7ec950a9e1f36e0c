"""What a job may ask of the decoding, each with real MLX and tiny models."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from agent.engine.generation import Generation
from agent.engine.grammar import Grammar, GrammarBroken
from agent.engine.job import (
    ChatJob,
    ChatMessage,
    ChoiceEnd,
    Finished,
    Piece,
    Sampling,
    TokenLogprob,
    Tool,
    Toolbox,
    ToolCall,
)
from agent.engine.sampling import Processors, sampler_of
from agent.engine.text import TextEngine
from agent.engine.thread import MlxThread
from agent.errors import EngineBusy, EngineFailed, JobRefused
from agent.testing.fake_coordinator import bounded
from agent.testing.tiny_model import build_random_model, build_reciting_model

GREEDY = Sampling(temperature=0)
WILD = Sampling(temperature=2.0)
CALL = [b"I look.\n", b"<tool_call>", b'{"name": "lo', b'ok", "arguments": ', b'{"at": ', b'"sky"}}', b"</tool_call>"]
THOUGHT = [b"<th", b"ink>", b"h", b"m", b"</thi", b"nk>", b"Hel", b"lo."]
ENDLESS = [b"to", b"mor", b"row", b" and "]
LOOK = Tool("look", "Looks.", {"type": "object", "properties": {"at": {"enum": ["sky", "sea"]}}, "required": ["at"]})
COUNT = Tool("count", "", {"type": "object", "properties": {}, "additionalProperties": False})
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "name": {"type": "string", "maxLength": 6},
        "sizes": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["colour", "name", "sizes"],
    "additionalProperties": False,
}


@dataclass
class Said:
    """One choice, put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: ChoiceEnd | None = None

    def take(self, piece: Piece) -> None:
        self.logprobs += piece.logprobs
        if piece.channel == "content":
            self.content += piece.text
        elif piece.channel == "reasoning":
            self.reasoning += piece.text
        else:
            if piece.head is not None:
                self.calls.append((piece.head.name, ""))
            name, arguments = self.calls[piece.call]
            self.calls[piece.call] = (name, arguments + piece.text)


async def collect(generation: Generation) -> tuple[list[Said], Finished]:
    said: dict[int, Said] = {}
    async with asyncio.timeout(60):
        async for event in generation:
            if isinstance(event, Finished):
                return [said[choice] for choice in sorted(said)], event
            choice = said.setdefault(event.choice, Said())
            if isinstance(event, Piece):
                choice.take(event)
            else:
                choice.end = event
    raise AssertionError("the answer did not end")


async def one(engine: TextEngine, job: ChatJob) -> tuple[Said, Finished]:
    (said,), finished = await collect(engine.submit(job))
    return said, finished


def chat(content: str = "hi", *, sampling: Sampling = GREEDY, max_tokens: int | None = 24, **members: Any) -> ChatJob:
    return ChatJob((ChatMessage("user", content),), max_tokens, sampling, **members)


def say(content: str, reply: str, *rest: str) -> tuple[ChatMessage, ...]:
    """A conversation; the roles take turns."""
    texts = (content, reply, *rest)
    return tuple(ChatMessage("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))


@asynccontextmanager
async def started(
    folder: Path,
    thread: MlxThread,
    *,
    context_length: int = 4096,
    max_concurrent: int = 4,
    memory_in_use: float = 0.0,
) -> AsyncIterator[TextEngine]:
    engine = TextEngine(
        folder,
        thread,
        context_length=context_length,
        max_concurrent=max_concurrent,
        memory_in_use=lambda: memory_in_use,
    )
    await engine.start()
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def thread() -> Iterator[MlxThread]:
    thread = MlxThread()
    yield thread
    assert thread.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, thread: MlxThread) -> Iterator[TextEngine]:
    """A model with random weights: what it says depends on every token before, and nothing it says makes sense."""
    folder = build_random_model(tmp_path_factory.mktemp("models") / "random", context_length=4096)
    engine = TextEngine(folder, thread, context_length=4096, max_concurrent=4, memory_in_use=lambda: 0.0)
    asyncio.run(engine.start())
    yield engine
    engine.close()


class TestSampling:
    @pytest.mark.parametrize(
        "narrow", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}, {"logit_bias": ((65, 100.0),), "top_k": 1}]
    )
    @pytest.mark.parametrize("seed", [None, 3])
    async def test_the_narrowest_filter_leaves_one_token(
        self, engine: TextEngine, narrow: dict[str, Any], seed: int | None
    ) -> None:
        narrowed, _ = await one(engine, chat(sampling=Sampling(temperature=2.0, seed=seed, **narrow)))
        greedy, _ = await one(engine, chat(sampling=replace(GREEDY, logit_bias=narrow.get("logit_bias", ()))))
        assert narrowed == greedy

    async def test_a_filter_wider_than_the_vocabulary_changes_nothing(self, engine: TextEngine) -> None:
        wide = Sampling(seed=5, top_k=2**31)
        assert await one(engine, chat(sampling=wide)) == await one(engine, chat(sampling=Sampling(seed=5)))

    def test_top_k_and_min_p_draw_only_from_what_they_leave(self) -> None:
        logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
        for sampling, allowed in ((Sampling(top_k=2, seed=1), {0, 1}), (Sampling(min_p=0.25, seed=1), {0, 1, 2})):
            sampler = sampler_of(sampling, 4)
            drawn = {int(sampler(logprobs).item()) for _ in range(200)}
            assert drawn == allowed

    async def test_a_bias_forces_and_forbids_tokens(self, engine: TextEngine) -> None:
        # Byte tokens stand in the order of the bytes.
        forced, _ = await one(engine, chat(sampling=replace(GREEDY, logit_bias=((ord("a"), 100.0),)), max_tokens=5))
        assert forced.content == "aaaaa"
        forbidden = replace(GREEDY, logit_bias=((ord("a"), 100.0), (ord("a"), -100.0)))
        assert "a" not in (await one(engine, chat(sampling=forbidden, max_tokens=5)))[0].content

    async def test_a_bias_on_a_token_that_does_not_exist_is_refused(self, engine: TextEngine) -> None:
        with pytest.raises(JobRefused, match="logit_bias: the model's tokens end at 260"):
            await one(engine, chat(sampling=Sampling(logit_bias=((261, 1.0),))))

    def test_the_repetition_penalty_looks_at_prompt_and_answer(self) -> None:
        processors = Processors(
            Sampling(repetition_penalty=2.0), None, prompt_tokens=1, max_tokens=5, end_tokens=frozenset()
        )
        changed: Any = processors(mx.array([1, 3]), mx.array([[1.0, 1.0, -1.0, -1.0]])).tolist()
        assert changed == [[1.0, 0.5, -1.0, -2.0]]
        assert not Processors(Sampling(), None, prompt_tokens=1, max_tokens=5, end_tokens=frozenset())


class TestLogprobs:
    async def test_every_token_of_the_content_has_its_probability(self, engine: TextEngine) -> None:
        said, finished = await one(engine, chat(top_logprobs=3))
        assert len(said.logprobs) == finished.completion_tokens
        assert b"".join(each.drawn.bytes for each in said.logprobs).decode(errors="replace") == said.content
        for each in said.logprobs:
            assert each.top[0] == each.drawn
            values = [alternative.logprob for alternative in each.top]
            assert values == sorted(values, reverse=True)
            assert len(set(values)) == 3
            assert sum(map(math.exp, values)) <= 1.001

    async def test_without_alternatives_only_the_drawn_token_is_told(self, engine: TextEngine) -> None:
        said, _ = await one(engine, chat(top_logprobs=0))
        assert said.logprobs
        assert all(each.top == () for each in said.logprobs)
        assert (await one(engine, chat()))[0].logprobs == []

    async def test_impossible_tokens_have_a_number_that_json_can_hold(self, engine: TextEngine) -> None:
        said, _ = await one(engine, chat(top_logprobs=20, response_schema='{"const": {}}'))
        assert min(alternative.logprob for each in said.logprobs for alternative in each.top) == -9999.0

    async def test_a_removed_stop_text_has_no_probabilities(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "stops", [b"one", b" two", b" th", b"ree", b" four"])
        async with started(folder, thread) as engine:
            said, _ = await one(engine, chat(stop=(" three",), top_logprobs=0))
        assert (said.content, said.end) == ("one two", ChoiceEnd("stop", stop_text=" three"))
        assert [each.drawn.token for each in said.logprobs] == ["one", " two"]


class TestChoices:
    async def test_choices_are_drawn_apart_and_the_prompt_is_counted_once(self, engine: TextEngine) -> None:
        seeded = Sampling(temperature=1.5, seed=7)
        said, finished = await collect(engine.submit(chat(sampling=seeded, choices=4)))
        alone = [await one(engine, chat(sampling=replace(seeded, seed=7 + number))) for number in range(4)]
        assert [choice.content for choice in said] == [single.content for single, _ in alone]
        assert len({choice.content for choice in said}) == 4
        assert [choice.end and choice.end.choice for choice in said] == [0, 1, 2, 3]
        assert finished.prompt_tokens == alone[0][1].prompt_tokens
        assert finished.completion_tokens == sum(single.completion_tokens for _, single in alone)

    async def test_an_idle_engine_takes_more_choices_than_it_has_places(
        self, tmp_path: Path, thread: MlxThread
    ) -> None:
        folder = build_reciting_model(tmp_path / "narrow", ENDLESS, endless=True)
        async with started(folder, thread, max_concurrent=1) as engine:
            said, finished = await collect(engine.submit(chat(choices=4, max_tokens=2)))
            assert [choice.content for choice in said] == ["tomor"] * 4
            assert finished.completion_tokens == 8
            running = engine.submit(chat(max_tokens=4000))
            with pytest.raises(EngineBusy):
                engine.submit(chat(choices=3))
            running.cancel()

    async def test_a_cancelled_job_frees_the_places_of_all_its_choices(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "endless", ENDLESS, endless=True)
        async with started(folder, thread, context_length=10**7, max_concurrent=2) as engine:
            generation = engine.submit(chat(choices=4, max_tokens=10**6))
            await bounded(anext(generation))
            generation.cancel()
            _, finished = await collect(generation)
            assert finished.cancelled
            assert finished.completion_tokens >= 1
            assert (await one(engine, chat(max_tokens=2)))[0].content == "tomor"
            async with asyncio.timeout(30):
                while engine.occupancy.running or engine.occupancy.waiting:
                    await asyncio.sleep(0.005)


class TestSchemas:
    @pytest.mark.parametrize("seed", range(8))
    async def test_whatever_is_drawn_obeys_the_schema(self, engine: TextEngine, seed: int) -> None:
        sampling = replace(WILD, seed=seed)
        said, _ = await one(engine, chat(sampling=sampling, max_tokens=2000, response_schema=json.dumps(SCHEMA)))
        assert said.end == ChoiceEnd("stop")
        value = json.loads(said.content)
        assert value["colour"] in ("red", "blue")
        assert len(value["name"]) <= 6
        assert all(isinstance(size, bool) for size in value["sizes"])
        assert set(value) == {"colour", "name", "sizes"}

    async def test_constrained_and_free_jobs_do_not_disturb_each_other(self, engine: TextEngine) -> None:
        free = [chat(f"question {number}", max_tokens=60) for number in range(3)]
        held = chat("held", max_tokens=2000, sampling=replace(WILD, seed=1), response_schema=json.dumps(SCHEMA))
        alone = [await one(engine, job) for job in (*free, held)]
        assert await asyncio.gather(*(one(engine, job) for job in (*free, held))) == alone

    async def test_every_choice_has_a_place_of_its_own_in_the_grammar(self, engine: TextEngine) -> None:
        job = chat(sampling=WILD, max_tokens=2000, choices=4, response_schema=json.dumps(SCHEMA))
        said, _ = await collect(engine.submit(job))
        assert all(json.loads(choice.content)["colour"] for choice in said)
        assert len({choice.content for choice in said}) > 1

    async def test_a_limit_cuts_a_constrained_answer(self, engine: TextEngine) -> None:
        said, _ = await one(engine, chat(max_tokens=4, response_schema=json.dumps(SCHEMA)))
        assert said.end == ChoiceEnd("length")
        assert '{"colour"'.startswith("".join(said.content.split()))

    async def test_neither_bias_nor_penalty_leads_out_of_the_grammar(self, engine: TextEngine) -> None:
        sampling = Sampling(temperature=2.0, logit_bias=((ord("x"), 100.0),), repetition_penalty=2.0)
        schema = json.dumps({"enum": ["red", "blue"]})
        assert (await one(engine, chat(sampling=sampling, response_schema=schema)))[0].content in ('"red"', '"blue"')

    @pytest.mark.parametrize(
        "schema",
        ['{"type": "strange"}', '{"not": {}}', "[]", "true", '{"$ref": "http://localhost/x"}', '{"pattern": "("}'],
    )
    async def test_a_schema_that_does_not_compile_is_refused_by_name(self, engine: TextEngine, schema: str) -> None:
        with pytest.raises(JobRefused, match=r"^response_format: the JSON schema does not compile$"):
            await one(engine, chat(response_schema=schema))

    async def test_a_broken_grammar_fails_its_job_alone(
        self, engine: TextEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = await one(engine, chat(max_tokens=60))

        def broken(grammar: Grammar) -> bytes:
            raise GrammarBroken()

        monkeypatch.setattr(Grammar, "allowed", broken)
        beside = engine.submit(chat(max_tokens=60))
        with pytest.raises(EngineFailed):
            await one(engine, chat(choices=2, response_schema=json.dumps(SCHEMA)))
        assert ([alone[0]], alone[1]) == await collect(beside)
        assert engine.state == "ready"


class TestTools:
    async def test_a_call_is_read_out_of_the_answer(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "calls", CALL, context_length=4096)
        async with started(folder, thread) as engine:
            said, finished = await one(engine, chat(toolbox=Toolbox((LOOK,))))
            plain, _ = await one(engine, chat())
        assert (said.content, said.calls) == ("I look.", [("look", '{"at": "sky"}')])
        assert said.end == ChoiceEnd("tool_calls")
        assert finished.completion_tokens == len(CALL)
        assert plain.content == b"".join(CALL).decode()
        assert plain.end == ChoiceEnd("stop")

    @pytest.mark.parametrize("seed", range(4))
    async def test_a_required_call_comes_whatever_is_drawn(self, engine: TextEngine, seed: int) -> None:
        toolbox = Toolbox((LOOK, COUNT), required=("look", "count"), parallel=False)
        job = chat(sampling=replace(WILD, seed=seed), toolbox=toolbox, max_tokens=3000)
        said, _ = await one(engine, job)
        assert said.content == ""
        ((name, arguments),) = said.calls
        assert said.end == ChoiceEnd("tool_calls")
        assert name in ("look", "count")
        assert name == "count" or json.loads(arguments)["at"] in ("sky", "sea")

    async def test_a_named_call_calls_nothing_else(self, engine: TextEngine) -> None:
        toolbox = Toolbox((LOOK, COUNT), required=("count",), parallel=False)
        said, _ = await one(engine, chat(sampling=WILD, toolbox=toolbox, max_tokens=4000))
        assert [name for name, _ in said.calls] == ["count"]

    async def test_parameters_that_do_not_compile_are_refused_by_name(self, engine: TextEngine) -> None:
        toolbox = Toolbox((Tool("odd", "", {"properties": {"a": {"type": "strange"}}}),), required=("odd",))
        with pytest.raises(JobRefused, match=r"^tools: the JSON schema of a tool's parameters does not compile$"):
            await one(engine, chat(toolbox=toolbox))


class TestThoughts:
    async def test_thoughts_are_delivered_apart_and_counted(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "thinker", THOUGHT)
        async with started(folder, thread) as engine:
            said, finished = await one(engine, chat(top_logprobs=0))
        assert (said.reasoning, said.content) == ("hm", "Hello.")
        # The first half of the opening tag may be text, so it does not count yet.
        assert (finished.completion_tokens, finished.reasoning_tokens) == (8, 5)
        assert [each.drawn.token for each in said.logprobs] == ["Hel", "lo."]

    async def test_a_thought_that_the_template_opens_needs_no_tag(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "opened", THOUGHT[2:])
        template = template_of(folder)
        # The model goes on from its last token, so the tag stands in front of it.
        write_template(folder, template.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}"))
        async with started(folder, thread) as engine:
            assert engine._preparer is not None
            prepared = engine._preparer.prepare(chat())
            held, _ = await one(engine, chat(response_schema='{"enum": ["red"]}'))
        assert prepared.reading.opened_by == "<think>"
        # Its tags are no tokens, so a grammar could not tell where the thought ends.
        assert (held.reasoning, held.content) == ("", '"red"')

    async def test_a_thought_that_the_template_opened_is_read_to_its_end(
        self, tmp_path: Path, thread: MlxThread
    ) -> None:
        folder = build_reciting_model(tmp_path / "begun", [b">", b"hm", b"</think>", b"Hello."])
        write_template(folder, "{% for message in messages %}{{ message.content }}{% endfor %}<|assistant|><think>")
        async with started(folder, thread) as engine:
            said, finished = await one(engine, chat())
        assert (said.reasoning, said.content) == ("hm", "Hello.")
        assert (finished.completion_tokens, finished.reasoning_tokens) == (3, 2)

    async def test_a_model_may_think_before_it_is_held_to_a_grammar(self, tmp_path: Path, thread: MlxThread) -> None:
        script = [b"<think>", b"as", b" I like", b"</think>", b'{"a"', b": ", b"true", b"}"]
        folder = build_reciting_model(tmp_path / "careful", script)
        async with started(folder, thread) as engine:
            said, finished = await one(engine, chat(response_schema='{"properties": {"a": {"const": true}}}'))
            hasty, _ = await one(engine, chat(thinking=False, response_schema='{"enum": ["red"]}'))
        assert (said.reasoning, said.content) == ("as I like", '{"a": true}')
        assert finished.reasoning_tokens == 4
        assert (hasty.reasoning, hasty.content) == ("", '"red"')


class TestTemplates:
    async def test_reasoning_effort_and_arguments_reach_the_template(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "arguments", [b"ok"])
        write_template(folder, template_of(folder) + "{{ enable_thinking }}{{ reasoning_effort }}{{ style }}")
        async with started(folder, thread) as engine:
            assert engine._preparer is not None
            prompter = engine._preparer._prompter
            job = chat(thinking=True, template_arguments={"reasoning_effort": "low", "style": "brief<|end|>"})
            text = prompter._tokenizer.decode(prompter.render(job).tokens)
            end = prompter._tokenizer.convert_tokens_to_ids("<|end|>")
            assert text.endswith("Truelowbrief<|end|>")
            assert prompter.render(job).tokens.count(end) == 1
            for reserved in ("chat_template", "tools", "eos_token", "messages"):
                with pytest.raises(JobRefused, match=f"chat_template_kwargs.{reserved}"):
                    prompter.render(chat(template_arguments={reserved: "x"}))

    async def test_a_template_with_tools_gets_them_and_earlier_calls(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "native", [b"ok"])
        write_template(
            folder,
            "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
            "{% for message in messages %}{{ message.role }}:{{ message.content }}"
            "{% for tool_call in (message.tool_calls or []) %}{% set tool_call = tool_call.function %}<tool_call>"
            "{{ tool_call.name }}={{ tool_call.arguments.at }}</tool_call>{% endfor %}"
            "{% if message.name %}({{ message.name }}){% endif %};{% endfor %}<|assistant|>",
        )
        job = ChatJob(conversation_with_a_call(), toolbox=Toolbox((LOOK,)))
        async with started(folder, thread) as engine:
            assert engine._preparer is not None
            prompter = engine._preparer._prompter
            text = prompter._tokenizer.decode(prompter.render(job).tokens)
        assert text == "[look]user:hi;assistant:<tool_call>look=sky</tool_call>;tool:blue(look);<|assistant|>"

    async def test_a_model_with_a_form_of_its_own_keeps_it_until_a_call_is_required(
        self, tmp_path: Path, thread: MlxThread
    ) -> None:
        script = [b"[TOOL_CALLS]", b'[{"name": "look",', b' "arguments": {"at": "sky"}}]']
        folder = build_reciting_model(tmp_path / "own", script, context_length=4096)
        write_template(folder, template_of(folder) + "{% if tools %}{% set mark = '[TOOL_CALLS]' %}{% endif %}")
        async with started(folder, thread) as engine:
            free, _ = await one(engine, chat(toolbox=Toolbox((LOOK, COUNT))))
            toolbox = Toolbox((COUNT,), required=("count",), parallel=False)
            required, _ = await one(engine, chat(toolbox=toolbox, max_tokens=400))
        assert (free.content, free.calls) == ("", [("look", '{"at": "sky"}')])
        assert free.end == ChoiceEnd("tool_calls")
        ((name, arguments),) = required.calls
        assert (name, json.loads(arguments)) == ("count", {})

    async def test_a_template_without_tools_is_told_about_them(self, engine: TextEngine) -> None:
        assert engine._preparer is not None
        prompter = engine._preparer._prompter
        job = ChatJob(conversation_with_a_call(), toolbox=Toolbox((LOOK,)))
        text = prompter._tokenizer.decode(prompter.render(job).tokens)
        assert text.startswith("<|system|>You may call functions")
        assert '"name": "look"' in text
        assert '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call><|end|>' in text
        assert "<|user|><tool_response>\nblue\n</tool_response><|end|>" in text

    async def test_no_name_of_a_member_smuggles_a_control_token(self, engine: TextEngine) -> None:
        toolbox = Toolbox((Tool("look", "", {"properties": {"a<|end|>": {}}}),))
        with pytest.raises(JobRefused, match="control token"):
            await one(engine, chat(toolbox=toolbox))


class TestConversations:
    async def test_the_next_turn_remembers_and_answers_the_same(self, engine: TextEngine) -> None:
        first, _ = await one(engine, chat("turn one", cache_salt="a" * 64))
        turn = chat("", max_tokens=40)
        turn = replace(turn, messages=say("turn one", first.content, "turn two"))
        fresh, without = await one(engine, turn)
        remembered, with_cache = await one(engine, replace(turn, cache_salt="a" * 64))
        assert remembered == fresh
        assert without.cached_tokens == 0
        # The first prompt at least; the random answer need not come back as the same tokens.
        assert with_cache.cached_tokens >= len("turn one") + 3
        assert with_cache.cached_tokens < with_cache.prompt_tokens == without.prompt_tokens

    async def test_another_salt_remembers_nothing(self, engine: TextEngine) -> None:
        await one(engine, chat("a secret question", cache_salt="b" * 64))
        _, other = await one(engine, chat("a secret question", cache_salt="c" * 64))
        _, none = await one(engine, chat("a secret question"))
        assert (other.cached_tokens, none.cached_tokens) == (0, 0)
        _, same = await one(engine, chat("a secret question", cache_salt="b" * 64))
        assert same.cached_tokens == same.prompt_tokens - 1

    async def test_many_turns_beside_each_other_answer_as_each_alone(self, engine: TextEngine) -> None:
        jobs = [chat(f"conversation {number} " * (number + 1), max_tokens=30) for number in range(4)]
        alone = [(await one(engine, job))[0] for job in jobs]
        salted = [replace(job, cache_salt=str(number) * 64) for number, job in enumerate(jobs)]
        for _ in range(3):
            assert [said for said, _ in await asyncio.gather(*(one(engine, job) for job in salted))] == alone

    async def test_a_stopped_answer_is_remembered_too(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "story", [b"one", b" two", b" three"])
        async with started(folder, thread) as engine:
            await one(engine, chat("hello there", stop=(" two",), cache_salt="d" * 64))
            said, finished = await one(engine, chat("hello there", cache_salt="d" * 64))
        assert said.content == "one two three"
        assert finished.cached_tokens == finished.prompt_tokens - 1

    async def test_without_memory_to_spare_it_forgets_by_itself(self, tmp_path: Path, thread: MlxThread) -> None:
        folder = build_reciting_model(tmp_path / "full", [b"ok"])
        async with started(folder, thread, memory_in_use=0.99) as engine:
            await one(engine, chat("hello there", cache_salt="e" * 64))
            async with asyncio.timeout(30):
                while len(engine._decoder._conversations):
                    await asyncio.sleep(0.005)


def conversation_with_a_call() -> tuple[ChatMessage, ...]:
    return (
        ChatMessage("user", "hi"),
        ChatMessage("assistant", "", (ToolCall("call_1", "look", {"at": "sky"}),)),
        ChatMessage("tool", "blue", tool_call_id="call_1"),
    )


def template_of(folder: Path) -> str:
    template: str = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    return template


def write_template(folder: Path, template: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
