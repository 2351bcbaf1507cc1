"""Build what a run is made of from its config: the pairs, the model, device and kernels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastclip.backends import resolve_backend
from fastclip.data import Augmentation, PairSource, open_source
from fastclip.data.features import FeatureSource
from fastclip.models import (
    CLIP,
    PRESETS,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    Tokenizer,
    VisionConfig,
    WeightsError,
    load,
)
from fastclip.models.config import OPENAI_MEAN, OPENAI_STD
from fastclip.models.foreign import find_tokenizer
from fastclip.train import precision
from fastclip.train.config import Config, ConfigError, DataConfig, ModelConfig
from fastclip.train.features import FeatureModel
from fastclip.train.settings import suggest

SPLIT_SEED = 0  # what is held out does not depend on --seed: runs that differ in it remain comparable
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023


def build_source(config: Config, model_config: CLIPConfig) -> PairSource:
    """Open the pairs that `--train-data` names, at the model's picture size."""
    data = config.data
    _check_kind(data)
    try:
        return open_source(
            data.train_data,
            model_config.vision.image_size,
            dataset_type=data.dataset_type,
            val_data=data.val_data,
            seed=SPLIT_SEED,
            shuffled_captions=data.shuffle_captions,
            held_out_share=data.val_share,
            image_key=data.image_key,
            caption_key=data.caption_key,
            csv_img_key=data.csv_img_key,
            csv_caption_key=data.csv_caption_key,
            csv_separator=data.csv_separator,
            augmentation=Augmentation(
                data.aug_scale, data.aug_flip, data.aug_color_jitter, data.aug_grayscale
            ),
            max_bad_share=data.max_bad_share,
        )
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(_about_data(data, error)) from error


def _check_kind(data: DataConfig) -> None:
    """Raise ConfigError where `--dataset-type` needs a file and `--train-data` is a folder, or the other way round."""
    if data.train_data is None or not os.path.exists(data.train_data):
        return
    is_folder = os.path.isdir(data.train_data)
    if data.dataset_type in ("csv", "folder", "hf", "features") and is_folder == (data.dataset_type == "csv"):
        raise ConfigError(
            f"--dataset-type {data.dataset_type} needs a {'file' if is_folder else 'folder'}, but --train-data "
            f"{data.train_data} is a {'folder' if is_folder else 'file'}; name the right one, or leave --dataset-type "
            "out: what lies there is then found out"
        )


def _about_data(data: DataConfig, error: Exception) -> str:
    """Say what is wrong with the pairs, and by which flag they were named."""
    message = str(error)
    if isinstance(error, OSError) and error.errno is not None:  # its text begins with a number
        message = f"{error.filename} cannot be read: {error.strerror}; name a file or folder that can"
    if data.val_data is not None and data.val_data in message and str(data.train_data) not in message:
        return f"--val-data: {message}"
    return f"--train-data: {message}" if data.train_data else message


def build_model_config(config: Config) -> CLIPConfig:
    """Return the config of `--pretrained`, or of the preset that `--model` names, with what other flags change in it.

    Under `--siglip` a new model starts from the scale and bias that loss needs, and one without a bias gets one.
    """
    name, start = config.model.model, config.model.pretrained
    if start is not None and Path(start).is_dir():
        found = _pretrained(config).config
        _check_name(name, start, found)
    elif name not in PRESETS:
        raise ConfigError(f"unknown --model {name}{suggest(name, PRESETS)}; known are: {', '.join(PRESETS)}")
    else:
        found = PRESETS[name] if start is None else _pretrained(config).config
    if config.loss.siglip and (start is None or found.init_logit_bias is None):
        found = dataclasses.replace(found, init_logit_scale=SIGLIP_SCALE, init_logit_bias=SIGLIP_BIAS)
    return force(config.model, found)


def force(wanted: ModelConfig, found: CLIPConfig) -> CLIPConfig:
    """Return the config with what `--force-image-size`, `--force-patch-dropout`, `--image-mean` and `--image-std` say.

    Raises:
        ConfigError: the model cannot have it.
    """
    if wanted.force_patch_dropout is not None and isinstance(found.vision, ResNetConfig):
        raise ConfigError(
            "--force-patch-dropout needs a vision transformer; a ResNet has no patches to leave out"
        )
    changes = {
        "image_size": wanted.force_image_size,
        "patch_dropout": wanted.force_patch_dropout,
        "mean": wanted.image_mean,
        "std": wanted.image_std,
    }
    said = {key: value for key, value in changes.items() if value is not None}
    try:
        return dataclasses.replace(found, vision=dataclasses.replace(found.vision, **said))  # type: ignore[arg-type]
    except ValueError as error:  # only the size depends on the model: the others have been checked
        raise ConfigError(f"--force-image-size {wanted.force_image_size}: {error}") from error


def name_of_pretrained(config: Config) -> str:
    """Return what the model in the folder of `--pretrained` is called: its preset's name, or else the folder's."""
    folder = Path(str(config.model.pretrained))
    return (presets_of(_pretrained(config).config) or [folder.absolute().name])[0]


