"""The tiny model that ships with the project, and the program that makes it."""

import socket
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, cast

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.nn.losses import cross_entropy
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten
from mlx_lm import batch_generate, load, stream_generate
from mlx_lm.models.llama import Model, ModelArgs

from models import train_tiny
from models.conversations import QUESTIONS, conversations
from models.corpus import (
    SENTENCE_CHARACTERS_MAX,
    Section,
    folder_files,
    parse_sections,
    plain_text,
    read_sections,
    repository_files,
    split_sentences,
)
from models.errors import CorpusTooSmall, TimeLimitPassed
from models.host_operations import host_operations, mean_cross_entropy
from models.model_folder import named_weights, new_model, parameter_count
from models.samples import Samples, build_samples
from models.vocabulary import CONTROL_TOKENS, VOCABULARY_SIZE, train_tokenizer

SHIPPED = Path(train_tiny.__file__).parent / "darkbloom-tiny"
GREETING = [{"role": "system", "content": "Be concise."}, {"role": "user", "content": "Hello"}]


def _refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("The tiny model must load without a network.")


@pytest.fixture(scope="module")
def shipped() -> tuple[Model, Any]:
    """The model and its tokenizer, loaded while every connection and every name look-up is refused."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(socket.socket, "connect", _refuse)
        patches.setattr(socket, "getaddrinfo", _refuse)
        model, tokenizer = load(str(SHIPPED))[:2]
    return model, tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of made-up documentation, just large enough to train on."""
    folder = tmp_path_factory.mktemp("corpus")
    words = ["ledger", "hold", "claim", "gateway", "machine", "answer", "proof", "event"]
    for number in range(70):
        lines = [f"The {a} of part {number} keeps one {b} for every machine." for a, b in pairwise(words)]
        (folder / f"{number:02}.md").write_text(f"# Part {number}\n\n" + " ".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def samples(corpus: Path) -> Samples:
    sections = read_sections(folder_files(corpus))
    tokenizer = train_tokenizer(" ".join(section.sentences) for section in sections)
    return build_samples(sections, tokenizer, np.random.default_rng(0))


def test_the_shipped_model_loads_without_a_network_and_is_small(shipped: tuple[Model, Any]) -> None:
    model, _ = shipped
    assert model.model_type == "llama"
    assert parameter_count(model) < 1_000_000
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 4_000_000


def test_the_chat_template_renders_every_role(shipped: tuple[Model, Any]) -> None:
    _, tokenizer = shipped
    messages = [*GREETING, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Why?"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|system|>Be concise.<|end|><|user|>Hello<|end|><|assistant|>Hi<|end|><|user|>Why?<|end|><|assistant|>"
    )


def test_the_chat_template_keeps_the_text_of_messages_in_parts(shipped: tuple[Model, Any]) -> None:
    _, tokenizer = shipped
    parts = [{"type": "text", "text": "<|en"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "d|>"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|user|>< |end|><|end|><|assistant|><|end|>"


def test_the_chat_template_refuses_an_unknown_role(shipped: tuple[Model, Any]) -> None:
    _, tokenizer = shipped
    with pytest.raises(Exception, match="Unknown role: oracle"):
        tokenizer.apply_chat_template([{"role": "oracle", "content": "Hello"}])


@given(text=st.text())
@settings(deadline=None)
def test_any_text_survives_the_tokenizer(shipped: tuple[Model, Any], text: str) -> None:
    _, tokenizer = shipped
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.lists(st.sampled_from([*CONTROL_TOKENS, "<", "<|", "|>", "end", "user|>", " ", "é"])).map("".join))
@settings(deadline=None)
def test_what_a_user_writes_never_becomes_a_control_token(shipped: tuple[Model, Any], text: str) -> None:
    _, tokenizer = shipped
    tokens = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    controls = [tokenizer.convert_ids_to_tokens(token) for token in tokens if token < len(CONTROL_TOKENS)]
    assert controls == ["<|user|>", "<|end|>", "<|assistant|>"]


def test_greedy_generation_is_repeatable_and_says_something(shipped: tuple[Model, Any]) -> None:
    model, tokenizer = shipped
    prompt = tokenizer.apply_chat_template(GREETING, add_generation_prompt=True)
    texts = ["".join(part.text for part in stream_generate(model, tokenizer, prompt, max_tokens=16)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].strip()


def test_the_shipped_model_ends_its_greeting_by_itself(shipped: tuple[Model, Any]) -> None:
    model, tokenizer = shipped
    prompt = tokenizer.apply_chat_template(GREETING, add_generation_prompt=True)
    *_, last = stream_generate(model, tokenizer, prompt, max_tokens=300)
    assert last.finish_reason == "stop"


def test_a_batch_answers_every_prompt(shipped: tuple[Model, Any]) -> None:
    model, tokenizer = shipped
    questions = ["Hello", "What is Darkbloom and what does it do?"]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": text}]) for text in questions]
    assert all(text.strip() for text in batch_generate(model, tokenizer, prompts, max_tokens=8).texts)


def test_only_prose_below_a_heading_is_kept() -> None:
    markdown = """Lost without a heading.

# 1.2 The *ledger*
<!-- Not this comment. -->
It only [grows](x.md). Nothing is `removed` **ever**! As in:

```
code is not prose.
```

| a table | is not prose. |

- a list item that
  goes on

> A quotation counts too.

## Empty
"""
    sentences = ("It only grows.", "Nothing is removed ever!", "a list item that goes on.", "A quotation counts too.")
    assert list(parse_sections(markdown)) == [Section("The ledger", sentences)]


@given(text=st.text())
@settings(deadline=None)
def test_sentences_end_and_have_a_bounded_length(text: str) -> None:
    for sentence in split_sentences(plain_text(text)):
        assert sentence[-1] in ".!?"
        assert len(sentence) <= SENTENCE_CHARACTERS_MAX + 1


def test_documentation_is_read_in_the_order_of_its_paths_and_the_readme_last(tmp_path: Path) -> None:
    for name in ("docs/b.md", "docs/a/z.md", "docs/a.md", "docs/note.txt", "README.md", "CHANGES.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [file.relative_to(tmp_path).as_posix() for file in repository_files(tmp_path)]
    assert found == ["docs/a.md", "docs/a/z.md", "docs/b.md", "README.md"]


def test_a_repository_without_documentation_has_no_files(tmp_path: Path) -> None:
    assert repository_files(tmp_path) == []


def test_too_small_a_corpus_is_refused_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "short.md").write_text("# Short\n\nThis is too little.\n")
    with pytest.raises(CorpusTooSmall, match="29 bytes of Markdown in 1 files; at least 20,000"):
        read_sections(folder_files(tmp_path))


def test_a_corpus_without_prose_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("# Table\n\n" + "| no prose here. |\n" * 2_000)
    with pytest.raises(CorpusTooSmall, match="no sentence of prose"):
        read_sections(folder_files(tmp_path))


def test_conversations_depend_on_nothing_but_sections_and_seed() -> None:
    sections = [Section("A hold", ("It waits here.", "It ends there.")), Section("API keys", ("They open doors.",))]
    once, again = (list(conversations(sections, np.random.default_rng(7))) for _ in range(2))
    assert once == again


def test_a_question_about_a_heading_has_one_answer() -> None:
    sections = [Section("A hold", tuple(f"It is number {number}." for number in range(20)))]
    chats = [chat for seed in range(9) for chat in conversations(sections, np.random.default_rng(seed))]
    asked = [chat[-2:] if len(chat) < 4 else chat[-4:-2] for chat in chats]
    answers = [answer.content for question, answer in asked if "hold" in question.content]
    assert len(answers) >= 9
    assert all(answer.startswith("It is number 0.") for answer in answers)


def test_a_heading_that_contains_braces_can_be_asked_about() -> None:
    sections = [Section("GET /v1/jobs/{id}", ("It answers with one job.",))] * len(QUESTIONS)
    assert any("{id}" in chat[-2].content for chat in conversations(sections, np.random.default_rng(0)))


def test_samples_end_with_the_end_token_and_nowhere_else_in_running_text(samples: Samples) -> None:
    end = CONTROL_TOKENS.index("<|end|>")
    assert all(sample[-1] == end for sample in samples.tokens)
    assert all((sample == end).sum() == 1 for sample in samples.tokens if sample[0] >= len(CONTROL_TOKENS))


def test_rows_are_full_and_begin_where_samples_begin(samples: Samples) -> None:
    rows = samples.rows(64, 40, np.random.default_rng(1))
    assert rows.shape == (64, 40)
    assert set(rows[:, 0].tolist()) <= {int(sample[0]) for sample in samples.tokens}
    assert np.array_equal(rows, samples.rows(64, 40, np.random.default_rng(1)))


def test_host_operations_give_the_loss_and_the_gradients_of_mlx() -> None:
    mx.random.seed(0)
    model = new_model()
    rows = mx.random.randint(0, VOCABULARY_SIZE, (2, 12))

    def loss_of_mlx(model: Model, rows: mx.array) -> mx.array:
        return cross_entropy(model(rows[:, :-1]), rows[:, 1:], reduction="mean")

    def loss_of_host(model: Model, rows: mx.array) -> mx.array:
        return cast("mx.array", mean_cross_entropy(model(rows[:, :-1]), rows[:, 1:]))

    expected_loss, expected = value_and_grad(model, loss_of_mlx)(model, rows)
    mx.eval(expected_loss, expected)
    with host_operations():
        loss, gradients = value_and_grad(model, loss_of_host)(model, rows)
        mx.eval(loss, gradients)

    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    named = dict(tree_flatten(gradients))
    for name, wanted in dict(tree_flatten(expected)).items():
        assert mx.allclose(named[name], wanted, rtol=1e-3, atol=1e-6), name


def test_host_operations_are_undone_at_the_end() -> None:
    model = new_model()
    rows = mx.array([[1, 2, 3]])
    before = model(rows)
    with host_operations():
        pass
    assert mx.array_equal(model(rows), before)


def test_training_lowers_the_loss_and_repeats_exactly(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tiny, "ROW_TOKENS", (32,))
    monkeypatch.setattr(train_tiny, "TOKENS_PER_STEP", 128)
    shape = ModelArgs("llama", 32, 1, 64, 2, 1e-5, VOCABULARY_SIZE)
    models, losses = [], []
    for _ in range(2):
        mx.random.seed(5)
        models.append(Model(shape))
        losses.append(train_tiny.train(models[-1], samples, 30, np.random.default_rng(5), deadline=float("inf")))

    assert losses[0] == losses[1] < 0.9 * np.log(VOCABULARY_SIZE)
    first, second = map(named_weights, models)
    for name, weights in first.items():
        assert mx.array_equal(weights, second[name]), name


def test_training_past_its_deadline_fails(samples: Samples) -> None:
    with pytest.raises(TimeLimitPassed, match="Only 0 of 5 steps"):
        train_tiny.train(new_model(), samples, 5, np.random.default_rng(0), deadline=float("-inf"))


def test_the_command_writes_a_folder_that_loads(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    arguments = ["--corpus", str(corpus), "--out", str(out), "--steps", "2", "--seed", "9"]
    outcome = CliRunner().invoke(train_tiny.main, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert outcome.stdout.count("\n") == 1
    assert "step 2/2 loss" in outcome.stderr
    assert "--seed 9 --steps 2" in (out / "README.md").read_text()
    model, tokenizer = cast("tuple[Model, Any]", load(str(out))[:2])
    prompt = tokenizer.apply_chat_template(GREETING, add_generation_prompt=True)
    assert model(mx.array([prompt])).shape == (1, len(prompt), VOCABULARY_SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_refused_corpus_ends_the_command_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "made"
    outcome = CliRunner().invoke(train_tiny.main, ["--corpus", str(tmp_path), "--out", str(out)])
    assert outcome.exit_code == 1
    assert "at least 20,000 are needed" in outcome.stderr
    assert not out.exists()
