"""Build what a run is made of from its config: the pairs, the model, device and kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastclip.backends import resolve_backend
from fastclip.data import Augmentation, PairSource, open_source
from fastclip.data.features import FeatureSource
from fastclip.models import CLIP, PRESETS, CLIPConfig, Tokenizer, WeightsError, load
from fastclip.models.foreign import find_tokenizer
from fastclip.train import precision
from fastclip.train.config import Config, ConfigError
from fastclip.train.features import FeatureModel
from fastclip.train.settings import suggest

SPLIT_SEED = 0  # what is held out does not depend on --seed: runs that differ in it remain comparable
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023


def build_source(config: Config, model_config: CLIPConfig) -> PairSource:
    """Open the pairs that `--train-data` names, at the model's picture size."""
    data = config.data
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
        raise ConfigError(f"--train-data: {error}" if data.train_data else str(error)) from error


def build_model_config(config: Config) -> CLIPConfig:
    """Return the config of `--pretrained`, or of the preset that `--model` names.

    Under `--siglip` a new model starts from the scale and bias that loss needs, and one without a bias gets one.
    """
    name = config.model.model
    if name not in PRESETS:
        raise ConfigError(f"unknown --model {name}; {suggest(name, PRESETS)} Known are: {', '.join(PRESETS)}")
    found = PRESETS[name] if config.model.pretrained is None else _pretrained(config).config
    if config.loss.siglip and (config.model.pretrained is None or found.init_logit_bias is None):
        return dataclasses.replace(found, init_logit_scale=SIGLIP_SCALE, init_logit_bias=SIGLIP_BIAS)
    return found


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
        weights = _pretrained(config).state_dict()
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


def _pretrained(config: Config) -> CLIP:
    path = Path(str(config.model.pretrained))
    # A folder says itself what its model is; of a file, the preset's name does.
    named = config.model.model if path.is_file() else None
    try:
        return load(path, config=named).model
    except (WeightsError, ImportError) as error:
        raise ConfigError(f"--pretrained: {error}") from error


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
