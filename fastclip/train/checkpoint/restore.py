"""Put a checkpoint back into a model, an optimizer and the random generators."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.train.checkpoint.manifest import CheckpointError
from fastclip.train.checkpoint.ranks import like, rank, set_random_states
from fastclip.train.checkpoint.read import Checkpoint


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the checkpoint into model, optimizer and this rank's random generators; return its state.

    A rank that the saved run did not have starts its generators from (seed, step, rank). state["counters"] are sums
    over all ranks.

    Raises:
        CheckpointError: it was made for another model; names, shapes and the first few differences are
            listed. Nothing has been changed then.
    """
    here = model.state_dict()
    _check_model(checkpoint, here)
    slots = _optimizer_slots(checkpoint, model)

    model.load_state_dict({name: like(checkpoint.model[name], tensor) for name, tensor in here.items()})
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        counts_on_device = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                slot: tensor.clone()
                if slot == "step" and not counts_on_device
                else like(tensor, parameter).clone()
                for slot, tensor in slots.get(names[parameter], {}).items()
            }
    _restore_random_states(checkpoint)
    return dict(checkpoint.state)


def _restore_random_states(checkpoint: Checkpoint) -> None:
    prefix = f"rng.rank{rank()}."
    states = {
        key.removeprefix(prefix): value
        for key, value in checkpoint.training.items()
        if key.startswith(prefix)
    }
    try:
        if states:
            set_random_states(states)
        else:
            seed = checkpoint.config.get("run", {}).get("seed", 0)
            text = f"{seed} {checkpoint.state.get('step')} {rank()}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path}: random states that torch cannot take: {error}") from error


def _optimizer_slots(checkpoint: Checkpoint, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer's tensors by parameter and slot, after checking that they belong to this model."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.training.items():
        if key.startswith("optimizer."):
            name, slot = key.removeprefix("optimizer.").rsplit(".", 1)
            slots.setdefault(name, {})[slot] = tensor
    if unknown := sorted(slots.keys() - shapes.keys()):
        raise CheckpointError(
            f"{checkpoint.path}: optimizer state for parameters that do not exist: {some(unknown)}"
        )
    wrong = [
        f"{name}.{slot}"
        for name, held in slots.items()
        for slot, tensor in held.items()
        if tensor.ndim and tensor.shape != shapes[name]
    ]
    if wrong:
        raise CheckpointError(f"{checkpoint.path}: optimizer state of another shape: {some(wrong)}")
    return slots


def _check_model(checkpoint: Checkpoint, here: dict[str, Tensor]) -> None:
    there = checkpoint.model
    problems = []
    if missing := sorted(here.keys() - there.keys()):
        problems.append(f"{len(missing)} entries of this model are not in it: {some(missing)}")
    if extra := sorted(there.keys() - here.keys()):
        problems.append(f"{len(extra)} of its entries are not in this model: {some(extra)}")
    shapes = [
        f"{key} is {tuple(there[key].shape)} there, {tuple(here[key].shape)} here"
        for key in sorted(here.keys() & there.keys())
        if here[key].shape != there[key].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} shapes differ: {some(shapes)}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} was made for another model; "
            + "; ".join(problems)
            + ". Pass the --model it was trained with."
        )


def some(items: list[str], count: int = 3) -> str:
    """Return the first few items as a text."""
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")
