"""What happens to one sequence's logits before a token is drawn from them, and the drawing. Runs on the MLX thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_logits_processors,
    make_sampler,
)

from agent.engine.constraint import Constraint
from agent.engine.job import Alternative, Sampling, TokenLogprob

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]
"""From a sequence's tokens so far and its logits, shape (1, vocabulary), to new logits."""

_GREEDY_BELOW = 1e-3
_LOGPROB_MIN = -9999.0
"""What stands for a probability of zero, which JSON has no logarithm for; OpenAI's number."""


def sampler_of(sampling: Sampling, vocabulary_size: int) -> Sampler:
    """Sequences that share a sampler are sampled in one call, so equal settings give one object."""
    if sampling.temperature < _GREEDY_BELOW or sampling.top_p == 0:
        return _shared_sampler(0.0, 0.0, 0.0, 0)
    top_k = sampling.top_k if sampling.top_k < vocabulary_size else 0
    if sampling.seed is None:
        return _shared_sampler(sampling.temperature, sampling.top_p, sampling.min_p, top_k)
    return _SeededSampler(sampling.temperature, sampling.top_p, sampling.min_p, top_k, sampling.seed)


@lru_cache(maxsize=256)
def _shared_sampler(temperature: float, top_p: float, min_p: float, top_k: int) -> Sampler:
    return make_sampler(temperature, top_p=top_p, min_p=min_p, top_k=top_k)


class _SeededSampler:
    """Draws from a random sequence of its own, so neighbours in the batch do not change it."""

    def __init__(self, temperature: float, top_p: float, min_p: float, top_k: int, seed: int) -> None:
        self._scale = 1.0 / temperature
        self._top_p = top_p
        self._min_p = min_p
        self._top_k = top_k
        self._key = mx.random.key(seed % 2**64)

    def __call__(self, logprobs: mx.array) -> mx.array:
        self._key, key = mx.random.split(self._key)
        if self._top_p < 1:
            logprobs = apply_top_p(logprobs, self._top_p)
        if self._min_p > 0:
            logprobs = apply_min_p(logprobs, self._min_p)
        if self._top_k > 0:
            logprobs = apply_top_k(logprobs, self._top_k)
        return mx.random.categorical(logprobs * self._scale, key=key)


class Processors:
    """All that one sequence's logits go through, in order: bias, penalties, and the constraint last.

    A failure is kept in ``failure`` instead of being raised, because it belongs to this sequence and not to the batch.
    """

    def __init__(
        self,
        sampling: Sampling,
        constraint: Constraint | None,
        *,
        prompt_tokens: int,
        max_tokens: int,
        end_tokens: frozenset[int],
    ) -> None:
        self.failure: Exception | None = None
        self._steps = _penalties(sampling, prompt_tokens, max_tokens)
        if constraint is not None:
            self._steps.append(_Constrained(constraint, prompt_tokens, end_tokens))

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self.failure is not None:
            return logits
        try:
            for step in self._steps:
                logits = step(tokens, logits)
        except Exception as error:  # noqa: BLE001 - one sequence's failure is its own
            self.failure = error
        return logits


class _Constrained:
    """Takes away the logits of all tokens that the constraint does not allow."""

    def __init__(self, constraint: Constraint, prompt_tokens: int, end_tokens: frozenset[int]) -> None:
        self._constraint = constraint
        self._seen = prompt_tokens
        self._end_tokens = mx.array(sorted(end_tokens))

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        # mlx-lm draws a token while the last one is delivered, so the newest tokens are only here.
        drawn: Any = tokens[self._seen :].tolist()
        for token in drawn:
            self._constraint.take(token)
        self._seen += len(drawn)
        allowed = self._constraint.allowed()
        if allowed is None:
            logits[:, self._end_tokens] = -mx.inf
            return logits
        return mx.where(_bits(allowed, logits.shape[-1]), logits, -mx.inf)


def _bits(mask: bytes, size: int) -> mx.array:
    """The lowest bit of each byte first, as booleans; what lies beyond the mask is false."""
    buffer: Any = memoryview(mask)
    octets = mx.array(buffer)
    bits = ((octets[:, None] >> mx.arange(8, dtype=mx.uint8)) & 1).reshape(-1).astype(mx.bool_)
    if bits.size < size:
        bits = mx.concatenate([bits, mx.zeros(size - bits.size, dtype=mx.bool_)])
    return bits[:size]


def _penalties(sampling: Sampling, prompt_tokens: int, max_tokens: int) -> list[Processor]:
    # mlx-lm counts over the newest tokens of prompt and answer; these settings make it all tokens for the repetition
    # penalty, and the whole answer and only that for the others.
    over_all = make_logits_processors(
        logit_bias=dict(sampling.logit_bias),
        repetition_penalty=sampling.repetition_penalty if sampling.repetition_penalty != 1 else None,
        repetition_context_size=prompt_tokens + max_tokens,
    )
    over_answer = make_logits_processors(
        presence_penalty=sampling.presence_penalty,
        presence_context_size=max_tokens,
        frequency_penalty=sampling.frequency_penalty,
        frequency_context_size=max_tokens,
    )
    return [*over_all, *(_without_prompt(processor, prompt_tokens) for processor in over_answer)]


def _without_prompt(processor: Processor, prompt_tokens: int) -> Processor:
    return lambda tokens, logits: processor(tokens[prompt_tokens:], logits)


def token_logprob(logprobs: mx.array, token: int, top: int, token_bytes: Callable[[int], bytes]) -> TokenLogprob:
    """Reads one place's log probabilities, shape (vocabulary,). ``top`` is how many alternatives are wanted."""
    ranked: list[int] = []
    if top:
        best: Any = mx.argpartition(-logprobs, kth=top - 1)[:top]
        best = best[mx.argsort(-logprobs[best])]
        ranked = best.tolist()
    values: Any = logprobs[mx.array([token, *ranked])].tolist()
    drawn, *others = (
        _alternative(token_bytes(number), value) for number, value in zip([token, *ranked], values, strict=True)
    )
    return TokenLogprob(drawn, tuple(others))


def _alternative(content: bytes, logprob: float) -> Alternative:
    return Alternative(content.decode(errors="replace"), content, max(logprob, _LOGPROB_MIN))
