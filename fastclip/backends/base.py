"""The protocol between the blockwise driver and what computes a block of the similarity matrix.

A backend packs features once, then answers two questions about any block of rows and columns: its statistics
(forward) and its coefficients (backward). It never sees a loss, a reduction or an upstream gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastclip import objectives
from fastclip.objectives import Coefficients, Objective, Sums

#: F.normalize's lower bound for a norm: a zero vector stays zero, with a finite gradient.
EPS = 1e-12


class Block(NamedTuple):
    """Rows and columns of the similarity matrix."""

    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Return (rows, columns) of the block."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


@dataclass(frozen=True)
class Packed:
    """Features as a backend wants them: ``data`` in its own layout, ``inverse_norm`` (M,) where it normalised."""

    data: Tensor
    inverse_norm: Tensor | None

    def __len__(self) -> int:
        return self.data.shape[0]

    def __getitem__(self, rows: slice) -> Packed:
        return Packed(self.data[rows], None if self.inverse_norm is None else self.inverse_norm[rows])

    @property
    def width(self) -> int:
        """Return D, with whatever padding the backend's products have."""
        return self.data.shape[1]


@dataclass(frozen=True)
class Problem:
    """Everything that decides a logit ``z = scale * S + bias`` and its role.

    ``x`` (M rows) and ``y`` (N rows) are packed; ``scale`` and ``bias`` are 0-d tensors. The positive of row i is
    column ``i + diagonal``; None: rows have no positive. Entries with equal labels are no negatives of each other.
    ``cache`` is the backend's, for what it derives from all of this once.
    """

    x: Packed
    y: Packed
    scale: Tensor
    bias: Tensor | None
    objective: Objective
    diagonal: int | None
    row_labels: Tensor | None
    col_labels: Tensor | None
    cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


