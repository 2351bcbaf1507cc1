"""Read a model in any of the known forms: our names, our config, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import ACTIVATIONS, AnyConfig, CLIPConfig, ImageTowerConfig, TextTowerConfig
from ..presets import PRESETS
from .errors import WeightsError
from .files import read_file, read_shards
from .fit import check, infer
from .folder import CONFIG, checkpoints, read_json, read_model, read_newest
from .hf import read_hf
from .open_clip import read_open_clip_config
from .openai import read_openai, unwrap

OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
_HF_FILES = ("model.safetensors", "pytorch_model.bin")


def read(
    path: Path,
    config: CLIPConfig | str | None = None,
    activation: str | None = None,
    towers: str = "both",
    averaged: bool = False,
) -> tuple[dict[str, Tensor], AnyConfig]:
    """Read a model's weights and config from a file or folder of any known form.

    Args:
        path: a folder of fastclip (run, checkpoint, model), Hugging Face or open_clip, or a file with a state dict.
        config: of a file, which has none: a CLIPConfig, or the name of a preset.
        activation: of a file whose shapes are a preset's.
        towers: "both", "image" or "text"; "any" takes what there is.
        averaged: of a checkpoint, take the averaged weights.

    Raises:
        WeightsError: nothing is there, it is damaged or unsafe, what it says contradicts the arguments, it lacks the
            tower, or weights and config do not fit.
    """
    if towers not in ("both", "image", "text", "any"):
        raise ValueError(f"towers must be 'both', 'image' or 'text', got {towers!r}")
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if isinstance(config, str):
        if config not in PRESETS:
            raise ValueError(f"config must be one of {', '.join(PRESETS)}, or a CLIPConfig, got {config!r}")
        config = PRESETS[config]
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    if averaged and not checkpoints(path):
        raise WeightsError(
            f"{path} is no run or checkpoint of fastclip.train: only those have averaged weights"
        )
    if path.is_file():
        tensors, found = _read_file(path, config, activation)
    else:
        tensors, found = _read_folder(path, averaged)
        if config is not None and config != found:
            raise WeightsError(f"{path} says itself what its model is, and not what config says: {found}")
        if activation is not None and activation != found.activation:
            raise WeightsError(f"{path} says its activation is {found.activation}, not {activation}")
    tensors, found = _select(tensors, found, towers, str(path))
    check(tensors, found, str(path))
    return tensors, found


def _select(
    tensors: dict[str, Tensor], config: AnyConfig, towers: str, where: str
) -> tuple[dict[str, Tensor], AnyConfig]:
    """Leave out the tower that is not wanted."""
    if not isinstance(config, CLIPConfig):
        has = "image" if isinstance(config, ImageTowerConfig) else "text"
        if towers not in (has, "any"):
            raise WeightsError(
                f"{where} has the {has} tower only, but towers is {towers!r}; pass towers={has!r}"
            )
        return tensors, config
    if towers in ("both", "any"):
        return tensors, config
    part: ImageTowerConfig | TextTowerConfig = config.image_tower if towers == "image" else config.text_tower
    chosen = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("logit_") and name.startswith("visual.") == (towers == "image")
    }
    return chosen, part


def _read_folder(path: Path, averaged: bool) -> tuple[dict[str, Tensor], AnyConfig]:
    if (path / CONFIG).is_file():
        return read_model(path)
    if found := checkpoints(path):
        return read_newest(found, averaged)
    if (path / OPEN_CLIP_CONFIG).is_file():
        config = read_open_clip_config(read_json(path / OPEN_CLIP_CONFIG), str(path / OPEN_CLIP_CONFIG))
        return read_openai(unwrap(_read_first(path, _OPEN_CLIP_FILES))), config
    if (path / "config.json").is_file():
        optional = path / "preprocessor_config.json"
        preprocessor = read_json(optional) if optional.is_file() else {}
        tensors = unwrap(_read_first(path, _HF_FILES))
        return read_hf(tensors, read_json(path / "config.json"), preprocessor, str(path))
    raise WeightsError(
        f"{path} holds no model: expected a run or checkpoint of fastclip.train, {CONFIG} (written by "
        f"fastclip.models.save), config.json (Hugging Face) or {OPEN_CLIP_CONFIG} (open_clip)"
    )


def _read_file(
    path: Path, config: CLIPConfig | None, activation: str | None
) -> tuple[dict[str, Tensor], AnyConfig]:
    content, about = read_file(path)
    tensors = unwrap(content)
    if any(name.startswith(("text_model.", "vision_model.")) for name in tensors):
        raise WeightsError(
            f"{path} has Hugging Face's names; give the folder it is in, with its config.json, in place of the file"
        )
    tensors = read_openai(tensors)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors; expected a state dict with names as in OpenAI's CLIP")
    said = about.get("activation")
    wanted = activation if config is None else config.activation
    if said is not None and wanted is not None and said != wanted:
        raise WeightsError(f"{path} says its activation is {said}, not {wanted}")
    if config is None:
        config = infer(
            {name: tuple(tensor.shape) for name, tensor in tensors.items()}, wanted or said, str(path)
        )
    elif activation is not None and activation != config.activation:
        raise ValueError(f"activation is {activation!r}, but the config says {config.activation!r}")
    return tensors, config


def _read_first(folder: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    """Read the first of some files that is there, in one piece or in several."""
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_file(folder / name)[0]
        if index.is_file():
            return read_shards(index, read_json(index).get("weight_map", {}))
    raise WeightsError(f"{folder} has a config but no weights; expected one of {', '.join(names)}")
