"""Training data: one stream of tokens, and the rows that are cut from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from models.conversations import conversations
from models.corpus import Section
from models.vocabulary import CHAT_TEMPLATE, END

PASSES = 4

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class TokenStream:
    """Samples one after the other: their tokens, and the index at which each sample starts."""

    tokens: Tokens
    starts: NDArray[np.int64]

    def rows(self, count: int, length: int, rng: np.random.Generator) -> Tokens:
        """Random rows (count, length); each begins where a sample does, as every prompt will."""
        begins = rng.choice(self.starts, count)
        return np.take(self.tokens, begins[:, None] + np.arange(length), mode="wrap")


def build_stream(sections: list[Section], tokenizer: Tokenizer, rng: np.random.Generator) -> TokenStream:
    """Shuffles `PASSES` passes over the sections, each both as conversations and as running text, into one stream."""
    texts = [text for _ in range(PASSES) for text in _sample_texts(sections, tokenizer, rng)]
    order = rng.permutation(len(texts))
    encodings = tokenizer.encode_batch([texts[index] for index in order])
    samples = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
    starts = np.cumsum([0, *map(len, samples[:-1])], dtype=np.int64)
    return TokenStream(np.concatenate(samples), starts)


def _sample_texts(sections: list[Section], tokenizer: Tokenizer, rng: np.random.Generator) -> Iterator[str]:
    """Conversations as the shipped chat template renders them, so that training and serving agree; then plain text."""
    renderer = cast("Any", PreTrainedTokenizerFast)(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE)
    for chat in conversations(sections, rng):
        yield str(renderer.apply_chat_template([turn._asdict() for turn in chat], tokenize=False))
    for section in sections:
        text = f"{section.heading}\n\n{' '.join(section.sentences)}"
        yield text.replace("<|", "< |") + END