class Backend(ABC):
    """One way of computing blocks. Stateless: one instance serves every call of the process."""

    name: str
    #: Whether `statistics` can leave a block's products behind for `coefficients` (the driver's workspace).
    keeps_products: bool = False

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """Say why this backend cannot run in this installation, or None if it can."""

    @abstractmethod
    def unsupported_reason(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Say why this backend cannot take features of this device and dtype, or None if it can."""

    @abstractmethod
    def sums_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which statistics of features of `dtype` are accumulated."""

    @abstractmethod
    def block_shape(self, m: int, n: int) -> tuple[int, int]:
        """Return the (rows, columns) of a block that suit a problem of m rows and n columns."""

    def statistics_shape(self, problem: Problem) -> tuple[int, int]:
        """Return the (rows, columns) of a forward block."""
        return self.block_shape(len(problem.x), len(problem.y))

    def coefficients_shape(self, problem: Problem) -> tuple[int, int]:
        """Return the (rows, columns) of a backward block; the forward pass's where products are kept."""
        return self.block_shape(len(problem.x), len(problem.y))

    def pack(self, features: Tensor, normalize: bool) -> Packed:
        """Bring features (M, D) into the layout of `statistics` and `coefficients`, normalised if asked.

        Returned rows are contiguous, float32 (float64 for float64); ``inverse_norm = 1 / max(norm, 1e-12)``.
        """
        data = features.to(compute_dtype(features.dtype)).contiguous()
        if not normalize:
            return Packed(data, None)
        inverse_norm = torch.linalg.vector_norm(data, dim=1).clamp_min_(EPS).reciprocal_()
        return Packed(data * inverse_norm[:, None], inverse_norm)

    def pack_labels(self, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        """Bring int64 labels (M,) and (N,) into the form that kernels compare."""
        return rows.contiguous(), cols.contiguous()

    def similarities(self, x: Packed, y: Packed, block: Block, out: Tensor | None = None) -> Tensor:
        """Return a block of the unscaled similarities S themselves: for those who want more than a loss."""
        return torch.mm(x.data[block.rows], y.data[block.cols].T, out=out)

    def count_ahead(
        self, similarities: Tensor, row_bar: Tensor, col_bar: Tensor, row_count: Tensor, col_count: Tensor
    ) -> None:
        """Add to every row's and column's count (int64) the similarities that are not below its bar. NaN counts."""
        row_count += (~(similarities < row_bar[:, None])).sum(dim=1)
        col_count += (~(similarities < col_bar)).sum(dim=0)

    @abstractmethod
    def positives(self, problem: Problem, dtype: torch.dtype) -> Tensor:
        """Return the logits of the positives, (M,); only called where the rows have one."""

    @abstractmethod
    def statistics(
        self, problem: Problem, block: Block, rows: Sums, cols: Sums | None, products: Tensor | None
    ) -> None:
        """Add a block's negatives to the running statistics of its rows and columns (already cut to the block).

        ``products``: memory (rows, columns) in which to leave the block's products, or None.
        """

    def values(
        self, problem: Problem, rows: Sums, cols: Sums | None, positive: Tensor | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """Return what `blockwise.values` does, or None to leave it to that."""
        return None

    def weigh(
        self,
        problem: Problem,
        rows: Sums,
        cols: Sums | None,
        positive: Tensor | None,
        row_grad: Tensor,
        col_grad: Tensor | None,
    ) -> Coefficients:
        """Return what `coefficients` needs, from the whole statistics and the values' upstream gradients."""
        return objectives.coefficients(
            problem.objective,
            rows,
            cols,
            positive,
            row_grad.to(rows.sum.dtype),
            None if col_grad is None else col_grad.to(rows.sum.dtype),
            problem.diagonal or 0,
            len(problem.y),
        )

    def scratch(self, problem: Problem, rows: int, cols: int) -> Tensor:
        """Return memory for the products or coefficients of one block of at most (rows, cols)."""
        x = problem.x.data
        return torch.empty(rows * cols, dtype=x.dtype, device=x.device)

    def scratch_of(self, memory: Tensor, block: Block) -> Tensor:
        """Return the part of `scratch` that is a block's ``out``; its last two dimensions are rows and columns."""
        rows, cols = block.shape
        return memory[: rows * cols].view(rows, cols)

    @abstractmethod
    def coefficients(
        self, problem: Problem, block: Block, weights: Coefficients, products: Tensor | None, out: Tensor
    ) -> Any:
        """Write ``G = dL/dz`` of a block to ``out``, and return its part of (sum of G * S, sum of G) for `totals`.

        ``products``: what `statistics` left of this block, or None.
        """

    def difference(
        self,
        student: Problem,
        teacher: Problem,
        block: Block,
        weights: tuple[Coefficients, Coefficients],
        out: Tensor | None,
    ) -> Any:
        """Write ``G = P - Q`` of a block to ``out`` (None: not wanted), P the student's coefficients, Q the teacher's.

        Both of softmaxes without positives, from the same upstream gradients. Subtracted entry by entry: where student
        and teacher agree, no digits cancel later. Returns the block's part of (sum of G * S, sum of Q * z), S and z the
        student's similarities and logits, for `totals`.
        """
        like = weights[0].row_shift
        similarities = self.similarities(student.x, student.y, block)
        q = torch.empty_like(similarities)
        self.coefficients(teacher, block, weights[1], None, q)
        taught = student.scale * (q * similarities).sum(dtype=like.dtype)
        if out is None:
            return like.new_zeros(()), taught
        self.coefficients(student, block, weights[0], similarities, out)
        out -= q
        return (out * similarities).sum(dtype=like.dtype), taught

    def totals(
        self, problem: Problem, weights: Coefficients, parts: list[Any]
    ) -> tuple[Tensor | float, Tensor | float]:
        """Return (sum of G * S, sum of G), S the unscaled similarities, from all blocks' parts in order.

        Of `difference`: (sum of G * S, sum of Q * z).
        """
        return sum(gs for gs, _ in parts), sum(g for _, g in parts)

    def add_product(
        self, total: Tensor, coefficients: Tensor, packed: Packed, part: slice, fresh: bool = False
    ) -> None:
        """Add ``coefficients @ packed[part]`` to ``total`` in place: one of the two gradient products of a block.

        ``coefficients`` is a block's ``out``, or that with its last two dimensions transposed. With ``fresh`` there is
        nothing in ``total`` yet, not even zeros.
        """
        if fresh:
            torch.mm(coefficients, packed.data[part], out=total)
        else:
            total.addmm_(coefficients, packed.data[part])

    def finish(
        self,
        total: Tensor,
        packed: Packed,
        partner: Packed,
        weights: Coefficients,
        scale: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return the features' gradient from ``total = G y``: scaled and, where they were normalised, projected.

        ``packed`` are the features, ``partner`` the others (the y of ``total``), ``weights`` what made G.

        With unit rows ``u = x r`` and ``t = scale * total``: ``dx = r (t - u <u, t>)``; below the norm's clamp, where
        F.normalize divides by a constant, ``dx = r t``.
        """
        total.mul_(scale)
        if packed.inverse_norm is not None:
            radial = (packed.data * total).sum(dim=1, keepdim=True)
            radial.masked_fill_((packed.inverse_norm >= 1 / EPS)[:, None], 0)
            total.addcmul_(packed.data, radial, value=-1).mul_(packed.inverse_norm[:, None])
        return total.to(dtype)


@contextmanager
def kernels_on(x: Tensor) -> Iterator[None]:
    """Let kernels run on the device of x, which need not be the current one, in their own precision under autocast."""
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        yield


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that products are accumulated in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
