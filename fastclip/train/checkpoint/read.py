"""Find the newest checkpoint that is whole, and read it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastclip.train.checkpoint.manifest import (
    REQUIRED,
    CheckpointError,
    NoCheckpoint,
    checkpoints,
    proper_name,
    read_manifest,
    verify,
)
from fastclip.train.checkpoint.ranks import rank
from fastclip.train.config import RunConfig

logger = logging.getLogger("fastclip.train")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds."""

    path: Path
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    training: dict[str, Tensor]  #: optimizer.<parameter>.<slot> and rng.rank<k>.<generator>
    state: dict[str, Any]  #: step, epoch, position, counters, …
    config: dict[str, Any]  #: Config.to_dict() of the run
    model_config: dict[str, Any]  #: to_dict() of the model's config
    world_size: int  #: ranks of the run that wrote it


def find(run: RunConfig) -> Path:
    """Return the checkpoint folder that `--resume` (with `--logs` and `--name` for "latest") means.

    A run folder may be given in place of a checkpoint: its newest checkpoint that is whole is taken, with a warning
    that names every newer one and what is wrong with it. A checkpoint named itself is taken or refused.

    Raises:
        NoCheckpoint: there is none.
        CheckpointError: there is none that is whole; or a name that means no checkpoint.
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
            f"{', '.join(REQUIRED)} (pickled checkpoints are never opened: they can run code)"
        )
    if proper_name(path) is not None:
        return path  # also one that stands in for a later save of the same step, cut short
    for folder in (path, path / "checkpoints"):
        if found := checkpoints(folder):
            return _newest_whole(found)
    raise NoCheckpoint(f"--resume found no checkpoint in {path}; expected a folder step_… there")


def _newest_whole(found: list[Path]) -> Path:
    problems = []
    for path in reversed(found):
        try:
            verify(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems and rank() == 0:
            logger.warning("warning: %s; falling back to %s", "; ".join(problems), path)
        return path
    raise CheckpointError(f"--resume found no checkpoint that is whole: {'; '.join(problems)}")


def read_config(path: Path) -> dict[str, Any]:
    """Return the config (Config.to_dict()) of the run that wrote a checkpoint, without its tensors."""
    return read_manifest(path)["config"]


def load(path: Path) -> Checkpoint:
    """Verify and read a checkpoint folder.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged or of another format.
    """
    manifest = verify(path)
    try:
        document = json.loads((path / "state.json").read_bytes())
        return Checkpoint(
            path=path,
            model=load_file(path / "model.safetensors"),
            ema=load_file(path / "ema.safetensors") if "ema.safetensors" in manifest["files"] else None,
            training=load_file(path / "training.safetensors"),
            state=document["state"],
            config=manifest["config"],
            model_config=document["model_config"],
            world_size=manifest["world_size"],
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); use an earlier one"
        ) from error
