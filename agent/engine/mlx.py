"""The seam to mlx-lm, which is untyped: ``Any`` stays inside this module.

Everything here runs on the MLX thread.
"""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import mlx.core as mx
from mlx_lm import load as load_from_folder
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from agent.engine.constraint import Constraint, ThoughtTokens
from agent.engine.grammar import Grammars
from agent.engine.job import Sampling, Throughput, TokenLogprob
from agent.engine.prompts import Prompter
from agent.engine.sampling import Processors, sampler_of, token_logprob
from agent.errors import ModelRejected

_PREFILL_BATCH_MAX = 8
_WARM_UP_PROMPT_TOKENS = 128
_WARM_UP_ANSWER_TOKENS = 32

TokenEnd = Literal["stop", "length"]


class Detokenizer(Protocol):
    """Turns tokens into text piece by piece; a character appears once all its bytes are there."""

    @property
    def last_segment(self) -> str: ...

    def add_token(self, token: int) -> None: ...

    def finalize(self) -> None: ...


class PromptState:
    """What the layers of a model remember of some tokens. Never changed once it is made."""

    def __init__(self, tokens: list[int], layers: list[Any]) -> None:
        self.tokens = tokens
        self.layers = layers
        self.size_bytes = sum(int(layer.nbytes) for layer in layers)

    def cut(self, length: int) -> PromptState | None:
        """The state after the first ``length`` tokens, or None when these layers cannot go back."""
        if length == len(self.tokens):
            return self
        if not can_trim_prompt_cache(self.layers):
            return None
        layers = copy.deepcopy(self.layers)
        trim_prompt_cache(layers, len(self.tokens) - length)
        return PromptState(self.tokens[:length], layers)


@dataclass(frozen=True, slots=True)
class Sequence:
    """One choice as the batch needs it. ``max_tokens`` is at least 1; ``grammars`` are needed with ``top_logprobs``.

    ``remembered`` is the state after a first part of the prompt, never all of it. ``remember`` asks for the state at
    the end.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    grammars: Grammars | None = None
    remembered: PromptState | None = None
    remember: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of the sequence ``uid``; with ``end`` ``"stop"`` it is the end token.

    ``failure`` is set instead of a useful ``id`` when something that belongs to this sequence alone went wrong.
    """

    uid: int
    id: int
    end: TokenEnd | None
    logprob: TokenLogprob | None = None
    state: PromptState | None = None
    failure: Exception | None = None


def prepare_thread() -> None:
    """Set up the thread that will make all MLX calls."""
    # MLX seeds every thread alike, so each start of the agent would draw the same "random" answers.
    mx.random.seed(int.from_bytes(os.urandom(8), "little"))
    if mx.default_device() == mx.Device(mx.cpu):
        # On a CPU, compiling means to run the system's C++ compiler and to load what lies in a folder below /tmp that
        # any user of the machine may have made.
        mx.disable_compile()


def memory_gb() -> tuple[float, float, float]:
    """Active, peak and cached memory of MLX in GB. Reads counters only, so any thread may ask."""
    active, peak, cached = mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory()
    return round(active / 1e9, 3), round(peak / 1e9, 3), round(cached / 1e9, 3)


class LoadedModel:
    """Weights and tokenizer in memory."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self.end_tokens = frozenset(int(token) for token in tokenizer.eos_token_ids)
        # Few tokenizers know tokens that their model has no logits for; most models have some to spare.
        logits = getattr(getattr(model, "args", None), "vocab_size", len(tokenizer))
        self.vocabulary_size: int = min(len(tokenizer), logits)
        self.thought_tokens: ThoughtTokens | None = None
        if tokenizer.has_thinking:
            self.thought_tokens = ThoughtTokens(tokenizer.think_start_tokens[0], tuple(tokenizer.think_end_tokens))

    def prompter(self) -> Prompter:
        return Prompter(self._tokenizer)

    def grammars(self) -> Grammars | None:
        """What compiles grammars for this vocabulary, made anew; None for the rare tokenizer that is not a fast one."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return Grammars(backend.to_str(), sorted(self.end_tokens)) if backend is not None else None

    def detokenizer(self) -> Detokenizer:
        detokenizer: Detokenizer = self._tokenizer.detokenizer
        return detokenizer


def load(path: Path) -> LoadedModel:
    """Load a folder's weights into memory; never runs code of the model's own.

    Raises:
        ModelRejected: mlx-lm cannot load it, it has no chat template, or its caches cannot be batched.
    """
    try:
        model, tokenizer = load_from_folder(str(path), tokenizer_config={"trust_remote_code": False})[:2]
    except Exception as error:
        # No request has been seen yet, so the message speaks of the folder alone.
        reason = str(error).strip().splitlines()
        raise ModelRejected(
            f"{path} cannot be loaded: {reason[0] if reason else type(error).__name__}. Download the model again in "
            "MLX format, or update mlx-lm if its architecture is new."
        ) from error
    if not tokenizer.has_chat_template:
        raise ModelRejected(f"{path} has no chat template, so it cannot answer chats. Choose an instruct model.")
    if not all(hasattr(cache, "merge") for cache in make_prompt_cache(model)):
        raise ModelRejected(f"{path}: mlx-lm cannot batch requests for this architecture. Choose another model.")
    return LoadedModel(model, tokenizer)


