"""open_clip's description of a model, open_clip_config.json, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import OPENAI_MEAN, OPENAI_STD, CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from ..presets import siglip_vision
from .errors import WeightsError
from .openai import is_custom

_TANH = {"approximate": "tanh"}  # torch's arguments for the activation that is called gelu_tanh here

_TIMM = {  # image_size, patch_size, width, layers, heads, hidden, with their activation in timm
    "vit_base_patch16_siglip_224": ((224, 16, 768, 12, 12, 3072), "gelu"),
    "vit_base_patch16_siglip_256": ((256, 16, 768, 12, 12, 3072), "gelu"),
    "vit_base_patch16_siglip_384": ((384, 16, 768, 12, 12, 3072), "gelu"),
    "vit_base_patch16_siglip_512": ((512, 16, 768, 12, 12, 3072), "gelu"),
    "vit_large_patch16_siglip_256": ((256, 16, 1024, 24, 16, 4096), "gelu"),
    "vit_large_patch16_siglip_384": ((384, 16, 1024, 24, 16, 4096), "gelu"),
    "vit_so400m_patch14_siglip_224": ((224, 14, 1152, 27, 16, 4304), "gelu"),
    "vit_so400m_patch14_siglip_378": ((378, 14, 1152, 27, 16, 4304), "gelu"),
    "vit_so400m_patch14_siglip_384": ((384, 14, 1152, 27, 16, 4304), "gelu"),
    "vit_base_patch32_siglip_256": ((256, 32, 768, 12, 12, 3072), "gelu_tanh"),
    "vit_large_patch16_siglip_512": ((512, 16, 1024, 24, 16, 4096), "gelu_tanh"),
    "vit_so400m_patch16_siglip_256": ((256, 16, 1152, 27, 16, 4304), "gelu_tanh"),
    "vit_so400m_patch16_siglip_384": ((384, 16, 1152, 27, 16, 4304), "gelu_tanh"),
    "vit_so400m_patch16_siglip_512": ((512, 16, 1152, 27, 16, 4304), "gelu_tanh"),
}


def read_open_clip_config(document: Mapping[str, Any], where: str) -> CLIPConfig:
    """Read open_clip_config.json.

    Raises:
        WeightsError: it has settings that are not supported here.
    """
    model, preprocess = document.get("model_cfg", document), document.get("preprocess_cfg", {})
    try:
        vision, activation = _read_vision(model, preprocess)
        text, own = _read_text(model)
        if own != activation:
            raise ValueError(
                f"the image tower has activation {activation}, the text tower {own}: not supported"
            )
        _refuse(model, {"embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "init_logit_bias",
                        "init_logit_scale"}, "")  # fmt: skip
        return CLIPConfig(
            vision, text, model["embed_dim"], activation, init_logit_bias=model.get("init_logit_bias")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{where}: {error}") from error


def write_open_clip_config(config: CLIPConfig) -> dict[str, Any]:
    """Describe a model as open_clip does.

    Raises:
        WeightsError: open_clip has no such model.
    """
    model: dict[str, Any] = {"embed_dim": config.embed_dim}
    if config.activation == "quick_gelu":
        model["quick_gelu"] = True
    if config.init_logit_bias is not None:
        model["init_logit_bias"] = config.init_logit_bias
    model["vision_cfg"] = _write_vision(config)
    model["text_cfg"] = _write_text(config)
    if is_custom(config):
        model["custom_text"] = True
    preprocess = {
        "mean": list(config.vision.mean),
        "std": list(config.vision.std),
        "interpolation": "bicubic",
        "resize_mode": "squash" if config.vision.resize == "squash" else "shortest",
    }
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _read_vision(
    model: Mapping[str, Any], preprocess: Mapping[str, Any]
) -> tuple[VisionConfig | ResNetConfig, str]:
    values = dict(model["vision_cfg"])
    mode = preprocess.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise ValueError(f"resize_mode {mode!r} is not supported")
    squash = "squash" if mode == "squash" else "crop"
    looks: dict[str, Any] = {
        "mean": preprocess.get("mean") or OPENAI_MEAN,
        "std": preprocess.get("std") or OPENAI_STD,
    }
    if name := values.get("timm_model_name"):
        if name not in _TIMM:
            raise ValueError(f"timm_model_name {name!r} is not supported; known are {', '.join(_TIMM)}")
        known, activation = _TIMM[name]
        half = (0.5, 0.5, 0.5)
        looks |= {"mean": preprocess.get("mean") or half, "std": preprocess.get("std") or half}
        return replace(siglip_vision(*known), **looks), activation
    width, head = values["width"], values.get("head_width", 64)
    ratio = float(values.get("mlp_ratio", 4.0))
    if isinstance(values["layers"], list):
        _refuse(values, {"layers", "width", "image_size", "head_width", "patch_size"}, "vision_cfg.")
        resnet = ResNetConfig(values.get("image_size", 224), tuple(values["layers"]), width,
                              width * 32 // head, resize=squash, **looks)  # fmt: skip
        return resnet, _read_activation(model, {})
    known_names = {"layers", "width", "image_size", "head_width", "patch_size", "mlp_ratio", "patch_dropout",
                   "no_ln_pre", "norm_kwargs", "act_kwargs", "pool_type", "output_tokens"}  # fmt: skip
    _refuse(values, known_names, "vision_cfg.")
    if values.get("pool_type", "tok") != "tok":
        raise ValueError(f"vision_cfg.pool_type must be 'tok', got {values['pool_type']!r}")
    vision = VisionConfig(
        image_size=values.get("image_size", 224),
        patch_size=values.get("patch_size", 16),
        width=width,
        layers=values["layers"],
        heads=width // head,
        mlp_ratio=int(width * ratio) / width,
        pre_norm=not values.get("no_ln_pre", False),
        norm_eps=(values.get("norm_kwargs") or {}).get("eps", 1e-5),
        patch_dropout=values.get("patch_dropout", 0.0),
        resize=squash,
        **looks,
    )
    return vision, _read_activation(model, values)


def _read_text(model: Mapping[str, Any]) -> tuple[TextConfig, str]:
    values = model["text_cfg"]
    known = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "no_causal_mask", "pool_type",
             "proj_bias", "norm_kwargs", "act_kwargs", "eos_id", "hf_tokenizer_name", "tokenizer_kwargs",
             "tokenizer_mode", "output_tokens", "pad_id"}  # fmt: skip
    _refuse(values, known, "text_cfg.")
    width = values.get("width", 512)
    text = TextConfig(
        width=width,
        layers=values.get("layers", 12),
        heads=values.get("heads", 8),
        mlp_ratio=int(width * float(values.get("mlp_ratio", 4.0))) / width,
        context_length=values.get("context_length", 77),
        vocab_size=values.get("vocab_size", 49408),
        causal=not values.get("no_causal_mask", False),
        pool=values.get("pool_type", "argmax"),
        eos_id=values.get("eos_id", 2) if values.get("pool_type") == "eos" else 49407,
        projection_bias=values.get("proj_bias", False),
        norm_eps=(values.get("norm_kwargs") or {}).get("eps", 1e-5),
    )
    return text, _read_activation(model, values)


def _read_activation(model: Mapping[str, Any], tower: Mapping[str, Any]) -> str:
    """Return the activation of a tower of open_clip's own."""
    values = tower.get("act_kwargs")
    if not values:
        return "quick_gelu" if model.get("quick_gelu") else "gelu"
    if values != _TANH:
        raise ValueError(f"act_kwargs {values} are not supported")
    return "gelu_tanh"


