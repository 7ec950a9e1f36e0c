"""The catalog: which models the network knows, and what bounds a request to one."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from domain.kinds import EMBEDDING, IMAGE, KINDS, TEXT, TRANSCRIPTION, ModelKind


class CatalogModel(msgspec.Struct, frozen=True):
    """``context_length`` and ``output_max`` are tokens; sizes are gigabytes.

    The chat template adds at most ``template_tokens + message_tokens * messages`` tokens to the text of a prompt.
    """

    id: str
    display_name: str
    kind: ModelKind = TEXT
    size_gb: float = 0.0
    min_ram_gb: int = 0
    quantization: str = "8bit"
    architecture: str = ""
    description: str = ""
    context_length: int = 131_072
    output_max: int = 131_072
    template_tokens: int = 64
    message_tokens: int = 16
    created: int = 1_777_500_000


_SEED = (
    CatalogModel(
        id="qwen3.5-27b-claude-opus-8bit",
        display_name="Qwen3.5 27B Claude Opus Distilled",
        size_gb=27.0,
        min_ram_gb=36,
        architecture="dense",
        description="27B dense model",
    ),
    CatalogModel(
        id="mlx-community/Trinity-Mini-8bit",
        display_name="Trinity Mini",
        size_gb=26.0,
        min_ram_gb=48,
        architecture="moe",
        description="27B adaptive mixture of experts",
    ),
    CatalogModel(
        id="mlx-community/gemma-4-26b-a4b-it-8bit",
        display_name="Gemma 4 26B",
        size_gb=28.0,
        min_ram_gb=36,
        architecture="moe",
        description="26B mixture of experts, 4B active",
    ),
    CatalogModel(
        id="mlx-community/Qwen3.5-122B-A10B-8bit",
        display_name="Qwen3.5 122B",
        size_gb=122.0,
        min_ram_gb=128,
        architecture="moe",
        description="122B mixture of experts, 10B active",
    ),
    CatalogModel(
        id="mlx-community/MiniMax-M2.5-8bit",
        display_name="MiniMax M2.5",
        size_gb=243.0,
        min_ram_gb=256,
        architecture="moe",
        description="239B mixture of experts, 11B active",
    ),
)

_SEED_MEDIA = (
    CatalogModel(
        id="flux_2_klein_4b_q8p.ckpt",
        display_name="FLUX.2 Klein 4B",
        kind=IMAGE,
        size_gb=8.0,
        min_ram_gb=16,
        architecture="diffusion",
        description="4B image model",
    ),
    CatalogModel(
        id="flux_2_klein_9b_q8p.ckpt",
        display_name="FLUX.2 Klein 9B",
        kind=IMAGE,
        size_gb=18.0,
        min_ram_gb=32,
        architecture="diffusion",
        description="9B image model",
    ),
    CatalogModel(
        id="whisper-large-v3-turbo",
        display_name="Whisper Large v3 Turbo",
        kind=TRANSCRIPTION,
        size_gb=1.6,
        min_ram_gb=8,
        quantization="fp16",
        architecture="whisper",
        description="809M speech model",
    ),
    CatalogModel(
        id="Qwen3-Embedding-0.6B-8bit",
        display_name="Qwen3 Embedding 0.6B",
        kind=EMBEDDING,
        size_gb=0.7,
        min_ram_gb=4,
        architecture="qwen3",
        description="0.6B embedding model",
        context_length=32_768,
        output_max=0,
    ),
)

TINY_MODEL_ID = "darkbloom-tiny"

_DEVELOPMENT = (
    CatalogModel(
        id=TINY_MODEL_ID,
        display_name="Darkbloom Tiny",
        size_gb=0.01,
        min_ram_gb=1,
        quantization="none",
        architecture="llama",
        description="A toy made from this project's documentation, for trying the network without a download",
        context_length=1_024,
        output_max=1_024,
        created=1_790_000_000,
    ),
)


class Catalog:
    """The active models. An open catalog, which only development mode has, also admits any model that a
    connected machine offers."""

    def __init__(self, models: Mapping[str, CatalogModel], *, open_to_unlisted: bool) -> None:
        self._models = models
        self.open_to_unlisted = open_to_unlisted

    @classmethod
    def built_in(cls, *, development: bool) -> Catalog:
        models = _SEED + _SEED_MEDIA + (_DEVELOPMENT if development else ())
        return cls({model.id: model for model in models}, open_to_unlisted=development)

    def get(self, model_id: str) -> CatalogModel | None:
        return self._models.get(model_id)

    def active(self) -> list[CatalogModel]:
        """All listed models, in order of their ids."""
        return [self._models[model_id] for model_id in sorted(self._models)]

    def size_of(self, model_id: str) -> float | None:
        """A model's size, 0 when nobody knows it, None for a model that nobody can ask for."""
        model = self._models.get(model_id)
        if model is not None:
            return model.size_gb
        return 0.0 if self.open_to_unlisted else None

    def kind_of(self, model_id: str) -> ModelKind:
        """What a model makes; text when nobody listed it."""
        model = self._models.get(model_id)
        return model.kind if model is not None else TEXT

    def first_of(self, kind: ModelKind) -> CatalogModel | None:
        """The model that a request of this kind gets when it names none."""
        return next((model for model in self._models.values() if model.kind == kind), None)

    def unlisted(self, model_id: str, context_length: int, kind: str = TEXT) -> CatalogModel:
        """A stand-in entry for a model that only its machines describe."""
        bound = context_length or 8_192
        known: ModelKind = next((one for one in KINDS if one == kind), TEXT)
        return CatalogModel(id=model_id, display_name=model_id, kind=known, context_length=bound, output_max=bound)
