"""OpenAI's and open_clip's state dicts: the layout is ours, under various prefixes and with a few other names.

open_clip's SigLIP models have the image tower of the timm library, under "visual.trunk.".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..config import CLIPConfig, VisionConfig
from .table import Entry, read_table, same, write_table

_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # in files from OpenAI's time


def unwrap(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Strip what training wrappers put in front of names, and drop entries that are no weights."""
    if isinstance(inner := tensors.get("state_dict"), Mapping):  # open_clip's training checkpoints
        tensors = inner
    found = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue
        while name.startswith(_WRAPPERS):
            name = name.removeprefix("module.").removeprefix("_orig_mod.")
        found[name.replace("._orig_mod.", ".")] = tensor
    return found


def read_openai(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an OpenAI or open_clip model to ours; names already ours stay as they are."""
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("text.")  # of open_clip's CustomTextCLIP
        if name in _NO_WEIGHTS:
            continue
        if name in ("text_projection.weight", "text_projection.bias"):  # open_clip's proj_bias
            tensor = tensor.T.contiguous() if tensor.ndim == 2 else tensor
            name = "text_projection" if tensor.ndim == 2 else "text_projection_bias"
        found[name] = tensor.squeeze() if name in ("logit_scale", "logit_bias") else tensor
    trunk = {name: tensor for name, tensor in found.items() if name.startswith("visual.trunk.")}
    if trunk:
        layers = 1 + max(int(name.split(".")[3]) for name in trunk if name.startswith("visual.trunk.blocks."))
        trunk = read_table(trunk, _timm_entries(layers), "the image tower, timm's,")
        found = {**{name: t for name, t in found.items() if not name.startswith("visual.trunk.")}, **trunk}
        found["visual.positional_embedding"] = found["visual.positional_embedding"][0]
    return found


def write_openai(tensors: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """Rename our tensors to open_clip's names, which are OpenAI's wherever OpenAI has such a model."""
    vision, text = config.vision, config.text
    found = dict(tensors)
    if text.projection_bias:
        found["text_projection.weight"] = found.pop("text_projection").T.contiguous()
        found["text_projection.bias"] = found.pop("text_projection_bias")
    if isinstance(vision, VisionConfig) and vision.pool == "map":
        trunk = {name: tensor for name, tensor in found.items() if name.startswith("visual.")}
        found = {name: tensor for name, tensor in found.items() if name not in trunk}
        trunk["visual.positional_embedding"] = trunk["visual.positional_embedding"][None]
        found |= write_table(trunk, _timm_entries(vision.layers))
    if is_custom(config):
        own = ("visual.", "logit_")
        found = {name if name.startswith(own) else f"text.{name}": tensor for name, tensor in found.items()}
    return found


def is_custom(config: CLIPConfig) -> bool:
    """Tell whether open_clip needs its class CustomTextCLIP for such a model."""
    return config.text.projection_bias or (
        isinstance(config.vision, VisionConfig) and config.vision.pool == "map"
    )


def _timm_entries(layers: int) -> Iterator[Entry]:
    """Pair our names of SigLIP's image tower with timm's; positions have an axis more there."""
    here, there = "visual", "visual.trunk"
    yield from same(f"{here}.conv1", f"{there}.patch_embed.proj")
    yield Entry(f"{here}.positional_embedding", (f"{there}.pos_embed",))
    for i in range(layers):
        own, foreign = f"{here}.transformer.resblocks.{i}", f"{there}.blocks.{i}"
        for parameter in ("weight", "bias"):
            yield Entry(f"{own}.attn.in_proj_{parameter}", (f"{foreign}.attn.qkv.{parameter}",))
        yield from same(f"{own}.attn.out_proj", f"{foreign}.attn.proj")
        for norm in (1, 2):
            yield from same(f"{own}.ln_{norm}", f"{foreign}.norm{norm}")
        yield from same(f"{own}.mlp.c_fc", f"{foreign}.mlp.fc1")
        yield from same(f"{own}.mlp.c_proj", f"{foreign}.mlp.fc2")
    yield from same(f"{here}.ln_post", f"{there}.norm")
    pool, attn = f"{here}.attn_pool", f"{there}.attn_pool"
    yield Entry(f"{pool}.probe", (f"{attn}.latent",))
    for parameter in ("weight", "bias"):
        yield Entry(
            f"{pool}.in_proj_{parameter}", (f"{attn}.q.{parameter}", f"{attn}.kv.{parameter}"), shares=(1, 2)
        )
    yield from same(f"{pool}.out_proj", f"{attn}.proj")
    yield from same(f"{pool}.norm", f"{attn}.norm")
    yield from same(f"{pool}.mlp.c_fc", f"{attn}.mlp.fc1")
    yield from same(f"{pool}.mlp.c_proj", f"{attn}.mlp.fc2")
