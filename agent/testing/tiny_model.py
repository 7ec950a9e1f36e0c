"""Builds llama models of some hundred kilobytes, with a byte tokenizer and a chat template.

Two kinds: one with random weights, whose answers mean nothing but depend on the whole prompt, and one that recites a
script, so that a test knows every token of the answer beforehand.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

CONTROL_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
END_TOKEN = "<|end|>"

_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception(message.role) }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_random_model(folder: Path, *, seed: int = 7, context_length: int = 512) -> Path:
    """A model whose weights are drawn with ``seed``; returns ``folder``."""
    vocabulary = _vocabulary(())
    shape = _Shape(len(vocabulary), hidden=64, layers=2, heads=4, kv_heads=2, head=16, inner=128)
    key = mx.random.key(seed)
    weights = {}
    for name, size in shape.weights().items():
        key, draw = mx.random.split(key)
        spread = 1.0 if "embed" in name or "head" in name else size[-1] ** -0.5
        weights[name] = mx.ones(size) if len(size) == 1 else mx.random.normal(size, key=draw) * spread
    _write(folder, shape, weights, vocabulary, context_length)
    return folder


def build_reciting_model(
    folder: Path, script: Sequence[bytes], *, endless: bool = False, context_length: int = 512
) -> Path:
    """A model that answers every chat with ``script``, one entry a token, and then ends or begins again.

    Entries must differ from each other: the model knows nothing but the last token. Returns ``folder``.
    """
    if len(set(script)) != len(script):
        raise ValueError("the entries of a script must differ from each other")
    vocabulary = _vocabulary(script)
    ids = [vocabulary[_visible(entry)] for entry in script]
    order = [vocabulary["<|assistant|>"], *ids, ids[0] if endless else vocabulary[END_TOKEN]]
    shape = _Shape(len(vocabulary), hidden=len(vocabulary), layers=1, heads=1, kv_heads=1, head=8, inner=8)
    # Attention and feed-forward add nothing, so the output sees the last token alone, as one component of a vector.
    weights = {name: mx.ones(size) if len(size) == 1 else mx.zeros(size) for name, size in shape.weights().items()}
    weights["model.embed_tokens.weight"] = mx.eye(len(vocabulary))
    following = [[0.0] * len(vocabulary) for _ in vocabulary]
    for token, next_token in itertools.pairwise(order):
        following[next_token][token] = 1.0
    weights["lm_head.weight"] = mx.array(following)
    _write(folder, shape, weights, vocabulary, context_length)
    return folder


class _Shape:
    def __init__(
        self, vocabulary: int, *, hidden: int, layers: int, heads: int, kv_heads: int, head: int, inner: int
    ) -> None:
        self.vocabulary = vocabulary
        self.hidden = hidden
        self.layers = layers
        self.heads = heads
        self.kv_heads = kv_heads
        self.head = head
        self.inner = inner

    def weights(self) -> dict[str, tuple[int, ...]]:
        sizes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocabulary, self.hidden),
        }
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            sizes[f"{layer}.input_layernorm.weight"] = (self.hidden,)
            sizes[f"{layer}.post_attention_layernorm.weight"] = (self.hidden,)
            sizes[f"{layer}.self_attn.q_proj.weight"] = (self.heads * self.head, self.hidden)
            sizes[f"{layer}.self_attn.k_proj.weight"] = (self.kv_heads * self.head, self.hidden)
            sizes[f"{layer}.self_attn.v_proj.weight"] = (self.kv_heads * self.head, self.hidden)
            sizes[f"{layer}.self_attn.o_proj.weight"] = (self.hidden, self.heads * self.head)
            sizes[f"{layer}.mlp.gate_proj.weight"] = (self.inner, self.hidden)
            sizes[f"{layer}.mlp.up_proj.weight"] = (self.inner, self.hidden)
            sizes[f"{layer}.mlp.down_proj.weight"] = (self.hidden, self.inner)
        return sizes


def _vocabulary(script: Sequence[bytes]) -> dict[str, int]:
    """Ids of all 256 bytes, of the longer script entries and of the control tokens, in their visible spelling."""
    words = [_visible(bytes([byte])) for byte in range(256)]
    words += [_visible(entry) for entry in script if len(entry) > 1]
    return {word: number for number, word in enumerate([*words, *CONTROL_TOKENS])}


def _visible(content: bytes) -> str:
    """The spelling that byte-level tokenizers give bytes: printable ones stand for themselves, the rest move up."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return "".join(chr(byte) if byte in plain else chr(0x100 + moved.index(byte)) for byte in content)


def _write(
    folder: Path, shape: _Shape, weights: dict[str, mx.array], vocabulary: dict[str, int], context_length: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": context_length,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": vocabulary[END_TOKEN],
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TOKEN,
        "model_max_length": context_length,
        "chat_template": _TEMPLATE,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(vocabulary)))


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    control = [
        {
            "id": vocabulary[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in CONTROL_TOKENS
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": control,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: number for word, number in vocabulary.items() if word not in CONTROL_TOKENS},
            "merges": [],
        },
    }
