"""A loss over the images and texts of several ranks as a function that autograd knows.

Its forward and its backward pass are functions of their own, run by fastclip/distributed/driver.py; the second has no
derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastclip import blockwise
from fastclip.backends import compute_dtype, kernels_on
from fastclip.blockwise import Statistics
from fastclip.distributed.collectives import all_gather_columns, eager
from fastclip.distributed.driver import Spec, StripDriver, own_columns
from fastclip.distributed.exchange import exchange
from fastclip.distributed.ranks import Ranks
from fastclip.objectives import Sums
from fastclip.ops import refuse_double_backward


@eager
def contrastive(
    ranks: Ranks,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: tuple[Tensor, Tensor] | None,
    spec: Spec,
) -> tuple[Tensor, Tensor]:
    """Return the values of this rank's rows (m,) against all columns, and of its columns (n,) against all rows.

    As `fastclip.ops.contrastive`, over ranks: columns are (0,) unless asked for. Differentiable: back-propagation
    gives x and y the gradient of the sum over ranks of what each back-propagates, and scale and bias this rank's part
    of it.
    """
    row_labels, col_labels = (None, None) if labels is None else labels
    return _Strip.apply(x, y, scale, bias, row_labels, col_labels, spec, ranks)[:2]


class _Strip(torch.autograd.Function):
    """(row values, column values), and behind them nothing that needs a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        row_labels: Tensor | None,
        col_labels: Tensor | None,
        spec: Spec,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor]:
        if col_labels is not None:
            col_labels = all_gather_columns(ranks, col_labels, "all-gather of text labels")
        around = exchange(ranks)
        with kernels_on(x):
            strip = StripDriver(ranks, x, y, scale, bias, row_labels, col_labels, spec)
            statistics, products = strip.statistics(around)
            own = own_columns(ranks, statistics)
            row, col = blockwise.values(strip.outline(), own)
        ctx.set_materialize_grads(False)
        cols = statistics.cols
        ctx.save_for_backward(
            *(x, y, scale, bias, row_labels, col_labels, statistics.rows.shift, statistics.rows.sum),
            *((None, None) if cols is None else (cols.shift, cols.sum)),
            *(statistics.positive, around.kept, *products),
        )
        ctx.spec, ctx.ranks = spec, ranks
        wide = compute_dtype(x.dtype)
        return row.to(wide, copy=True), x.new_empty(0, dtype=wide) if col is None else col.to(wide)

    @staticmethod
    def backward(ctx: Any, row_grad: Tensor | None, col_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        need = tuple(ctx.needs_input_grad[:4])
        dx, dy, dscale, dbias = _StripBackward.apply(
            row_grad, col_grad, need, ctx.spec, ctx.ranks, *ctx.saved_tensors
        )
        return dx, dy, dscale, dbias, None, None, None, None


class _StripBackward(torch.autograd.Function):
    """The backward pass, as a function of its own whose derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        row_grad: Tensor | None,
        col_grad: Tensor | None,
        need: tuple[bool, bool, bool, bool],
        spec: Spec,
        ranks: Ranks,
        *saved: Any,
    ) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, row_labels, col_labels, row_shift, row_sum, *rest = saved
        col_shift, col_sum, positive, kept, *products = rest
        cols = None if col_shift is None else Sums(col_shift, col_sum)
        statistics = Statistics(Sums(row_shift, row_sum), cols, positive, x.new_empty(0))
        row_grad = torch.zeros_like(row_shift) if row_grad is None else row_grad.to(row_shift.dtype)
        if cols is not None:
            col_grad = row_shift.new_zeros(len(y)) if col_grad is None else col_grad.to(row_shift.dtype)
        with kernels_on(x):
            strip = StripDriver(ranks, x, y, scale, bias, row_labels, col_labels, spec)
            around = exchange(ranks, kept)
            gradients = strip.gradients(
                around, statistics, products, row_grad, col_grad, need_x=need[0], need_y=need[1]
            )
        return (
            None if gradients.x is None else gradients.x.to(x.dtype),
            None if gradients.y is None else gradients.y.to(y.dtype),
            gradients.scale.to(scale.dtype) if need[2] else None,
            gradients.bias.to(scale.dtype) if need[3] else None,
        )

    backward = staticmethod(refuse_double_backward)
