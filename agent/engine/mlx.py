"""The seam to mlx-lm, which is untyped: ``Any`` stays inside this module.

Everything here but ``Prompter`` runs on the MLX thread.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import mlx.core as mx
from mlx_lm import load as load_from_folder
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import apply_top_p, make_logits_processors, make_sampler

from agent.engine.job import ChatMessage, Sampling, Throughput
from agent.errors import JobRefused, ModelRejected
from agent.log import describe

_log = logging.getLogger(__name__)

_PREFILL_BATCH_MAX = 8
_GREEDY_BELOW = 1e-3
_WARM_UP_PROMPT_TOKENS = 128
_WARM_UP_ANSWER_TOKENS = 32

TokenEnd = Literal["stop", "length"]


class Detokenizer(Protocol):
    """Turns tokens into text piece by piece; a character appears once all its bytes are there."""

    @property
    def last_segment(self) -> str: ...

    def add_token(self, token: int) -> None: ...

    def finalize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of the sequence ``uid``; with ``end`` ``"stop"`` it is the end token."""

    uid: int
    id: int
    end: TokenEnd | None


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


class Prompter:
    """Renders chats with the model's own template. Belongs to one thread, which need not be MLX's."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template_arguments: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True}
        renderer = tokenizer._tokenizer.apply_chat_template
        if (
            getattr(tokenizer, "_chat_template", None) is None
            and "sanitize_control_tokens" in inspect.signature(renderer).parameters
        ):
            self._template_arguments["sanitize_control_tokens"] = True
        else:
            _log.warning("control tokens that are spelled out in messages act as control tokens with this model")

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt's tokens.

        A control token that a message spells out, such as ``<|end|>``, becomes the tokens of that plain text.

        Raises:
            JobRefused: the template does not take these messages, or the tokenizer knows a control token's text only
                as the control token.
        """
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            tokens = self._tokenizer.apply_chat_template(chat, **self._template_arguments)
        except Exception as error:  # noqa: BLE001 - templates refuse with errors of every class
            # Their messages quote what they refuse.
            _log.info("a chat template refused a request: %s", describe(error))
            raise JobRefused("messages: the model's chat template does not accept them") from None
        if not tokens:
            raise JobRefused("messages: the prompt is empty")
        return list(tokens)


class LoadedModel:
    """Weights and tokenizer in memory."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self.end_tokens = frozenset(int(token) for token in tokenizer.eos_token_ids)
        self.vocabulary_size = len(tokenizer)

    def prompter(self) -> Prompter:
        return Prompter(self._tokenizer)

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
        self._generator: Any = BatchGenerator(
            loaded.model,
            stop_tokens=[[token] for token in sorted(loaded.end_tokens)],
            completion_batch_size=max_concurrent,
            prefill_batch_size=min(_PREFILL_BATCH_MAX, max_concurrent),
            stream=mx.default_stream(mx.default_device()),
        )

    def insert(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> int:
        """Add a sequence; returns its ``uid``. ``max_tokens`` is at least 1."""
        (uid,) = self._generator.insert(
            [prompt],
            [max_tokens],
            samplers=[_sampler(sampling)],
            logits_processors=[_penalties(sampling, len(prompt), max_tokens)],
        )
        return int(uid)

    def remove(self, uid: int) -> None:
        self._generator.remove([uid])

    def step(self) -> list[Token]:
        """One token for each decoding sequence, and one more stretch of the prompts that are still read."""
        _, responses = self._generator.next()
        return [Token(response.uid, int(response.token), response.finish_reason) for response in responses]

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


def _sampler(sampling: Sampling) -> Callable[[mx.array], mx.array]:
    # Sequences that share a sampler are sampled in one call, so equal settings give one object.
    if sampling.temperature < _GREEDY_BELOW or sampling.top_p == 0:
        return _shared_sampler(0.0, 0.0)
    if sampling.seed is None:
        return _shared_sampler(sampling.temperature, sampling.top_p)
    return _SeededSampler(sampling.temperature, sampling.top_p, sampling.seed)


@lru_cache(maxsize=256)
def _shared_sampler(temperature: float, top_p: float) -> Callable[[mx.array], mx.array]:
    return make_sampler(temperature, top_p=top_p)


class _SeededSampler:
    """Draws from a random sequence of its own, so neighbours in the batch do not change it."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self._scale = 1.0 / temperature
        self._top_p = top_p
        self._key = mx.random.key(seed % 2**64)

    def __call__(self, logprobs: mx.array) -> mx.array:
        self._key, key = mx.random.split(self._key)
        if self._top_p < 1:
            logprobs = apply_top_p(logprobs, self._top_p)
        return mx.random.categorical(logprobs * self._scale, key=key)


def _penalties(
    sampling: Sampling, prompt_tokens: int, max_tokens: int
) -> list[Callable[[mx.array, mx.array], mx.array]]:
    # mlx-lm counts over the newest tokens of prompt and answer; these settings make it the whole answer and only that.
    processors = make_logits_processors(
        presence_penalty=sampling.presence_penalty,
        presence_context_size=max_tokens,
        frequency_penalty=sampling.frequency_penalty,
        frequency_context_size=max_tokens,
    )

    def over_answer(processor: Any) -> Callable[[mx.array, mx.array], mx.array]:
        return lambda tokens, logits: processor(tokens[prompt_tokens:], logits)

    return [over_answer(processor) for processor in processors]