def _check_name(name: str, folder: str, found: CLIPConfig) -> None:
    """Raise ConfigError if a folder's model is not the one that `--model` names."""
    known = presets_of(found)
    if name not in (known or [Path(folder).absolute().name]):
        what = f"a {known[0]}" if known else "none of the presets"
        raise ConfigError(
            f"--model {name} contradicts --pretrained {folder}, which is {what}; leave --model out, or start from a "
            f"{name}"
        )


def presets_of(found: CLIPConfig) -> list[str]:
    """Return the presets whose shape a model has: those with its picture size or, failing that, with any."""
    alike = [name for name, preset in PRESETS.items() if _shape(preset) == _shape(found)]
    exact = [name for name in alike if PRESETS[name].vision.image_size == found.vision.image_size]
    return exact or alike


def _shape(config: CLIPConfig) -> CLIPConfig:
    """Return a model's config without what flags can change, and what the forms of one model's files differ in."""
    vision, text = config.vision, config.text
    looks: dict[str, Any] = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "resize": "crop"}
    if isinstance(vision, VisionConfig):
        looks |= {"image_size": vision.patch_size, "patch_dropout": 0.0, **_block(vision)}
        vision = dataclasses.replace(vision, **looks)
    else:
        vision = dataclasses.replace(vision, **looks, image_size=32)
    # The end token has the highest id of CLIP's vocabulary; Hugging Face's first files call it 2.
    pool = "argmax" if text.pool == "eos" and text.eos_id == text.vocab_size - 1 else text.pool
    eos = text.eos_id if pool == "eos" else 0
    text = dataclasses.replace(text, pool=pool, eos_id=eos, **_block(text))
    return dataclasses.replace(config, vision=vision, text=text, init_logit_scale=1.0, init_logit_bias=None)


def _block(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    """Return what a tower's blocks are, as far as it names a model; files round the ratio."""
    return {"mlp_ratio": round(tower.mlp_ratio, 3), "norm_eps": 1e-5}


def build_model(
    config: Config,
    model_config: CLIPConfig,
    source: PairSource,
    device: torch.device,
    *,
    resumed: bool = False,
) -> CLIP | FeatureModel:
    """Return the model as it enters its first step, on `device`: drawn by `--seed`, or `--pretrained`.

    The random state after this call is the seed's too. Of a resumed run the weights are still to come.
    """
    torch.manual_seed(config.run.seed)
    if isinstance(source, FeatureSource):
        if config.model.pretrained is not None:
            raise ConfigError(
                "--pretrained is of no use with precomputed features: there is no tower to start from"
            )
        model: CLIP | FeatureModel = FeatureModel(source, model_config)
    else:
        model = CLIP(model_config)
    if config.model.pretrained is not None and not resumed:
        weights = _pretrained(config, config.model.force_image_size).state_dict()
        if (
            weights.keys() != model.state_dict().keys()
        ):  # the softmax's scale means nothing to the sigmoid loss
            weights = {**model.state_dict(), **weights, "logit_scale": model.logit_scale.detach()}
        model.load_state_dict(weights)
    model.lock(image=config.model.lock_image, text=config.model.lock_text)
    model.set_grad_checkpointing(config.model.grad_checkpointing)
    precision.convert(model, precision.resolve(config.model.precision, device))
    return model.to(device)


def build_tokenizer(config: Config, model_config: CLIPConfig) -> Callable[[list[str]], Tensor]:
    """Return what makes token ids (B, context length) of B captions: CLIP's tokenizer, or that of `--pretrained`."""
    text, path = model_config.text, config.model.pretrained
    if path is None and text.vocab_size < Tokenizer().vocab_size:
        raise ConfigError(
            f"--model {config.model.model} has a vocabulary of {text.vocab_size:,} tokens of its own; give "
            "--pretrained a Hugging Face folder, whose tokenizer knows it"
        )
    try:
        return Tokenizer(text.context_length) if path is None else find_tokenizer(Path(path), text)
    except (WeightsError, ImportError, OSError, ValueError) as error:
        raise ConfigError(f"--pretrained: {error}") from error


def _pretrained(config: Config, image_size: int | None = None) -> CLIP:
    """Load `--pretrained`, for pictures of its own size or another one."""
    path = Path(str(config.model.pretrained))
    # A folder says itself what its model is; of a file, the preset's name does.
    named = config.model.model if path.is_file() else None
    if not path.exists():
        raise ConfigError(
            f"--pretrained {path} does not exist; it takes a file or folder, and no tag: nothing is downloaded"
        )
    try:
        return load(path, config=named, image_size=image_size).model
    except (WeightsError, ImportError) as error:
        raise ConfigError(f"--pretrained: {error}") from error
    except ValueError as error:  # the model is a ResNet, or its patches do not fit
        raise ConfigError(f"--force-image-size {image_size}: {error}") from error


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that `--device` means; "auto" is a GPU, this process's own under torchrun, or the CPU.

    Raises:
        ConfigError: the name is no device, or one this PyTorch cannot use.
    """
    if name == "auto":
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used: {reason}; --device auto picks one") from error
    return device


def pick_backend(name: str, device: torch.device) -> str:
    """Return the kernels that `--backend` means on this device; features reach the loss in float32.

    Raises:
        ConfigError: there are none of that name, or they cannot run here.
    """
    try:
        return resolve_backend(name, device, torch.float32)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"--backend {name}: {error}") from error
