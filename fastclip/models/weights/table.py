"""Names of the same tensors here and elsewhere: one table, read in either direction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import WeightsError


@dataclass(frozen=True)
class Entry:
    """One of our tensors and what it is called elsewhere; several names are parts along the first axis."""

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False
    shares: tuple[int, ...] | None = None  #: of the parts in the first axis, where they are not equal
    theirs_shape: tuple[int, ...] | None = None  #: where theirs only differs in axes of length 1

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Make our tensor of theirs."""
        parts = [tensors[name] for name in self.theirs]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.theirs_shape is not None:
            whole = whole.squeeze()
        return whole.T.contiguous() if self.transposed else whole

    def write(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Make their tensors of ours."""
        if self.theirs_shape is not None:
            tensor = tensor.reshape(self.theirs_shape)
        tensor = tensor.T if self.transposed else tensor
        shares = self.shares or (1,) * len(self.theirs)
        unit = len(tensor) // sum(shares) if len(shares) > 1 else 0
        parts = tensor.split([unit * share for share in shares]) if unit else (tensor,)
        for name, part in zip(self.theirs, parts, strict=True):
            yield name, part.contiguous()


def same(ours: str, theirs: str, *parameters: str) -> Iterator[Entry]:
    """Pair the parameters (by default weight and bias) of a module here and there."""
    for name in parameters or ("weight", "bias"):
        yield Entry(f"{ours}.{name}", (f"{theirs}.{name}",))


def read_table(tensors: Mapping[str, Tensor], entries: Iterable[Entry], where: str) -> dict[str, Tensor]:
    """Rename their tensors to ours.

    Raises:
        WeightsError: names are missing, or left over.
    """
    entries = list(entries)
    wanted = {name for entry in entries for name in entry.theirs}
    missing, extra = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
    problems = [
        f"{len(names)} tensors {what}: {some(names)}"
        for names, what in ((missing, "are missing"), (extra, "are not part of such a model"))
        if names
    ]
    if problems:
        raise WeightsError(f"{where} does not fit its config; {'; '.join(problems)}")
    return {entry.ours: entry.read(tensors) for entry in entries}


def write_table(tensors: Mapping[str, Tensor], entries: Iterable[Entry]) -> dict[str, Tensor]:
    """Rename our tensors to theirs."""
    return {name: part for entry in entries for name, part in entry.write(tensors[entry.ours])}


def some(items: Iterable[str], count: int = 4) -> str:
    """Return the first few items as a text."""
    items = list(items)
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")
