"""The torch.library ops: schema, fake, autograd. The only door to the kernels.

``fastclip::contrastive`` maps two sets of features to one value per row and per column; what a loss does with those
(mean, weights, smoothing) is plain torch on O(M + N) numbers (fastclip/functional.py), differentiated by autograd.
``fastclip::contrastive_backward`` is its gradient. Tracing (torch.compile, export) sees both as single nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastclip import blockwise
from fastclip.backends import compute_dtype, get_backend, kernels_on
from fastclip.blockwise import Statistics
from fastclip.objectives import Objective, Sums

_PROBLEM = (
    "Tensor x, Tensor y, Tensor scale, Tensor? bias, Tensor? row_labels, Tensor? col_labels, "
    "str objective, bool columns, bool normalize, SymInt? diagonal"
)
_STATISTICS = (
    "Tensor row_shift, Tensor row_sum, Tensor col_shift, Tensor col_sum, Tensor positive, Tensor products"
)

torch.library.define(
    "fastclip::contrastive",
    f"({_PROBLEM}, int workspace, str backend) -> (Tensor row, Tensor col, {_STATISTICS})",
)
torch.library.define(
    "fastclip::contrastive_backward",
    f"(Tensor row_grad, Tensor col_grad, {_STATISTICS}, {_PROBLEM}, bool need_x, bool need_y, str backend) "
    "-> (Tensor dx, Tensor dy, Tensor dscale, Tensor dbias)",
)


def contrastive(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: tuple[Tensor, Tensor] | None,
    *,
    objective: Objective,
    columns: bool,
    normalize: bool,
    diagonal: int | None,
    workspace: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return the rows' values (M,) and the columns' (N,), or (0,) unless `columns`; nats, differentiable.

    Arguments are as `fastclip.backends.Problem` describes them and already validated (fastclip/validation.py).

    Args:
        workspace: bytes that may keep products for the backward pass.
        backend: a backend's name, not "auto".
    """
    row_labels, col_labels = (None, None) if labels is None else labels
    problem = (x, y, scale, bias, row_labels, col_labels, objective.value, columns, normalize, diagonal)
    return torch.ops.fastclip.contrastive(*problem, workspace, backend)[:2]


@torch.library.impl("fastclip::contrastive", "CompositeExplicitAutograd")
def _contrastive(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    row_labels: Tensor | None,
    col_labels: Tensor | None,
    objective: str,
    columns: bool,
    normalize: bool,
    diagonal: int | None,
    workspace: int,
    backend: str,
) -> tuple[Tensor, ...]:
    runner = get_backend(backend)
    with kernels_on(x):
        labels = _pair(row_labels, col_labels)
        problem = blockwise.pose(runner, x, y, scale, bias, labels, Objective(objective), normalize, diagonal)
        keep = _products_kept(x, y, workspace, backend)
        statistics = blockwise.statistics(runner, problem, x.dtype, columns=columns, keep=keep)
        row, col = blockwise.values(problem, statistics, runner)
    dtype, sums = compute_dtype(x.dtype), statistics.rows
    # Copies: the sigmoid's values are its sums, and an op's results may not share memory.
    return (
        row.to(dtype, copy=True),
        x.new_empty(0, dtype=dtype) if col is None else col.to(dtype),
        sums.shift,
        sums.sum,
        sums.sum.new_empty(0) if statistics.cols is None else statistics.cols.shift,
        sums.sum.new_empty(0) if statistics.cols is None else statistics.cols.sum,
        sums.sum.new_empty(0) if statistics.positive is None else statistics.positive,
        statistics.products,
    )


@torch.library.register_fake("fastclip::contrastive")
def _contrastive_fake(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    row_labels: Tensor | None,
    col_labels: Tensor | None,
    objective: str,
    columns: bool,
    normalize: bool,
    diagonal: int | None,
    workspace: int,
    backend: str,
) -> tuple[Tensor, ...]:
    m, n = x.shape[0], y.shape[0]
    cols = n if columns else 0
    dtype = compute_dtype(x.dtype)
    sums = get_backend(backend).sums_dtype(x.dtype)
    return (
        x.new_empty(m, dtype=dtype),
        x.new_empty(cols, dtype=dtype),
        x.new_empty(m, dtype=sums),
        x.new_empty(m, dtype=sums),
        x.new_empty(cols, dtype=sums),
        x.new_empty(cols, dtype=sums),
        x.new_empty(0 if diagonal is None else m, dtype=sums),
        x.new_empty(_products_kept(x, y, workspace, backend), dtype=dtype),
    )


