"""Training data: samples as tokens, and the rows that are packed from them."""

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

PASSES = 8

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Samples:
    """Conversations and texts as tokens, each with its end token; never empty."""

    tokens: tuple[Tokens, ...]

    def rows(self, count: int, length: int, rng: np.random.Generator) -> Tokens:
        """Rows (count, length) of samples drawn anew each time, so that no sample foretells the next.

        Each row begins where a sample does, as every prompt will, and ends wherever it is full.
        """
        return np.stack([self._row(length, rng) for _ in range(count)])

    def _row(self, length: int, rng: np.random.Generator) -> Tokens:
        parts: list[Tokens] = []
        missing = length
        while missing > 0:
            parts.append(self.tokens[int(rng.integers(len(self.tokens)))][:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts)


def build_samples(sections: list[Section], tokenizer: Tokenizer, rng: np.random.Generator) -> Samples:
    """`PASSES` passes over the sections as conversations and one as running text."""
    texts = [text for _ in range(PASSES) for text in _conversation_texts(sections, tokenizer, rng)]
    texts += [_running_text(section) for section in sections]
    return Samples(tuple(np.asarray(encoding.ids, np.int32) for encoding in tokenizer.encode_batch(texts)))


def _conversation_texts(sections: list[Section], tokenizer: Tokenizer, rng: np.random.Generator) -> Iterator[str]:
    """Conversations as the shipped chat template renders them, so that training and serving agree."""
    renderer = cast("Any", PreTrainedTokenizerFast)(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE)
    for chat in conversations(sections, rng):
        yield str(renderer.apply_chat_template([turn._asdict() for turn in chat], tokenize=False))


def _running_text(section: Section) -> str:
    """The section without roles; a control token that the documentation spells out is kept from being one."""
    text = f"{section.heading}\n\n{' '.join(section.sentences)}"
    return text.replace("<|", "< |") + END
