"""The tiny model's tokenizer: byte-level BPE, four control tokens and the chat template."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

VOCABULARY_SIZE = 1024
CONTEXT_TOKENS = 1024
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CONTROL_TOKENS = (END, SYSTEM, USER, ASSISTANT)

# What a user writes must stay text: a control token spelled out in a message gets a space and so no longer matches.
_DEFUSED = "text" + "".join(f" | replace('{token}', '< {token[1:]}')" for token in CONTROL_TOKENS)
# The parts of a message are joined first: two harmless parts can make one control token.
_JOINED = "(message.content or []) | selectattr('text', 'defined') | map(attribute='text') | join"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set role = {'developer': 'system', 'tool': 'user'}.get(message.role, message.role) -%}"
    "{%- if role not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('Unknown role: ' ~ message.role) -}}"
    "{%- endif -%}"
    "{%- set text = message.content if message.content is string else " + _JOINED + " -%}"
    "{{- '<|' ~ role ~ '|>' -}}{{- " + _DEFUSED + " -}}{{- '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learns `VOCABULARY_SIZE` tokens from the texts; the control tokens come first, then all 256 bytes.

    Every string that is valid Unicode encodes without an unknown token and decodes to itself.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, the chat template inside the latter."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
