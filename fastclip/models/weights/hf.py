"""Hugging Face's CLIPModel and SiglipModel and their towers: names and config.json, both ways.

model_type          class                              here
clip                CLIPModel                          CLIP
clip_text_model     CLIPTextModel(WithProjection)      TextTower, without or with projection
clip_vision_model   CLIPVisionModel(WithProjection)    ImageTower, likewise
siglip, …           SiglipModel, SiglipText-, VisionModel
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..config import (
    OPENAI_MEAN,
    OPENAI_STD,
    AnyConfig,
    CLIPConfig,
    ImageTowerConfig,
    ResNetConfig,
    TextConfig,
    TextTowerConfig,
    VisionConfig,
)
from .errors import WeightsError
from .hf_names import hf_entries, is_siglip
from .table import read_table, write_table

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_LEGACY_EOS = 2  # what configs said before transformers 4.31, whose models read a row off at its highest id


def read_hf(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str
) -> tuple[dict[str, Tensor], AnyConfig]:
    """Rename the tensors of a Hugging Face folder and read its config.

    Args:
        tensors: by Hugging Face's names.
        config: of config.json.
        preprocessor: of preprocessor_config.json, or empty.
        where: the folder, for messages.

    Raises:
        WeightsError: the model is of another type, or its tensors do not fit the config.
    """
    kind = str(config.get("model_type"))
    family, _, side = kind.partition("_")
    if family not in ("clip", "siglip") or side not in ("", "text_model", "vision_model"):
        raise WeightsError(f"{where}: model_type {kind!r} is none of clip, siglip, or a tower of theirs")
    try:
        ours = _read_config(family, side, config, preprocessor, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{where}/config.json: {error!r}") from error
    if side and not any(name.startswith(f"{side}.") for name in tensors):
        # The towers by themselves lost that prefix in transformers 5.
        projections = ("text_projection.weight", "visual_projection.weight")
        tensors = {name if name in projections else f"{side}.{name}": t for name, t in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    if side:  # a tower's config may stand beside the weights of a whole model
        own = ("text",) if side == "text_model" else ("vision", "visual")
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(own)}
    return read_table(tensors, hf_entries(ours), where), ours


def write_hf(
    tensors: Mapping[str, Tensor], config: AnyConfig
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any] | None]:
    """Rename our tensors and describe the model as Hugging Face does.

    A bias of the logits is left out where its class has none: embeddings and their order do not depend on it.

    Returns:
        tensors, config.json, preprocessor_config.json (None without an image tower).

    Raises:
        WeightsError: Hugging Face has no such model.
    """
    siglip = is_siglip(config)
    text: Any = getattr(config, "text", None)
    vision: Any = getattr(config, "vision", None)
    values: dict[str, Any] = {}
    if text is not None:
        values["text"] = _write_text(config, text, siglip)
    if vision is not None:
        values["vision"] = _write_vision(config, vision, siglip)
    family = "siglip" if siglip else "clip"
    if len(values) == 2 and siglip and "logit_bias" not in tensors:
        raise WeightsError("Hugging Face's SiglipModel needs a logit_bias, and this model has none")
    if len(values) == 2:
        name = "SiglipModel" if siglip else "CLIPModel"
        document = {
            "architectures": [name],
            "model_type": family,
            "text_config": values["text"],
            "vision_config": values["vision"],
        }
        if not siglip:
            document["projection_dim"] = config.embed_dim
            document["logit_scale_init_value"] = math.log(getattr(config, "init_logit_scale", 1 / 0.07))
    else:
        [(side, document)] = values.items()
        projection = not siglip and (vision if text is None else text).projection
        name = f"{family.capitalize() if siglip else 'CLIP'}{side.capitalize()}Model"
        document = {"architectures": [name + "WithProjection" * projection], **document}
    preprocessor = None if vision is None else _write_preprocessor(vision, siglip)
    return write_table(tensors, hf_entries(config)), document, preprocessor


def _read_config(
    family: str,
    side: str,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> AnyConfig:
    siglip = family == "siglip"
    # transformers leaves out what equals its classes' defaults, so each value has one here.
    text, vision = (
        {**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}
        for name in ("text", "vision")
    )
    if side:
        text = vision = dict(config)
    default = "gelu_pytorch_tanh" if siglip else "quick_gelu"
    names = {part.get("hidden_act", default) for part in (text, vision)}
    if len(names) > 1 or not names <= _ACTIVATIONS.keys():
        raise ValueError(
            f"hidden_act must be the same in both towers, and one of {', '.join(_ACTIVATIONS)}; "
            f"got {', '.join(sorted(names))}"
        )
    activation = _ACTIVATIONS[names.pop()]
    projection_dim = int(config.get("projection_dim", 512))
    if side == "text_model":
        projected = siglip or "text_projection.weight" in tensors
        tower = _read_text(text, siglip, projected)
        width = int(text.get("projection_size", tower.width)) if siglip else projection_dim
        return TextTowerConfig(tower, width if projected else tower.width, activation)
    if side == "vision_model":
        projected = not siglip and "visual_projection.weight" in tensors
        picture = _read_vision(vision, preprocessor, siglip, projected)
        return ImageTowerConfig(picture, projection_dim if projected else picture.width, activation)
    tower, picture = _read_text(text, siglip, True), _read_vision(vision, preprocessor, siglip, not siglip)
    if siglip:
        return CLIPConfig(picture, tower, picture.width, activation, 10.0, -10.0)
    return CLIPConfig(picture, tower, projection_dim, activation)


def _read_text(values: Mapping[str, Any], siglip: bool, projected: bool) -> TextConfig:
    width = int(values.get("hidden_size", 768 if siglip else 512))
    eos = int(values.get("eos_token_id", 49407))
    return TextConfig(
        width=width,
        layers=int(values.get("num_hidden_layers", 12)),
        heads=int(values.get("num_attention_heads", 12 if siglip else 8)),
        mlp_ratio=int(values.get("intermediate_size", 3072 if siglip else 2048)) / width,
        context_length=int(values.get("max_position_embeddings", 64 if siglip else 77)),
        vocab_size=int(values.get("vocab_size", 32000 if siglip else 49408)),
        causal=not siglip,
        pool="last" if siglip else "argmax" if eos == _LEGACY_EOS else "eos",
        eos_id=eos,
        projection=projected,
        projection_bias=siglip,
        norm_eps=float(values.get("layer_norm_eps", 1e-6 if siglip else 1e-5)),
    )


def _read_vision(
    values: Mapping[str, Any], preprocessor: Mapping[str, Any], siglip: bool, projected: bool
) -> VisionConfig:
    if siglip and not values.get("vision_use_head", True):
        raise ValueError("a SigLIP vision tower without its pooling head (vision_use_head) is not supported")
    width = int(values.get("hidden_size", 768))
    half = (0.5, 0.5, 0.5)
    return VisionConfig(
        image_size=int(values.get("image_size", 224)),
        patch_size=int(values.get("patch_size", 16 if siglip else 32)),
        width=width,
        layers=int(values.get("num_hidden_layers", 12)),
        heads=int(values.get("num_attention_heads", 12)),
        mlp_ratio=int(values.get("intermediate_size", 3072)) / width,
        pool="map" if siglip else "token",
        mean=preprocessor.get("image_mean") or (half if siglip else OPENAI_MEAN),
        std=preprocessor.get("image_std") or (half if siglip else OPENAI_STD),
        pre_norm=not siglip,
        patch_bias=siglip,
        projection=projected,
        norm_eps=float(values.get("layer_norm_eps", 1e-6 if siglip else 1e-5)),
        resize=_read_resize(preprocessor, siglip),
    )


def _read_resize(preprocessor: Mapping[str, Any], siglip: bool) -> str:
    size = preprocessor.get("size")
    if not isinstance(size, Mapping):  # there is no preprocessor, or one from before sizes had names
        return "squash" if siglip else "crop"
    return "squash" if "height" in size and not preprocessor.get("do_center_crop") else "crop"


def _write_text(config: AnyConfig, text: TextConfig, siglip: bool) -> dict[str, Any]:
    plain = (text.causal, text.projection_bias) == ((False, True) if siglip else (True, False))
    if not plain or (siglip and text.pool != "last"):
        raise WeightsError(f"Hugging Face has no text tower such as {text}")
    values = {
        "model_type": "siglip_text_model" if siglip else "clip_text_model",
        "hidden_size": text.width,
        "intermediate_size": round(text.width * text.mlp_ratio),
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.context_length,
        "vocab_size": text.vocab_size,
        "hidden_act": _write_activation(config),
        "layer_norm_eps": text.norm_eps,
    }
    if siglip:
        return {**values, "projection_size": config.embed_dim}
    # Where the end token has the highest id of all, "the first highest" and "the first end token" are one.
    eos = text.eos_id if text.pool == "eos" else text.vocab_size - 1
    return {**values, "projection_dim": config.embed_dim, "bos_token_id": eos - 1, "eos_token_id": eos}


def _write_vision(config: AnyConfig, vision: VisionConfig | ResNetConfig, siglip: bool) -> dict[str, Any]:
    wanted = ("patch", "map" if siglip else "token", not siglip, siglip)
    if (
        isinstance(vision, ResNetConfig)
        or (vision.stem, vision.pool, vision.pre_norm, vision.patch_bias) != wanted
        or (siglip and vision.projection)
    ):
        raise WeightsError(f"Hugging Face has no vision tower such as {vision}")
    values = {
        "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
        "hidden_size": vision.width,
        "intermediate_size": round(vision.width * vision.mlp_ratio),
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": _write_activation(config),
        "layer_norm_eps": vision.norm_eps,
    }
    return values if siglip else {**values, "projection_dim": config.embed_dim}


def _write_activation(config: AnyConfig) -> str:
    return {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation]


def _write_preprocessor(vision: VisionConfig | ResNetConfig, siglip: bool) -> dict[str, Any]:
    size = vision.image_size
    square = {"height": size, "width": size}
    values = {
        "image_processor_type": "SiglipImageProcessor" if siglip else "CLIPImageProcessor",
        "do_resize": True,
        "size": square if vision.resize == "squash" else {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
        "do_convert_rgb": True,
    }
    if vision.resize == "crop":
        values |= {"do_center_crop": True, "crop_size": square}
    return values