@torch.library.impl("fastclip::contrastive_backward", "CompositeExplicitAutograd")
def _contrastive_backward(
    row_grad: Tensor,
    col_grad: Tensor,
    row_shift: Tensor,
    row_sum: Tensor,
    col_shift: Tensor,
    col_sum: Tensor,
    positive: Tensor,
    products: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    row_labels: Tensor | None,
    col_labels: Tensor | None,
    objective: str,
    columns: bool,
    normalize: bool,
    diagonal: int | None,
    need_x: bool,
    need_y: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    runner = get_backend(backend)
    with kernels_on(x):
        labels = _pair(row_labels, col_labels)
        problem = blockwise.pose(runner, x, y, scale, bias, labels, Objective(objective), normalize, diagonal)
        statistics = Statistics(
            rows=Sums(row_shift, row_sum),
            cols=Sums(col_shift, col_sum) if columns else None,
            positive=None if diagonal is None else positive,
            products=products,
        )
        gradients = blockwise.gradients(
            runner,
            problem,
            statistics,
            row_grad,
            col_grad if columns else None,
            x.dtype,
            need_x=need_x,
            need_y=need_y,
        )
    none = x.new_empty(0)
    return (
        none if gradients.x is None else gradients.x,
        x.new_empty(0) if gradients.y is None else gradients.y,
        gradients.scale,
        gradients.bias,
    )


@torch.library.register_fake("fastclip::contrastive_backward")
def _contrastive_backward_fake(
    row_grad: Tensor,
    col_grad: Tensor,
    row_shift: Tensor,
    row_sum: Tensor,
    col_shift: Tensor,
    col_sum: Tensor,
    positive: Tensor,
    products: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    row_labels: Tensor | None,
    col_labels: Tensor | None,
    objective: str,
    columns: bool,
    normalize: bool,
    diagonal: int | None,
    need_x: bool,
    need_y: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    return (
        x.new_empty(x.shape if need_x else 0),
        y.new_empty(y.shape if need_y else 0),
        torch.empty_like(scale),
        torch.empty_like(scale),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, y, scale, bias, row_labels, col_labels, *static, _workspace, backend = inputs
    _row, _col, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)  # a zero "gradient" of the kept products would be as large as they are
    ctx.save_for_backward(x, y, scale, bias, row_labels, col_labels, *statistics)
    ctx.static, ctx.backend = static, backend


def _differentiate(ctx, row_grad, col_grad, *_) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    x, y, scale, bias, row_labels, col_labels, *statistics = ctx.saved_tensors
    need_x, need_y, need_scale, need_bias = ctx.needs_input_grad[:4]
    row_shift, _, col_shift, *_ = statistics
    row_grad = torch.zeros_like(row_shift) if row_grad is None else row_grad
    col_grad = torch.zeros_like(col_shift) if col_grad is None else col_grad
    dx, dy, dscale, dbias = torch.ops.fastclip.contrastive_backward(
        row_grad,
        col_grad,
        *statistics,
        *(x, y, scale, bias, row_labels, col_labels),
        *ctx.static,
        need_x,
        need_y,
        ctx.backend,
    )
    return (
        dx if need_x else None,
        dy if need_y else None,
        dscale if need_scale else None,
        dbias if need_bias else None,
        *(None,) * 8,
    )


def refuse_double_backward(ctx, *_) -> None:  # type: ignore[no-untyped-def]
    """Raise: what the derivative of a backward op is."""
    raise RuntimeError(
        "fastclip's losses can be differentiated once: their backward pass is a kernel without a derivative. "
        "For second derivatives (gradient penalties, create_graph=True) compute the loss in plain torch"
    )


torch.library.register_autograd("fastclip::contrastive", _differentiate, setup_context=_setup_context)
torch.library.register_autograd("fastclip::contrastive_backward", refuse_double_backward)


def _pair(row_labels: Tensor | None, col_labels: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if row_labels is None or col_labels is None else (row_labels, col_labels)


def _products_kept(x: Tensor, y: Tensor, workspace: int, backend: str) -> int:
    """Return how many products a workspace of so many bytes keeps between the passes."""
    if not get_backend(backend).keeps_products:
        return 0
    room = workspace // compute_dtype(x.dtype).itemsize
    return torch.sym_min(x.shape[0] * y.shape[0], room)