class Batch:
    """Sequences that are decoded together; new ones join and finished ones leave between steps."""

    def __init__(self, loaded: LoadedModel, max_concurrent: int) -> None:
        self._loaded = loaded
        self._sequences: dict[int, tuple[Sequence, Processors]] = {}
        self._generator: Any = BatchGenerator(
            loaded.model,
            stop_tokens=[[token] for token in sorted(loaded.end_tokens)],
            completion_batch_size=max_concurrent,
            prefill_batch_size=min(_PREFILL_BATCH_MAX, max_concurrent),
            stream=mx.default_stream(mx.default_device()),
        )

    def insert(self, sequence: Sequence) -> int:
        """Add a sequence; returns its ``uid``."""
        processors = Processors(
            sequence.sampling,
            sequence.constraint,
            prompt_tokens=len(sequence.prompt),
            max_tokens=sequence.max_tokens,
            end_tokens=self._loaded.end_tokens,
        )
        remembered = sequence.remembered
        (uid,) = self._generator.insert(
            [sequence.prompt[len(remembered.tokens) :] if remembered else sequence.prompt],
            [sequence.max_tokens],
            caches=[remembered.layers] if remembered else None,
            all_tokens=[list(remembered.tokens)] if remembered else None,
            samplers=[sampler_of(sequence.sampling, self._loaded.vocabulary_size)],
            logits_processors=[[processors] if processors else []],
        )
        self._sequences[int(uid)] = (sequence, processors)
        return int(uid)

    def remove(self, uid: int) -> None:
        """Drop a sequence before its end."""
        del self._sequences[uid]
        self._generator.remove([uid])

    def finish(self, uid: int) -> PromptState | None:
        """Take out a sequence whose answer has ended before its tokens did; returns its state when it asked for it."""
        sequence, _ = self._sequences.pop(uid)
        states = self._generator.remove([uid], return_prompt_caches=sequence.remember)
        if not sequence.remember:
            return None
        layers, tokens = states[uid]
        return PromptState(tokens, layers)

    def step(self) -> list[Token]:
        """One token for each decoding sequence, and one more stretch of the prompts that are still read."""
        _, responses = self._generator.next()
        return [self._token(response) for response in responses]

    def _token(self, response: Any) -> Token:
        uid, token, end = int(response.uid), int(response.token), response.finish_reason
        sequence, processors = self._sequences[uid]
        logprob, state, failure = None, None, processors.failure
        if end is not None:
            # The batch has dropped the sequence by itself.
            del self._sequences[uid]
            if sequence.remember:
                state = PromptState(response.all_tokens, response.prompt_cache)
        if sequence.top_logprobs is not None and sequence.grammars is not None and end != "stop":
            try:
                top = min(sequence.top_logprobs, self._loaded.vocabulary_size)
                logprob = token_logprob(response.logprobs, token, top, sequence.grammars.token_bytes)
            except Exception as error:  # noqa: BLE001 - one sequence's failure is its own
                failure = error
        return Token(uid, token, end, logprob, state, failure)

    def close(self) -> None:
        self._generator.close()


def measure(loaded: LoadedModel, context_length: int) -> Throughput:
    """Warm the model up, then time one request alone (provider agent, section 11)."""
    prompt_tokens = max(2, min(_WARM_UP_PROMPT_TOKENS, context_length // 2))
    answer_tokens = max(2, min(_WARM_UP_ANSWER_TOKENS, context_length // 4))
    prompt = [token % loaded.vocabulary_size for token in range(prompt_tokens)]
    _time_request(loaded, prompt, 1)
    first_seconds, rest_seconds = _time_request(loaded, prompt, answer_tokens)
    return Throughput(
        prefill_tps=round(prompt_tokens / first_seconds, 1), decode_tps=round((answer_tokens - 1) / rest_seconds, 1)
    )


def _time_request(loaded: LoadedModel, prompt: list[int], answer_tokens: int) -> tuple[float, float]:
    generator: Any = BatchGenerator(loaded.model, stream=mx.default_stream(mx.default_device()))
    # Without stop sequences an early end token cannot cut the measurement short.
    generator.insert([prompt], [answer_tokens], stop_sequences=[StopSequences()])
    begin = time.perf_counter()
    generator.next_generated()
    first = time.perf_counter()
    for _ in range(answer_tokens - 1):
        generator.next_generated()
    end = time.perf_counter()
    generator.close()
    return max(first - begin, 1e-9), max(end - first, 1e-9)
