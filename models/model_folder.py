"""The shipped folder: what a loader of MLX models expects to find, and the check that it finds it."""

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

from models.errors import WrittenModelDiffers
from models.vocabulary import CONTEXT_TOKENS, CONTROL_TOKENS, END, VOCABULARY_SIZE, write_tokenizer

END_ID = CONTROL_TOKENS.index(END)
# Wide and shallow: on a CPU, two broad layers learn more in the same time than four narrow ones.
MODEL_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "max_position_embeddings": CONTEXT_TOKENS,
    "vocab_size": VOCABULARY_SIZE,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
    "torch_dtype": "float16",
}
GENERATION_CONFIG = {"eos_token_id": END_ID, "pad_token_id": END_ID, "do_sample": True, "temperature": 0.7}


def new_model() -> Model:
    """The untrained model, its weights drawn from MLX's global random state (float32)."""
    return Model(cast("Any", ModelArgs).from_dict(MODEL_CONFIG))


def named_weights(model: Model) -> dict[str, mx.array]:
    """Every learned array under its name in `model.safetensors`."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters())))


def parameter_count(model: Model) -> int:
    """How many numbers the model has learned."""
    return sum(array.size for array in named_weights(model).values())


def write_model_folder(folder: Path, model: Model, tokenizer: Tokenizer, card: str) -> None:
    """Writes weights (float16), configuration, tokenizer and README; checks them; only then moves them in place.

    Raises `WrittenModelDiffers`, with `folder` untouched, if what was written does not load as the same model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        stage = Path(name)
        _write_weights(model, stage / "model.safetensors")
        _write_json(MODEL_CONFIG, stage / "config.json")
        _write_json(GENERATION_CONFIG, stage / "generation_config.json")
        write_tokenizer(tokenizer, stage)
        (stage / "README.md").write_text(card, encoding="utf-8")
        _check_weights(model, stage)
        for file in stage.iterdir():
            file.replace(folder / file.name)


def _write_weights(model: Model, file: Path) -> None:
    weights = {name: array.astype(mx.float16) for name, array in named_weights(model).items()}
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})


def _write_json(content: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_weights(model: Model, stage: Path) -> None:
    """Loads what was written and compares it with what was trained, number by number."""
    loaded = named_weights(load_model(stage)[0])
    for name, array in named_weights(model).items():
        if not mx.array_equal(loaded[name], array.astype(mx.float16)):
            raise WrittenModelDiffers(f"The weights {name} read back from {stage} are not those that were trained.")
