"""Uninitialised memory that shows: a kernel that reads what nobody wrote finds NaN there, not a lucky zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Fill what torch.empty, empty_like and new_empty return with NaN (integers: their largest value)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", _poisoning(torch.empty))
        patch.setattr(torch, "empty_like", _poisoning(torch.empty_like))
        patch.setattr(Tensor, "new_empty", _poisoning(Tensor.new_empty))
        yield


def _poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: object, **kwargs: object) -> Tensor:
        memory = allocate(*args, **kwargs)
        with torch.no_grad():
            if memory.is_floating_point():
                return memory.fill_(torch.nan)
            return memory.fill_(torch.iinfo(memory.dtype).max) if memory.dtype != torch.bool else memory

    return poisoned