def _refuse(values: Mapping[str, Any], known: set[str], prefix: str) -> None:
    """Raise ValueError where a setting that changes the model is not known here."""
    for name, value in values.items():
        if name not in known and value not in (None, False, 0, "linear", "learnable"):
            raise ValueError(f"{prefix}{name}={value!r} is not supported")


def _write_vision(config: CLIPConfig) -> dict[str, Any]:
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        return {
            "image_size": vision.image_size,
            "layers": list(vision.depths),
            "width": vision.width,
            "head_width": 32 * vision.width // vision.heads,
            "patch_size": None,
        }
    if vision.pool == "map":
        for name, (known, activation) in _TIMM.items():
            same_size = replace(siglip_vision(*known), mean=vision.mean, std=vision.std) == vision
            if same_size and activation == config.activation:
                return {"image_size": vision.image_size, "timm_model_name": name,
                        "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}  # fmt: skip
        raise WeightsError(
            f"open_clip takes SigLIP's image towers from timm, which has none such as {vision} with activation "
            f"{config.activation}; of each size it has one activation, and a config cannot name another"
        )
    if vision.stem != "patch" or vision.pool != "token" or vision.patch_bias or not vision.projection:
        raise WeightsError(f"open_clip has no image tower such as {vision}")
    values: dict[str, Any] = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.width,
        "layers": vision.layers,
        "head_width": vision.width // vision.heads,
        "mlp_ratio": _ratio(vision),
    }
    if not vision.pre_norm:
        values["no_ln_pre"] = True
    if vision.norm_eps != 1e-5:
        values["norm_kwargs"] = {"eps": vision.norm_eps}
    if vision.patch_dropout:
        values["patch_dropout"] = vision.patch_dropout
    if config.activation == "gelu_tanh":
        values["act_kwargs"] = _TANH
    return values


def _write_text(config: CLIPConfig) -> dict[str, Any]:
    text = config.text
    if not text.projection:
        raise WeightsError("open_clip's text tower needs a projection; convert to hf or fastclip")
    values: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": _ratio(text),
    }
    # Where the end token has the highest id, "eos" and "argmax" are one, and every version knows "argmax".
    if text.pool == "last" or (text.pool == "eos" and text.eos_id != text.vocab_size - 1):
        values["pool_type"] = text.pool
        values |= {"eos_id": text.eos_id} if text.pool == "eos" else {}
    if not text.causal:
        values["no_causal_mask"] = True
    if text.projection_bias:
        values["proj_bias"] = True
    if text.norm_eps != 1e-5:
        values["norm_kwargs"] = {"eps": text.norm_eps}
    if config.activation == "gelu_tanh":
        values["act_kwargs"] = _TANH
    return values


def _ratio(tower: VisionConfig | TextConfig) -> float:
    """Return an mlp_ratio of which open_clip, which rounds down, makes the right number of features."""
    hidden = round(tower.width * tower.mlp_ratio)
    return (
        hidden / tower.width
        if int(tower.width * (hidden / tower.width)) == hidden
        else (hidden + 0.5) / tower.width
    )
