"""fastclip's own folders: a model by itself, a checkpoint of training, or a run with several.

model/                      written by `save`
    model.safetensors       the state dict
    fastclip.json           {"format": 1, "model_config": …}
run/checkpoints/step_…/     written by fastclip.train
    model.safetensors, state.json ("model_config"), manifest.json (sizes and SHA-256 of the files)
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import AnyConfig, config_from_dict
from .errors import WeightsError
from .files import read_tensors, write_tensors

CONFIG = "fastclip.json"
STATE = "state.json"
_WEIGHTS = "model.safetensors"
_AVERAGED = "ema.safetensors"
_MANIFEST = "manifest.json"
_STEP = re.compile(r"step_(\d{8,})")
_FORMAT = 1


def save_folder(folder: Path, tensors: Mapping[str, Tensor], config: AnyConfig) -> None:
    """Write a model by itself: model.safetensors and fastclip.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / _WEIGHTS, tensors)
    document = {"format": _FORMAT, "model_config": config.to_dict()}
    (folder / CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints that a folder is or holds, newest first."""
    if (path / STATE).is_file():
        return [path]
    found = {
        int(match[1]): entry
        for folder in (path, path / "checkpoints")
        if folder.is_dir()
        for entry in folder.iterdir()
        if (match := _STEP.fullmatch(entry.name)) and (entry / STATE).is_file()
    }
    return [found[step] for step in sorted(found, reverse=True)]


def has_averaged(path: Path) -> bool:
    """Return whether a folder is or holds checkpoints whose newest one has averaged weights beside the last ones."""
    return any((folder / _AVERAGED).is_file() for folder in checkpoints(path)[:1])


def read_model(folder: Path) -> tuple[dict[str, Tensor], AnyConfig]:
    """Read what save_folder wrote.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    return read_tensors(folder / _WEIGHTS), _read_config(folder / CONFIG)


def read_newest(found: list[Path], averaged: bool) -> tuple[dict[str, Tensor], AnyConfig]:
    """Read the first of some checkpoints that is whole; warn of those before it that are not.

    Args:
        averaged: take the averaged weights in place of the last ones.

    Raises:
        WeightsError: none is whole, or the averaged weights are asked for and there are none.
    """
    problems = []
    for folder in found:
        try:
            names = (_WEIGHTS, _AVERAGED) if averaged else (_WEIGHTS,)
            _verify(folder, *names, STATE)
            tensors = {name: tensor for file in names for name, tensor in read_tensors(folder / file).items()}
            result = tensors, _read_config(folder / STATE)
        except WeightsError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"using {folder}, since {'; '.join(problems)}", stacklevel=4)
        return result
    raise WeightsError("; ".join(problems))


def _read_config(path: Path) -> AnyConfig:
    document = read_json(path)
    if not isinstance(document.get("model_config"), Mapping):
        raise WeightsError(f'{path} has no "model_config"')
    if "image_width" in document["model_config"]:
        raise WeightsError(
            f"{path}: that run trained projections of features computed beforehand; it has no towers"
        )
    try:
        return config_from_dict(document["model_config"])
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: the file is missing, or is no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{path} is no JSON object")
    return document


def _verify(folder: Path, *names: str) -> None:
    """Compare files with the checkpoint's manifest, byte for byte; older checkpoints have none."""
    if _AVERAGED in names and not (folder / _AVERAGED).is_file():
        raise WeightsError(f"{folder} has no averaged weights ({_AVERAGED}): its run was without --ema")
    if not (folder / _MANIFEST).is_file():
        return
    files = read_json(folder / _MANIFEST).get("files", {})
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"{folder / name} cannot be read: {error}") from error
        if digest != files.get(name, {}).get("sha256"):
            raise WeightsError(f"{folder / name} is damaged: its SHA-256 is not the manifest's")
