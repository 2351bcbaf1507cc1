"""Hugging Face's names of the tensors in CLIPModel, SiglipModel and their towers."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import (
    AnyConfig,
    CLIPConfig,
    ImageTowerConfig,
    ResNetConfig,
    TextConfig,
    TextTowerConfig,
    VisionConfig,
)
from .errors import WeightsError
from .table import Entry, same

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def hf_entries(config: AnyConfig) -> Iterator[Entry]:
    """Pair our names with Hugging Face's."""
    siglip = is_siglip(config)
    if not isinstance(config, ImageTowerConfig):
        yield from _text_entries(config.text, siglip)
    if not isinstance(config, TextTowerConfig):
        yield from _vision_entries(config.vision, siglip)
    if isinstance(config, CLIPConfig):
        yield Entry("logit_scale", ("logit_scale",), theirs_shape=(1,) if siglip else ())
        if siglip:  # CLIPModel has none
            yield Entry("logit_bias", ("logit_bias",), theirs_shape=(1,))


def _text_entries(text: TextConfig, siglip: bool) -> Iterator[Entry]:
    yield Entry("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",))
    yield Entry("positional_embedding", ("text_model.embeddings.position_embedding.weight",))
    yield from _block_entries("transformer", "text_model", text.layers)
    yield from same("ln_final", "text_model.final_layer_norm")
    if text.projection:
        theirs = "text_model.head" if siglip else "text_projection"
        yield Entry("text_projection", (f"{theirs}.weight",), transposed=True)
    if text.projection_bias:
        yield Entry("text_projection_bias", ("text_model.head.bias",))


def _vision_entries(vision: VisionConfig | ResNetConfig, siglip: bool) -> Iterator[Entry]:
    if isinstance(vision, ResNetConfig) or vision.stem != "patch":
        raise WeightsError("Hugging Face's CLIP has no ResNet and no convolutional stem")
    if vision.pool == "token":
        yield Entry("visual.class_embedding", ("vision_model.embeddings.class_embedding",))
    patches = "vision_model.embeddings.patch_embedding"
    yield from same("visual.conv1", patches, *(("weight", "bias") if vision.patch_bias else ("weight",)))
    yield Entry("visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",))
    if vision.pre_norm:
        yield from same("visual.ln_pre", "vision_model.pre_layrnorm")  # sic
    yield from _block_entries("visual.transformer", "vision_model", vision.layers)
    yield from same("visual.ln_post", "vision_model.post_layernorm")
    if vision.pool == "map":
        head = "vision_model.head"
        yield Entry("visual.attn_pool.probe", (f"{head}.probe",))
        yield from same("visual.attn_pool", f"{head}.attention", "in_proj_weight", "in_proj_bias")
        yield from same("visual.attn_pool.out_proj", f"{head}.attention.out_proj")
        yield from same("visual.attn_pool.norm", f"{head}.layernorm")
        yield from same("visual.attn_pool.mlp.c_fc", f"{head}.mlp.fc1")
        yield from same("visual.attn_pool.mlp.c_proj", f"{head}.mlp.fc2")
    if vision.projection:
        yield Entry("visual.proj", ("visual_projection.weight",), transposed=True)


def _block_entries(ours: str, theirs: str, layers: int) -> Iterator[Entry]:
    for i in range(layers):
        here, there = f"{ours}.resblocks.{i}", f"{theirs}.encoder.layers.{i}"
        for parameter in ("weight", "bias"):
            parts = tuple(f"{there}.self_attn.{part}_proj.{parameter}" for part in "qkv")
            yield Entry(f"{here}.attn.in_proj_{parameter}", parts)
        for own, foreign in _BLOCK.items():
            yield from same(f"{here}.{own}", f"{there}.{foreign}")


def is_siglip(config: AnyConfig) -> bool:
    """Tell which of Hugging Face's two families a model belongs to."""
    vision, text = getattr(config, "vision", None), getattr(config, "text", None)
    return getattr(vision, "pool", None) == "map" or getattr(text, "pool", None) == "last"
