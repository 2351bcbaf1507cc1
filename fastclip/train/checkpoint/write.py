"""Write a checkpoint: aside, to the disk, read back, and into its place; then let old ones go."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.train.checkpoint.manifest import (
    FORMAT,
    NAME,
    CheckpointError,
    checkpoints,
    proper_name,
    replaced,
    verify,
    write_manifest,
    write_sealed,
)
from fastclip.train.checkpoint.ranks import (
    gather,
    raise_together,
    random_states,
    rank,
    whole,
    world_size,
)
from fastclip.train.checkpoint.tensors import serialise

logger = logging.getLogger("fastclip.train")


def save(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    model_config: Mapping[str, Any],
    ema: Mapping[str, Tensor] | None = None,
    counters: Mapping[str, int] | None = None,
    documents: Mapping[str, str] | None = None,
    keep: int = 2,
) -> Path:
    """Write `folder`/step_<state["step"]> atomically, then delete all but the newest `keep`; return its path.

    Checkpoints of a later step, of a course that was left when the run was resumed from an earlier one, are
    renamed to abandoned_step_…: they would be taken for the newest.

    Args:
        folder: of all checkpoints of the run.
        model: the bare module; its tensors may be sharded over the ranks.
        optimizer: of its parameters.
        state: what JSON can say and the run must know again: "step", the place in the data, the scaler.
        config: Config.to_dict() of the run.
        model_config: to_dict() of the model's config.
        ema: averaged weights by name.
        counters: of this rank; their sums over the ranks become state["counters"].
        documents: further files, text by name.
        keep: how many to keep, at least 2.

    Raises:
        OSError: on every rank: the disk is full, the folder cannot be written, or the disk gave back other bytes.
            What was there before is untouched.
    """
    if keep < 2:
        raise ValueError(f"keep must be at least 2, got {keep}: the newest may turn out damaged")
    everyone = gather((random_states(), dict(counters or {})))
    training = {
        f"optimizer.{name}.{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }
    tensors = {"model": whole(model.state_dict()), "training": whole(training)}
    if ema is not None:
        tensors["ema"] = whole(ema)
    final = folder / f"step_{state['step']:08d}"
    error = None
    if rank() == 0:
        totals: Counter[str] = Counter()
        for number, (states, counts) in enumerate(everyone):
            totals.update(counts)
            tensors["training"] |= {f"rng.rank{number}.{name}": value for name, value in states.items()}
        document = {
            "format": FORMAT,
            "state": {**state, "counters": dict(totals)},
            "model_config": model_config,
        }
        texts = {"state.json": json.dumps(document, indent=2) + "\n", **(documents or {})}
        try:
            _write(final, tensors, texts, config, state["step"])
        except OSError as failure:
            error = failure
        else:
            _let_go(folder, final, keep)
    raise_together(error)
    return final


def _write(
    final: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str],
    config: Mapping[str, Any],
    step: int,
) -> None:
    folder = final.parent
    if not folder.is_dir():
        folder.mkdir(parents=True)
        flush(folder.parent)
    _clear(folder)
    aside = folder / f".{final.name}.partial"
    aside.mkdir()
    try:
        seals = {
            f"{name}.safetensors": write_sealed(aside / f"{name}.safetensors", serialise(values))
            for name, values in tensors.items()
        }
        seals |= {name: write_sealed(aside / name, [text.encode()]) for name, text in texts.items()}
        write_manifest(aside, seals, step=step, world_size=world_size(), config=config)
        flush(aside)
        try:
            verify(aside)
        except CheckpointError as error:
            raise OSError(
                errno.EIO, f"read back, the checkpoint is not what was written ({error})", str(final)
            ) from error
        if final.exists():
            final.rename(replaced(final))
        aside.rename(final)
        flush(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if replaced(final).exists() and not final.exists():
            replaced(final).rename(final)
        raise


def _let_go(folder: Path, final: Path, keep: int) -> None:
    """Remove what is older than the newest `keep`, and put aside what is of a later step; failing is no tragedy."""
    try:
        _remove(folder, final, keep)
    except OSError as error:
        logger.warning("warning: old checkpoints in %s stay (%s)", folder, error)


def _remove(folder: Path, final: Path, keep: int) -> None:
    present = checkpoints(folder)
    place = present.index(final)
    for later in present[place + 1 :]:
        target = folder / f"abandoned_{later.name}"
        shutil.rmtree(target, ignore_errors=True)
        later.rename(target)
    for old in present[: max(0, place + 1 - keep)]:
        # Half of one must not keep its name: the next start would try it.
        gone = folder / f".{proper_name(old)}.removed"
        shutil.rmtree(gone, ignore_errors=True)
        old.rename(gone)
    _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what saves left behind, but nothing that stands in for a missing checkpoint."""
    present = checkpoints(folder)
    for path in folder.glob(".step_*"):
        name, _, kind = path.name.removeprefix(".").partition(".")
        if NAME.fullmatch(name) and kind in ("partial", "replaced", "removed") and path not in present:
            shutil.rmtree(path, ignore_errors=True)


def flush(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
