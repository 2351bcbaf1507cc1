"""What the ranks of a run tell each other about a checkpoint; without a process group there is one rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Return whether a process group has been started."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's rank; before the process group has started, what torchrun says it will be."""
    return dist.get_rank() if is_distributed() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if is_distributed() else 1


def gather(value: Any) -> list[Any]:
    """Return every rank's value, in the order of ranks. (The pickle it travels in is our own.)"""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: OSError | None) -> None:
    """Raise rank 0's error on every rank, so that none waits for a rank that has given up."""
    if is_distributed():
        shared = [None if error is None else (error.errno, error.strerror or str(error), error.filename)]
        dist.broadcast_object_list(shared, src=0)
        if error is None and shared[0] is not None:
            error = OSError(*shared[0])
    if error is not None:
        raise error


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put sharded tensors together, on rank 0's CPU; the others take part and keep nothing of them."""
    result = {}
    for name, tensor in tensors.items():
        if _is_sharded(tensor):
            full = tensor.full_tensor()  # type: ignore[attr-defined]
            if rank() == 0:
                result[name] = full.cpu()
        else:
            result[name] = tensor
    return result


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, sharded as `pattern` is, on its device."""
    tensor = tensor.to(pattern.device)
    if not _is_sharded(pattern) or tensor.shape != pattern.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = pattern.device_mesh, pattern.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def _is_sharded(tensor: Tensor) -> bool:
    if not is_distributed():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def random_states() -> dict[str, Tensor]:
    """Return this process's random states by generator."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Put random states back; a GPU's are left out where there is none."""
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
