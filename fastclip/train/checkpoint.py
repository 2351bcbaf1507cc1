"""Save a run so that it continues bit for bit, and so that a crash at any moment leaves the last save intact.

A checkpoint is a folder, complete from the moment it has its name:

    checkpoints/step_00000600/
        model.safetensors       the model's state dict
        training.safetensors    optimizer.<parameter>.<slot>, rng.<device>
        state.json              step, epoch, position, the run's config, the model's config, versions

It is written aside, flushed to the disk and then renamed; readers never see half of one. Tensors are
safetensors and the rest is JSON: reading a checkpoint runs no code from it, so one from a stranger is only
data.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastclip.train.config import ConfigError, RunConfig

FORMAT = 1
_NAME = re.compile(r"step_\d{8,}")
_FILES = ("model.safetensors", "training.safetensors", "state.json")


class CheckpointError(ConfigError):
    """A checkpoint that is missing, damaged, or made for another model."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds."""

    path: Path
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]  #: step, epoch, position
    config: dict[str, Any]  #: Config.to_dict() of the run
    model_config: dict[str, Any]  #: CLIPConfig.to_dict() of the model


def save(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    config: dict[str, Any],
    model_config: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder`/step_<state["step"]> atomically, then delete all but the newest `keep`; return its path.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{state['step']:08d}"
    aside = folder / f".{final.name}.partial"
    replaced = folder / f".{final.name}.replaced"
    for leftover in (aside, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir()
    document = {
        "format": FORMAT,
        "state": state,
        "config": config,
        "model_config": model_config,
        "versions": {"torch": torch.__version__},
    }
    try:
        save_file(_contiguous(model.state_dict()), aside / "model.safetensors")
        save_file(_contiguous(_training_tensors(model, optimizer)), aside / "training.safetensors")
        (aside / "state.json").write_text(json.dumps(document, indent=2) + "\n")
        for name in _FILES:
            _flush(aside / name)
        _flush(aside)
        if final.exists():
            final.rename(replaced)
        aside.rename(final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    for old in _all(folder)[:-keep]:
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def find(run: RunConfig) -> Path:
    """Return the checkpoint folder that `--resume` (with `--logs` and `--name` for "latest") means.

    A run folder may be given in place of a checkpoint: its newest checkpoint is taken.
    """
    if run.resume is None:
        raise CheckpointError(
            "--resume names no checkpoint; give its folder, or `latest` together with --name"
        )
    if run.resume == "latest":
        if run.name is None:
            raise CheckpointError("--resume latest needs --name, the run to continue")
        path = Path(run.logs) / run.name
    else:
        path = Path(run.resume)
    if path.is_file():
        raise CheckpointError(
            f"--resume {path} is a file; a checkpoint of this program is a folder step_… with "
            f"{', '.join(_FILES)} (pickled checkpoints are never opened: they can run code)"
        )
    if _NAME.fullmatch(path.name):
        return path
    for folder in (path, path / "checkpoints"):
        if found := _all(folder):
            return found[-1]
    raise CheckpointError(f"--resume found no checkpoint in {path}; expected a folder step_… there")


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged or of another format.
    """
    for name in _FILES:
        if not (path / name).is_file():
            raise CheckpointError(f"{path} is no checkpoint: {name} is missing; expected {', '.join(_FILES)}")
    try:
        document = json.loads((path / "state.json").read_text())
        if document["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {document['format']}, this version reads {FORMAT}; "
                "use the version of fastclip that wrote it"
            )
        return Checkpoint(
            path=path,
            model=load_file(path / "model.safetensors"),
            training=load_file(path / "training.safetensors"),
            state=document["state"],
            config=document["config"],
            model_config=document["model_config"],
        )
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); use an earlier one"
        ) from error


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the checkpoint into model, optimizer and random generators; return its state.

    Raises:
        CheckpointError: it was made for another model; names, shapes and the first few differences are
            listed. Nothing has been changed then.
    """
    _check_model(checkpoint, model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.training.items():
        if key.startswith("optimizer."):
            name, slot = key.removeprefix("optimizer.").rsplit(".", 1)
            slots.setdefault(name, {})[slot] = tensor
    if unknown := sorted(slots.keys() - set(names.values())):
        raise CheckpointError(
            f"{checkpoint.path}: optimizer state for parameters that do not exist: {_some(unknown)}"
        )

    model.load_state_dict(checkpoint.model)
    for parameter, name in names.items():
        if name in slots:
            optimizer.state[parameter] = {
                slot: tensor.to(parameter.device).clone() for slot, tensor in slots[name].items()
            }
    torch.set_rng_state(checkpoint.training["rng.cpu"])
    if "rng.cuda" in checkpoint.training and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint.training["rng.cuda"])
    return dict(checkpoint.state)


def _training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {
        f"optimizer.{name}.{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _check_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    here, there = model.state_dict(), checkpoint.model
    problems = []
    if missing := sorted(here.keys() - there.keys()):
        problems.append(f"{len(missing)} entries of this model are not in it: {_some(missing)}")
    if extra := sorted(there.keys() - here.keys()):
        problems.append(f"{len(extra)} of its entries are not in this model: {_some(extra)}")
    shapes = [
        f"{key} is {tuple(there[key].shape)} there, {tuple(here[key].shape)} here"
        for key in sorted(here.keys() & there.keys())
        if here[key].shape != there[key].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} shapes differ: {_some(shapes)}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} was made for another model; "
            + "; ".join(problems)
            + ". Pass the --model it was trained with."
        )


def _some(items: list[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().contiguous() for key, tensor in tensors.items()}


def _all(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
