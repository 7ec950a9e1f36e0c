"""The official ``openai`` package, a coordinator and a real agent, for what is not a conversation."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Generator
from typing import Any

import httpx
import openai
import pytest

from agent.testing.tiny_embedder import DIMENSIONS, build_random_embedder
from agent.testing.tiny_flux import build_random_flux
from agent.testing.tiny_whisper import build_random_whisper, sine_wav
from tests.support.processes import Coordinator, Key, Process, agent, eventually

EMBEDDER = "tiny-embedder"
WHISPER = "tiny-whisper"
FLUX = "tiny-flux"


@pytest.fixture(scope="module")
def key(up: Coordinator) -> Key:
    return up.books.open_account(5_000_000)


@pytest.fixture
def client(up: Coordinator, key: Key) -> Generator[openai.OpenAI, None, None]:
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key=key.secret, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def embedder(up: Coordinator, key: Key, tmp_path_factory: pytest.TempPathFactory) -> Generator[Process, None, None]:
    folder = tmp_path_factory.mktemp("embedder")
    with agent(folder, up.url, build_random_embedder(folder / EMBEDDER)) as process:
        eventually(lambda: EMBEDDER in up.models(key.secret), "the agent to be routable")
        yield process


@pytest.fixture(scope="module")
def whisper(up: Coordinator, key: Key, tmp_path_factory: pytest.TempPathFactory) -> Generator[Process, None, None]:
    folder = tmp_path_factory.mktemp("whisper")
    with agent(folder, up.url, build_random_whisper(folder / WHISPER)) as process:
        eventually(lambda: WHISPER in up.models(key.secret), "the agent to be routable")
        yield process


@pytest.fixture(scope="module")
def painter(up: Coordinator, key: Key, tmp_path_factory: pytest.TempPathFactory) -> Generator[Process, None, None]:
    folder = tmp_path_factory.mktemp("painter")
    with agent(folder, up.url, build_random_flux(folder / FLUX), module="agent.testing.tiny_flux") as process:
        eventually(lambda: FLUX in up.models(key.secret), "the agent to be routable")
        yield process


@pytest.mark.usefixtures("embedder")
class TestEmbeddings:
    def test_vectors_come_in_order_and_only_what_was_read_is_charged(
        self, up: Coordinator, key: Key, client: openai.OpenAI
    ) -> None:
        before = up.books.balance(key.account_id)[0]
        raw = client.embeddings.with_raw_response.create(model=EMBEDDER, input=["a hold", "a capture"])
        answer = raw.parse()

        assert [one.index for one in answer.data] == [0, 1]
        assert [len(one.embedding) for one in answer.data] == [DIMENSIONS] * 2
        assert answer.model == EMBEDDER
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == len("a hold") + len("a capture")
        assert raw.headers["x-provider-encrypted"] == "true"
        assert raw.headers["x-provider-trust-level"] == "none"

        job_id = raw.headers["x-inference-job-id"]
        found = client.get(f"/generations/{job_id}", cast_to=object)
        assert (found["prompt_tokens"], found["completion_tokens"]) == (15, 0)  # type: ignore[index]
        assert found["cost_micro_usd"] == 100  # type: ignore[index]
        assert up.books.balance(key.account_id) == (before - 100, 0, 0)  # type: ignore[operator]
        up.books.require_balanced()

    def test_both_encodings_hold_the_same_vector(self, client: openai.OpenAI) -> None:
        # The package asks for base64 and decodes it, unless it is told otherwise.
        default = client.embeddings.create(model=EMBEDDER, input="ledger").data[0].embedding
        floats = client.embeddings.create(model=EMBEDDER, input="ledger", encoding_format="float").data[0].embedding
        assert default == pytest.approx(floats, abs=1e-6)

    def test_fewer_dimensions_are_made_when_they_are_asked_for(self, client: openai.OpenAI) -> None:
        assert len(client.embeddings.create(model=EMBEDDER, input="x", dimensions=8).data[0].embedding) == 8

    def test_many_texts_go_through(self, client: openai.OpenAI) -> None:
        answer = client.embeddings.create(model=EMBEDDER, input=[f"text {number}" for number in range(1_000)])
        assert [one.index for one in answer.data] == list(range(1_000))

    @pytest.mark.parametrize(
        ("members", "param"),
        [
            ({"input": [[1, 2]]}, "input"),
            ({"input": []}, "input"),
            ({"input": [""]}, "input"),
            ({"input": "x", "dimensions": 0}, "dimensions"),
        ],
    )
    def test_what_cannot_be_done_is_refused_by_name(
        self, client: openai.OpenAI, members: dict[str, object], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=EMBEDDER, **members)  # type: ignore[arg-type]
        assert caught.value.param == param

    def test_what_the_engine_refuses_costs_nothing(self, up: Coordinator, key: Key, client: openai.OpenAI) -> None:
        before = up.books.balance(key.account_id)
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model=EMBEDDER, input="x", dimensions=DIMENSIONS + 1)
        assert up.books.balance(key.account_id) == before

    def test_a_conversation_with_an_embedding_model_is_told_where_to_go(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
            client.chat.completions.create(model=EMBEDDER, messages=[{"role": "user", "content": "x"}])

    def test_the_model_says_what_it_is(self, client: openai.OpenAI) -> None:
        entry = client.models.retrieve(EMBEDDER).model_dump()
        assert entry["model_type"] == entry["metadata"]["model_type"] == "embedding"
        assert entry["pricing"] == {"prompt": "0.00000001", "completion": "0", "input_cache_read": "0.00000001"}


@pytest.mark.usefixtures("whisper")
class TestTranscriptions:
    def test_a_transcript_is_paid_by_the_milliseconds_that_were_heard(
        self, up: Coordinator, key: Key, client: openai.OpenAI
    ) -> None:
        before = up.books.balance(key.account_id)[0]
        sound = sine_wav(30.0)
        raw = client.audio.transcriptions.with_raw_response.create(model=WHISPER, file=("tone.wav", sound))
        answer = raw.parse()

        assert isinstance(answer.text, str)
        assert answer.usage is not None
        assert answer.usage.type == "duration"
        assert answer.usage.seconds == 30
        assert raw.headers["x-provider-encrypted"] == "true"
        found = client.get(f"/generations/{raw.headers['x-inference-job-id']}", cast_to=object)
        assert (found["unit"], found["units"], found["cost_micro_usd"]) == ("audio_ms", 30_000, 500)  # type: ignore[index]
        assert up.books.balance(key.account_id) == (before - 500, 0, 0)  # type: ignore[operator]
        usage = client.get("/payments/usage", cast_to=object)["usage"][0]  # type: ignore[index]
        assert (usage["unit"], usage["units"], usage["prompt_tokens"]) == ("audio_ms", 30_000, 0)
        up.books.require_balanced()

    def test_a_short_sound_costs_the_minimum(self, up: Coordinator, key: Key, client: openai.OpenAI) -> None:
        before = up.books.balance(key.account_id)[0]
        client.audio.transcriptions.create(model=WHISPER, file=("tone.wav", sine_wav(0.5)), language="en")
        assert up.books.balance(key.account_id)[0] == before - 100  # type: ignore[operator]

    def test_every_response_format_has_its_shape(self, client: openai.OpenAI) -> None:
        def ask(response_format: Any) -> Any:
            return client.audio.transcriptions.create(
                model=WHISPER,
                file=("tone.wav", sine_wav(2.0)),
                language="en",
                temperature=0,
                response_format=response_format,
                timestamp_granularities=["segment"],
            )

        verbose = ask("verbose_json")
        assert (verbose.duration, verbose.language) == (2.0, "english")
        assert [one.id for one in verbose.segments] == list(range(len(verbose.segments)))
        assert all(0 <= one.start <= one.end <= 2 for one in verbose.segments)
        assert ask("json").text == verbose.text
        assert ask("text") == f"{verbose.text}\n"
        times = re.findall(r"^(\d\d:\d\d:\d\d)[,.](\d{3}) --> ", ask("srt"), re.MULTILINE)
        assert len(times) == len(verbose.segments)
        vtt = ask("vtt")
        assert vtt.startswith("WEBVTT\n\n")
        assert vtt.count(" --> ") == len(times)

    @pytest.mark.parametrize(
        ("members", "param"),
        [
            ({"language": "English"}, "language"),
            ({"response_format": "docx"}, "response_format"),
            ({"temperature": 7}, "temperature"),
            ({"stream": True}, "stream"),
            ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
            ({"include": ["logprobs"]}, "include"),
        ],
    )
    def test_what_cannot_be_done_is_refused_by_name(
        self, client: openai.OpenAI, members: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(**{"model": WHISPER, "file": ("tone.wav", sine_wav(0.1)), **members})
        assert caught.value.param == param

    def test_a_file_that_no_machine_can_read_costs_nothing(
        self, up: Coordinator, key: Key, client: openai.OpenAI
    ) -> None:
        before = up.books.balance(key.account_id)
        with pytest.raises(openai.BadRequestError):
            client.audio.transcriptions.create(model=WHISPER, file=("tone.wav", sine_wav(1)[:40]))
        assert up.books.balance(key.account_id) == before

    def test_the_largest_file_goes_through_and_a_larger_one_is_refused(self, client: openai.OpenAI) -> None:
        second = sine_wav(1.0, rate=48_000, channels=2)[44:]
        size = 25 * 1024 * 1024
        data = (second * (size // len(second) + 1))[: size - 44]
        head = sine_wav(1.0, rate=48_000, channels=2)[:44]
        sound = head[:40] + len(data).to_bytes(4, "little") + data
        answer = client.audio.transcriptions.create(
            model=WHISPER, file=("tone.wav", sound), language="en", temperature=0
        )
        assert answer.usage.seconds == pytest.approx(len(data) / 192_000, abs=0.01)  # type: ignore[union-attr]
        with pytest.raises(openai.APIStatusError) as caught:
            client.audio.transcriptions.create(model=WHISPER, file=("tone.wav", sound + b"x"))
        assert (caught.value.status_code, caught.value.code) == (413, "payload_too_large")


@pytest.mark.usefixtures("painter")
class TestImages:
    def test_images_are_paid_when_they_are_there_and_fetched_by_their_url(
        self, up: Coordinator, key: Key, client: openai.OpenAI
    ) -> None:
        before = up.books.balance(key.account_id)[0]
        raw = client.images.with_raw_response.generate(
            model=FLUX, prompt="a red house", n=2, size="64x48", extra_body={"steps": 1, "seed": 3}
        )
        answer = raw.parse()

        assert answer.data is not None
        assert len(answer.data) == 2
        assert raw.headers["x-provider-encrypted"] == "true"
        found = client.get(f"/generations/{raw.headers['x-inference-job-id']}", cast_to=object)
        assert (found["unit"], found["units"], found["cost_micro_usd"]) == ("pixel", 2 * 1_048_576, 3_000)  # type: ignore[index]
        assert up.books.balance(key.account_id) == (before - 3_000, 0, 0)  # type: ignore[operator]
        up.books.require_balanced()

        url = answer.data[0].url
        assert url is not None
        fetched = httpx.get(url)
        assert (fetched.status_code, fetched.headers["content-type"]) == (200, "image/png")
        assert fetched.headers["cache-control"] == "private, no-store"
        assert fetched.content[16:24] == struct.pack(">II", 64, 48)
        for broken in (
            url.replace("exp=", "exp=9"),
            url[:-1] + ("0" if url[-1] != "0" else "1"),
            url.partition("?")[0],
        ):
            assert httpx.get(broken).status_code == 404

    def test_an_image_in_the_answer_is_the_one_of_its_seed(self, client: openai.OpenAI) -> None:
        def ask() -> str | None:
            answer = client.images.generate(
                model=FLUX,
                prompt="a red house",
                size="32x32",
                response_format="b64_json",
                extra_body={"steps": 1, "seed": 3},
            )
            assert answer.data is not None
            return answer.data[0].b64_json

        first = ask()
        assert first is not None
        assert base64.b64decode(first).startswith(b"\x89PNG")
        assert ask() == first

    @pytest.mark.parametrize(
        ("members", "param"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": "x" * 4_001}, "prompt"),
            ({"n": 5}, "n"),
            ({"size": "4096x64"}, "size"),
            ({"size": "big"}, "size"),
            ({"output_format": "webp"}, "output_format"),
            ({"extra_body": {"steps": 51}}, "steps"),
            ({"extra_body": {"response_format": "file"}}, "response_format"),
        ],
    )
    def test_what_cannot_be_done_is_refused_by_name(
        self, client: openai.OpenAI, members: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(**{"model": FLUX, "prompt": "x", **members})
        assert caught.value.param == param

    def test_what_the_engine_refuses_costs_nothing(self, up: Coordinator, key: Key, client: openai.OpenAI) -> None:
        before = up.books.balance(key.account_id)
        with pytest.raises(openai.BadRequestError):
            client.images.generate(model=FLUX, prompt="x", size="32x32", extra_body={"negative_prompt": "y"})
        assert up.books.balance(key.account_id) == before


def test_an_account_without_money_is_refused_before_anything_is_asked(up: Coordinator) -> None:
    secret = up.books.open_account(0).secret
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key=secret, max_retries=0) as poor:
        for ask in (
            lambda: poor.embeddings.create(model="Qwen3-Embedding-0.6B-8bit", input="x"),
            lambda: poor.images.generate(prompt="x"),
            lambda: poor.audio.transcriptions.create(model="whisper-1", file=("tone.wav", sine_wav(0.1))),
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                ask()
            assert caught.value.status_code == 402
